"""How many rows of which data set are trained on, in one pass over rows that need not fit into memory."""

import heapq
import random
from collections.abc import Iterable, Mapping
from typing import TypeVar

from cai.digest import seed_of

T = TypeVar("T")


def mix(
    sources: Mapping[str, Iterable[T]],
    seed: int,
    limit: int | None = None,
    weights: Mapping[str, float] | None = None,
    temperature: float = 1.0,
    cap: int | None = None,
) -> tuple[dict[str, list[T]], dict[str, int]]:
    """Rows of each source, drawn without repetition by `seed`, at most `limit` altogether; and each source's size.

    With `weights` a source's share is its weight (1 where none is given) over the sum of all. Without, shares follow
    the sizes: in proportion, with sizes above `cap` counted as `cap`, raised to 1/`temperature` (Raffel et al. 2020,
    section 3.5.2; FLAN caps likewise), so that a high temperature evens them out. Without a limit as many rows are
    drawn as no source has to repeat for. A source that runs short gives what it has; the others do not make up for it.

    Each row draws a number and the lowest numbers win (bottom-k sampling), so no more than `limit` rows of a source,
    or `cap` if that is less, are ever in memory, and a source is read once without knowing its size.
    """
    most = min((bound for bound in (limit, cap) if bound is not None), default=None)
    drawn = {
        name: _lowest(rows, most, seed_of(seed, "mix", name)) for name, rows in sources.items()
    }
    sizes = {name: size for name, (_, size) in drawn.items()}
    if not weights and temperature == 1 and cap is None:
        pool = sorted(
            (number, name, place) for name, (rows, _) in drawn.items() for number, place, _ in rows
        )[:limit]
        counts = {name: sum(own == name for _, own, _ in pool) for name in sources}
    else:
        shares = {
            name: _share(name, size, weights, temperature, cap) for name, size in sizes.items()
        }
        whole = sum(shares.values()) or 1
        total = limit
        if total is None:
            total = min(
                (len(drawn[name][0]) * whole / share for name, share in shares.items() if share),
                default=0,
            )
        counts = {name: round(total * share / whole) for name, share in shares.items()}
    return {
        name: [row for _, _, row in rows[: counts[name]]] for name, (rows, _) in drawn.items()
    }, sizes


def _share(
    name: str, size: int, weights: Mapping[str, float] | None, temperature: float, cap: int | None
) -> float:
    if weights:
        return weights.get(name, 1.0)
    return (size if cap is None else min(size, cap)) ** (1 / temperature)


def _lowest(
    rows: Iterable[T], most: int | None, seed: int
) -> tuple[list[tuple[float, int, T]], int]:
    """(number, place, row) of the `most` rows with the lowest numbers, lowest first; and how many rows there are."""
    numbers = random.Random(seed)  # noqa: S311 - a sample, not a secret
    kept: list[
        tuple[float, int, T]
    ] = []  # a heap with the highest number on top, so all is negative in it
    size = 0
    for row in rows:
        size += 1
        entry = (-numbers.random(), -size, row)
        if most is None or len(kept) < most:
            heapq.heappush(kept, entry)
        elif kept and entry > kept[0]:
            heapq.heapreplace(kept, entry)
    return [
        (-number, -place, row)
        for number, place, row in sorted(kept, reverse=True, key=lambda e: e[:2])
    ], size
