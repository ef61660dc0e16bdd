"""A row is a coroutine: thousands of them run at once, in order, and some may fail."""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from itertools import islice
from typing import Any, TypeVar

from cai.engines.base import RequestFailed
from cai.errors import CaiError
from cai.observe import tracing
from cai.observe.log import log
from cai.observe.metrics import count

T = TypeVar("T")

RowCoroutine = Coroutine[Any, Any, T]

MAX_RUNNING = 8192  # rows at once: more than any engine batches, few enough for the memory


async def gather_rows(rows: Sequence[RowCoroutine[T]]) -> list[T]:
    """Runs all rows at once. The first failure cancels the rest and is raised."""
    tasks = [asyncio.create_task(row) for row in rows]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def stream_rows(
    rows: Iterable[RowCoroutine[T]], max_running: int = MAX_RUNNING
) -> AsyncIterator[T]:
    """Gives the rows' results in order. The first failure cancels the rest and is raised.

    Only the oldest unfinished row and the `max_running - 1` rows behind it have been started.
    """
    unstarted, tasks = iter(rows), deque[asyncio.Task[T]]()
    failure = asyncio.get_running_loop().create_future()

    def watch(task: asyncio.Task[T]) -> None:
        if not task.cancelled() and (error := task.exception()) and not failure.done():
            failure.set_exception(error)

    try:
        while True:
            for row in islice(unstarted, max_running - len(tasks)):
                tasks.append(asyncio.create_task(row))
                tasks[-1].add_done_callback(watch)
            if not tasks:
                return
            if not tasks[0].done():
                await asyncio.wait((tasks[0], failure), return_when=asyncio.FIRST_COMPLETED)
            if failure.done():
                failure.result()
            yield tasks.popleft().result()
    finally:
        # asked for, or asyncio would log an exception that nobody has seen
        failure.exception() if failure.done() else failure.cancel()
        for task in tasks:
            task.cancel()
        for row in unstarted:
            row.close()


async def gather_results(
    rows: Sequence[RowCoroutine[T]], max_failures: float
) -> list[T | RequestFailed]:
    """All results of `stream_results`."""
    return [result async for result in stream_results(rows, len(rows), max_failures)]


async def stream_results(
    rows: Iterable[RowCoroutine[T]], total: int, max_failures: float
) -> AsyncIterator[T | RequestFailed]:
    """As stream_rows, but each of the `total` rows may end in RequestFailed, which is its result.

    Raises CaiError once more than the share `max_failures` of them have.
    """
    failures: list[str] = []

    async def catch(row: RowCoroutine[T]) -> T | RequestFailed:
        try:
            with tracing.trace_row():
                return await row
        except RequestFailed as failure:
            failures.append(str(failure))
            count("failed_rows_total")
            log(f"a row is left out: {failure}", logging.WARNING)
            if len(failures) > max_failures * total:
                raise _too_many(failures, total, max_failures) from None
            return failure

    async for result in stream_rows(catch(row) for row in rows):
        yield result


def _too_many(failures: list[str], total: int, max_failures: float) -> CaiError:
    reasons = [f"  {times} x {reason}\n" for reason, times in Counter(failures).most_common(5)]
    return CaiError(
        f"{len(failures)} of {total} rows failed, and engine.max_failures={max_failures:g} allows "
        f"no more:\n{''.join(reasons)}what was answered is kept: the same command asks for the rest"
    )
