"""How far reviewers agree with each other: Cohen's kappa (Cohen 1960)."""

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from cai.data.verdicts import Kind, Verdict
from cai.scoring.statistics import Estimate, share

RESAMPLES = 2000


class Agreement(NamedTuple):
    """Two reviewers on the same revisions, or on the same pairs."""

    first: str
    second: str
    kind: Kind
    same: Estimate  # the share on which they say the same
    kappa: Estimate | None  # None where each has one word for all, so that chance explains it


def agreements(verdicts: Iterable[tuple[str, Verdict]]) -> list[Agreement]:
    """Every two reviewers who have judged the same things. `verdicts`: (reviewer, verdict).

    Of revisions the words are good, bad and edit; of pairs, which answer is preferred, or neither.
    """
    words: dict[Kind, dict[str, dict[str, str]]] = {"revision": {}, "pair": {}}
    for reviewer, verdict in verdicts:
        word = verdict.choice if verdict.kind == "revision" else verdict.preferred or ""
        words[verdict.kind].setdefault(reviewer, {})[verdict.subject] = word
    results = []
    for kind, by_reviewer in words.items():
        for first, second in combinations(by_reviewer, 2):
            common = sorted(by_reviewer[first].keys() & by_reviewer[second].keys())
            if common:
                first_words = [by_reviewer[first][subject] for subject in common]
                second_words = [by_reviewer[second][subject] for subject in common]
                results.append(_agreement(first, second, kind, first_words, second_words))
    return results


def _agreement(
    first: str, second: str, kind: Kind, first_words: Sequence[str], second_words: Sequence[str]
) -> Agreement:
    words = sorted({*first_words, *second_words})
    counts = np.zeros((len(words), len(words)))
    for pair in zip(first_words, second_words, strict=True):
        counts[words.index(pair[0]), words.index(pair[1])] += 1
    same = share(float(np.trace(counts)), len(first_words))
    return Agreement(first, second, kind, same, _kappa_estimate(counts))


def kappa(counts: np.ndarray) -> np.ndarray:
    """Cohen's kappa of tables of counts, shape (..., words, words); nan where chance is 1."""
    shares = counts / counts.sum(axis=(-2, -1), keepdims=True)
    observed = np.trace(shares, axis1=-2, axis2=-1)
    chance = (shares.sum(axis=-1) * shares.sum(axis=-2)).sum(axis=-1)
    with np.errstate(invalid="ignore"):
        return np.where(chance < 1, (observed - chance) / (1 - chance), np.nan)


def _kappa_estimate(counts: np.ndarray) -> Estimate | None:
    """With a percentile bootstrap over what was judged."""
    value, number = float(kappa(counts)), int(counts.sum())
    if np.isnan(value):
        return None
    draws = np.random.default_rng(0).multinomial(number, counts.ravel() / number, RESAMPLES)
    low, high = np.nanpercentile(kappa(draws.reshape(-1, *counts.shape)), [2.5, 97.5])
    return Estimate(value, min(value, float(low)), max(value, float(high)), number)
