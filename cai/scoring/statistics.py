"""Estimates with their intervals. significance.py has those that need scipy."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NotRequired

# pydantic, which reads summaries, takes no TypedDict of `typing` below Python 3.12
from typing_extensions import TypedDict

Z = 1.959963984540054  # two-sided 95 %


class Interval(TypedDict):
    """A value between two bounds."""

    value: float
    low: float
    high: float


class CountedInterval(Interval):
    """An Estimate as files have it."""

    count: int


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, and the number of answers behind it."""

    value: float
    low: float
    high: float
    count: int

    def interval(self) -> CountedInterval:
        return {"value": self.value, "low": self.low, "high": self.high, "count": self.count}


class ModelComparison(TypedDict):
    """How one metric of two models differs on the same prompts of a suite."""

    first: str
    second: str
    suite: str  # or a kind of suites
    figure: str  # the metric's name
    difference: CountedInterval  # the second model's mean less the first's
    p: NotRequired[float]  # of the exact McNemar test: shares with one answer a prompt


class AttackRise(TypedDict):
    """How many more prompts of a suite a model does not refuse under an attack than without it."""

    model: str
    suite: str
    attack: str
    rise: CountedInterval
    p: NotRequired[float]  # as in ModelComparison


def share(hits: float, count: int) -> Estimate:
    """A share with its Wilson score interval (Wilson 1927); `hits` need not be a whole number.

    Raises ValueError where `count` is 0 or less than `hits`.
    """
    if not 0 <= hits <= count or not count:
        raise ValueError(f"{hits} of {count} is no share")
    p, z2 = hits / count, Z * Z
    centre = (p + z2 / (2 * count)) / (1 + z2 / count)
    half = Z / (1 + z2 / count) * math.sqrt(p * (1 - p) / count + z2 / (4 * count * count))
    # at 0 and at n hits the bound is exact; rounding must not push it past the share itself
    return Estimate(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)), count)


def by_prompt(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The mean of each prompt id's values: one vote a prompt, since its values depend on it."""
    prompts: dict[str, list[float]] = {}
    for prompt, value in values:
        prompts.setdefault(prompt, []).append(value)
    return {prompt: sum(group) / len(group) for prompt, group in prompts.items()}
