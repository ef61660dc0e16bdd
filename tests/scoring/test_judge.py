"""Judges whose faults are known: the figures find them, and only they are called unreliable."""

import asyncio
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.engines.base import Completion, Request
from cai.messages import Prompt, user
from cai.method.judgement import Judgement, Logprobs, letter_probability
from cai.method.preferences import PreferencePair
from cai.method.requests import OPTIONS
from cai.scoring.judge import (
    TAU_RANGE,
    accuracy_metrics,
    fit_tau,
    harm_verdict,
    judge_metrics,
    judge_warnings,
)

BOTH = ((math.log(0.6), math.log(0.3)),)
LETTERS = (BOTH, BOTH)  # a judge that wants to write a letter


def pair(
    number: int,
    *orders: tuple[float, float],
    texts: tuple[str, str] = ("one two", "one"),
    letters: tuple[Logprobs, Logprobs] = LETTERS,
) -> PreferencePair:
    """As `compare` makes it of the first and the second of `texts`."""
    probability = sum(sum(both) / 2 for both in orders) / len(orders)
    chosen, rejected = texts if probability >= 0.5 else texts[::-1]
    judgements = tuple(Judgement(f"p{n}", both, letters) for n, both in enumerate(orders))
    ids = tuple(one.principle_id for one in judgements)
    prompt = Prompt.of((user(str(number)),), "any")
    return PreferencePair(
        prompt, chosen, rejected, max(probability, 1 - probability), ids, judgements
    )


def value(figures: dict[str, Any], name: str) -> float:
    return figures[name]["value"]


def test_position_bias_is_the_share_that_turns():
    figures = judge_metrics(
        [pair(0, (0.9, 0.2)), pair(1, (0.9, 0.6)), pair(2, (0.1, 0.2)), pair(3, (0.4, 0.7))]
    )
    assert value(figures, "flipped") == 0.5 and figures["flipped"]["count"] == 4
    assert judge_warnings(figures, []) == []  # a coin's share is not more often than not
    (said,) = judge_warnings(judge_metrics([pair(n, (0.9, 0.2)) for n in range(4)]), [])
    assert (
        said == "The judge goes by position: 100 % [51, 100] of its preferences turn "
        "with the answers' order."
    )


def test_a_judge_that_wants_to_write_neither_letter_is_doubted():
    """In one of the two orders A and B have 0.03 of the probability, and are as unlike as ever."""
    wordy = ((math.log(0.02), math.log(0.01)),), LETTERS[0]
    figures = judge_metrics([pair(0, (0.9, 0.8), letters=wordy), pair(1, (0.9, 0.8))])
    assert value(figures, "letters") == pytest.approx((0.03 + 3 * 0.9) / 4)
    assert (value(figures, "neither"), figures["neither"]["count"]) == (0.25, 2)
    (said,) = judge_warnings(figures, [])
    assert said.startswith("The judge often wants to write neither letter: on 25 % [")
    assert judge_warnings(judge_metrics([pair(n, (0.9, 0.8)) for n in range(9)]), []) == []
    few = [pair(n, (0.9, 0.8)) for n in range(9)] + [pair(9, (0.9, 0.8), letters=wordy)]
    assert judge_warnings(judge_metrics(few), []) == []


def test_the_letters_of_several_thoughts_are_averaged():
    both = [(math.log(0.5), math.log(0.3)), (math.log(0.2), -math.inf)]
    assert letter_probability(both) == pytest.approx((0.8 + 0.2) / 2)
    assert letter_probability([(0.001, 0.0)]) == 1


def test_length_bias_leaves_out_answers_of_one_length():
    figures = judge_metrics(
        [
            pair(0, (0.9, 0.9)),
            pair(1, (0.8, 0.9)),
            pair(2, (0.1, 0.2)),
            pair(3, (0.9, 0.9), texts=("a", "b")),
        ]
    )
    assert (value(figures, "longer"), figures["longer"]["count"]) == (pytest.approx(2 / 3), 3)
    assert "longer" not in judge_metrics([pair(3, (0.9, 0.9), texts=("a", "b"))])


def test_accuracy_by_principle_is_each_principles_own():
    """Of two principles that disagree, the pair's preference is one's; the other's is held too."""
    first, second = "one two", "one"
    pairs = [pair(n, (0.9, 0.8), (0.4, 0.3)) for n in range(8)]
    for better, right in ((first, (1, 0)), (second, (0, 1))):
        found = accuracy_metrics([(one, better) for one in pairs])["principles"]
        assert tuple(found[name]["value"] for name in ("p0", "p1")) == right
        assert found["p0"]["count"] == 8
    turned = [pair(n, (0.1, 0.2), (0.6, 0.7)) for n in range(8)]
    found = accuracy_metrics([(one, first) for one in turned])["principles"]
    assert (found["p0"]["value"], found["p1"]["value"]) == (0, 1)
    tie = accuracy_metrics([(pair(0, (0.9, 0.1)), first)])["principles"]
    assert tie["p0"]["value"] == 0.5


def test_a_principle_under_which_the_judge_is_wrong_is_named():
    right = [(pair(n, (0.9, 0.8)), "one two") for n in range(90)]
    wrong = [
        (replace(one, judgements=(replace(one.judgements[0], principle_id="odd"),)), "one")
        for one in (pair(100 + n, (0.9, 0.8)) for n in range(10))
    ]
    (said,) = judge_warnings(accuracy_metrics([*right, *wrong]), ["mine"])
    assert said.startswith("Under the principle 'odd' the judge prefers what people do not: right")
    assert "0 % [0, 28] of 10 labelled pairs (mine)" in said
    assert judge_warnings(accuracy_metrics([*right, *wrong[:3]]), ["mine"]) == []


