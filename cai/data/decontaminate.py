"""Which training texts repeat a prompt that an evaluation suite holds."""

from collections.abc import Iterable

from cai.messages import Dialogue
from cai.text import ngrams, words

GRAM = 8  # words; in scripts without spaces, as many characters as write 8 words


class HeldOut:
    """`text in held_out`: it has the same words as a held-out text, or shares a run of 8 words."""

    def __init__(self, texts: Iterable[str]):
        self._texts: set[tuple[str, ...]] = set()
        self._grams: set[tuple[str, ...]] = set()
        for text in texts:
            text_words = words(text)
            self._texts.add(tuple(text_words))
            self._grams.update(ngrams(text_words, GRAM))

    @classmethod
    def of_dialogues(cls, dialogues: Iterable[Dialogue]) -> "HeldOut":
        """Holds out every human turn."""
        return cls(m.content for dialogue in dialogues for m in dialogue if m.role == "user")

    def __contains__(self, text: str) -> bool:
        text_words = words(text)
        return tuple(text_words) in self._texts or any(
            gram in self._grams for gram in ngrams(text_words, GRAM)
        )
