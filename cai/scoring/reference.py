"""How near an answer comes to a reference answer: the same words, and ROUGE-L."""

from collections.abc import Sequence

from cai.gates import words


def exact(answer: str, reference: str) -> bool:
    """Whether both have the same words, whatever their case and punctuation; without words, the same characters."""
    found, wanted = words(answer), words(reference)
    return found == wanted if wanted else answer.strip() == reference.strip()


def rouge_l(first: str, second: str) -> float:
    """ROUGE-L (Lin 2004, section 3.1) of whole texts as F1 in [0, 1]; 0 where one of them has no words.

    Words are neither stemmed nor cut at anything but spaces and punctuation, so a script without spaces between its
    words is compared by runs.
    """
    return words_rouge_l(words(first), words(second))


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
