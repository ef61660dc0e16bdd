"""What a run is doing, as JSON lines in logs/log.jsonl. Every process of a run appends to the same file."""

import contextlib
import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cai.redact import printable, redacted

logging.getLogger("cai").setLevel(logging.INFO)

logging.getLogger("cai").propagate = False  # the terminal has its own text

logging.getLogger("cai").addHandler(logging.NullHandler())

_stage = ""


class _Lines(logging.Handler):
    """A line a record, in one write, so that processes don't mix theirs. A log that can't be written stops nothing."""

    def __init__(self, file: Path):
        super().__init__()
        self.file = file

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith("cai") and record.levelno < logging.WARNING:
            return
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "stage": _stage,
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


def open_log(root: Path) -> None:
    """From now on this process's log, and other libraries' warnings, go to the run's folder."""
    (root / "logs").mkdir(parents=True, exist_ok=True)
    lines = _Lines(root / "logs" / "log.jsonl")
    for logger in (logging.getLogger("cai"), logging.getLogger()):
        logger.handlers = [*(h for h in logger.handlers if not isinstance(h, _Lines)), lines]


def log(
    message: str, level: int = logging.INFO, error: BaseException | None = None, **fields: Any
) -> None:
    """A line in the run's log alone. `fields` are JSON types; `error` adds its traceback."""
    logging.getLogger("cai").log(level, "%s", message, extra={"fields": fields}, exc_info=error)


def say(message: str, level: int = logging.INFO, **fields: Any) -> None:
    """A line on the terminal and in the run's log."""
    print(printable(message), file=sys.stderr, flush=True)
    log(message, level, **fields)


def enter(stage: str) -> None:
    """What is logged and counted from now on belongs to `stage`."""
    global _stage
    _stage = stage
