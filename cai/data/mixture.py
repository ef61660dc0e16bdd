"""Which rows of which data set are trained on, in one pass: the sets need not fit in memory."""

import heapq
import itertools
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from cai.digest import seed_of

T = TypeVar("T")


@dataclass(frozen=True)
class _Sample(Generic[T]):
    """The rows of a source with the lowest numbers, lowest first: (number, place, row)."""

    rows: list[tuple[float, int, T]]
    size: int  # of the source


def mix(
    sources: Mapping[str, Iterable[T]],
    seed: int,
    limit: int | None = None,
    weights: Mapping[str, float] | None = None,
    temperature: float = 1.0,
    cap: int | None = None,
) -> tuple[dict[str, list[T]], dict[str, int]]:
    """Rows of each source, without repetition, at most `limit` altogether; and each source's size.

    With `weights` a source's share is its weight (default 1) over the sum of all. Without, shares
    follow the sizes: sizes above `cap` count as `cap`, and are raised to 1/`temperature`, so that
    a high temperature evens them out (Raffel et al. 2020, section 3.5.2; FLAN caps likewise).
    Without a limit, as many rows are taken as no source has to repeat for. A source that runs
    short gives what it has; the others do not make up for it.

    Each row gets a number by `seed`, and the lowest numbers win (bottom-k sampling). So a source
    is read once without knowing its size, and at most `limit` or `cap` of its rows are in memory.
    """
    most = min((bound for bound in (limit, cap) if bound is not None), default=None)
    samples = {
        name: _sample(rows, most, seed_of(seed, "mix", name)) for name, rows in sources.items()
    }
    sizes = {name: sample.size for name, sample in samples.items()}
    if weights or temperature != 1 or cap is not None:
        shares = {
            name: _share(name, size, weights, temperature, cap) for name, size in sizes.items()
        }
        counts = _counts_by_share(samples, shares, limit)
    else:
        counts = _counts_by_number(samples, limit)
    rows = {
        name: [row for _, _, row in sample.rows[: counts[name]]] for name, sample in samples.items()
    }
    return rows, sizes


def _sample(rows: Iterable[T], most: int | None, seed: int) -> _Sample[T]:
    """At most `most` rows."""
    random_numbers = random.Random(seed)  # noqa: S311 - a sample, not a secret
    places = itertools.count()
    numbered = ((random_numbers.random(), next(places), row) for row in rows)
    lowest = sorted(numbered) if most is None else heapq.nsmallest(most, numbered)
    # To count the rows: nsmallest of 0 reads none.
    for _ in numbered:
        pass
    return _Sample(lowest, size=next(places))


def _counts_by_number(samples: Mapping[str, _Sample[T]], limit: int | None) -> dict[str, int]:
    """Rows for each source when the lowest numbers of all sources win: in proportion to sizes."""
    pool = []
    for name, sample in samples.items():
        pool += [(number, name) for number, _, _ in sample.rows]
    winners = [name for _, name in sorted(pool)[:limit]]
    return {name: winners.count(name) for name in samples}


def _counts_by_share(
    samples: Mapping[str, _Sample[T]], shares: Mapping[str, float], limit: int | None
) -> dict[str, int]:
    """Rows for each source by its share of `limit`, or of the most that needs no repetition."""
    whole = sum(shares.values()) or 1
    total: float | None = limit
    if total is None:
        total = min(
            (len(samples[name].rows) * whole / share for name, share in shares.items() if share),
            default=0,
        )
    return {name: round(total * share / whole) for name, share in shares.items()}


def _share(
    name: str, size: int, weights: Mapping[str, float] | None, temperature: float, cap: int | None
) -> float:
    if weights:
        return weights.get(name, 1.0)
    return (size if cap is None else min(size, cap)) ** (1 / temperature)
