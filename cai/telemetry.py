"""What a run is doing, for whoever looks: JSON lines in logs/log.jsonl, and figures for Prometheus in metrics.prom.

Every process of a run appends to the same log. The figures are a process's own, each with the stage that it belongs to.
"""

import contextlib
import json
import logging
import os
import sys
import traceback
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cai.redact import printable, redact, redacted

FIGURES = {  # name -> (kind, what it says); labels beside `stage` in brackets
    "done": ("gauge", "Units of the stage that are done [unit]"),
    "planned": ("gauge", "Units of the stage in all [unit]"),
    "from_ledger_total": ("counter", "Completions that an earlier process had asked for"),
    "completions_total": ("counter", "Completions [model]"),
    "prompt_tokens_total": ("counter", "Tokens read [model]"),
    "new_tokens_total": ("counter", "Tokens written [model]"),
    "completion_seconds_total": ("counter", "Seconds, each completion's share of its batch [model]"),
    "principle_completions_total": ("counter", "Completions asked for by a principle [principle]"),
    "principle_new_tokens_total": ("counter", "Tokens written for a principle [principle]"),
    "principle_seconds_total": ("counter", "Seconds, each completion's share of its batch [principle]"),
    "failed_rows_total": ("counter", "Rows that were left out"),
    "server_answers_total": ("counter", "Answers of use [server]"),
    "server_seconds_total": ("counter", "Seconds from question to answer [server]"),
    "server_retries_total": ("counter", "Tries that failed [server, cause]"),
    "server_open": ("gauge", "Requests under way [server]"),
}
Labels = tuple[tuple[str, str], ...]

logging.getLogger("cai").setLevel(logging.INFO)
logging.getLogger("cai").propagate = False  # the terminal has its own text
logging.getLogger("cai").addHandler(logging.NullHandler())
_stage = ""
_figures: defaultdict[tuple[str, Labels], float] = defaultdict(float)


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


def log(message: str, level: int = logging.INFO, error: BaseException | None = None, **fields: Any) -> None:
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


def count(name: str, amount: float = 1.0, **labels: str) -> None:
    """Adds to a counter."""
    _figures[name, _labels(labels)] += amount


def gauge(name: str, value: float, **labels: str) -> None:
    _figures[name, _labels(labels)] = value


def _labels(labels: dict[str, str]) -> Labels:
    return tuple(sorted({"stage": _stage, **labels}.items()))


def figures(stage: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """A stage's figures: name -> (labels, value) pairs."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for (name, labels), value in list(_figures.items()):  # other threads count on
        rest = dict(labels)
        if rest.pop("stage") == stage:
            found.setdefault(name, []).append((rest, round(value, 3)))
    return found


def write_metrics(file: Path) -> None:
    """Every figure in Prometheus' text format (0.0.4), in place of the file as it was."""
    lines = []
    known = sorted(_figures.items())
    for name, (kind, text) in FIGURES.items():
        samples = [(labels, value) for (found, labels), value in known if found == name]
        if samples:
            lines += [f"# HELP cai_{name} {text}", f"# TYPE cai_{name} {kind}"]
        for labels, value in samples:
            shown = ",".join(f'{key}="{_escaped(redact(text))}"' for key, text in labels)
            lines.append(f"cai_{name}{{{shown}}} {value:.12g}")
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    fresh.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    fresh.replace(file)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
