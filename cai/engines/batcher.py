"""Gathers the jobs that wait, and hands them to an engine in batches."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from cai.engines.base import Completion

Job = TypeVar("Job")


class Batcher(Generic[Job]):
    """Gathers the jobs that wait and hands them to `run_batch`.

    `choose` gives the indices of the jobs that make the next batch. `run_batch` blocks the event
    loop: the rows can only wait, and a signal interrupts it at once.
    """

    def __init__(
        self,
        choose: Callable[[list[Job]], list[int]],
        run_batch: Callable[[list[Job]], list[Completion]],
    ):
        self._choose, self._run_batch = choose, run_batch
        self._waiting: list[tuple[Job, asyncio.Future[Completion]]] = []
        self._drainer: asyncio.Task[None] | None = None

    async def complete(self, job: Job) -> Completion:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((job, future))
        if self._drainer is None or self._drainer.done():
            self._drainer = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        """Runs batches until nothing waits."""
        while True:
            await self._until_all_wait()
            waiting = self._waiting = [pair for pair in self._waiting if not pair[1].done()]
            if not waiting:
                return
            try:
                chosen = self._choose([job for job, _ in waiting])
                completions = self._run_batch([waiting[index][0] for index in chosen])
                answers = dict(zip(chosen, completions, strict=True))
            except BaseException as error:  # also a signal: else the rows would wait for ever
                for _, future in waiting:
                    if not future.done():
                        future.set_exception(error)
                self._waiting = []
                return
            self._waiting = [pair for index, pair in enumerate(waiting) if index not in answers]
            for index, completion in answers.items():
                if not waiting[index][1].done():
                    waiting[index][1].set_result(completion)

    async def _until_all_wait(self) -> None:
        """Lets the rows run on until none of them adds another job."""
        count = -1
        while len(self._waiting) != count:
            count = len(self._waiting)
            for _ in range(5):
                await asyncio.sleep(0)
