"""Which rows of which data set are trained on, in one pass: the sets need not fit in memory."""

import heapq
import itertools
import random
from collections.abc import Iterable, Mapping
from typing import TypeVar

from cai.digest import seed_of

T = TypeVar("T")


Numbered = tuple[float, int, T]  # a row's number, its place in its source, and the row


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
    lowest: dict[str, list[Numbered[T]]] = {}
    sizes: dict[str, int] = {}
    for name, rows in sources.items():
        lowest[name], sizes[name] = _sample(rows, most, seed_of(seed, "mix", name))
    if weights or temperature != 1 or cap is not None:
        shares = _shares(sizes, weights, temperature, cap)
        available = {name: len(rows) for name, rows in lowest.items()}
        counts = _counts_by_share(available, shares, limit)
    else:
        counts = _counts_by_number(lowest, limit)
    return {name: [row for _, _, row in lowest[name][: counts[name]]] for name in lowest}, sizes


def _sample(rows: Iterable[T], most: int | None, seed: int) -> tuple[list[Numbered[T]], int]:
    """At most `most` rows with the lowest numbers, lowest first; and how many rows there are."""
    random_numbers = random.Random(seed)  # noqa: S311 - a sample, not a secret
    places = itertools.count()
    numbered = ((random_numbers.random(), next(places), row) for row in rows)
    lowest = sorted(numbered) if most is None else heapq.nsmallest(most, numbered)
    # nsmallest of 0 reads no row, and all are to be counted.
    for _ in numbered:
        pass
    return lowest, next(places)


def _counts_by_number(lowest: Mapping[str, list[Numbered[T]]], limit: int | None) -> dict[str, int]:
    """Rows for each source when the lowest numbers of all sources win: in proportion to sizes."""
    pool = []
    for name, rows in lowest.items():
        pool += [(number, name) for number, _, _ in rows]
    winners = [name for _, name in sorted(pool)[:limit]]
    return {name: winners.count(name) for name in lowest}


def shares_by_size(
    sizes: Mapping[str, int],
    limit: int | None = None,
    weights: Mapping[str, float] | None = None,
    temperature: float = 1.0,
    cap: int | None = None,
) -> dict[str, int]:
    """About how many rows `mix` takes of sources of these sizes."""
    counts = _counts_by_share(sizes, _shares(sizes, weights, temperature, cap), limit)
    return {name: min(count, sizes[name]) for name, count in counts.items()}


def _counts_by_share(
    sizes: Mapping[str, int], shares: Mapping[str, float], limit: int | None
) -> dict[str, int]:
    """Rows for each source by its share of `limit`, or of the most that needs no repetition."""
    whole = sum(shares.values()) or 1
    without_repeats = [sizes[name] * whole / shares[name] for name in sizes if shares[name]]
    total = min(without_repeats, default=0) if limit is None else limit
    return {name: round(total * share / whole) for name, share in shares.items()}


def _shares(
    sizes: Mapping[str, int],
    weights: Mapping[str, float] | None,
    temperature: float,
    cap: int | None,
) -> dict[str, float]:
    if weights:
        return {name: weights.get(name, 1.0) for name in sizes}
    capped = {name: size if cap is None else min(size, cap) for name, size in sizes.items()}
    return {name: size ** (1 / temperature) for name, size in capped.items()}
