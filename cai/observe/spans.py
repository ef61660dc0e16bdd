"""The spans of a stage: one for the stage, one for each row's chain of requests.

A row is a trace of its own that is linked to its stage's. So OTEL_TRACES_SAMPLER and
OTEL_TRACES_SAMPLER_ARG sample rows, and stages are always there. No span holds any text of a
prompt or an answer.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, Span, StatusCode, Tracer, get_current_span

from cai.observe.log import say
from cai.redact import redact

FLUSH_MS = 2000  # milliseconds at a stage's end for what has not been sent yet

Attribute = str | int | float | bool


def open_exporter(kind: str) -> SpanExporter | None:
    """The exporter that OTEL_TRACES_EXPORTER names; None, with a warning, where it is unknown."""
    if kind == "otlp":
        return OTLPSpanExporter()
    if kind == "console":
        return ConsoleSpanExporter(out=sys.stderr)
    say(
        f"no traces: OTEL_TRACES_EXPORTER is {kind!r}, and cai knows otlp (over HTTP) and console",
        logging.WARNING,
    )
    return None


class StageTracer:
    """Traces one stage and its rows."""

    def __init__(self, exporter: SpanExporter):
        resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "cai")})
        self._processor = BatchSpanProcessor(exporter)
        stages = TracerProvider(sampler=ALWAYS_ON, resource=resource)
        rows = TracerProvider(resource=resource)
        for provider in (stages, rows):
            provider.add_span_processor(self._processor)
        self._stages, self._rows = stages.get_tracer("cai"), rows.get_tracer("cai")
        self._links: list[Link] = []

    @contextlib.contextmanager
    def trace_stage(self, stage: str) -> Iterator[None]:
        try:
            with self._open_span(self._stages, stage, {"cai.stage": stage}) as span:
                self._links = [Link(span.get_span_context())]
                yield
        finally:
            self._processor.force_flush(FLUSH_MS)

    @contextlib.contextmanager
    def trace_row(self) -> Iterator[None]:
        with self._open_span(self._rows, "row", {}):
            yield

    def add_event(self, name: str, attributes: Mapping[str, Attribute]) -> None:
        get_current_span().add_event(name, attributes)

    @contextlib.contextmanager
    def _open_span(
        self, tracer: Tracer, name: str, attributes: Mapping[str, Attribute]
    ) -> Iterator[Span]:
        """A span without a parent, and with the message, redacted, of an error that ends it."""
        with tracer.start_as_current_span(
            name,
            Context(),
            attributes=attributes,
            links=self._links,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except BaseException as error:
                span.set_status(StatusCode.ERROR, redact(str(error)) or type(error).__name__)
                raise
