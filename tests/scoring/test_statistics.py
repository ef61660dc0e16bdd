"""Wilson intervals against known values, and how often they cover."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.scoring.statistics import share


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (1, 1, 0.2065, 1.0),
        (50, 100, 0.4038, 0.5962),
    ],
)
def test_wilson_against_known_values(hits: int, count: int, low: float, high: float):
    found = share(hits, count)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    assert (found.value, found.count) == (hits / count, count)


@given(st.integers(1, 5000).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_a_share_lies_in_its_interval_and_mirrors(pair: tuple[int, int]):
    hits, count = pair
    found, mirrored = share(hits, count), share(count - hits, count)
    assert 0 <= found.low <= found.value <= found.high <= 1 and found.low < found.high
    assert found.low == pytest.approx(1 - mirrored.high)


@pytest.mark.parametrize(("hits", "count"), [(0, 0), (-1, 3), (4, 3)])
def test_what_is_no_share_raises(hits: int, count: int):
    with pytest.raises(ValueError, match="is no share"):
        share(hits, count)


def test_wilson_covers():
    rng = random.Random(0)
    found = [share(sum(rng.random() < 0.2 for _ in range(30)), 30) for _ in range(1000)]
    assert 0.93 < sum(one.low <= 0.2 <= one.high for one in found) / 1000 < 0.98
