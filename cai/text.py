"""What is counted in texts: words, repeated word n-grams."""

import re
from collections.abc import Sequence

BETWEEN = re.compile(r"[\W_]+")


def words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return (
        BETWEEN.sub(" ", text).replace("Σ", "σ").lower().split()
    )  # else lower() would look at a Σ's neighbours


def repeats(text: str) -> bool:
    """Whether a text goes round in circles: under half of its word 4-grams are different (20 words or more)."""
    found = words(text)
    grams = [tuple(found[i : i + 4]) for i in range(len(found) - 3)]
    return len(found) >= 20 and len(set(grams)) < len(grams) / 2


def words_rouge_l(first: Sequence[str], second: Sequence[str]) -> float:
    """The same of words. Symmetric: F1 of the longest common subsequence's shares of both is twice it over both."""
    return 2 * common(first, second) / (len(first) + len(second)) if first and second else 0.0


def common(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence, a row of the usual table at once (bit-parallel, Hyyro 2004).

    Bit i of `row` is 0 where the table rises between columns i and i + 1.
    """
    places: dict[str, int] = {}
    for index, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << index
    whole = row = (1 << len(first)) - 1
    for word in second:
        met = row & places.get(word, 0)
        row = (row + met | row - met) & whole
    return len(first) - row.bit_count()
