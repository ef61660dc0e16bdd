"""Bootstrap intervals, and tests of how two models differ. Imports scipy, which takes a second."""

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise

import numpy as np
from scipy.stats import binomtest, bootstrap

from cai.scoring.answers import Scores
from cai.scoring.statistics import AttackRise, Estimate, ModelComparison, share

RESAMPLES = 2000

BATCH = 100  # resamples in memory at once

MEANS = ("words", "rouge_l", "bits_per_byte")  # the other metrics are shares


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
            for metric in metrics:
                pair = {name: scores[name][suite].get(metric, {}) for name in (first, second)}
                comparisons += _compare(pair, suite, metric, seeds)
    return comparisons


def refusal_changes(
    scores: Mapping[str, Mapping[str, Scores]],
    kinds: Mapping[str, str],
    models: Sequence[str],
    seeds: int,
) -> list[ModelComparison]:
    """How refusals changed, for each kind of suites (`suite` is the kind), over all its prompts.

    `models` are in the order of training: each is compared with the one before, and the last, where
    there are more than two, with the first. `kinds` is suite -> kind; `scores` as above.
    """
    changes = []
    for kind in dict.fromkeys(kinds.values()):
        refusals = {
            model: {
                f"{suite} {prompt}": value
                for suite, suite_kind in kinds.items()
                if suite_kind == kind
                for prompt, value in scores[model].get(suite, {}).get("refusal", {}).items()
            }
            for model in models
        }
        changes += stage_changes(refusals, models, kind, "refusal", seeds)
    return changes


def stage_changes(
    values: Mapping[str, Mapping[str, float]],
    models: Sequence[str],
    suite: str,
    metric: str,
    seeds: int,
) -> list[ModelComparison]:
    """How one metric changed: each of `models` against the one before, and the last, where there
    are more than two, against the first.

    `values` is model -> prompt -> value.
    """
    steps = list(pairwise(models))
    if len(steps) > 1:
        steps.append((models[0], models[-1]))
    changes = []
    for step in steps:
        changes += _compare({name: values[name] for name in step}, suite, metric, seeds)
    return changes


def attack_rises(
    scores: Mapping[str, Mapping[str, Scores]], attacks: Mapping[str, tuple[str, str]], seeds: int
) -> list[AttackRise]:
    """How many more prompts each model does not refuse under each attack than without it.

    `attacks` is a suite under attack -> (the plain suite, the attack); `scores` as above. `rise` is
    the paired difference, with `p` as in ModelComparison.
    """
    rises: list[AttackRise] = []
    for model, suites in scores.items():
        for title, (suite, attack) in attacks.items():
            answered = {
                name: {
                    prompt: 1 - value for prompt, value in suites[name].get("refusal", {}).items()
                }
                for name in (suite, title)
            }
            for test in _compare(answered, suite, "refusal", seeds):
                rise = AttackRise(model=model, suite=suite, attack=attack, rise=test["difference"])
                if "p" in test:
                    rise["p"] = test["p"]
                rises.append(rise)
    return rises


def _compare(
    values: Mapping[str, Mapping[str, float]], suite: str, metric: str, seeds: int
) -> list[ModelComparison]:
    """The comparison of two models, in order, on the prompts that both have values of, if any."""
    (first, first_values), (second, second_values) = values.items()
    ids = [prompt for prompt in first_values if prompt in second_values]
    if not ids:
        return []
    before = [first_values[prompt] for prompt in ids]
    after = [second_values[prompt] for prompt in ids]
    comparison = ModelComparison(
        first=first,
        second=second,
        suite=suite,
        figure=metric,
        difference=paired_difference(after, before).interval(),
    )
    if metric not in MEANS and seeds == 1:
        comparison["p"] = mcnemar(list(map(bool, after)), list(map(bool, before)))
    return [comparison]
