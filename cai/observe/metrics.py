"""What a run is doing, as numbers for Prometheus in metrics.prom, each with the stage that it belongs to."""

import os
from collections import defaultdict
from pathlib import Path

from cai.observe.log import _stage
from cai.redact import redact

METRICS = {  # name -> (kind, what it says); labels beside `stage` in brackets
    "done": ("gauge", "Units of the stage that are done [unit]"),
    "planned": ("gauge", "Units of the stage in all [unit]"),
    "from_ledger_total": ("counter", "Completions that an earlier process had asked for"),
    "completions_total": ("counter", "Completions [model]"),
    "prompt_tokens_total": ("counter", "Tokens read [model]"),
    "new_tokens_total": ("counter", "Tokens written [model]"),
    "completion_seconds_total": (
        "counter",
        "Seconds, each completion's share of its batch [model]",
    ),
    "principle_completions_total": ("counter", "Completions asked for by a principle [principle]"),
    "principle_new_tokens_total": ("counter", "Tokens written for a principle [principle]"),
    "principle_seconds_total": (
        "counter",
        "Seconds, each completion's share of its batch [principle]",
    ),
    "failed_rows_total": ("counter", "Rows that were left out"),
    "server_answers_total": ("counter", "Answers of use [server]"),
    "server_seconds_total": ("counter", "Seconds from question to answer [server]"),
    "server_retries_total": ("counter", "Tries that failed [server, cause]"),
    "server_open": ("gauge", "Requests under way [server]"),
}

Labels = tuple[tuple[str, str], ...]

_values: defaultdict[tuple[str, Labels], float] = defaultdict(float)


def count(name: str, amount: float = 1.0, **labels: str) -> None:
    """Adds to a counter."""
    _values[name, _labels(labels)] += amount


def gauge(name: str, value: float, **labels: str) -> None:
    _values[name, _labels(labels)] = value


def _labels(labels: dict[str, str]) -> Labels:
    return tuple(sorted({"stage": _stage, **labels}.items()))


def stage_metrics(stage: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """A stage's figures: name -> (labels, value) pairs."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for (name, labels), value in list(_values.items()):  # other threads count on
        rest = dict(labels)
        if rest.pop("stage") == stage:
            found.setdefault(name, []).append((rest, round(value, 3)))
    return found


def write_metrics(file: Path) -> None:
    """Every figure in Prometheus' text format (0.0.4), in place of the file as it was."""
    lines = []
    known = sorted(_values.items())
    for name, (kind, text) in METRICS.items():
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
