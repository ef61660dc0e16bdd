"""OpenTelemetry spans where the standard OTEL_* variables ask for them, else nothing.

OpenTelemetry is optional: this file works without it, and spans.py is written on it.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING

from cai.observe.log import say

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from cai.observe.spans import Attribute, StageTracer

PLACES = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_TRACES_EXPORTER",
)

# Set while a stage is traced. Its rows are tasks that copy the stage's context.
_tracer: ContextVar["StageTracer | None"] = ContextVar("tracer", default=None)


@contextlib.contextmanager
def trace_stage(stage: str, exporter: "SpanExporter | None" = None) -> Iterator[None]:
    """A span for the stage; its rows are traced too.

    Without `exporter` the environment decides; mostly it asks for nothing.
    """
    tracer = _open_tracer(exporter)
    if tracer is None:
        yield
        return
    with tracer.trace_stage(stage):
        token = _tracer.set(tracer)
        try:
            yield
        finally:
            _tracer.reset(token)


@contextlib.contextmanager
def trace_row() -> Iterator[None]:
    """A span for one row's chain of requests, where the stage is traced."""
    tracer = _tracer.get()
    with tracer.trace_row() if tracer is not None else contextlib.nullcontext():
        yield


def add_event(name: str, **attributes: "Attribute") -> None:
    """Adds an event to the current row's span."""
    if (tracer := _tracer.get()) is not None:
        tracer.add_event(name, attributes)


def is_requested() -> bool:
    """Whether the environment names a place for traces."""
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    exports = os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "none"
    return not disabled and exports and any(os.environ.get(name) for name in PLACES)


def _open_tracer(exporter: "SpanExporter | None") -> "StageTracer | None":
    """The tracer that the caller or the environment asks for, or None; says why where it can't."""
    if exporter is None and not is_requested():
        return None
    try:
        from cai.observe.spans import StageTracer, open_exporter
    except ImportError:
        say(
            "no traces, though OTEL_... asks for them: pip install -e '.[otel]'",
            logging.WARNING,
        )
        return None
    exporter = exporter or open_exporter(os.environ.get("OTEL_TRACES_EXPORTER") or "otlp")
    return StageTracer(exporter) if exporter is not None else None
