"""The ledger: every completion that a run ever paid for, by the digest of its request, in one SQLite file.

It gives row-level resume to every stage, and is the record of tokens and seconds per stage and model. One process
writes at a time (the run's lock sees to that).
"""

import contextlib
import hashlib
import json
import logging
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cai.engines.base import Completion
from cai.errors import CaiError
from cai.telemetry import say

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
            self._db.execute("pragma page_size=16384")  # of a new file: in a smaller page no completion finds room
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
                raise CaiError(f"{path} was written by another version of cai (schema {version}, not {SCHEMA})")

    def get(self, digest: str) -> Completion | None:
        """A row that is not as it was written is removed, so that its request is asked again."""
        key = bytes.fromhex(digest)
        with self._explained():
            row = self._db.execute("select * from completions where digest = ?", (key,)).fetchone()
            if row is not None and row[-1] not in (None, _checksum(row[:-1])):
                with self._transaction():
                    self._db.execute("delete from completions where digest = ?", (key,))
                say(f"{self.path}: a completion of {row[1]} is damaged and is asked for again", logging.WARNING)
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
            return [dict(zip([column[0] for column in cursor.description], row, strict=True)) for row in cursor]

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
            raise CaiError(f"{self.path} is damaged ({error}); move it away to ask for its completions again") from None


def _checksum(row: Sequence[Any]) -> bytes:
    """SQLite knows its own structure damaged, not the bytes of a value."""
    return hashlib.sha256(repr(tuple(row)).encode()).digest()
