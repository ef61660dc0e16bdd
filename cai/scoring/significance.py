"""Bootstrap intervals, and tests of how two models differ. Imports scipy, which takes a second."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import NotRequired, TypedDict

import numpy as np
from scipy.stats import binomtest, bootstrap

from cai.scoring.answers import Scores
from cai.scoring.statistics import Estimate, share

RESAMPLES = 2000

BATCH = 100  # resamples in memory at once

MEANS = ("words", "rouge_l", "bits_per_byte")  # the other metrics are shares


class ModelComparison(TypedDict):
    """How one metric of two models differs on the same prompts of a suite."""

    first: str
    second: str
    suite: str
    figure: str  # the metric's name
    difference: dict[str, float]  # an Estimate: the second model's mean less the first's
    p: NotRequired[float]  # of the exact McNemar test: shares with one answer a prompt


def bootstrap_mean(values: Sequence[float], seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """A mean with its percentile bootstrap interval (Efron 1979). Raises ValueError if empty."""
    if not values:
        raise ValueError("no values, so no mean")
    mean = sum(values) / len(values)
    # every resample is the same
    if min(values) == max(values):
        return Estimate(mean, mean, mean, len(values))
    low, high = bootstrap(
        (values,), np.mean, n_resamples=resamples, batch=BATCH, method="percentile", rng=seed
    ).confidence_interval
    return Estimate(mean, float(low), float(high), len(values))


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """The mean of first minus second; both hold the values of the same prompts, in order."""
    return bootstrap_mean([a - b for a, b in zip(first, second, strict=True)])


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Two-sided p-value of the exact McNemar test (1947) on the same prompts."""
    pairs = list(zip(first, second, strict=True))
    only_first = sum(a and not b for a, b in pairs)
    only_second = sum(b and not a for a, b in pairs)
    discordant = only_first + only_second
    return float(binomtest(only_first, discordant).pvalue) if discordant else 1.0


def estimate_metric(metric: str, values: Sequence[float]) -> Estimate:
    """Of one value a prompt: a share with its Wilson interval, or a mean with the bootstrap's."""
    return bootstrap_mean(values) if metric in MEANS else share(sum(values), len(values))


def compare_models(scores: Mapping[str, Mapping[str, Scores]], seeds: int) -> list[ModelComparison]:
    """Every two models, suite by suite and metric by metric, on the prompts that both answered.

    `scores` is model -> suite -> metric -> prompt id -> value; `seeds` answers were sampled for
    each prompt. No correction is made for testing many metrics.
    """
    comparisons = []
    for first, second in combinations(scores, 2):
        for suite, metrics in scores[first].items():
            for metric, first_values in metrics.items():
                second_values = scores[second][suite].get(metric, {})
                ids = [prompt for prompt in first_values if prompt in second_values]
                if not ids:
                    continue
                before = [first_values[prompt] for prompt in ids]
                after = [second_values[prompt] for prompt in ids]
                comparison = ModelComparison(
                    first=first,
                    second=second,
                    suite=suite,
                    figure=metric,
                    difference=asdict(paired_difference(after, before)),
                )
                if metric not in MEANS and seeds == 1:
                    comparison["p"] = mcnemar(list(map(bool, after)), list(map(bool, before)))
                comparisons.append(comparison)
    return comparisons
