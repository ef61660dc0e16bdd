"""How near an answer comes to a reference answer: the same words, and ROUGE-L."""

from cai.text import words, words_rouge_l


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
