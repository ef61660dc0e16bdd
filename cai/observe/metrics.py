"""What a run is doing, as numbers for Prometheus in metrics.prom, each labelled with its stage."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Metric,
    disable_created_metrics,
    write_to_textfile,
)
from prometheus_client.registry import Collector

from cai.observe.log import current_stage
from cai.redact import redacted

COUNTERS = {  # name -> (meaning, labels beside `stage`)
    "from_ledger_total": ("Completions that an earlier process had asked for", []),
    "completions_total": ("Completions", ["model"]),
    "prompt_tokens_total": ("Tokens read", ["model"]),
    "new_tokens_total": ("Tokens written", ["model"]),
    "completion_seconds_total": ("Seconds, each completion's share of its batch", ["model"]),
    "principle_completions_total": ("Completions asked for by a principle", ["principle"]),
    "principle_new_tokens_total": ("Tokens written for a principle", ["principle"]),
    "principle_seconds_total": ("Seconds, each completion's share of its batch", ["principle"]),
    "failed_rows_total": ("Rows that were left out", []),
    "server_answers_total": ("Answers of use", ["server"]),
    "server_seconds_total": ("Seconds from question to answer", ["server"]),
    "server_retries_total": ("Tries that failed", ["server", "cause"]),
}
GAUGES = {
    "done": ("Units of the stage that are done", ["unit"]),
    "planned": ("Units of the stage in all", ["unit"]),
    "server_open": ("Requests under way", ["server"]),
}

StageMetrics = dict[str, list[tuple[dict[str, str], float]]]  # name -> (labels, value) pairs

disable_created_metrics()  # else each counter has a second sample, the time of its creation

# A registry of our own: the library's default one also measures the Python process.
_registry = CollectorRegistry()
_counters = {
    name: Counter(f"cai_{name}", meaning, ["stage", *labels], registry=_registry)
    for name, (meaning, labels) in COUNTERS.items()
}
_gauges = {
    name: Gauge(f"cai_{name}", meaning, ["stage", *labels], registry=_registry)
    for name, (meaning, labels) in GAUGES.items()
}


def count(name: str, amount: float = 1.0, **labels: str) -> None:
    """Adds to a counter of the current stage."""
    _counters[name].labels(stage=current_stage(), **labels).inc(amount)


def set_gauge(name: str, value: float, **labels: str) -> None:
    """Sets a gauge of the current stage."""
    _gauges[name].labels(stage=current_stage(), **labels).set(value)


def stage_metrics(stage: str) -> StageMetrics:
    """A stage's metrics, labelled with all but the stage."""
    values: StageMetrics = defaultdict(list)
    for metric in _registry.collect():
        for sample in metric.samples:
            labels = dict(sample.labels)
            if labels.pop("stage") == stage:
                name = sample.name.removeprefix("cai_")
                values[name].append((labels, round(sample.value, 3)))
    return dict(values)


def write_metrics(file: Path) -> None:
    """Replaces the file by every metric in Prometheus' text format (0.0.4)."""
    write_to_textfile(str(file), _Redacted())


class _Redacted(Collector):
    """The metrics that have a value, with no secret in their labels."""

    def collect(self) -> Iterator[Metric]:
        for metric in _registry.collect():
            if metric.samples:
                metric.samples = [
                    sample._replace(labels=redacted(sample.labels)) for sample in metric.samples
                ]
                yield metric
