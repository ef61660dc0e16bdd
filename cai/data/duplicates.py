"""Which rows say what an earlier row says, exactly or nearly."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from cai.digest import digest
from cai.messages import Dialogue, as_dicts
from cai.text import ngrams, words

if TYPE_CHECKING:
    from datasketch import MinHash

SHINGLE = 3  # words

NEAR = 0.8  # Jaccard similarity of two rows' shingles from which on one is a near duplicate


def dialogue_text(dialogue: Dialogue) -> str:
    return "\n".join(f"{message.role}: {message.content}" for message in dialogue)


class NearDuplicates:
    """`repeats(text)`: whether it is nearly an earlier one, by MinHash (Broder 1997) of its runs of
    3 words. With 128 permutations the similarity is good to about 0.04 either way. A text takes
    about a millisecond and a kilobyte."""

    def __init__(self) -> None:
        # datasketch brings scipy, and whatever reads STAGE from a stage must start at once.
        from datasketch import MinHashLSH

        self._index = MinHashLSH(threshold=NEAR, num_perm=128)
        self._count = 0

    def repeats(self, text: str) -> bool:
        """A text that does is not compared with later ones."""
        sketch = _sketch(text)
        if self._index.query(sketch):
            return True
        self._index.insert(str(self._count), sketch)
        self._count += 1
        return False


def _sketch(text: str) -> "MinHash":
    from datasketch import MinHash

    # A text of fewer than 3 words is one run.
    runs = set(ngrams(words(text), SHINGLE)) or {tuple(words(text))}
    sketch = MinHash(num_perm=128, seed=1)
    sketch.update_batch([" ".join(run).encode("utf-8", "surrogatepass") for run in runs])
    return sketch


def duplicate_finder(kind: Literal["exact", "near", "none"]) -> Callable[[Dialogue], bool]:
    """A function that says of each dialogue whether it repeats one that it was asked about before.

    Of exact duplicates only digests are in memory.
    """
    if kind == "none":
        return lambda dialogue: False
    seen: set[str] = set()

    def repeats_exactly(dialogue: Dialogue) -> bool:
        key = digest(as_dicts(dialogue))
        if key in seen:
            return True
        seen.add(key)
        return False

    if kind == "exact":
        return repeats_exactly
    near = NearDuplicates()
    return lambda dialogue: repeats_exactly(dialogue) or near.repeats(dialogue_text(dialogue))
