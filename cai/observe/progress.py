"""One bar a stage: done of total, tokens per second, ledger hits, ETA. Plain lines in a file."""

import json
import math
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TypedDict

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from cai.observe.log import log
from cai.observe.metrics import StageMetrics, set_gauge, stage_metrics, write_metrics
from cai.redact import printable, redacted
from cai.store.files import write_json

PRINT_SECONDS = 15.0  # between plain lines

SAVE_SECONDS = 1.0  # between writes of progress.json and metrics.prom

SLOWEST = 3  # servers and principles in a status, the slowest first


class SavedProgress(TypedDict):
    """What progress.json holds."""

    done: int
    total: int
    unit: str
    pace: str  # speed and ETA
    figures: StageMetrics


class Progress:
    """Counts what a stage has done.

    `file` tells `cai status` about a stage that runs or was interrupted, `metrics_file` Prometheus.
    `later`: the seconds that the run's other stages are expected to take after it.
    """

    def __init__(
        self,
        stage: str,
        file: Path | None = None,
        quiet: bool = False,
        metrics_file: Path | None = None,
        later: float | None = None,
    ):
        self.later = later
        self.stage, self.file, self.quiet, self.metrics_file = stage, file, quiet, metrics_file
        self.done = self.total = self.hits = self.tokens = 0
        self.unit, self.note = "", ""
        self._computed = 0  # units that did not come from the ledger
        self._began = self._printed_at = time.monotonic()
        self._saved_at = 0.0
        self._printed_done = -1
        self._bar: Bar | None = None
        self._task = TaskID(0)

    def start(self, total: int, unit: str) -> None:
        """Begins a new count of `total` units ("completions", "steps")."""
        self.done = self.hits = self.tokens = self._computed = 0
        self.total, self.unit = total, unit
        self._printed_done = -1
        self._began = self._printed_at = time.monotonic()
        if not self.quiet and self._bar is None and sys.stderr.isatty():
            self._open_bar()
        self._show(save=True)

    def advance(self, count: int = 1, tokens: int = 0, hit: bool = False) -> None:
        """`count` more units are done; `hit`: they came from the ledger."""
        self.done += count
        if hit:
            self.hits += count
        else:
            self.tokens += tokens
            self._computed += count
        self._show()

    def resume(self, done: int) -> None:
        """`done` units were finished by an earlier process (a checkpoint)."""
        self.done = done
        self._show(save=True)

    def say(self, text: str) -> None:
        """Prints a line of its own, above the bar where there is one (rich takes care of that)."""
        if not self.quiet:
            print(f"{self.stage}: {printable(text)}", file=sys.stderr, flush=True)
            log(text)

    def finish(self) -> None:
        """Takes the bar away and prints the stage's last line."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif not self.quiet and self.total and self._printed_done != self.done:
            self._print()
        self._save()

    def _open_bar(self) -> None:
        self._bar = Bar(
            "[bold]{task.fields[stage]:>8}[/]",
            BarColumn(),
            MofNCompleteColumn(),
            "{task.fields[unit]}",
            "[dim]{task.fields[speed]}[/]",
            TimeElapsedColumn(),
            TextColumn("{task.fields[eta]}"),
            console=Console(stderr=True),
        )
        self._bar.start()
        self._task = self._bar.add_task(
            "", total=self.total, stage=self.stage, unit=self.unit, speed="", eta=""
        )

    def _show(self, save: bool = False) -> None:
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=self.done,
                total=self.total,
                unit=self.unit,
                speed=self._speed(),
                eta=self._eta(),
            )
        elif not self.quiet and now - self._printed_at >= PRINT_SECONDS:
            self._printed_at = now
            self._print()
        if save or now - self._saved_at >= SAVE_SECONDS:
            self._saved_at = now
            self._save()

    def _print(self) -> None:
        self._printed_done = self.done
        text = _join(f"{self.done}/{self.total} {self.unit}", self._speed(), self._eta())
        print(f"{self.stage}: {text}", file=sys.stderr, flush=True)

    def _speed(self) -> str:
        seconds = max(1e-9, time.monotonic() - self._began)
        return _join(
            f"{self.tokens / seconds:.0f} tok/s" if self.tokens else "",
            f"{self.hits} from the ledger" if self.hits else "",
            self.note,
        )

    def _eta(self) -> str:
        if not self._computed or self.done >= self.total:
            return ""
        seconds = (self.total - self.done) * (time.monotonic() - self._began) / self._computed
        run = f", run {_clock(seconds + self.later)}" if self.later else ""
        return f"ETA {_clock(seconds)}{run}"

    def _save(self) -> None:
        if self.file is None or not self.file.parent.is_dir():
            return
        if self.unit:
            set_gauge("done", self.done, unit=self.unit)
            set_gauge("planned", self.total, unit=self.unit)
        progress: SavedProgress = {
            "done": self.done,
            "total": self.total,
            "unit": self.unit,
            "pace": _join(self._speed(), self._eta()),
            "figures": stage_metrics(self.stage),
        }
        write_json(self.file, redacted(progress))
        if self.metrics_file is not None:
            write_metrics(self.metrics_file)


def status_lines(file: Path) -> list[str]:
    """A stage's pace, servers and principles, from its progress.json; [] if it can't be read."""
    try:
        progress: SavedProgress = json.loads(file.read_text(encoding="utf-8"))
        age = time.time() - file.stat().st_mtime
        metrics = progress["figures"]
        lines = [f"{progress['pace'] or 'no pace yet'}, as of {age:.0f} s ago"]
        if failed := _sum_by("", "failed_rows_total", metrics)[""]:
            lines.append(f"{failed:.0f} rows left out, see logs/log.jsonl")
        lines += _slowest("server", "server_answers_total", metrics)
        return lines + _slowest("principle", "principle_completions_total", metrics)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _slowest(label: str, counter: str, metrics: StageMetrics) -> list[str]:
    """A line for each of the slowest servers or principles; those without an answer come first."""
    answers = _sum_by(label, counter, metrics)
    seconds = _sum_by(label, f"{label}_seconds_total", metrics)
    failures = _sum_by(label, f"{label}_retries_total", metrics)
    pace = {
        name: seconds[name] / answers[name] if answers[name] else math.inf
        for name in answers | failures
    }
    lines = []
    for name in sorted(pace, key=pace.__getitem__, reverse=True)[:SLOWEST]:
        answered = f"{answers[name]:.0f} answers, {pace[name]:.2f} s each"
        failed = f"{failures[name]:.0f} tries failed" if failures[name] else ""
        text = _join(answered if answers[name] else "no answer", failed)
        lines.append(f"{label} {name}: {text}")
    return lines


def _sum_by(label: str, name: str, metrics: StageMetrics) -> defaultdict[str, float]:
    """A metric's sum for each value of the label; samples without the label count for ""."""
    sums: defaultdict[str, float] = defaultdict(float)
    for labels, value in metrics.get(name, []):
        sums[labels.get(label, "")] += value
    return sums


def _clock(seconds: float) -> str:
    """`1:05`, or hours."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def _join(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
