"""Preference pairs from AI feedback (Bai et al. 2022, section 4.1), pure: no disk, no torch."""

import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cai.constitution import Constitution
from cai.dialogue import OPTIONS, Prompt, comparison_request
from cai.digest import seed_of
from cai.engines.base import Completion, Request

Ask = Callable[[Request], Awaitable[Completion]]


@dataclass(frozen=True)
class PreferencePair:
    """`probability` in [0.5, 1]: the feedback that `chosen` is the better answer, averaged over both orders.

    `orders` holds the probability of the *first sampled* answer with it shown as (A), and with it shown as (B).
    """

    prompt: Prompt
    chosen: str
    rejected: str
    probability: float
    principle_ids: tuple[str, ...]
    orders: tuple[float, float]

    @property
    def flipped(self) -> bool:
        """Whether the preference turned with the order: position bias."""
        return (self.orders[0] > 0.5) != (self.orders[1] > 0.5)


async def compare(
    prompt: Prompt, first: str, second: str, constitution: Constitution, seed: int, judge: Ask
) -> PreferencePair | None:
    """Asks the judge in both orders under one principle drawn for the pair. None: too long for the judge's context."""
    rng = random.Random(seed_of(seed, prompt.id, "comparison"))  # noqa: S311 - a draw, not a secret
    principle = constitution.draw(rng)
    shown_a = await judge(Request(comparison_request(prompt.messages, first, second, principle), continuations=OPTIONS))
    shown_b = await judge(Request(comparison_request(prompt.messages, second, first, principle), continuations=OPTIONS))
    if "too_long" in (shown_a.finish_reason, shown_b.finish_reason):
        return None
    orders = (option_probability(*shown_a.logprobs), 1 - option_probability(*shown_b.logprobs))
    probability = sum(orders) / 2
    if probability >= 0.5:
        return PreferencePair(prompt, first, second, probability, (principle.id,), orders)
    return PreferencePair(prompt, second, first, 1 - probability, (principle.id,), orders)


def option_probability(a: float, b: float) -> float:
    """The normalised probability of the first option from two log-probabilities: 1 / (1 + exp(b - a))."""
    difference = max(-700.0, min(700.0, b - a))
    return 1 / (1 + math.exp(difference))
