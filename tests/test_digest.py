"""Canonical JSON: the same value gives the same bytes, and what has no sure form raises."""

import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.digest import canonical, digest, file_digest, folder_files, seed_of

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@dataclass(frozen=True)
class Point:
    x: int
    tags: tuple[str, ...] = ()


def test_the_canonical_form():
    assert canonical({"b": [1, 2.5, None], "a": "é", "p": Point(3, ("t",))}) == (
        b'{"a":"\\u00e9","b":[1,2.5,null],"p":{"tags":["t"],"x":3}}'
    )


def test_a_lone_surrogate_has_a_form():
    assert canonical("\ud800") == b'"\\ud800"'


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        float("-inf"),
        {1: "a"},
        {1, 2},
        b"bytes",
        Path("a"),
        object(),
        Point,
    ],
)
def test_what_has_no_sure_form_raises(value: Any):
    with pytest.raises(TypeError):
        digest({"deep": [value]})


@given(VALUES)
def test_it_is_json_that_reads_back_as_the_value(value: Any):
    assert json.loads(canonical(value)) == value


@given(st.dictionaries(st.text(), VALUES, max_size=6), st.randoms())
def test_the_order_of_keys_does_not_matter(value: dict[str, Any], rng: Any):
    keys = list(value)
    rng.shuffle(keys)
    assert digest(OrderedDict((key, value[key]) for key in keys)) == digest(value)


@pytest.mark.parametrize(
    ("one", "other"), [(1, "1"), ([1, 2], [2, 1]), ([], {}), (None, ""), (True, 1), ("a", ["a"])]
)
def test_different_values_have_different_digests(one: Any, other: Any):
    assert digest(one) != digest(other)


def test_a_seed_is_the_same_on_every_machine():
    assert seed_of(0, "prompt", 1, "critique") == 5892096317296496270
    assert seed_of(0, "prompt", 2, "critique") != seed_of(0, "prompt", 1, "critique")


@given(VALUES)
def test_a_seed_has_63_bits(value: Any):
    assert 0 <= seed_of(value) < 2**63


def test_some_seed_uses_the_highest_bit():
    assert max(seed_of(number).bit_length() for number in range(32)) == 63


def test_files_are_digested_and_listed_in_order(tmp_path: Path):
    for name in ("b/2", "b/10", "a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"abc")
    assert [p.relative_to(tmp_path).as_posix() for p in folder_files(tmp_path)] == [
        "a",
        "b/10",
        "b/2",
    ]
    assert (
        file_digest(tmp_path / "a")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
