"""Which training texts repeat a prompt that an evaluation suite holds."""

from collections.abc import Iterable

from cai.messages import Dialogue
from cai.text import words as words_of

GRAM = 8  # words


class Overlap:
    """Tells whether a text repeats a held-out one: the same words, or a run of 8 words from it."""

    def __init__(self, held_out: Iterable[str]):
        self._whole: set[tuple[str, ...]] = set()
        self._grams: set[tuple[str, ...]] = set()
        for text in held_out:
            words = words_of(text)
            self._whole.add(tuple(words))
            self._grams.update(tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1))

    @classmethod
    def of(cls, dialogues: Iterable[Dialogue]) -> "Overlap":
        """With every human turn of them."""
        return cls(m.content for dialogue in dialogues for m in dialogue if m.role == "user")

    def __contains__(self, text: str) -> bool:
        words = words_of(text)
        grams = (tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1))
        return tuple(words) in self._whole or any(gram in self._grams for gram in grams)
