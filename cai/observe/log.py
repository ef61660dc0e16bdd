"""What a run is doing, as JSON lines in logs/log.jsonl, to which all its processes append."""

import contextlib
import functools
import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path

from cai.redact import printable, redacted


class _Process:
    """The stage that this process runs.

    One for the process, not a context variable: a process runs one stage at a time, and threads
    that inherit no context (a library's loader, an engine's thread) log and count for it too.
    """

    stage = ""


class _JsonLines(logging.Handler):
    """Writes each record as one line, in one write, so that processes do not mix their lines.

    A log that can't be written stops nothing.
    """

    def __init__(self, file: Path):
        super().__init__()
        self.file = file

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith("cai") and record.levelno < logging.WARNING:
            return
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "stage": _Process.stage,
            "message": record.getMessage(),
            "process": record.process,
        } | getattr(record, "fields", {})
        if record.name != "cai":
            entry["logger"] = record.name
        if record.exc_info and record.exc_info[1]:
            entry["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        with contextlib.suppress(OSError, TypeError):
            line = (json.dumps(redacted(entry)) + "\n").encode()
            with self.file.open("ab", buffering=0) as file:
                file.write(line)


@functools.cache
def _logger() -> logging.Logger:
    """cai's logger. It never reaches the terminal: that has a text of its own."""
    logger = logging.getLogger("cai")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    # A logger without any handler prints its warnings.
    logger.addHandler(logging.NullHandler())
    return logger


def open_log(root: Path) -> None:
    """From now on this process's log, and other libraries' warnings, go to the run's folder."""
    folder = (root / "logs").absolute()  # also where the process goes to another folder
    folder.mkdir(parents=True, exist_ok=True)
    handler = _JsonLines(folder / "log.jsonl")
    for logger in (_logger(), logging.getLogger()):
        logger.handlers = [h for h in logger.handlers if not isinstance(h, _JsonLines)] + [handler]


def log_folder() -> Path | None:
    """The run's logs/; None before open_log."""
    handlers = [h for h in _logger().handlers if isinstance(h, _JsonLines)]
    return handlers[0].file.parent if handlers else None


def log(
    message: str, level: int = logging.INFO, error: BaseException | None = None, **fields: object
) -> None:
    """Writes a line to the run's log alone. `fields` are JSON types; `error` adds its traceback."""
    _logger().log(level, "%s", message, extra={"fields": fields}, exc_info=error)


def say(message: str, level: int = logging.INFO, **fields: object) -> None:
    """Writes a line to the terminal and to the run's log."""
    print(printable(message), file=sys.stderr, flush=True)
    log(message, level, None, **fields)


def enter_stage(stage: str) -> None:
    """What is logged and counted from now on belongs to `stage`."""
    _Process.stage = stage


def current_stage() -> str:
    """The stage that was entered last; empty outside any."""
    return _Process.stage
