"""How many rows of which data set are trained on."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from cai.data.formats import shuffled

T = TypeVar("T")


def mix(
    sources: Mapping[str, Sequence[T]], weights: Mapping[str, float], limit: int | None, seed: int
) -> dict[str, list[T]]:
    """Rows of each source, drawn without repetition by `seed`; at most `limit` altogether.

    Without weights the sources are pooled, so each has its share by size. With them a source's share is its weight (1
    where none is given) over the sum of all; without a limit as many rows as no source has to repeat for. A source that
    runs short gives what it has, and the others do not make up for it.
    """
    if not weights:
        pool = [(name, row) for name, rows in sources.items() for row in rows]
        chosen = shuffled(pool, seed)[:limit]
        return {name: [row for own, row in chosen if own == name] for name in sources}
    shares = {name: weights.get(name, 1.0) for name in sources}
    shares = {name: share / sum(shares.values()) for name, share in shares.items()}
    total = limit
    if total is None:
        total = min(len(sources[name]) / share for name, share in shares.items() if share)
    return {name: shuffled(list(sources[name]), seed)[: round(total * share)] for name, share in shares.items()}
