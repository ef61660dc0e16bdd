"""Spans: one a stage and one a row, sampled and sent as the standard variables say.

Without those variables there is nothing.
"""

import asyncio
import http.server
import subprocess
import sys
import threading

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from cai.config.schema import EngineConfig, Sampling
from cai.engines.base import Request, RequestFailed
from cai.engines.ledger import Ledger, Recorded
from cai.engines.rows import gather_results
from cai.engines.scripted import ScriptedEngine
from cai.errors import CaiError
from cai.messages import user
from cai.observe import tracing


class Failing(ScriptedEngine):
    async def complete(self, request: Request, on_text: object = None):
        if request.messages[-1].content == "fail":
            raise RequestFailed("no: planted-0123456789")
        return await super().complete(request)


def chains(tmp_path, *texts: str) -> None:
    """Rows of two requests each."""
    recorded = Recorded(
        lambda: Failing(EngineConfig(), "m"), Ledger(tmp_path / "l.sqlite"), "s", "m", name="critic"
    )

    async def chain(text: str) -> None:
        for number in range(2):
            await recorded.complete(Request((user(text),), Sampling(), number, principle="kind"))

    asyncio.run(gather_results([chain(text) for text in texts], 1.0))
    recorded.close()


def test_a_stage_and_each_row_have_a_span(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUDGE_KEY", "planted-0123456789")
    exporter = InMemorySpanExporter()
    with tracing.trace_stage("revise", exporter):
        chains(tmp_path, "one", "two", "fail")
    chains(tmp_path, "afterwards")
    *rows, stage = sorted(exporter.get_finished_spans(), key=lambda span: span.name == "revise")
    assert stage.name == "revise" and dict(stage.attributes or {}) == {"cai.stage": "revise"}
    assert [row.name for row in rows] == ["row"] * 3
    assert len({row.context.trace_id for row in rows if row.context}) == 3  # drawn one by one
    assert all(row.links[0].context == stage.context for row in rows)
    events = [
        [(event.name, (event.attributes or {})["principle"]) for event in row.events]
        for row in rows
    ]
    assert sorted(events) == [[], [("completion", "kind")] * 2, [("completion", "kind")] * 2]
    (failed,) = [row for row in rows if row.status.status_code == StatusCode.ERROR]
    assert failed.status.description == "no: [secret]"
    assert "one" not in "".join(row.to_json() for row in rows)  # no text of a prompt


def test_a_failing_stage_is_an_error(tmp_path):
    exporter = InMemorySpanExporter()
    with pytest.raises(CaiError), tracing.trace_stage("sft", exporter):
        raise CaiError("no rows")
    (stage,) = exporter.get_finished_spans()
    assert stage.status.status_code == StatusCode.ERROR and stage.status.description == "no rows"


@pytest.mark.parametrize(("share", "least", "most"), [("0", 0, 0), ("0.5", 1, 39), ("1", 40, 40)])
def test_rows_are_drawn_and_stages_are_not(
    tmp_path, monkeypatch: pytest.MonkeyPatch, share: str, least: int, most: int
):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", share)
    exporter = InMemorySpanExporter()
    with tracing.trace_stage("revise", exporter):
        chains(tmp_path, *map(str, range(40)))
    names = [span.name for span in exporter.get_finished_spans()]
    assert names.count("revise") == 1 and least <= names.count("row") <= most


def test_spans_arrive_over_http_where_the_environment_says(
    tmp_path, monkeypatch: pytest.MonkeyPatch
):
    arrived: list[tuple[str, ExportTraceServiceRequest]] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            arrived.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "my-run")
    try:
        with tracing.trace_stage("label"):
            chains(tmp_path, "one")
    finally:
        server.shutdown()
        server.server_close()
    assert {path for path, _ in arrived} == {"/v1/traces"}
    resources = [resource for _, request in arrived for resource in request.resource_spans]
    spans = [span for one in resources for scope in one.scope_spans for span in scope.spans]
    assert sorted(span.name for span in spans) == ["label", "row"]
    names = {
        a.value.string_value
        for one in resources
        for a in one.resource.attributes
        if a.key == "service.name"
    }
    assert names == {"my-run"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
    ],
)
def test_the_environment_alone_decides(
    variables: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert tracing.is_requested() == expected


def test_an_exporter_that_is_not_known_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    with tracing.trace_stage("label"):
        pass
    assert "OTEL_TRACES_EXPORTER is 'zipkin'" in capsys.readouterr().err


UNTRACED = """
import sys, cai.run.worker
from cai.observe import tracing
with tracing.trace_stage("s"), tracing.trace_row():
    tracing.add_event("completion")
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""


def test_nothing_is_imported_where_nothing_is_asked_for():
    done = subprocess.run([sys.executable, "-c", UNTRACED], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


MISSING = """
import sys
sys.modules["opentelemetry.sdk"] = None
from cai.observe import tracing
with tracing.trace_stage("s"), tracing.trace_row():
    print("ran")
"""


def test_a_missing_opentelemetry_is_said_and_stops_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    done = subprocess.run([sys.executable, "-c", MISSING], capture_output=True, text=True)
    assert done.stdout == "ran\n" and "pip install -e '.[otel]'" in done.stderr
