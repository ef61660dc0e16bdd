"""Requests and their digests, the batcher, and the ledger between rows and engine."""

import asyncio
import dataclasses
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from cai.config.schema import EngineConfig, Sampling, ServerConfig
from cai.config.types import EngineKind
from cai.engines.base import (
    ENGINES,
    Completion,
    Engine,
    Request,
    check_engine,
    open_engine,
)
from cai.engines.batcher import Batcher
from cai.engines.ledger import Ledger, Recorded
from cai.engines.rows import gather_rows, stream_rows
from cai.engines.scripted import ScriptedEngine
from cai.errors import UsageError
from cai.messages import assistant, user

WARM = Sampling(temperature=0.7, top_p=0.9, top_k=40, max_new_tokens=16)
ASKED = Request((user("Hello."),), WARM, seed=1)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite")


def asked(text: str, seed: int = 0) -> Request:
    return Request((user(text),), WARM, seed)


def rows(engine: Any, requests: list[Request]) -> list[Completion]:
    return asyncio.run(gather_rows([engine.complete(request) for request in requests]))


def never() -> Engine:
    raise AssertionError("no engine is needed")


@pytest.mark.parametrize(
    "changed",
    [
        {"messages": (user("Hello!"),)},
        {"messages": (assistant("Hello."),)},
        {"messages": (user("Hello."), assistant(""))},
        {"seed": 2},
        {"continuations": (" A", " B")},
        {"sampling": None},
        *(
            {"sampling": dataclasses.replace(WARM, **one)}
            for one in ({"temperature": 0.8}, {"temperature": 0.0})
        ),
        *({"sampling": dataclasses.replace(WARM, **one)} for one in ({"top_p": 1.0}, {"top_k": 0})),
        {"sampling": dataclasses.replace(WARM, max_new_tokens=17)},
    ],
    ids=str,
)
def test_every_field_is_in_the_digest(changed: dict[str, Any]):
    assert dataclasses.replace(ASKED, **changed).digest("model") != ASKED.digest("model")


def test_the_model_is_in_the_digest_and_nothing_else():
    assert ASKED.digest("model") != ASKED.digest("other")
    assert ASKED.digest("model") == dataclasses.replace(ASKED).digest("model")


@pytest.mark.parametrize("sampling", [dataclasses.replace(WARM, temperature=0.0), None])
def test_a_seed_that_decides_nothing_is_not_in_the_digest(sampling: Sampling | None):
    one, two = (Request(ASKED.messages, sampling, seed) for seed in (1, 2))
    assert one.digest("model") == two.digest("model")


def test_a_completion_is_committed_before_it_is_seen_and_then_replayed(ledger: Ledger):
    requests = [asked(str(n)) for n in range(5)]

    async def row(engine: Recorded, request: Request) -> str:
        completion = await engine.complete(request)
        assert ledger.get(request.digest("model")) == completion  # already there
        return completion.text

    async def ask(engine: Recorded) -> list[str]:
        return await gather_rows([row(engine, request) for request in requests])

    seen: list[tuple[int, bool]] = []

    def count(completions: Sequence[Completion], hit: bool) -> None:
        seen.append((len(completions), hit))

    config = EngineConfig()
    first = asyncio.run(
        ask(Recorded(lambda: ScriptedEngine(config, "model"), ledger, "sft", "model", count))
    )
    again = asyncio.run(ask(Recorded(never, ledger, "sft", "model", count)))
    assert first == again and len(set(first)) == 5
    assert seen == [(5, False)] + [(1, True)] * 5


def test_another_model_is_asked_again(ledger: Ledger):
    opened = []

    def open_one() -> Engine:
        opened.append(ScriptedEngine(EngineConfig(), "x"))
        return opened[-1]

    for model in ("one", "two"):
        rows(Recorded(open_one, ledger, "sft", model), [ASKED, asked("more")])
    assert [len(engine.requests) for engine in opened] == [2, 2]


