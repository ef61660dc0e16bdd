"""The run's log and its metrics.

Whole lines from every process, no secret, and a format that Prometheus reads.
"""

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cai.config.schema import EngineConfig, Sampling
from cai.engines.base import Request, RequestFailed
from cai.engines.ledger import Ledger, Recorded
from cai.engines.rows import gather_results
from cai.engines.scripted import ScriptedEngine
from cai.messages import user
from cai.observe import log as telemetry
from cai.observe import metrics
from cai.observe.progress import Progress, status_lines


@pytest.fixture(autouse=True)
def own_stage():
    telemetry.enter_stage("test")
    yield
    telemetry.enter_stage("")


def lines(root: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (root / "logs" / "log.jsonl").read_text().splitlines()]


def test_a_line_says_when_how_grave_which_stage_and_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("JUDGE_KEY", "planted-0123456789")
    telemetry.open_log(tmp_path)
    telemetry.log(
        "the key planted-0123456789 is wrong",
        logging.WARNING,
        server="x?planted-0123456789",
        tries=3,
    )
    logging.getLogger("library").warning("planted-0123456789\nin two lines")
    logging.getLogger("library").info("nobody wants to know")
    try:
        raise ValueError("planted-0123456789")
    except ValueError as error:
        telemetry.log("failed", logging.ERROR, error)
    one, two, three = lines(tmp_path)
    assert (one["level"], one["stage"], one["tries"], one["process"]) == (
        "warning",
        "test",
        3,
        os.getpid(),
    )
    assert str(one["time"]).endswith("+00:00") and one["message"] == "the key [secret] is wrong"
    assert (two["logger"], two["message"]) == ("library", "[secret]\nin two lines")
    assert "ValueError: [secret]" in str(three["traceback"])
    assert "planted" not in (tmp_path / "logs" / "log.jsonl").read_text()


WRITE = """
import sys
from pathlib import Path
from cai.observe import log as telemetry
telemetry.open_log(Path(sys.argv[1]))
for number in range(200):
    telemetry.log("x" * 3000, number=number)
"""


def test_processes_do_not_mix_their_lines(tmp_path: Path):
    writers = [subprocess.Popen([sys.executable, "-c", WRITE, str(tmp_path)]) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    found = lines(tmp_path)
    assert sorted(line["number"] for line in found) == sorted([*range(200)] * 3)  # pyright: ignore[reportArgumentType]


def test_a_log_that_cannot_be_written_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    telemetry.open_log(tmp_path)
    (tmp_path / "logs").rmdir()
    telemetry.say("a line for a person")
    assert capsys.readouterr().err == "a line for a person\n"


def samples(file: Path) -> dict[tuple[str, str], float]:
    """(name, the one label beside the stage) -> value, as Prometheus' own reader finds them."""
    found = {}
    for family in text_string_to_metric_families(file.read_text()):
        for sample in family.samples:
            if sample.labels.pop("stage") == "test":
                found[sample.name, *sample.labels.values()] = sample.value
    return found


def test_prometheus_reads_the_figures_whatever_the_labels(tmp_path: Path):
    odd = 'a "b" \\ c\nd'
    metrics.count("server_answers_total", 3, server=odd)
    metrics.count("server_answers_total", server=odd)
    metrics.set_gauge("server_open", 2, server=odd)
    metrics.set_gauge("server_open", 1, server="http://me:password@host/v1")
    file = tmp_path / "metrics.prom"
    metrics.write_metrics(file)
    found = samples(file)
    assert found["cai_server_answers_total", odd] == 4 and found["cai_server_open", odd] == 2
    assert found["cai_server_open", "http://[secret]@host/v1"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.prom"]
    # The library's times of creation are left out, and so are metrics without a value.
    assert "_created" not in file.read_text()
    assert all(family.samples for family in text_string_to_metric_families(file.read_text()))


def test_a_thread_without_a_context_logs_and_counts_for_the_stage(tmp_path: Path):
    telemetry.open_log(tmp_path)
    telemetry.enter_stage("threaded")
    for work in (metrics.count, telemetry.log):
        thread = threading.Thread(target=work, args=("failed_rows_total",))
        thread.start()
        thread.join()
    assert metrics.stage_metrics("threaded") == {"failed_rows_total": [({}, 1.0)]}
    assert [line["stage"] for line in lines(tmp_path)] == ["threaded"]


def test_the_file_is_whole_while_others_count(tmp_path: Path):
    stop = threading.Event()

    def keep_counting() -> None:
        number = 0
        while not stop.is_set():
            metrics.count("server_retries_total", server=str(number % 100), cause="away")
            number += 1

    thread = threading.Thread(target=keep_counting)
    thread.start()
    try:
        for _ in range(20):
            metrics.write_metrics(tmp_path / "metrics.prom")
            list(text_string_to_metric_families((tmp_path / "metrics.prom").read_text()))
    finally:
        stop.set()
        thread.join()


class Failing(ScriptedEngine):
    async def complete(self, request: Request, on_text: object = None):
        if request.messages[-1].content == "fail":
            raise RequestFailed("the server said no")
        return await super().complete(request)


def test_a_stage_counts_models_principles_failures_and_what_came_from_the_ledger(tmp_path: Path):
    telemetry.enter_stage("counted")
    telemetry.open_log(tmp_path)
    engine = Failing(EngineConfig(), "model")
    progress = Progress(
        "counted", tmp_path / "progress.json", quiet=True, metrics_file=tmp_path / "metrics.prom"
    )

    def ask(*texts: str) -> None:
        recorded = Recorded(
            lambda: engine, Ledger(tmp_path / "l.sqlite"), "counted", "digest", name="judge"
        )
        requests = [Request((user(text),), Sampling(), principle=f"rule {text}") for text in texts]
        asyncio.run(gather_results([recorded.complete(request) for request in requests], 1.0))
        recorded.close()

    ask("one", "two", "fail")
    ask("one", "three")
    progress.start(5, "rows")
    progress.finish()
    found: dict[str, dict[str, float]] = {}
    for name, rows in metrics.stage_metrics("counted").items():
        found[name] = {"".join(labels.values()): value for labels, value in rows}
    assert found["completions_total"] == {"judge": 3} and found["from_ledger_total"] == {"": 1}
    assert found["principle_completions_total"] == {"rule one": 1, "rule two": 1, "rule three": 1}
    assert found["failed_rows_total"] == {"": 1} and found["planned"] == {"rows": 5}
    assert [line["message"] for line in lines(tmp_path)] == [
        "a row is left out: the server said no"
    ]
    shown = "\n".join(status_lines(tmp_path / "progress.json"))
    assert "1 rows left out" in shown and "principle rule one: 1 answers" in shown
    assert 'cai_failed_rows_total{stage="counted"} 1' in (tmp_path / "metrics.prom").read_text()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"done": 1}', '{"pace": "", "figures": {"server_answers_total": [[1, 2]]}}'],
)
def test_a_status_does_without_what_it_cannot_read(tmp_path: Path, text: str):
    (tmp_path / "progress.json").write_text(text)
    assert status_lines(tmp_path / "progress.json") == []
    assert status_lines(tmp_path / "none.json") == []
