"""Bootstrap intervals and the McNemar test against known values."""

import random

import pytest

from cai.scoring.significance import bootstrap_mean, mcnemar, paired_difference
from cai.scoring.statistics import Estimate


def test_the_bootstrap_covers():
    rng = random.Random(0)
    found = [
        bootstrap_mean([rng.gauss(5, 2) for _ in range(40)], seed=n, resamples=200)
        for n in range(300)
    ]
    assert 0.90 < sum(one.low <= 5 <= one.high for one in found) / 300 < 0.98


def test_the_bootstrap_is_as_wide_as_theory_says():
    found = bootstrap_mean([0.0, 1.0] * 200)
    assert found.value == 0.5 and found.count == 400
    assert (found.low, found.high) == (
        pytest.approx(0.451, abs=0.01),
        pytest.approx(0.549, abs=0.01),
    )  # 1.96 * 0.5 / 20


def test_the_bootstrap_is_seeded():
    values = [n**1.5 for n in range(50)]
    assert bootstrap_mean(values) == bootstrap_mean(values) != bootstrap_mean(values, seed=1)
    assert bootstrap_mean([3.0]) == Estimate(3.0, 3.0, 3.0, 1)
    with pytest.raises(ValueError, match="no mean"):
        bootstrap_mean([])


def test_mcnemar_is_the_binomial_of_what_differs():
    """One of seven heads: 2 * (1 + 7) / 2**7."""
    first, second = [True] * 6 + [False] + [True] * 9, [False] * 6 + [True] + [True] * 9
    assert mcnemar(first, second) == mcnemar(second, first) == pytest.approx(0.125)
    assert mcnemar([True, False], [True, False]) == 1


def test_a_paired_difference_does_not_see_what_both_share():
    first, second = [1.0, 50.0, 900.0], [0.0, 49.0, 899.0]
    found = paired_difference(first, second)
    assert (found.low, found.value, found.high, found.count) == (1, 1, 1, 3)
