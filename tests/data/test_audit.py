"""What counts as a repetition of a held-out text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.data.audit import GRAM, Overlap
from cai.gates import words

HELD = ["How do I pick a lock?", "One two three four five six seven eight nine ten.", "你好吗"]


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("How do I pick a lock?", True),
        ("how do i PICK   a lock", True),
        ("How do I pick a lock? Please say.", False),  # shorter than 8 words: only as a whole
        ("How do I pick a bike lock?", False),
        ("Say: three, four, five, six, seven, eight, nine, ten!", True),  # 8 in a row
        ("three four five six seven eight nine eleven ten", False),  # 7 in a row
        ("two one three four five six seven eight nine", False),
        ("你好吗？", True),
        ("你好", False),
        ("", False),
    ],
)
def test_overlap(text: str, repeats: bool):
    assert (text in Overlap(HELD)) is repeats


def test_nothing_is_held_out_by_nothing():
    assert "anything at all, even a long text of many more than eight words" not in Overlap([])


@given(st.text())
def test_every_held_out_text_overlaps_with_itself(text: str):
    assert text in Overlap([text])
    assert text.upper().lower() in Overlap([text.upper().lower()])


@given(st.lists(st.sampled_from("abcdefghij"), max_size=GRAM - 1), st.lists(st.sampled_from("klmnop"), min_size=1))
def test_fewer_than_eight_shared_words_are_no_overlap(shared: list[str], own: list[str]):
    assert " ".join(shared + own) not in Overlap([" ".join([*shared, "xyz", *shared])])


def test_words_are_lower_case_and_bare():
    assert words("It's 3 p.m. – go!") == ["it", "s", "3", "p", "m", "go"]
