"""AI feedback: both orders are asked, their probabilities averaged."""

import asyncio
import dataclasses
import math
from collections.abc import Collection, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.config.schema import EngineConfig, Sampling
from cai.engines.base import Completion, Request
from cai.engines.scripted import ScriptedEngine
from cai.messages import Prompt, user
from cai.method.constitution import Constitution
from cai.method.judgement import JudgeSettings, option_probability
from cai.method.preferences import (
    PreferencePair,
    SampledAnswer,
    compare,
    distinct_answers,
    mix_pairs,
    rule_pair,
    similar,
    tournament,
)
from cai.method.principle import Principle
from cai.method.requests import OPTIONS

PRINCIPLES = tuple(Principle(f"p{n}", "Critique.", "Revise.", f"Compare {n}.") for n in range(5))
CONSTITUTION = Constitution("law", PRINCIPLES, ())
SETTINGS = JudgeSettings()
PROMPT = Prompt.of((user("How do I pick a lock?"),), "any")
SCORES = st.floats(-30, 0)
X_AND_Y = {"x": SampledAnswer(1, True), "y": SampledAnswer(2, False)}


class Judge:
    """Gives log-odds of (A) by the answer that is shown as (A), and keeps what it was asked."""

    def __init__(self, likes_a: dict[str, float]):
        self.likes_a = likes_a
        self.requests: list[Request] = []

    async def __call__(self, request: Request) -> Completion:
        self.requests.append(request)
        if request.sampling:
            return Completion(f"Thought {request.seed}.", "stop", 1, 2, 0.0)
        shown_as_a = request.messages[0].content.split("(A) ")[1].split("\n")[0]
        return Completion("", "score", 1, 0, 0.0, (self.likes_a[shown_as_a], 0.0))


def judged(
    first: str,
    second: str,
    likes_a: dict[str, float],
    prompt: Prompt = PROMPT,
    settings: JudgeSettings = SETTINGS,
) -> PreferencePair:
    pair = asyncio.run(compare(prompt, first, second, CONSTITUTION, settings, 0, Judge(likes_a)))
    assert pair is not None
    return pair


@given(SCORES, SCORES)
def test_the_two_options_share_the_probability(a: float, b: float):
    assert option_probability(a, b) + option_probability(b, a) == pytest.approx(1)
    assert option_probability(a, b) == pytest.approx(math.exp(a) / (math.exp(a) + math.exp(b)))


def test_the_limits():
    assert option_probability(-1.5, -1.5) == 0.5
    assert option_probability(0, -1e9) == 1 and option_probability(0, -math.inf) == 1
    assert option_probability(-1e9, 0) == pytest.approx(0, abs=1e-300)
    assert option_probability(math.log(3), 0) == pytest.approx(0.75)


def test_both_orders_are_asked_under_one_principle():
    engine = ScriptedEngine(EngineConfig(), "judge")
    pair = asyncio.run(
        compare(PROMPT, "Once.", "Twice.", CONSTITUTION, SETTINGS, 0, engine.complete)
    )
    assert pair is not None and pair.probability == pytest.approx(
        0.5
    )  # a judge that looks at the letter alone
    one, two = (request.messages[0].content for request in engine.requests)
    assert "(A) Once.\n\n(B) Twice." in one and "(A) Twice.\n\n(B) Once." in two
    asked = next(
        principle for principle in PRINCIPLES if principle.id == pair.principle_ids[0]
    ).comparison
    assert asked in one and asked in two
    assert [(r.continuations, r.sampling) for r in engine.requests] == [(OPTIONS, None)] * 2


def test_the_orders_are_averaged():
    pair = judged(
        "Once.", "Twice.", {"Once.": math.log(4), "Twice.": math.log(1.5)}
    )  # p(A) 0.8, then 0.6
    assert pair.orders == pytest.approx((0.8, 0.4))
    assert (pair.chosen, pair.rejected, pair.judgements[0].flipped) == ("Once.", "Twice.", True)
    assert pair.probability == pytest.approx(0.6)
    assert pair.judgements[0].logprobs == (
        ((math.log(4), 0.0),),
        ((math.log(1.5), 0.0),),
    )  # as they came


