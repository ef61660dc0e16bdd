"""Gathers the requests that wait, and hands them to an engine in batches."""

import asyncio
from collections.abc import Callable

from cai.engines.base import Completion, Request


class Batcher:
    """Gathers the requests that wait and hands them to `run_batch`, in batches that `choose` picks.

    `run_batch` blocks: the rows have nothing to do but wait, and a signal then interrupts it at once.
    """

    def __init__(
        self,
        choose: Callable[[list[Request]], list[int]],
        run_batch: Callable[[list[Request]], list[Completion]],
    ):
        self._choose, self._run_batch = choose, run_batch
        self._waiting: list[tuple[Request, asyncio.Future[Completion]]] = []
        self._drainer: asyncio.Task[None] | None = None

    async def complete(self, request: Request) -> Completion:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._drainer is None or self._drainer.done():
            self._drainer = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        while True:
            known = -1
            while len(self._waiting) != known:  # until no row has anything more to ask
                known = len(self._waiting)
                for _ in range(5):
                    await asyncio.sleep(0)
            self._waiting = [(r, f) for r, f in self._waiting if not f.done()]
            if not self._waiting:
                return
            asked = self._waiting
            try:
                picked = self._choose([request for request, _ in asked])
                completions = self._run_batch([asked[index][0] for index in picked])
                answered = dict(zip(picked, completions, strict=True))
            except BaseException as error:  # a signal too: the rows must not wait for good
                for _, future in asked:
                    if not future.done():
                        future.set_exception(error)
                self._waiting = []
                return
            self._waiting = [pair for index, pair in enumerate(asked) if index not in answered]
            for index, completion in answered.items():
                if not asked[index][1].done():
                    asked[index][1].set_result(completion)