def test_the_same_request_at_the_same_time_is_asked_once(ledger: Ledger):
    engine = ScriptedEngine(EngineConfig(), "model")
    found = rows(Recorded(lambda: engine, ledger, "sft", "model"), [ASKED] * 4)
    assert len(engine.requests) == 1 and len(set(found)) == 1


class Failing(ScriptedEngine):
    async def complete(self, request: Request, on_text: object = None) -> Completion:
        if "fail" in request.messages[-1].content:
            raise RuntimeError("out of memory")
        return await super().complete(request)


def test_an_engines_error_reaches_its_rows_and_stores_nothing_for_them(ledger: Ledger):
    requests = [asked("fine"), asked("fail"), asked("fail"), asked("fine too")]

    async def ask() -> list[Any]:
        engine = Recorded(lambda: Failing(EngineConfig(), "model"), ledger, "sft", "model")
        return await asyncio.gather(
            *(engine.complete(request) for request in requests), return_exceptions=True
        )

    found = asyncio.run(ask())
    assert [isinstance(one, RuntimeError) for one in found] == [False, True, True, False]
    assert [ledger.get(r.digest("model")) for r in requests] == [found[0], None, None, found[3]]


def test_gathered_rows_end_with_the_first_failure(ledger: Ledger):
    with pytest.raises(RuntimeError, match="out of memory"):
        rows(
            Recorded(lambda: Failing(EngineConfig(), "m"), ledger, "sft", "m"),
            [asked("fine"), asked("fail")],
        )


def echo(batch: list[Request]) -> list[Completion]:
    return [Completion(r.messages[-1].content, "stop", 1, 1, 0.0) for r in batch]


def test_waiting_rows_are_batched_together_and_each_gets_its_own():
    batches: list[list[str]] = []

    def run_batch(batch: list[Request]) -> list[Completion]:
        batches.append([r.messages[-1].content for r in batch])
        return echo(batch)

    async def row(batcher: Batcher, name: str) -> str:
        first = (await batcher.complete(asked(name))).text
        return (await batcher.complete(asked(first + "!"))).text

    async def ask() -> list[str]:
        batcher = Batcher(lambda waiting: list(range(min(3, len(waiting)))), run_batch)
        return await gather_rows([row(batcher, name) for name in "abcde"])

    assert asyncio.run(ask()) == ["a!", "b!", "c!", "d!", "e!"]
    assert batches[0] == ["a", "b", "c"]  # three at once
    assert (
        sum(len(batch) for batch in batches) == 10 and len(batches) == 4
    )  # 3 + 3 + 3 + 1: no barrier between rounds


class Batching(ScriptedEngine):
    """As the real ones do: a batcher below, whose batches are counted."""

    def __init__(self) -> None:
        super().__init__(EngineConfig(), "model")
        self.sizes: list[int] = []
        self.batcher = Batcher[Request](lambda waiting: list(range(len(waiting))), self.run)

    async def complete(self, request: Request, on_text: object = None) -> Completion:
        return await self.batcher.complete(request)

    def run(self, batch: list[Request]) -> list[Completion]:
        self.sizes.append(len(batch))
        return echo(batch)


def test_rows_that_come_back_through_the_ledger_wait_for_each_other(ledger: Ledger):
    engine = Batching()
    recorded = Recorded(lambda: engine, ledger, "sft", "model")

    async def row(turns: int) -> None:
        for number in range(3):
            for _ in range(turns):
                await asyncio.sleep(0)  # some rows take longer to come back than others
            await recorded.complete(asked(f"row {turns}, request {number}"))

    async def ask() -> None:
        await gather_rows([row(turns) for turns in range(5)])

    asyncio.run(ask())
    assert engine.sizes == [5, 5, 5]


def test_a_batcher_works_again_after_a_pause_and_after_an_error():
    def run_batch(batch: list[Request]) -> list[Completion]:
        if batch[0].messages[-1].content == "fail":
            raise RuntimeError("out of memory")
        return echo(batch)

    async def ask() -> list[Any]:
        batcher = Batcher(lambda waiting: [0], run_batch)
        one = await batcher.complete(asked("one"))
        both = [batcher.complete(asked("fail")), batcher.complete(asked("behind it"))]
        failed = await asyncio.gather(*both, return_exceptions=True)
        return [one.text, *map(type, failed), (await batcher.complete(asked("two"))).text]

    assert asyncio.run(ask()) == ["one", RuntimeError, RuntimeError, "two"]