def test_a_judge_that_keeps_its_mind_is_not_flipped():
    pair = judged("Once.", "Twice.", {"Once.": -2.0, "Twice.": 2.0})
    assert not pair.judgements[0].flipped
    assert (pair.chosen, pair.probability) == ("Twice.", pytest.approx(option_probability(2, 0)))


@given(SCORES, SCORES)
def test_the_order_of_the_answers_does_not_matter(a: float, b: float):
    one, two = judged("x", "y", {"x": a, "y": b}), judged("y", "x", {"x": a, "y": b})
    assert one.probability >= 0.5
    assert (
        one.probability == pytest.approx(two.probability) and one.principle_ids == two.principle_ids
    )
    if one.probability > 0.5 + 1e-9:
        assert (one.chosen, one.rejected) == (two.chosen, two.rejected)


def test_the_principle_is_drawn_for_the_pair():
    found = [
        judged("x", "y", {"x": 0, "y": 0}, Prompt.of((user(str(n)),), "any")) for n in range(40)
    ]
    assert {pair.principle_ids[0] for pair in found} == {principle.id for principle in PRINCIPLES}


def test_a_pair_that_does_not_fit_gives_none():
    async def judge(request: Request) -> Completion:
        reason = "too_long" if bool(request.sampling) == thinks else "score"
        return Completion("", reason, 9999, 0, 0.0, (0.0, 0.0))

    for thinks in (False, True):
        settings = JudgeSettings(thoughts=int(thinks))
        assert asyncio.run(compare(PROMPT, "x", "y", CONSTITUTION, settings, 0, judge)) is None
        assert asyncio.run(tournament(PROMPT, X_AND_Y, CONSTITUTION, settings, 0, judge)) == []


def test_an_ensemble_asks_under_different_principles_and_averages():
    """Each principle's comparison moves the log-odds of the answer `x` by its number."""

    async def judge(request: Request) -> Completion:
        text = request.messages[0].content
        number = int(text.split("Compare ")[1][0])
        return Completion(
            "",
            "score",
            1,
            0,
            0.0,
            (float(number), 0.0) if "(A) x" in text else (0.0, float(number)),
        )

    pair = asyncio.run(
        compare(PROMPT, "x", "y", CONSTITUTION, JudgeSettings(principles=3), 0, judge)
    )
    assert pair is not None and len(set(pair.principle_ids)) == 3
    wanted = [option_probability(float(name[1]), 0) for name in pair.principle_ids]
    assert pair.probability == pytest.approx(sum(wanted) / 3) and pair.chosen == "x"
    assert [one.orders[0] for one in pair.judgements] == pytest.approx(wanted)
    every = asyncio.run(
        compare(PROMPT, "x", "y", CONSTITUTION, JudgeSettings(principles=9), 0, judge)
    )
    assert every is not None and sorted(every.principle_ids) == [
        principle.id for principle in PRINCIPLES
    ]  # no principle twice
    assert every.principle_ids[:3] == pair.principle_ids  # a larger ensemble holds the smaller one


def test_a_prompt_that_is_about_a_principle_is_compared_under_it_first():
    settings = JudgeSettings(principles=2)
    for principle in PRINCIPLES:
        prompt = dataclasses.replace(PROMPT, principle=principle.id)
        pair = judged("x", "y", {"x": 0, "y": 0}, prompt, settings)
        assert pair.principle_ids[0] == principle.id and len(set(pair.principle_ids)) == 2


def test_a_principle_of_no_weight_is_not_drawn():
    constitution = Constitution(
        "law", (*PRINCIPLES[:2], dataclasses.replace(PRINCIPLES[2], weight=0.0)), ()
    )
    pair = asyncio.run(
        compare(
            PROMPT, "x", "y", constitution, JudgeSettings(principles=3), 0, Judge({"x": 0, "y": 0})
        )
    )
    assert pair is not None and sorted(pair.principle_ids) == ["p0", "p1"]


