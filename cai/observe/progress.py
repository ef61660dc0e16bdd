"""One bar a stage: done of total, tokens per second, ledger hits, ETA. Plain lines where there is no terminal."""

import json
import math
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from cai.observe.log import log
from cai.observe.metrics import gauge, stage_metrics, write_metrics
from cai.redact import printable, redacted
from cai.store.files import write_json

EVERY = 15.0  # seconds between plain lines

SAVE = 1.0  # seconds between writes of progress.json and metrics.prom

SHOWN = 3  # servers and principles in a status, the slowest first


class Progress:
    """Counts what a stage has done. `file` tells `cai status` about a stage that runs or was interrupted, and `metrics`
    tells Prometheus."""

    def __init__(
        self, stage: str, file: Path | None = None, quiet: bool = False, metrics: Path | None = None
    ):
        self.stage, self.file, self.quiet, self.metrics = stage, file, quiet, metrics
        self.done = self.total = self.hits = self.tokens = 0
        self.unit, self.note = "", ""
        self._fresh = 0
        self._began = self._printed = time.monotonic()
        self._saved = 0.0
        self._last = -1
        self._bar: Any = None
        self._task: Any = None

    def start(self, total: int, unit: str) -> None:
        """A new count of `total` units ("completions", "steps")."""
        self.done, self.total, self.hits, self.tokens, self._fresh, self.unit = (
            0,
            total,
            0,
            0,
            0,
            unit,
        )
        self._last = -1
        self._began = self._printed = time.monotonic()
        if not self.quiet and self._bar is None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = (
                "[bold]{task.fields[stage]:>8}[/]",
                BarColumn(),
                MofNCompleteColumn(),
                "{task.fields[unit]}",
            )
            more = (
                "[dim]{task.fields[speed]}[/]",
                TimeElapsedColumn(),
                TextColumn("{task.fields[eta]}"),
            )
            self._bar = Bar(*columns, *more, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(
                "", total=total, stage=self.stage, unit=unit, speed="", eta=""
            )
        self._show(force=True)

    def advance(self, count: int = 1, tokens: int = 0, hit: bool = False) -> None:
        """`count` more are done; `hit`: they came from the ledger."""
        self.done += count
        self.tokens += 0 if hit else tokens
        self.hits += count if hit else 0
        self._fresh += 0 if hit else count
        self._show()

    def resume(self, done: int) -> None:
        """`done` were finished by an earlier process (a checkpoint)."""
        self.done = done
        self._show(force=True)

    def say(self, text: str) -> None:
        """A line of its own, above the bar where there is one (rich takes care of that)."""
        if not self.quiet:
            print(f"{self.stage}: {printable(text)}", file=sys.stderr, flush=True)
            log(text)

    def finish(self) -> None:
        """Takes the bar away and prints the stage's last line."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif not self.quiet and self.total and self._last != self.done:
            self._print()
        self._save()

    def _speed(self) -> str:
        took = max(1e-9, time.monotonic() - self._began)
        parts = [f"{self.tokens / took:.0f} tok/s"] if self.tokens else []
        parts += [f"{self.hits} from the ledger"] if self.hits else []
        return ", ".join([*parts, *([self.note] if self.note else [])])

    def _eta(self) -> str:
        if not self._fresh or self.done >= self.total:
            return ""
        left = (self.total - self.done) * (time.monotonic() - self._began) / self._fresh
        return "ETA " + (
            f"{left / 3600:.1f} h" if left >= 3600 else f"{int(left // 60)}:{int(left % 60):02d}"
        )

    def _show(self, force: bool = False) -> None:
        now = time.monotonic()
        if self._bar is not None:
            fields = {"unit": self.unit, "speed": self._speed(), "eta": self._eta()}
            self._bar.update(self._task, completed=self.done, total=self.total, **fields)
        elif not self.quiet and now - self._printed >= EVERY:
            self._printed = now
            self._print()
        if force or now - self._saved >= SAVE:
            self._saved = now
            self._save()

    def _print(self) -> None:
        self._last = self.done
        parts = [f"{self.done}/{self.total} {self.unit}", self._speed(), self._eta()]
        print(
            f"{self.stage}: {', '.join(part for part in parts if part)}",
            file=sys.stderr,
            flush=True,
        )

    def _save(self) -> None:
        if self.file is not None and self.file.parent.is_dir():
            if self.unit:
                gauge("done", self.done, unit=self.unit)
                gauge("planned", self.total, unit=self.unit)
            counts = {"done": self.done, "total": self.total, "unit": self.unit}
            pace = ", ".join(part for part in (self._speed(), self._eta()) if part)
            write_json(
                self.file, redacted(counts | {"pace": pace, "figures": stage_metrics(self.stage)})
            )
            if self.metrics is not None:
                write_metrics(self.metrics)


def details(file: Path) -> list[str]:
    """What a progress.json says of a stage's pace, its servers and its principles. [] where it says nothing."""
    try:
        return _details(
            json.loads(file.read_text(encoding="utf-8")), time.time() - file.stat().st_mtime
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _details(saved: dict[str, Any], age: float) -> list[str]:
    lines = [f"{saved['pace'] or 'no pace yet'}, as of {age:.0f} s ago"]

    def sums(name: str, label: str) -> Counter[str]:
        found: Counter[str] = Counter()
        for labels, value in saved["figures"].get(name, []):
            found[labels.get(label, "")] += value
        return found

    if failed := sums("failed_rows_total", "")[""]:
        lines.append(f"{failed:.0f} rows left out, see logs/log.jsonl")
    for kind in ("server", "principle"):
        counts = sums(
            "server_answers_total" if kind == "server" else "principle_completions_total", kind
        )
        seconds, tries = sums(f"{kind}_seconds_total", kind), sums(f"{kind}_retries_total", kind)
        each = {
            name: seconds[name] / counts[name] if counts[name] else math.inf
            for name in {**counts, **tries}
        }
        for name in sorted(each, key=each.__getitem__, reverse=True)[:SHOWN]:
            pace = (
                f"{counts[name]:.0f} answers, {each[name]:.2f} s each"
                if counts[name]
                else "no answer"
            )
            lines.append(
                f"{kind} {name}: {pace}"
                + (f", {tries[name]:.0f} tries failed" if tries[name] else "")
            )
    return lines
