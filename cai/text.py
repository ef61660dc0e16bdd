"""What is counted in texts: words, n-grams, repetition, scripts, ROUGE-L."""

import functools
import unicodedata
from collections import Counter
from collections.abc import Sequence

import regex
from rapidfuzz.distance import LCSseq

# A mark belongs to its letter: Hindi and Thai write most vowels so.
BETWEEN_WORDS = regex.compile(r"(?:[^\w\p{M}]|_)+")

# A character of a script without spaces between words, with its marks, is a word. ー has no script.
UNSPACED = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*"
)
IS_HAN = regex.compile(r"\p{Han}")
IS_THAI_OR_LAO = regex.compile(r"[\p{Thai}\p{Lao}]")

WHOLE = 6  # the length of a word in `ngrams`

KANA = ("hiragana", "katakana", "katakana-hiragana")


def words(text: str) -> list[str]:
    """Lower-case words without punctuation; in scripts without spaces, characters."""
    if not text.isascii():
        # full-width letters are the same letters
        text = UNSPACED.sub(r" \g<0> ", unicodedata.normalize("NFKC", text))
    # Σ first: lower() would write it as σ or ς, depending on its neighbours
    return BETWEEN_WORDS.sub(" ", text).replace("Σ", "σ").lower().split()


def well_formed(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair, which UTF-8 and tokenizers refuse."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def word_count(text: str) -> int:
    """Words between spaces; in scripts without spaces, characters."""
    return len((text if text.isascii() else UNSPACED.sub(r" \g<0> ", text)).split())


def ngrams(text_words: Sequence[str], length: int) -> list[tuple[str, ...]]:
    """Every run of `length` words, in order; the same run as often as it occurs.

    Of characters a run holds more, as many as write so many words: 3 of Chinese for 2 words, 2 of
    kana, Khmer or Burmese for one, 3 of Thai or Lao for one.
    """
    if all(word.isascii() for word in text_words):
        return [tuple(text_words[i : i + length]) for i in range(len(text_words) - length + 1)]
    lengths = [_sixths(word[0]) for word in text_words]
    runs, end, inside = [], 0, 0
    for start in range(len(text_words)):
        while inside < WHOLE * length and end < len(text_words):
            inside += lengths[end]
            end += 1
        if inside < WHOLE * length:
            break
        runs.append(tuple(text_words[start:end]))
        inside -= lengths[start]
    return runs


@functools.cache
def _sixths(first: str) -> int:
    """How much of a word a word is that begins with this character, in sixths."""
    if not UNSPACED.match(first):
        return WHOLE
    if IS_HAN.match(first):
        return 4
    return 2 if IS_THAI_OR_LAO.match(first) else 3


def repeats(text: str) -> bool:
    """Whether a text of 20 words or more goes round in circles: most of its 4-grams recur."""
    text_words = words(text)
    grams = ngrams(text_words, 4)
    return len(text_words) >= 20 and len(set(grams)) < len(grams) / 2


def script(text: str) -> str:
    """The script of most of a text's letters, e.g. latin; the empty string without letters.

    Kana count as cjk: a Japanese text holds both, in any proportion.
    """
    letters = (character for character in text if character.isalpha())
    names = Counter(unicodedata.name(letter, "unknown").split()[0].lower() for letter in letters)
    for name in KANA:
        names["cjk"] += names.pop(name, 0)
    name, count = names.most_common(1)[0]
    return name if count else ""


def words_rouge_l(first: Sequence[str], second: Sequence[str]) -> float:
    """ROUGE-L as F1: the longest common subsequence over the mean length; 0 without words."""
    if not first or not second:
        return 0.0
    return 2 * LCSseq.similarity(first, second) / (len(first) + len(second))