def test_an_engine_is_opened_by_its_name():
    assert isinstance(open_engine(EngineConfig(kind="scripted"), "model"), ScriptedEngine)
    assert set(ENGINES) == set(get_args(EngineKind))


SERVED = "http://127.0.0.1:8000/v1"


@pytest.mark.parametrize(
    "config",
    [
        *(EngineConfig(kind=kind) for kind in ("transformers", "vllm", "scripted")),
        EngineConfig(kind="vllm", options={"data_parallel_size": 8, "tensor_parallel_size": 2}),
        EngineConfig(kind="openai", model="m", server=ServerConfig([SERVED, "https://[::1]:1/v1"])),
        EngineConfig(kind="openai", server=ServerConfig([SERVED], key="SOME_KEY")),
    ],
)
def test_sound_engine_settings_pass(config: EngineConfig):
    check_engine(config, "engine")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EngineConfig(model="m"), "label.engine.model: only kind: openai has such a name"),
        (EngineConfig(kind="vllm", model="m"), "label.engine.model: only kind: openai has such"),
        (
            EngineConfig(kind="vllm", options={"port": 2}),
            "label.engine.options.port: cai sets this option of vLLM's: the server listens on a",
        ),
        (
            EngineConfig(kind="vllm", options={"max-model-len": 2}),
            "label.engine.options.max-model-len: write it as max_model_len",
        ),
        (
            EngineConfig(options={"max_model_len": 2}),
            "label.engine.options: only kind: vllm has such a setting",
        ),
        (
            EngineConfig(kind="scripted", python="python3"),
            "label.engine.python: only kind: vllm has such a setting",
        ),
        (EngineConfig(kind="openai"), "label.engine.server.urls is empty; name a server"),
    ],
)
def test_what_an_engine_could_not_run_with_is_refused(config: EngineConfig, message: str):
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        check_engine(config, "label.engine")
    assert "secret" not in str(caught.value)


CHECK = """
import sys
from cai.config.schema import EngineConfig, ServerConfig
from cai.engines.base import ENGINES, check_engine
for kind in ENGINES:
    check_engine(EngineConfig(kind=kind, server=ServerConfig(["http://here/v1"])), "engine")
print([name for name in ("torch", "transformers", "vllm") if name in sys.modules])
"""


def test_checks_load_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_few_rows_are_under_way_at_once_and_their_results_keep_their_order():
    begun, most = 0, 0

    async def row(number: int) -> int:
        nonlocal begun
        begun += 1
        await asyncio.sleep(0.001 * (7 - number % 8))  # later ones are done first
        return number

    async def run() -> list[int]:
        nonlocal most
        found = []
        async for result in stream_rows((row(number) for number in range(100)), max_running=8):
            most = max(most, begun - len(found))
            found.append(result)
        return found

    assert asyncio.run(run()) == list(range(100))
    assert most == 8


def test_a_row_that_fails_ends_the_others_at_once_though_an_older_one_is_under_way():
    ended = []

    async def row(number: int) -> int:
        try:
            await asyncio.sleep(0 if number == 3 else 60)
            raise ValueError("broken")
        finally:
            ended.append(number)

    async def run() -> None:
        async for _ in stream_rows([row(number) for number in range(20)], max_running=8):
            pass

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(asyncio.wait_for(run(), timeout=20))
    assert sorted(ended) == list(range(8))  # the others never began


@pytest.mark.parametrize(
    "choose", [lambda waiting: 1 / 0, lambda waiting: [0]], ids=["choose raises", "short batch"]
)
def test_any_error_of_a_batch_reaches_the_rows(choose):
    batcher = Batcher(choose, lambda batch: [])
    with pytest.raises((ZeroDivisionError, ValueError)):
        asyncio.run(asyncio.wait_for(batcher.complete(ASKED), 5))
