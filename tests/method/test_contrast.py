"""Answers are scored by how much likelier a principle makes them than its opposite."""

import asyncio
import math
from dataclasses import replace

import pytest

from cai.engines.base import Completion, Request
from cai.messages import Message, Prompt, under_system, user
from cai.method.constitution import Constitution
from cai.method.contrast import (
    ContrastPair,
    contrast,
    nearest_in_length,
    surest,
)
from cai.method.principle import Principle

PROMPT = Prompt.of((user("How do I pick a lock?"),), "any")
KIND = Principle(
    "kind", "Critique.", "Revise.", "Compare.", positive="Be kind.", negative="Be rude."
)
SAFE = replace(KIND, id="safe", positive="Be safe.", negative="Be reckless.")
PLAIN = Principle("plain", "Critique.", "Revise.", "Compare.")
LAW = Constitution("law", (KIND, PLAIN, SAFE, replace(SAFE, id="never", weight=0)), ())

# log-probability of each answer under each system message
LOGPROBS = {
    "Be kind.": {"Please don't.": -5.0, "Do it.": -9.0},
    "Be rude.": {"Please don't.": -8.0, "Do it.": -4.0},
    "Be safe.": {"Please don't.": -3.0, "Do it.": -7.0},
    "Be reckless.": {"Please don't.": -3.0, "Do it.": -6.0},
}


async def judge(request: Request) -> Completion:
    system, *others = request.messages
    assert tuple(others) == PROMPT.messages and system.role == "system"
    logprobs = tuple(LOGPROBS[system.content][text] for text in request.continuations)
    return Completion("", "score", 1, 0, 0.0, logprobs)


def pairs_of(*answers: str, principles: int = 2) -> list[ContrastPair]:
    found = asyncio.run(contrast(PROMPT, answers, LAW, principles, 0, judge))
    assert found is not None
    return found


def test_the_log_ratio_is_the_difference_of_the_answers_scores():
    """kind: (-5 + 8) - (-9 + 4) = 8 nats; safe: (-3 + 3) - (-7 + 6) = 1 nat."""
    (pair,) = pairs_of("Please don't.", "Do it.")
    assert pair.log_ratio == pytest.approx((8 + 1) / 2)
    assert sorted(pair.principle_ids) == ["kind", "safe"]  # the others have no texts, or no weight
    (swapped,) = pairs_of("Do it.", "Please don't.")
    assert swapped.log_ratio == -pair.log_ratio
    for one in (pair, swapped):
        preference = one.preference(tau=2.0)
        assert (preference.chosen, preference.rejected) == ("Please don't.", "Do it.")
        assert preference.probability == pytest.approx(1 / (1 + math.exp(-4.5 / 2)))
        assert (preference.kind, preference.log_ratio) == ("contrast", 4.5)


def test_an_answer_beyond_the_context_leaves_no_pair():
    async def full(request: Request) -> Completion:
        return Completion("", "too_long", 1, 0, 0.0)

    assert asyncio.run(contrast(PROMPT, ("a", "b"), LAW, 1, 0, full)) is None


def test_a_system_message_of_the_dialogues_own_stays():
    own = (Message("system", "You sell tea."), user("Hello."))
    assert under_system(own, "Be kind.") == (
        Message("system", "Be kind.\n\nYou sell tea."),
        user("Hello."),
    )


def pair(first: str, second: str, log_ratio: float) -> ContrastPair:
    return ContrastPair(PROMPT, first, second, log_ratio, ("kind",))


def test_of_the_surer_pairs_the_nearest_in_length_is_taken():
    long, near, unsure = (
        pair("a " * 9, "b", -9.0),
        pair("a a", "b b b", 5.0),
        pair("a a", "b b", 0.1),
    )
    assert nearest_in_length([unsure, long, near, unsure]) is near
    assert nearest_in_length([unsure]) is unsure
    assert surest([unsure, near, long], 2) == [near, long]
