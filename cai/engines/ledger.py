"""The ledger: every completion that a run ever paid for, in one SQLite file.

A row's key is the digest of its request. So every stage can go on row by row, and the tokens and
seconds of each stage and model are on record. One process writes at a time, as the run's lock has
it.
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

from cai.engines.base import Completion, Engine, OnText, Request
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

COST = """
select stage, model, count(*) as completions, sum(prompt_tokens) as prompt_tokens,
    sum(new_tokens) as new_tokens, sum(seconds) as seconds
from completions group by stage, model order by min(created)
"""


class Ledger:
    """Request digest -> completion. Open it once in a process."""

    def __init__(self, path: Path):
        self.path = path
        with self._errors_explained():
            self._db = sqlite3.connect(path, isolation_level=None, timeout=30)
            # of a new file: a completion is larger than a smaller page
            self._db.execute("pragma page_size=16384")
            self._db.execute("pragma journal_mode=wal")
            self._db.execute("pragma synchronous=full")
            check = self._db.execute("pragma quick_check(1)").fetchone()[0]
            if check != "ok":
                raise sqlite3.DatabaseError(check)
            self._migrate()

    def _migrate(self) -> None:
        version = self._db.execute("pragma user_version").fetchone()[0]
        steps = {0: TABLE, 1: "alter table completions add column checksum blob"}
        if version in steps:
            with self._transaction():
                self._db.execute(steps[version])
                self._db.execute(f"pragma user_version={SCHEMA}")
        elif version != SCHEMA:
            raise CaiError(
                f"{self.path} was written by another version of cai "
                f"(schema {version}, not {SCHEMA})"
            )

    def get(self, digest: str) -> Completion | None:
        """The completion, if it is there. A damaged row is removed, to be asked for again."""
        key = bytes.fromhex(digest)
        with self._errors_explained():
            row = self._db.execute("select * from completions where digest = ?", (key,)).fetchone()
            if row is None:
                return None
            if row[-1] not in (None, _checksum(row[:-1])):
                with self._transaction():
                    self._db.execute("delete from completions where digest = ?", (key,))
                say(
                    f"{self.path}: a completion of {row[1]} is damaged and is asked for again",
                    logging.WARNING,
                )
                return None
        fields = json.loads(row[3])
        return Completion(**fields | {"logprobs": tuple(fields["logprobs"])})

    def put(self, stage: str, model: str, completions: Sequence[tuple[str, Completion]]) -> None:
        """Commits (request digest, completion) pairs in one durable transaction."""
        rows = []
        for digest, completion in completions:
            row = (
                bytes.fromhex(digest),
                stage,
                model,
                json.dumps(asdict(completion)),
                completion.prompt_tokens,
                completion.new_tokens,
                float(completion.seconds),
                time.time(),
            )
            rows.append((*row, _checksum(row)))
        with self._errors_explained(), self._transaction():
            self._db.executemany(
                "insert into completions values (?,?,?,?,?,?,?,?,?) on conflict(digest) do nothing",
                rows,
            )

    def cost(self) -> list[dict[str, object]]:
        """For each stage and model: completions, prompt tokens, new tokens, seconds."""
        with self._errors_explained():
            cursor = self._db.execute(COST)
            columns = [column[0] for column in cursor.description]
            return [dict(zip(columns, row, strict=True)) for row in cursor]

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
    def _errors_explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise CaiError(
                f"{self.path}: {error}; completions committed before are safe, the same command "
                "continues"
            ) from None
        except sqlite3.DatabaseError as error:
            raise CaiError(
                f"{self.path} is damaged ({error}); move it away to ask for its completions again"
            ) from None


def _checksum(row: Sequence[object]) -> bytes:
    """SQLite notices damage to its own structure, not to a value's bytes."""
    return hashlib.sha256(repr(tuple(row)).encode()).digest()


class Recorded:
    """An engine that answers from the ledger where it can.

    It commits a completion before anyone sees it. `open_engine` is called on the first request that
    the ledger can't answer: a stage that is replayed loads no model. `on_completions` is told the
    completions, and whether they came from the ledger.
    """

    def __init__(
        self,
        open_engine: Callable[[], Engine],
        ledger: Ledger,
        stage: str,
        model: str,  # its digest
        on_completions: Callable[[Sequence[Completion], bool], None] | None = None,
        name: str = "",  # of the model, for the metrics
    ):
        self._open_engine, self._ledger, self._stage = open_engine, ledger, stage
        self._model, self._name = model, name
        self._on_completions = on_completions or (lambda completions, from_ledger: None)
        self._engine: Engine | None = None
        self._failure: Exception | None = None
        self._pending: dict[str, asyncio.Future[Completion]] = {}
        self._uncommitted: list[tuple[str, Completion, asyncio.Future[Completion]]] = []

    async def complete(self, request: Request, on_text: OnText | None = None) -> Completion:
        key = request.digest(self._model)
        if completion := self._ledger.get(key):
            count("from_ledger_total")
            self._on_completions([completion], True)
            return completion
        if key in self._pending:  # the same request is on its way
            return await asyncio.shield(self._pending[key])
        future = self._pending[key] = asyncio.get_running_loop().create_future()
        try:
            completion = await self._opened().complete(request, on_text)
            # rows that end in the same turn of the event loop are committed together
            if not self._uncommitted:
                asyncio.get_running_loop().call_soon(self._commit)
            self._uncommitted.append((key, completion, future))
            await future
            self._count(request, completion)
            return completion
        except BaseException as error:
            if not future.done():
                future.set_exception(error) if isinstance(error, Exception) else future.cancel()
            if not future.cancelled():
                future.exception()  # marks it as seen: nobody else may be waiting
            raise
        finally:
            self._pending.pop(key, None)

    def _opened(self) -> Engine:
        """The engine, opened once. If that fails, it fails once and for every row alike."""
        if self._failure is not None:
            raise self._failure
        if self._engine is None:
            try:
                self._engine = self._open_engine()
            except Exception as error:
                self._failure = error
                raise
        return self._engine

    def _commit(self) -> None:
        batch, self._uncommitted = self._uncommitted, []
        try:
            pairs = [(key, completion) for key, completion, _ in batch]
            self._ledger.put(self._stage, self._model, pairs)
        except Exception as error:
            for _, _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        self._on_completions([completion for _, completion, _ in batch], False)
        for _, completion, future in batch:
            if not future.done():
                future.set_result(completion)

    def _count(self, request: Request, completion: Completion) -> None:
        amounts = {
            "completions_total": 1,
            "prompt_tokens_total": completion.prompt_tokens,
            "new_tokens_total": completion.new_tokens,
            "completion_seconds_total": completion.seconds,
        }
        for metric, amount in amounts.items():
            count(metric, amount, model=self._name)
        if request.principle:
            count("principle_completions_total", principle=request.principle)
            count("principle_new_tokens_total", completion.new_tokens, principle=request.principle)
            count("principle_seconds_total", completion.seconds, principle=request.principle)
        tracing.add_event(
            "completion",
            model=self._name,
            principle=request.principle,
            finish_reason=completion.finish_reason,
            prompt_tokens=completion.prompt_tokens,
            new_tokens=completion.new_tokens,
            seconds=completion.seconds,
        )

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None
