"""What a training set is like, and what may not be in it: prompts that an evaluation suite holds."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cai.messages import Dialogue
from cai.text import words as words_of

SHINGLE = 3  # words

NEAR = 0.8  # Jaccard similarity of two rows' shingles from which on one is a near duplicate

PROBED = 10_000  # rows of which texts are compared: about a millisecond and a kilobyte each

COMMONEST = 12

FILLER = frozenset(
    """
    a an and any are as be by can could do does for from give had has have hello help here hi i if in into is it its let
    me my need of on or our please should some that the their them then there these they this those to up us want was we
    were what with will would you your
    """.split()  # noqa: SIM905 - a list of 60 strings reads worse
)


def text_figures(rows: Sequence[tuple[Dialogue, Mapping[str, Any]]]) -> dict[str, Any]:
    """Duplicates, variety and scripts of the first `PROBED` rows (dialogue and tags; hand them over shuffled)."""
    rows = rows[:PROBED]
    texts = ["\n".join(f"{m.role}: {m.content}" for m in dialogue) for dialogue, _ in rows]
    answers = [
        m.content for dialogue, _ in rows for m in dialogue if m.role == "assistant" and m.trained
    ]
    asked = [next(m.content for m in dialogue if m.role == "user") for dialogue, _ in rows]
    openings = Counter(filter(None, map(opening, asked)))
    return {
        "compared": len(rows),
        "exact_duplicates": len(texts) - len(set(texts)),
        "near_duplicates": near_duplicates(list(dict.fromkeys(texts))),
        "tags": {
            tag: dict(
                Counter(str(tags[tag]) for _, tags in rows if tag in tags).most_common(COMMONEST)
            )
            for tag in ("task", "format", "domain", "category")
            if any(tag in tags for _, tags in rows)
        },
        "distinct": {str(n): distinct(answers, n) for n in (1, 2, 3)},
        "openings": dict(openings.most_common(COMMONEST)),
        "different_openings": len(openings),
        "scripts": dict(Counter(map(script, texts)).most_common()),
    }


def near_duplicates(texts: Sequence[str]) -> int:
    """How many texts are nearly one before them: MinHash (Broder 1997) of their runs of three words, 128 permutations.

    The similarity is an estimate, good to about 0.04 either way.
    """
    from datasketch import MinHash, MinHashLSH

    index, found = MinHashLSH(threshold=NEAR, num_perm=128), 0
    for number, text in enumerate(texts):
        words = words_of(text)
        runs = {" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}
        sketch = MinHash(num_perm=128, seed=1)
        sketch.update_batch([run.encode("utf-8", "surrogatepass") for run in runs])
        found += bool(index.query(sketch))
        index.insert(str(number), sketch)
    return found


def distinct(texts: Iterable[str], n: int) -> float:
    """Different n-grams of words over all of them, in [0, 1] (distinct-n, Li et al. 2016); 0 where there are none."""
    grams = [
        tuple(words[i : i + n]) for words in map(words_of, texts) for i in range(len(words) - n + 1)
    ]
    return round(len(set(grams)) / len(grams), 3) if grams else 0.0


def opening(text: str) -> str:
    """The first two words that are no filler, often verb and object: "write poem". A rule of thumb, not a parser."""
    return " ".join(
        [word for word in words_of(text[:400]) if word not in FILLER and len(word) > 1][:2]
    )


def script(text: str) -> str:
    """The script of most of the first 400 characters' letters, e.g. latin; "none" where there are no letters."""
    names = Counter(
        unicodedata.name(c, "unknown").split()[0].lower() for c in text[:400] if c.isalpha()
    )
    return names.most_common(1)[0][0] if names else "none"


def length_figures(lengths: Sequence[int]) -> dict[str, Any]:
    """Tokens a row, before any cut: median, 95th percentile and most, and how many rows have at most 2, 4, 8, ..."""
    if not lengths:
        return {}
    ordered = sorted(lengths)
    bins = Counter(1 << max(0, length - 1).bit_length() for length in lengths)
    place = {"median": 0.5, "p95": 0.95, "most": 1.0}
    figures = {
        name: ordered[min(len(ordered) - 1, int(share * len(ordered)))]
        for name, share in place.items()
    }
    return figures | {"up_to": {str(edge): bins[edge] for edge in sorted(bins)}}
