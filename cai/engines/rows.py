"""A row is a coroutine: thousands of them run at once, in order, and some may fail."""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from itertools import islice
from typing import Any

from cai.engines.base import RequestFailed, T
from cai.errors import CaiError
from cai.observe import tracing
from cai.observe.log import log
from cai.observe.metrics import count

AT_ONCE = 8192  # rows under way: more than any engine batches, and few enough for the memory


async def gather_rows(rows: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Runs all row coroutines at once; the first failure cancels the rest and is raised."""
    tasks = [asyncio.create_task(row) for row in rows]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def in_order(
    rows: Iterable[Coroutine[Any, Any, T]], at_once: int = AT_ONCE
) -> AsyncIterator[T]:
    """Runs row coroutines, at most `at_once` from the oldest that is under way, and gives their results in order; the
    first failure cancels the rest and is raised."""
    waiting, tasks = iter(rows), deque[asyncio.Task[T]]()
    failed = asyncio.get_running_loop().create_future()

    def watch(task: asyncio.Task[T]) -> None:
        if not task.cancelled() and (error := task.exception()) and not failed.done():
            failed.set_exception(error)

    try:
        while True:
            for row in islice(waiting, at_once - len(tasks)):
                tasks.append(asyncio.create_task(row))
                tasks[-1].add_done_callback(watch)
            if not tasks:
                return
            if not tasks[0].done():
                await asyncio.wait((tasks[0], failed), return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                failed.result()
            yield tasks.popleft().result()
    finally:
        failed.exception() if failed.done() else failed.cancel()
        for task in tasks:
            task.cancel()
        for row in waiting:
            row.close()


async def gather_failing(
    rows: Sequence[Coroutine[Any, Any, T]], max_failures: float
) -> list[T | RequestFailed]:
    """All results of `failing`."""
    return [result async for result in failing(rows, len(rows), max_failures)]


async def failing(
    rows: Iterable[Coroutine[Any, Any, T]], total: int, max_failures: float
) -> AsyncIterator[T | RequestFailed]:
    """As in_order, of `total` rows, each of which may end in its RequestFailed. Raises CaiError once more than a share
    of them have."""
    failures: list[str] = []

    async def kept(row: Coroutine[Any, Any, T]) -> T | RequestFailed:
        try:
            with tracing.trace_row():
                return await row
        except RequestFailed as failure:
            failures.append(str(failure))
            count("failed_rows_total")
            log(f"a row is left out: {failure}", logging.WARNING)
            if len(failures) > max_failures * total:
                reasons = "\n".join(
                    f"  {times} x {reason}" for reason, times in Counter(failures).most_common(5)
                )
                raise CaiError(
                    f"{len(failures)} of {total} rows failed, and engine.max_failures={max_failures:g} allows no "
                    f"more:\n{reasons}\nwhat was answered is kept: the same command asks for the rest"
                ) from None
            return failure

    async for result in in_order(kept(row) for row in rows):
        yield result
