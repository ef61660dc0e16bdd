"""The engine interface: a row is a coroutine, an engine is a batcher, and the ledger stands between them."""

import asyncio
import importlib
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from cai import tracing
from cai.config import EngineConfig, Sampling
from cai.dialogue import Dialogue, as_dicts
from cai.digest import digest
from cai.errors import CaiError
from cai.telemetry import count, log

if TYPE_CHECKING:
    from cai.ledger import Ledger

T = TypeVar("T")

AT_ONCE = 8192  # rows under way: more than any engine batches, and few enough for the memory


@dataclass(frozen=True)
class Request:
    """Either a reply to be sampled (`sampling` set) or log-probabilities of given `continuations`.

    A dialogue that ends in an assistant turn is continued inside that turn.
    """

    messages: Dialogue
    sampling: Sampling | None = None
    seed: int = 0
    continuations: tuple[str, ...] = ()
    principle: str = ""  # whose request it is, for the figures; no part of the digest

    def digest(self, model: str) -> str:
        """sha256 over everything that decides the completion. `model` covers weights, tokenizer and chat template."""
        seed = self.seed if self.sampling and self.sampling.temperature > 0 else 0  # greedy needs none
        parts = {"model": model, "messages": as_dicts(self.messages), "sampling": self.sampling, "seed": seed}
        return digest(parts | {"continuations": self.continuations})


@dataclass(frozen=True)
class Completion:
    """What came back. `logprobs`: one natural-log probability for each continuation, summed over its tokens."""

    text: str
    finish_reason: str  # stop | length | score | too_long (the prompt leaves no room in the model's context)
    prompt_tokens: int
    new_tokens: int
    seconds: float  # this request's share of its batch's time
    logprobs: tuple[float, ...] = ()


class RequestFailed(CaiError):
    """A request that is refused, or that fails too often, and why. Its row is left out; the ledger keeps nothing of it,
    so that another run asks again."""


class Engine(Protocol):
    """Completes requests, many at a time."""

    async def complete(self, request: Request) -> Completion:
        """Raises RequestFailed where this request can't be answered and others may be."""
        ...

    def close(self) -> None:
        """Gives the memory back."""
        ...


ENGINES = {
    "transformers": "cai.engines.transformers:TransformersEngine",
    "vllm": "cai.engines.vllm:VllmEngine",
    "openai": "cai.engines.openai:OpenAIEngine",
    "scripted": "cai.engines.scripted:ScriptedEngine",
}


def open_engine(config: EngineConfig, model: str) -> Engine:
    """The configured engine on a model folder or hub id (`id@revision`), or, of a server, on the model's name there."""
    module, name = ENGINES[config.kind].split(":")
    return getattr(importlib.import_module(module), name)(config, model)


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


class Recorded:
    """An engine that answers from the ledger where it can, and commits a completion before anyone sees it.

    `open_engine` is called on the first request that the ledger can't answer: a replayed stage loads no model.
    """

    def __init__(
        self,
        open_engine: Callable[[], Engine],
        ledger: "Ledger",
        stage: str,
        model: str,
        seen: Callable[[Sequence[Completion], bool], None] = lambda completions, hit: None,
        name: str = "",  # of the model, for the figures
    ):
        self._open = open_engine
        self._engine: Engine | None = None
        self._failure: Exception | None = None
        self._ledger, self._stage, self._model, self._seen, self._name = ledger, stage, model, seen, name
        self._asked: dict[str, asyncio.Future[Completion]] = {}
        self._fresh: list[tuple[str, Completion, asyncio.Future[Completion]]] = []

    async def complete(self, request: Request) -> Completion:
        key = request.digest(self._model)
        if completion := self._ledger.get(key):
            count("from_ledger_total")
            self._seen([completion], True)
            return completion
        if key in self._asked:  # the same request is on its way
            return await asyncio.shield(self._asked[key])
        future = self._asked[key] = asyncio.get_running_loop().create_future()
        try:
            completion = await self._opened().complete(request)
            if not self._fresh:
                asyncio.get_running_loop().call_soon(self._commit)
            self._fresh.append((key, completion, future))
            await future
            self._count(request, completion)
            return completion
        except BaseException as error:
            if not future.done():
                future.set_exception(error) if isinstance(error, Exception) else future.cancel()
                future.exception() if not future.cancelled() else None  # nobody else may be waiting
            raise
        finally:
            self._asked.pop(key, None)

    def _count(self, request: Request, completion: Completion) -> None:
        count("completions_total", model=self._name)
        count("prompt_tokens_total", completion.prompt_tokens, model=self._name)
        count("new_tokens_total", completion.new_tokens, model=self._name)
        count("completion_seconds_total", completion.seconds, model=self._name)
        if request.principle:
            count("principle_completions_total", principle=request.principle)
            count("principle_new_tokens_total", completion.new_tokens, principle=request.principle)
            count("principle_seconds_total", completion.seconds, principle=request.principle)
        attributes = {"model": self._name, "principle": request.principle, "finish_reason": completion.finish_reason}
        tokens = {"prompt_tokens": completion.prompt_tokens, "new_tokens": completion.new_tokens}
        tracing.event("completion", seconds=completion.seconds, **attributes, **tokens)

    def _opened(self) -> Engine:
        """The engine, opened once; where that fails, it fails once and for every row alike."""
        if self._failure is not None:
            raise self._failure
        if self._engine is None:
            try:
                self._engine = self._open()
            except Exception as error:
                self._failure = error
                raise
        return self._engine

    def _commit(self) -> None:
        fresh, self._fresh = self._fresh, []
        try:
            self._ledger.put(self._stage, self._model, [(key, completion) for key, completion, _ in fresh])
        except Exception as error:
            for _, _, future in fresh:
                future.set_exception(error)
            return
        self._seen([completion for _, completion, _ in fresh], False)
        for _, completion, future in fresh:
            if not future.done():
                future.set_result(completion)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None


async def gather_rows(rows: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Runs all row coroutines at once; the first failure cancels the rest and is raised."""
    tasks = [asyncio.create_task(row) for row in rows]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def in_order(rows: Iterable[Coroutine[Any, Any, T]], at_once: int = AT_ONCE) -> AsyncIterator[T]:
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


async def gather_failing(rows: Sequence[Coroutine[Any, Any, T]], max_failures: float) -> list[T | RequestFailed]:
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
            with tracing.row():
                return await row
        except RequestFailed as failure:
            failures.append(str(failure))
            count("failed_rows_total")
            log(f"a row is left out: {failure}", logging.WARNING)
            if len(failures) > max_failures * total:
                reasons = "\n".join(f"  {times} x {reason}" for reason, times in Counter(failures).most_common(5))
                raise CaiError(
                    f"{len(failures)} of {total} rows failed, and engine.max_failures={max_failures:g} allows no "
                    f"more:\n{reasons}\nwhat was answered is kept: the same command asks for the rest"
                ) from None
            return failure

    async for result in in_order(kept(row) for row in rows):
        yield result
