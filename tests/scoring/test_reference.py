"""Exact match and ROUGE-L against known values, and against the plain table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.scoring.reference import exact_match, rouge_l
from cai.text import words_rouge_l

TEXTS = st.lists(st.sampled_from("abcd"), max_size=80)  # longer than a machine word


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("The Rhine.", "the rhine", True),
        ("  42!\n", "42", True),
        ("The Rhine, I think.", "The Rhine.", False),
        ("", "Yes.", False),
        (" → ", "→", True),
        ("", "→", False),
        ("?", "→", False),
    ],
)
def test_exact_match_heeds_words_alone(answer: str, reference: str, same: bool):
    assert exact_match(answer, reference) == same


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [  # the first three from Lin 2004, section 3.1: against S1, "police killed the gunman"
        ("police killed the gunman", "police kill the gunman", 3 / 4),
        ("police killed the gunman", "the gunman kill police", 2 / 4),
        ("police killed the gunman", "the gunman police killed", 2 / 4),
        ("Yes.", "yes, it is", 2 * 1 / 4),
        ("Same words, same order", "same WORDS same order!", 1.0),
        ("", "something", 0.0),
        ("...", "...", 0.0),
    ],
)
def test_rouge_l_against_known_values(first: str, second: str, value: float):
    assert rouge_l(first, second) == rouge_l(second, first) == pytest.approx(value)


@given(TEXTS, TEXTS)
def test_the_common_subsequence_is_that_of_the_plain_table(first: list[str], second: list[str]):
    above = [0] * (len(first) + 1)
    for word in second:
        row = [0]
        for column, other in enumerate(first, 1):
            row.append(above[column - 1] + 1 if word == other else max(above[column], row[-1]))
        above = row
    total = max(1, len(first) + len(second))
    assert words_rouge_l(first, second) == 2 * above[-1] / total
