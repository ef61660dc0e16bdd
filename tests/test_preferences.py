"""AI feedback: both orders are asked, their probabilities averaged."""

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.config import EngineConfig
from cai.constitution import Constitution, Principle
from cai.dialogue import OPTIONS, Prompt, user
from cai.engines.base import Completion, Request
from cai.engines.scripted import ScriptedEngine
from cai.preferences import PreferencePair, compare, option_probability

RULES = tuple(Principle(f"p{n}", "Critique.", "Revise.", f"Compare {n}.") for n in range(5))
LAW = Constitution("law", RULES, ())
PROMPT = Prompt.of((user("How do I pick a lock?"),), "any")
SCORES = st.floats(-30, 0)


def judged(first: str, second: str, likes_a: dict[str, float], prompt: Prompt = PROMPT) -> PreferencePair | None:
    """`likes_a`: log-odds of (A) by the answer that is shown as (A)."""

    async def judge(request: Request) -> Completion:
        shown_as_a = request.messages[0].content.split("(A) ")[1].split("\n")[0]
        return Completion("", "score", 1, 0, 0.0, (likes_a[shown_as_a], 0.0))

    return asyncio.run(compare(prompt, first, second, LAW, 0, judge))


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
    pair = asyncio.run(compare(PROMPT, "Once.", "Twice.", LAW, 0, engine.complete))
    assert pair is not None and pair.probability == pytest.approx(0.5)  # a judge that looks at the letter alone
    one, two = (request.messages[0].content for request in engine.requests)
    assert "(A) Once.\n\n(B) Twice." in one and "(A) Twice.\n\n(B) Once." in two
    asked = next(rule for rule in RULES if rule.id == pair.principle_ids[0]).comparison
    assert asked in one and asked in two
    assert [(r.continuations, r.sampling) for r in engine.requests] == [(OPTIONS, None)] * 2


def test_the_orders_are_averaged():
    pair = judged("Once.", "Twice.", {"Once.": math.log(4), "Twice.": math.log(1.5)})  # p(A) 0.8, then 0.6
    assert pair is not None and pair.orders == pytest.approx((0.8, 0.4))
    assert (pair.chosen, pair.rejected, pair.flipped) == ("Once.", "Twice.", True)
    assert pair.probability == pytest.approx(0.6)


def test_a_judge_that_keeps_its_mind_is_not_flipped():
    pair = judged("Once.", "Twice.", {"Once.": -2.0, "Twice.": 2.0})
    assert pair is not None and not pair.flipped
    assert (pair.chosen, pair.probability) == ("Twice.", pytest.approx(option_probability(2, 0)))


@given(SCORES, SCORES)
def test_the_order_of_the_answers_does_not_matter(a: float, b: float):
    one, two = judged("x", "y", {"x": a, "y": b}), judged("y", "x", {"x": a, "y": b})
    assert one is not None and two is not None and one.probability >= 0.5
    assert one.probability == pytest.approx(two.probability) and one.principle_ids == two.principle_ids
    if one.probability > 0.5 + 1e-9:
        assert (one.chosen, one.rejected) == (two.chosen, two.rejected)


def test_the_principle_is_drawn_for_the_pair():
    found = {judged("x", "y", {"x": 0, "y": 0}, Prompt.of((user(str(n)),), "any")) for n in range(40)}
    assert {pair.principle_ids[0] for pair in found if pair} == {rule.id for rule in RULES}


def test_a_pair_that_does_not_fit_gives_none():
    async def judge(request: Request) -> Completion:
        return Completion("", "too_long", 9999, 0, 0.0)

    assert asyncio.run(compare(PROMPT, "x", "y", LAW, 0, judge)) is None
