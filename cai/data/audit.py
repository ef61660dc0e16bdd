"""What a training set is like: duplicates, variety, scripts and lengths."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from cai.data.duplicates import dialogue_text
from cai.data.near_duplicates import NearDuplicates
from cai.digest import JsonObject
from cai.messages import Dialogue
from cai.text import ngrams, script, words

COMPARED = 10_000  # rows whose texts are compared: about a millisecond and a kilobyte each

COMMONEST = 12

TAGS = ("task", "format", "domain", "category")

FILLER = frozenset(
    """
    a an and any are as be by can could do does for from give had has have hello help here hi i if
    in into is it its let me my need of on or our please should some that the their them then there
    these they this those to up us want was we were what with will would you your
    """.split()  # noqa: SIM905 - a list of 60 strings reads worse
)


def text_metrics(rows: Sequence[tuple[Dialogue, Mapping[str, object]]]) -> JsonObject:
    """Duplicates, variety and scripts of the first COMPARED rows (dialogue, tags): shuffle them."""
    rows = rows[:COMPARED]
    texts = [dialogue_text(dialogue) for dialogue, _ in rows]
    answers = [
        m.content for dialogue, _ in rows for m in dialogue if m.role == "assistant" and m.trained
    ]
    requests = [next(m.content for m in dialogue if m.role == "user") for dialogue, _ in rows]
    openings = Counter(filter(None, map(opening, requests)))
    tag_counts = {tag: Counter(str(tags[tag]) for _, tags in rows if tag in tags) for tag in TAGS}
    return {
        "compared": len(rows),
        "exact_duplicates": len(texts) - len(set(texts)),
        "near_duplicates": count_near_duplicates(list(dict.fromkeys(texts))),
        "tags": {
            tag: dict(counts.most_common(COMMONEST)) for tag, counts in tag_counts.items() if counts
        },
        "distinct": {str(n): distinct_grams(answers, n) for n in (1, 2, 3)},
        "openings": dict(openings.most_common(COMMONEST)),
        "different_openings": len(openings),
        "scripts": dict(Counter(map(main_script, texts)).most_common()),
    }


def count_near_duplicates(texts: Iterable[str]) -> int:
    """How many texts are nearly an earlier one."""
    near = NearDuplicates()
    return sum(near.repeats(text) for text in texts)


def distinct_grams(texts: Iterable[str], n: int) -> float:
    """Different n-grams over all n-grams, in [0, 1] (distinct-n, Li et al. 2016); 0 for none."""
    grams: list[tuple[str, ...]] = []
    for text in texts:
        grams += ngrams(words(text), n)
    return round(len(set(grams)) / len(grams), 3) if grams else 0.0


def opening(text: str) -> str:
    """The first two words that are no filler, often verb and object ("write poem"); no parser."""
    return " ".join(
        [word for word in words(text[:400]) if word not in FILLER and len(word) > 1][:2]
    )


def main_script(text: str) -> str:
    """The script of most letters in the first 400 characters, e.g. latin; "none" if no letters."""
    return script(text[:400]) or "none"


def length_metrics(lengths: Sequence[int]) -> JsonObject:
    """Tokens a row before any cut: median, 95th percentile, most; rows of at most 1, 2, 4 ..."""
    if not lengths:
        return {}
    ordered = sorted(lengths)
    last = len(ordered) - 1
    bins = Counter(1 << max(0, length - 1).bit_length() for length in lengths)
    return {
        "median": ordered[min(last, len(ordered) // 2)],
        "p95": ordered[min(last, int(0.95 * len(ordered)))],
        "most": ordered[-1],
        "up_to": {str(edge): bins[edge] for edge in sorted(bins)},
    }
