"""The ledger: every completion that a run ever paid for, by the digest of its request, in one SQLite file.

It gives row-level resume to every stage, and is the record of tokens and seconds per stage and model. One process
writes at a time (the run's lock sees to that). `Recorded` is an engine that answers from it where it can.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cai.engines.base import Completion, Engine, Request
from cai.errors import CaiError
from cai.observe import tracing
from cai.observe.log import say
from cai.observe.metrics import count

SCHEMA = 2

TABLE = """
create table completions (
    digest blob primary key,      -- sha256 of model, messages, sampling, seed
    stage text not null,          -- who asked first
    model text not null,          -- digest of the model that answered
    completion text not null,     -- JSON of Completion
    prompt_tokens integer not null,
    new_tokens integer not null,
    seconds real not null,        -- this request's share of its batch
    created real not null,
    checksum blob                 -- sha256 of the columns before it; null: written before schema 2
) without rowid
"""


class Ledger:
    """Request digest -> completion. Open it once in a process."""

    def __init__(self, path: Path):
        self.path = path
        with self._explained():
            self._db = sqlite3.connect(path, isolation_level=None, timeout=30)
            self._db.execute(
                "pragma page_size=16384"
            )  # of a new file: in a smaller page no completion finds room
            self._db.execute("pragma journal_mode=wal")
            self._db.execute("pragma synchronous=full")
            if (found := self._db.execute("pragma quick_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(found)
            version = self._db.execute("pragma user_version").fetchone()[0]
            if version == 0:
                with self._transaction():
                    self._db.execute(TABLE)
                    self._db.execute(f"pragma user_version={SCHEMA}")
            elif version == 1:
                with self._transaction():
                    self._db.execute("alter table completions add column checksum blob")
                    self._db.execute(f"pragma user_version={SCHEMA}")
            elif version != SCHEMA:
                raise CaiError(
                    f"{path} was written by another version of cai (schema {version}, not {SCHEMA})"
                )

    def get(self, digest: str) -> Completion | None:
        """A row that is not as it was written is removed, so that its request is asked again."""
        key = bytes.fromhex(digest)
        with self._explained():
            row = self._db.execute("select * from completions where digest = ?", (key,)).fetchone()
            if row is not None and row[-1] not in (None, _checksum(row[:-1])):
                with self._transaction():
                    self._db.execute("delete from completions where digest = ?", (key,))
                say(
                    f"{self.path}: a completion of {row[1]} is damaged and is asked for again",
                    logging.WARNING,
                )
                row = None
        if row is None:
            return None
        values = json.loads(row[3])
        return Completion(**values | {"logprobs": tuple(values["logprobs"])})

    def put(self, stage: str, model: str, completions: Sequence[tuple[str, Completion]]) -> None:
        """Commits (request digest, completion) pairs in one durable transaction."""
        rows = [
            (
                bytes.fromhex(d),
                stage,
                model,
                json.dumps(asdict(c)),
                c.prompt_tokens,
                c.new_tokens,
                float(c.seconds),
                time.time(),
            )
            for d, c in completions
        ]
        with self._explained(), self._transaction():
            self._db.executemany(
                "insert into completions values (?,?,?,?,?,?,?,?,?) on conflict(digest) do nothing",
                [(*row, _checksum(row)) for row in rows],
            )

    def cost(self) -> list[dict[str, object]]:
        """Per stage and model: completions, prompt tokens, new tokens, seconds."""
        query = (
            "select stage, model, count(*) as completions, sum(prompt_tokens) as prompt_tokens, "
            "sum(new_tokens) as new_tokens, sum(seconds) as seconds from completions "
            "group by stage, model order by min(created)"
        )
        with self._explained():
            cursor = self._db.execute(query)
            return [
                dict(zip([column[0] for column in cursor.description], row, strict=True))
                for row in cursor
            ]

    def close(self) -> None:
        self._db.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("begin immediate")
        try:
            yield
        except BaseException:
            self._db.execute("rollback")
            raise
        self._db.execute("commit")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise CaiError(
                f"{self.path}: {error}; completions committed before are safe, the same command continues"
            ) from None
        except sqlite3.DatabaseError as error:
            raise CaiError(
                f"{self.path} is damaged ({error}); move it away to ask for its completions again"
            ) from None


def _checksum(row: Sequence[Any]) -> bytes:
    """SQLite knows its own structure damaged, not the bytes of a value."""
    return hashlib.sha256(repr(tuple(row)).encode()).digest()


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
        self._ledger, self._stage, self._model, self._seen, self._name = (
            ledger,
            stage,
            model,
            seen,
            name,
        )
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
        attributes = {
            "model": self._name,
            "principle": request.principle,
            "finish_reason": completion.finish_reason,
        }
        tokens = {"prompt_tokens": completion.prompt_tokens, "new_tokens": completion.new_tokens}
        tracing.add_event("completion", seconds=completion.seconds, **attributes, **tokens)

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
            self._ledger.put(
                self._stage, self._model, [(key, completion) for key, completion, _ in fresh]
            )
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