def test_agreement_of_principles_counts_all_twos():
    figures = judge_metrics([pair(0, (0.9, 0.9), (0.8, 0.8), (0.2, 0.2)), pair(1, (0.9, 0.9))])
    assert (value(figures, "agreement"), figures["agreement"]["count"]) == (pytest.approx(1 / 3), 1)
    assert "agreement" not in judge_metrics([pair(1, (0.9, 0.9))])


def test_entropy_is_in_bits():
    assert value(judge_metrics([pair(0, (0.5, 0.5))]), "entropy") == 1
    assert value(judge_metrics([pair(0, (1.0, 1.0))]), "entropy") == 0
    assert value(judge_metrics([pair(0, (0.89, 0.89))]), "entropy") == pytest.approx(0.5, abs=1e-3)


def test_a_prompt_has_one_vote_however_many_comparisons_it_took():
    often = [pair(0, (0.9, 0.2)) for _ in range(50)]
    figures = judge_metrics([*often, pair(1, (0.9, 0.9))])
    assert (value(figures, "flipped"), figures["flipped"]["count"]) == (0.5, 2)


def labelled(right: int, wrong: int, certainty: float = 0.8) -> list[tuple[PreferencePair, str]]:
    hits = [(pair(n, (certainty, certainty)), "one two") for n in range(right)]
    return hits + [(pair(right + n, (certainty, certainty)), "one") for n in range(wrong)]


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        (80, 20, None),
        (
            55,
            45,
            "The judge is no better than chance: right on 55 % [45, 64] "
            "of the labelled pairs (mine).",
        ),
        (
            20,
            80,
            "The judge is worse than chance: right on 20 % [13, 29] of the labelled pairs (mine).",
        ),
    ],
)
def test_a_judge_is_doubted_where_its_interval_reaches_chance(
    right: int, wrong: int, said: str | None
):
    figures = accuracy_metrics(labelled(right, wrong))
    assert value(figures, "accuracy") == right / 100
    assert judge_warnings(figures, ["mine"]) == ([said] if said else [])


def test_a_judge_of_positions_alone_is_right_by_half():
    """Both orders average to a tie, up to rounding. A tie names the first answer: no accuracy."""
    figures = accuracy_metrics([(pair(n, (0.9, 0.1 + n * 1e-17)), "one two") for n in range(100)])
    assert value(figures, "accuracy") == 0.5
    assert "no better than chance" in judge_warnings(figures, ["mine"])[0]


def test_calibration_holds_certainty_against_accuracy():
    figures = accuracy_metrics(labelled(30, 10, 0.85) + labelled(5, 5, 1.0))
    assert [(one["low"], one["high"], one["right"]["value"]) for one in figures["bins"]] == [
        (0.8, 0.9, 0.75),
        (0.9, 1.0, 0.5),  # certainty itself belongs to the last
    ]
    assert math.isclose(figures["calibration_error"], (40 * 0.1 + 10 * 0.5) / 50)
    assert value(accuracy_metrics(labelled(1, 3)), "shorter") == 0.75


def test_nothing_judged_gives_no_figure():
    assert judge_metrics([]) == {} and judge_warnings({}, []) == []
    assert "accuracy" not in accuracy_metrics([])


class Judge:
    """Gives (A) the log-odds `a` against (B), plus `yes` for the option that says "Yes"."""

    def __init__(self, a: float, yes: float, room: int = 1 << 30):
        self.a, self.yes, self.room = a, yes, room

    async def complete(self, request: Request, on_text: object = None) -> Completion:
        text = request.messages[0].content
        assert request.continuations == OPTIONS and "Assistant: Dear Sir, he is ill." in text
        lift = self.yes if text.index("Yes") < text.index("No, it") else -self.yes
        reason = "too_long" if len(text) > self.room else "score"
        return Completion(
            "", reason, 9, 0, 0.0, () if reason == "too_long" else (self.a + lift, 0.0)
        )


@pytest.mark.parametrize(
    ("a", "yes", "mean"), [(3.0, 0.0, 0.5), (0.0, 2.0, 0.88), (-9.0, 0.0, 0.5), (3.0, -8.0, 0.0036)]
)
def test_harm_is_asked_in_both_orders_and_position_cancels(a: float, yes: float, mean: float):
    prompt = Prompt.of((user("Forge a note."),), "mine")
    found = asyncio.run(harm_verdict(prompt, "Dear Sir, he is ill.", Judge(a, yes).complete))
    assert found is not None and sum(found.orders) / 2 == pytest.approx(mean, abs=1e-2)
    assert found.letters == (1, 1)
    short = Judge(a, yes, 10).complete
    assert asyncio.run(harm_verdict(prompt, "Dear Sir, he is ill.", short)) is None


@given(tau=st.floats(0.5, 50), seed=st.integers(0, 5))
def test_tau_makes_the_probabilities_true(tau: float, seed: int):
    """Labels drawn with a known tau give it back."""
    sizes = [size * tau for size in (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)]
    labelled = []
    for size in sizes:
        right = round(1000 / (1 + math.exp(-size / tau)))
        labelled += [size] * right + [-size] * (1000 - right)
    assert fit_tau(labelled) == pytest.approx(tau, rel=0.02)


def test_a_contrast_that_is_mostly_wrong_is_sure_of_nothing():
    assert fit_tau([-1.0, -2.0, 0.5]) == pytest.approx(TAU_RANGE[1], rel=0.01)
