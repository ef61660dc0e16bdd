"""Shares of data sets."""

from collections import Counter
from typing import Any

import pytest

from cai.data.mixture import mix

SOURCES = {"large": [f"l{n}" for n in range(300)], "small": [f"s{n}" for n in range(20)]}


def counts(
    weights: dict[str, float], limit: int | None, seed: int = 0, **more: Any
) -> dict[str, int]:
    rows, sizes = mix(SOURCES, seed, limit, weights, **more)
    assert sizes == {"large": 300, "small": 20}
    return {name: len(found) for name, found in rows.items()}


@pytest.mark.parametrize(
    ("weights", "limit", "expected"),
    [
        ({}, None, {"large": 300, "small": 20}),
        ({"small": 1.0}, 20, {"large": 10, "small": 10}),  # a set without a weight weighs 1
        ({"large": 3.0, "small": 1.0}, 20, {"large": 15, "small": 5}),
        (
            {"large": 1.0, "small": 1.0},
            None,
            {"large": 20, "small": 20},
        ),  # as many as `small` has without repeating
        (
            {"large": 1.0, "small": 1.0},
            100,
            {"large": 50, "small": 20},
        ),  # it runs short, and is not repeated
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


@pytest.mark.parametrize(
    ("temperature", "cap", "limit", "expected"),
    [
        (1.0, 60, 40, {"large": 30, "small": 10}),  # 60 to 20
        (1.0, 60, None, {"large": 60, "small": 20}),
        (1.0, 10, None, {"large": 10, "small": 10}),
        (1.0, 1000, 32, {"large": 30, "small": 2}),
        (2.0, None, 49, {"large": 39, "small": 10}),  # the root of 15 to 1
        (1000.0, None, 20, {"large": 10, "small": 10}),
        (2.0, None, None, {"large": 77, "small": 20}),  # as many as `small` has without repeating
        (2.0, 80, 30, {"large": 20, "small": 10}),  # the root of 4 to 1
    ],
)
def test_shares_by_size_are_capped_and_tempered(
    temperature: float, cap: int | None, limit: int | None, expected: dict[str, int]
):
    assert counts({}, limit, temperature=temperature, cap=cap) == expected


def test_every_row_is_as_likely_as_the_next():
    drawn = Counter(row for seed in range(400) for row in mix({"a": "abcdefgh"}, seed, 2)[0]["a"])
    assert sum(drawn.values()) == 800 and set(drawn) == set("abcdefgh") and min(drawn.values()) > 60
    assert max(drawn.values()) < 140


def test_a_source_is_read_once_and_what_is_not_drawn_is_let_go():
    class Row:
        alive = 0
        most = 0

        def __init__(self):
            Row.alive += 1
            Row.most = max(Row.most, Row.alive)

        def __del__(self):
            Row.alive -= 1

    rows, sizes = mix(
        {"a": (Row() for _ in range(5000)), "b": (Row() for _ in range(10))}, 0, limit=20
    )
    assert sizes == {"a": 5000, "b": 10} and sum(map(len, rows.values())) == 20
    assert Row.most < 40 + 3


def test_no_rows_at_all():
    assert mix({"a": []}, 0, cap=3) == ({"a": []}, {"a": 0})


def test_rows_are_those_of_the_sources_and_follow_from_the_seed():
    one, again, other = (mix(SOURCES, seed, 20, {"small": 1.0})[0] for seed in (1, 1, 2))
    assert one == again != other
    for name, rows in one.items():
        assert set(rows) <= set(SOURCES[name]) and len(set(rows)) == len(rows)