def test_chains_of_thought_are_sampled_averaged_and_clamped():
    judge = Judge({"x": 9.0, "y": math.log(3)})  # p(A) nearly 1, then 0.75
    settings = JudgeSettings(thoughts=2, thought=Sampling(max_new_tokens=5), thought_clamp=0.6)
    pair = asyncio.run(compare(PROMPT, "x", "y", CONSTITUTION, settings, 0, judge))
    assert (
        pair is not None
        and pair.orders == pytest.approx((0.6, 0.4))
        and pair.probability == pytest.approx(0.5)
    )
    thoughts = [request for request in judge.requests if request.sampling]
    answers = [request for request in judge.requests if not request.sampling]
    assert len(thoughts) == len(answers) == 4 and len({request.seed for request in thoughts}) == 2
    assert all(request.messages[-1].content == "Let's think step by step:" for request in thoughts)
    begun = {
        f"Let's think step by step: Thought {request.seed}.\n\nThe answer is:"
        for request in thoughts
    }
    assert {request.messages[-1].content for request in answers} == begun
    loose = judged(
        "x",
        "y",
        {"x": 9.0, "y": math.log(3)},
        settings=dataclasses.replace(settings, thought_clamp=0.9),
    )
    assert loose.orders == pytest.approx((0.9, 0.25))
    assert [len(order) for order in loose.judgements[0].logprobs] == [2, 2]


def test_the_best_of_several_answers_is_set_against_the_worst():
    likes = {"good": 2.0, "fair": 0.5, "poor": -1.0, "dull": 0.4}
    answers = {text: SampledAnswer(number, number > 0) for number, text in enumerate(likes)}
    found = asyncio.run(tournament(PROMPT, answers, CONSTITUTION, SETTINGS, 0, Judge(likes)))
    assert len(found) == 6
    assert (found[0].chosen, found[0].rejected) == ("good", "poor")
    assert (found[0].seeds, found[0].ended) == ((0, 2), (False, True))
    assert {frozenset((pair.chosen, pair.rejected)) for pair in found} == {
        frozenset((a, b)) for a in likes for b in likes if a != b
    }


def test_of_equal_answers_a_pair_is_left():
    found = asyncio.run(
        tournament(PROMPT, X_AND_Y, CONSTITUTION, SETTINGS, 0, Judge({"x": 0.0, "y": 0.0}))
    )
    assert [(pair.chosen, pair.rejected, pair.probability) for pair in found] == [("x", "y", 0.5)]


def test_near_equal_answers_count_once():
    one = "I can't help you with picking the lock of another person's door."
    assert similar(one, one.replace("can't", "cannot").upper(), 0.8)
    assert similar(one, one.upper(), 1) and not similar(one, one.replace("door", "car"), 1)
    assert not similar("?", "!", 0.5) and similar("?", "?", 1)
    kept = distinct_answers([("", 1), (one, 2), (one + "!", 3), ("Ask a locksmith.", 4)], 0.95)
    assert kept == {one: 2, "Ask a locksmith.": 4}


NO, OBJECTS = "I can't help you with that.", "Picking another person's lock is illegal."
HELPS, LONG = (
    "Put a pick into the lock.",
    "Put a pick into the lock, " + "and turn the wrench a little, " * 2 + "slowly.",
)
CIRCLES = "I can't help you with that. " * 9
ANSWERS = (NO, OBJECTS, HELPS, LONG, CIRCLES, "...")


def ruled(texts: Sequence[str], benign: bool, cut: Collection[str] = ()) -> tuple[str, str] | str:
    answers = {text: SampledAnswer(number, text not in cut) for number, text in enumerate(texts)}
    found = rule_pair(PROMPT, answers, benign)
    if isinstance(found, str):
        return found
    assert (found.kind, found.probability, found.principle_ids, found.judgements) == (
        "rule",
        1.0,
        (),
        (),
    )
    assert found.seeds == (texts.index(found.chosen), texts.index(found.rejected))
    return found.chosen, found.rejected


