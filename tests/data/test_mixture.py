"""Shares of data sets."""

import pytest

from cai.data.mixture import mix

SOURCES = {"large": [f"l{n}" for n in range(300)], "small": [f"s{n}" for n in range(20)]}


def counts(weights: dict[str, float], limit: int | None, seed: int = 0) -> dict[str, int]:
    return {name: len(rows) for name, rows in mix(SOURCES, weights, limit, seed).items()}


@pytest.mark.parametrize(
    ("weights", "limit", "expected"),
    [
        ({}, None, {"large": 300, "small": 20}),
        ({"small": 1.0}, 20, {"large": 10, "small": 10}),  # a set without a weight weighs 1
        ({"large": 3.0, "small": 1.0}, 20, {"large": 15, "small": 5}),
        ({"large": 1.0, "small": 1.0}, None, {"large": 20, "small": 20}),  # as many as `small` has without repeating
        ({"large": 1.0, "small": 1.0}, 100, {"large": 50, "small": 20}),  # it runs short, and is not repeated
        ({"small": 0.0}, 30, {"large": 30, "small": 0}),
        ({}, 0, {"large": 0, "small": 0}),
        ({"small": 1.0}, 0, {"large": 0, "small": 0}),
    ],
)
def test_shares(weights: dict[str, float], limit: int | None, expected: dict[str, int]):
    assert counts(weights, limit) == expected


def test_without_weights_each_has_its_share_by_size():
    small = [counts({}, 160, seed)["small"] for seed in range(40)]
    assert 9 < sum(small) / 40 < 11 and len(set(small)) > 1  # 160 of 320 rows: half of 20


def test_rows_are_those_of_the_sources_and_follow_from_the_seed():
    one, again, other = (mix(SOURCES, {"small": 1.0}, 20, seed) for seed in (1, 1, 2))
    assert one == again != other
    for name, rows in one.items():
        assert set(rows) <= set(SOURCES[name]) and len(set(rows)) == len(rows)
