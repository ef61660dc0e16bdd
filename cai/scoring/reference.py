"""How near an answer comes to a reference answer: the same words, and ROUGE-L."""

from cai.text import words, words_rouge_l


def exact_match(answer: str, reference: str) -> bool:
    """Whether both have the same words, whatever their case and punctuation.

    A reference without words is compared by characters.
    """
    reference_words = words(reference)
    if not reference_words:
        return answer.strip() == reference.strip()
    return words(answer) == reference_words


def rouge_l(first: str, second: str) -> float:
    """ROUGE-L (Lin 2004, section 3.1) of whole texts as F1 in [0, 1]; 0 where one has no words.

    Words are not stemmed, and end at spaces and punctuation only: a script without spaces between
    its words is compared by characters.
    """
    return words_rouge_l(words(first), words(second))
