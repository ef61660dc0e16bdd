"""Which texts are nearly an earlier one. Imports datasketch, and scipy with it."""

from datasketch import MinHash, MinHashLSH

from cai.text import ngrams, words

SHINGLE = 3  # words

NEAR = 0.8  # Jaccard similarity of two rows' shingles from which on one is a near duplicate


class NearDuplicates:
    """`repeats(text)`: whether it is nearly an earlier one, by MinHash (Broder 1997) of its runs of
    3 words. With 128 permutations the similarity is good to about 0.04 either way. A text takes
    about a millisecond and a kilobyte."""

    def __init__(self) -> None:
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


def _sketch(text: str) -> MinHash:
    # A text of fewer than 3 words is one run.
    runs = set(ngrams(words(text), SHINGLE)) or {tuple(words(text))}
    sketch = MinHash(num_perm=128, seed=1)
    sketch.update_batch([" ".join(run).encode("utf-8", "surrogatepass") for run in runs])
    return sketch
