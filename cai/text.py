"""What is counted in texts: words, n-grams, repetition, scripts, ROUGE-L."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from rapidfuzz.distance import LCSseq

BETWEEN_WORDS = re.compile(r"[\W_]+")


def words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    # Σ first: lower() would write it as σ or ς, depending on its neighbours
    return BETWEEN_WORDS.sub(" ", text).replace("Σ", "σ").lower().split()


def ngrams(text_words: Sequence[str], length: int) -> list[tuple[str, ...]]:
    """Every run of `length` words, in order; the same run as often as it occurs."""
    return [tuple(text_words[i : i + length]) for i in range(len(text_words) - length + 1)]


def repeats(text: str) -> bool:
    """Whether a text of 20 words or more goes round in circles: most of its 4-grams recur."""
    text_words = words(text)
    grams = ngrams(text_words, 4)
    return len(text_words) >= 20 and len(set(grams)) < len(grams) / 2


def script(text: str) -> str:
    """The script of most of a text's letters, e.g. latin; the empty string without letters."""
    letters = (character for character in text if character.isalpha())
    names = Counter(unicodedata.name(letter, "unknown").split()[0].lower() for letter in letters)
    return names.most_common(1)[0][0] if names else ""


def words_rouge_l(first: Sequence[str], second: Sequence[str]) -> float:
    """ROUGE-L as F1: the longest common subsequence over the mean length; 0 without words."""
    if not first or not second:
        return 0.0
    return 2 * LCSseq.similarity(first, second) / (len(first) + len(second))
