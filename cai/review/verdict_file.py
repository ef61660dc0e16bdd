"""The file that a person's verdicts are in: each is on the disk before the page says so."""

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from cai.config.schema import DataConfig
from cai.data.sources import read_source
from cai.data.verdicts import UNDONE, VERDICTS, as_verdict
from cai.digest import JsonObject
from cai.errors import CaiError
from cai.store.files import fsync
from cai.text import well_formed

Line = JsonObject  # of the file


class VerdictFile:
    """One reviewer's verdicts in a file of JSON lines, which others may share.

    Lines are only ever added; a last one that a power cut has torn was never said to be saved, and
    goes with the next.
    Raises CaiError where the file can't be read or written.
    """

    def __init__(self, path: Path, reviewer: str):
        self.path, self.reviewer = path, reviewer
        self._lock = threading.Lock()
        self._current: dict[str, Line] = {}  # subject -> the line that counts
        # what was done, and the line that counted before: what undo goes back to
        self._done: list[tuple[str, Line | None]] = []
        self._read()

    def _read(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab"):
                pass
        except OSError as error:
            raise CaiError(
                f"can't write to {self.path}: {error.strerror}; name another file with --to"
            ) from None
        fsync(self.path.parent)
        config = DataConfig("file", str(self.path), format=VERDICTS)
        for _, line in read_source("verdicts", config):
            try:
                verdict = as_verdict(line)
            except (ValueError, LookupError, TypeError, AttributeError):
                continue
            if verdict.reviewer == self.reviewer:
                self._count(verdict.subject, line)

    def _count(self, subject: str, line: Line) -> None:
        before = self._current.pop(subject, None)
        if line["verdict"] != UNDONE:
            self._current[subject] = line
        if line["verdict"] != UNDONE and not line.get("undoes"):
            self._done.append((subject, before))
            return
        for place in reversed(range(len(self._done))):
            if self._done[place][0] == subject:
                del self._done[place]
                return

    def verdict(self, subject: str) -> Line | None:
        """The reviewer's line that counts."""
        return self._current.get(subject)

    def __contains__(self, subject: str) -> bool:
        return subject in self._current

    def __len__(self) -> int:
        return len(self._current)

    def add(self, subject: str, line: Mapping[str, object]) -> None:
        """Adds a verdict. `line`: what was judged (Queue.line), `verdict`, and `edited`."""
        with self._lock:
            self._append(subject, dict(line))

    def undo(self) -> str | None:
        """Takes back the reviewer's last verdict, also one of an earlier time; its subject.

        What the person had said of it before counts again. None: there is nothing to take back.
        """
        with self._lock:
            if not self._done:
                return None
            subject, before = self._done[-1]
            line = before or self._current[subject] | {"verdict": UNDONE, "edited": None}
            self._append(subject, line | {"undoes": True})
            return subject

    def _append(self, subject: str, line: Line) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = line | {"reviewer": self.reviewer, "time": now}
        text = well_formed(json.dumps(line, ensure_ascii=False))
        try:
            with self.path.open("a+b", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # another reviewer may write too
                _write_line(file, text.encode() + b"\n")
        except OSError as error:
            raise CaiError(f"can't write to {self.path}: {error.strerror}") from None
        self._count(subject, line)


def _write_line(file: FileIO, line: bytes) -> None:
    """Adds the line behind the last whole one; all of it, or none where the disk is full."""
    end = _end_of_lines(file)
    file.truncate(end)
    try:
        while line:  # a disk that is nearly full takes a part
            line = line[file.write(line) :]
        os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(end)
        raise


def _end_of_lines(file: FileIO) -> int:
    """Where the last whole line ends. One that lacks only its line break gets it."""
    size = file.seek(0, os.SEEK_END)
    if size:
        file.seek(size - 1)
    if not size or file.read(1) == b"\n":
        return size
    file.seek(0)
    content = file.read()
    start = content.rfind(b"\n") + 1
    try:
        json.loads(content[start:])
    except ValueError:  # UnicodeDecodeError is one
        return start
    file.write(b"\n")
    return size + 1