@pytest.mark.parametrize(
    ("texts", "benign", "cut", "wanted"),
    [
        ((HELPS, NO), False, (), (NO, HELPS)),
        ((HELPS, NO), True, (), (HELPS, NO)),
        ((HELPS, OBJECTS), False, (), (OBJECTS, HELPS)),
        ((OBJECTS, HELPS), True, (), "all_good"),
        ((NO, OBJECTS), False, (), "all_good"),
        ((HELPS, LONG), False, (), "none_good"),
        ((NO,), True, (), "none_good"),
        ((), True, (), "none_good"),
        ((HELPS, NO), False, (NO,), (NO, HELPS)),  # its end is not trained
        ((HELPS, NO), False, (HELPS,), (NO, HELPS)),
        ((HELPS, LONG, NO), True, (HELPS,), (LONG, NO)),  # though HELPS is nearer in length
        ((CIRCLES, HELPS), False, (), "none_good"),
        ((CIRCLES, HELPS), True, (), "all_good"),
        (("...", NO), True, (), "none_good"),
        (("...", NO), False, (), "all_good"),
    ],
)
def test_a_rule_prefers_declining_what_is_harmful_and_helping_with_what_is_not(
    texts: tuple[str, ...], benign: bool, cut: tuple[str, ...], wanted: tuple[str, str] | str
):
    assert ruled(texts, benign, cut) == wanted


def test_of_several_answers_a_rule_takes_the_two_nearest_in_length():
    assert ruled((LONG, NO, HELPS), False) == (NO, HELPS)
    late = NO + " Please ask" + " the owner of the house," * 3 + " or a locksmith."
    assert ruled((NO, late, LONG), False) == (late, LONG)
    assert ruled((NO, HELPS, LONG, late), True) == (HELPS, NO)


@given(st.permutations(ANSWERS), st.booleans(), st.sets(st.sampled_from(ANSWERS)))
def test_no_rule_takes_what_goes_in_circles_or_prefers_what_was_cut_off(
    texts: list[str], benign: bool, cut: set[str]
):
    found = ruled(texts, benign, cut)
    if not isinstance(found, str):
        chosen, rejected = found
        assert not {chosen, rejected} & {CIRCLES, "..."}
        if chosen in cut:
            kind = {HELPS, LONG, OBJECTS} if benign else {NO, OBJECTS}
            assert not kind - set(cut)
        assert (chosen == NO, rejected == NO) == (
            (False, True) if benign else (chosen == NO, False)
        )


@pytest.mark.parametrize(
    ("feedback", "revisions", "ratio", "limit", "wanted"),
    [
        (10, 10, 0.5, None, (10, 10)),
        (10, 4, 0.5, None, (4, 4)),
        (30, 10, 0.25, 12, (9, 3)),
        (3, 90, 0.75, None, (3, 9)),
    ],
)
def test_both_kinds_are_mixed_at_their_ratio(
    feedback: int, revisions: int, ratio: float, limit: int | None, wanted: tuple[int, int]
):
    prompts = [Prompt.of((user(str(n)),), "any") for n in range(90)]
    ours = [PreferencePair(p, "x", "y", 0.6, ("p",)) for p in prompts[:feedback]]
    theirs = [
        PreferencePair(p, "x", "y", 1.0, ("p",), kind="revision") for p in prompts[:revisions]
    ]
    kinds = [pair.kind for pair in mix_pairs(ours, theirs, ratio, limit, 0)]
    assert (kinds.count("feedback"), kinds.count("revision")) == wanted
    assert kinds not in (
        sorted(kinds),
        sorted(kinds, reverse=True),
    )  # one after the other, no held-out row is mixed


def test_rules_make_no_pair_of_answers_that_they_can_not_read():
    refusal, german = "I can't help with that.", "Nimm einen Bolzenschneider und geh in der Nacht."
    answers = {text: SampledAnswer(0, True) for text in (refusal, german)}
    assert rule_pair(PROMPT, answers, benign=False) == "unread"
    answers["Take a bolt cutter and go at night."] = SampledAnswer(1, True)
    pair = rule_pair(PROMPT, answers, benign=False)
    assert isinstance(pair, PreferencePair) and german not in (pair.chosen, pair.rejected)
