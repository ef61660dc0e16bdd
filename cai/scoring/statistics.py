"""Intervals. Every figure that is shown comes with one."""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Z = 1.959963984540054  # two-sided 95 %


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, and the number of answers behind it."""

    value: float
    low: float
    high: float
    count: int


def share(hits: float, count: int) -> Estimate:
    """A share with its Wilson score interval (Wilson 1927); `hits` may have parts. Raises ValueError: none to count."""
    if not 0 <= hits <= count or not count:
        raise ValueError(f"{hits} of {count} is no share")
    p, z2 = hits / count, Z * Z
    centre = (p + z2 / (2 * count)) / (1 + z2 / count)
    half = Z / (1 + z2 / count) * math.sqrt(p * (1 - p) / count + z2 / (4 * count * count))
    # at 0 and at n hits the bound is exact; rounding must not push it past the share itself
    return Estimate(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)), count)


def mean(values: Sequence[float], seed: int = 0, draws: int = 2000) -> Estimate:
    """A mean with its percentile bootstrap interval (Efron 1979). Raises ValueError where there are no values."""
    if not values:
        raise ValueError("no values, so no mean")
    rng = random.Random(seed)  # noqa: S311 - statistics, not secrecy
    means = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(draws))
    low, high = means[int(0.025 * draws)], means[int(0.975 * draws) - 1]
    return Estimate(sum(values) / len(values), low, high, len(values))


def by_prompt(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The mean of the values of each prompt id: one vote a prompt, as those of one prompt are not independent."""
    prompts: dict[str, list[float]] = {}
    for prompt, value in values:
        prompts.setdefault(prompt, []).append(value)
    return {prompt: sum(found) / len(found) for prompt, found in prompts.items()}


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Mean of first minus second, values of the same prompts in the same order; bootstrap over the prompts."""
    return mean([a - b for a, b in zip(first, second, strict=True)])


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Two-sided p-value of the exact McNemar test (1947) on the same prompts: a binomial of the discordant pairs."""
    ups = sum(a and not b for a, b in zip(first, second, strict=True))
    downs = sum(b and not a for a, b in zip(first, second, strict=True))
    count = ups + downs
    return min(1.0, 2 * sum(math.comb(count, k) for k in range(min(ups, downs) + 1)) / 2**count)
