"""OpenTelemetry spans, one a stage and one a row's chain, where the standard OTEL_* variables ask for them.

A row is a trace of its own that is linked to its stage's, so that OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG draw
rows; stages are always there. No text of a prompt or an answer is in a span.
"""

import contextlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cai.observe.log import say
from cai.redact import redact

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

FLUSH = 2000  # milliseconds at a stage's end for what has not been sent yet

_rows: Any = None  # the tracer of rows while a stage is traced

_link: Any = None


def wanted() -> bool:
    """Whether the environment names a place for traces."""
    places = (
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "OTEL_TRACES_EXPORTER",
    )
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return (
        not off
        and any(map(os.environ.get, places))
        and os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "none"
    )


def _exporter() -> "SpanExporter | None":
    kind = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    if importlib.util.find_spec("opentelemetry") is None:
        say(
            "no traces, though OTEL_... asks for them: pip install 'constitutional-ai[otel]'",
            logging.WARNING,
        )
        return None
    if kind == "otlp":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()
    if kind == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter(out=sys.stderr)
    say(
        f"no traces: OTEL_TRACES_EXPORTER is {kind!r}, and cai knows otlp (over HTTP) and console",
        logging.WARNING,
    )
    return None


@contextlib.contextmanager
def traced(stage: str, exporter: "SpanExporter | None" = None) -> Iterator[None]:
    """A span for the stage, and a tracer for its rows. Without `exporter`, as the environment says: often nothing."""
    global _rows, _link
    if exporter is None and (not wanted() or (exporter := _exporter()) is None):
        yield
        return
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON
    from opentelemetry.trace import Link

    resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "cai")})
    stages, rows = (
        TracerProvider(sampler=ALWAYS_ON, resource=resource),
        TracerProvider(resource=resource),
    )
    processor = BatchSpanProcessor(exporter)
    stages.add_span_processor(processor)
    rows.add_span_processor(processor)
    try:
        with _span(stages.get_tracer("cai"), stage, {"cai.stage": stage}) as span:
            _rows, _link = rows.get_tracer("cai"), Link(span.get_span_context())
            yield
    finally:
        _rows = _link = None
        processor.force_flush(FLUSH)


@contextlib.contextmanager
def row() -> Iterator[None]:
    """A span for one row's chain of requests, where the stage is traced."""
    if _rows is None:
        yield
        return
    from opentelemetry.context import Context

    with _span(_rows, "row", {}, context=Context(), links=[_link]):
        yield


@contextlib.contextmanager
def _span(tracer: Any, name: str, attributes: dict[str, Any], **options: Any) -> Iterator[Any]:
    from opentelemetry.trace import StatusCode

    with tracer.start_as_current_span(
        name,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
        **options,
    ) as span:
        try:
            yield span
        except BaseException as error:
            span.set_status(StatusCode.ERROR, redact(str(error)) or type(error).__name__)
            raise


def event(name: str, **attributes: Any) -> None:
    """An event in the current row's span."""
    if _rows is not None:
        from opentelemetry.trace import get_current_span

        get_current_span().add_event(name, attributes)
