"""What wandb and trackio get of a run, both in their offline modes."""

import json
import sqlite3
from pathlib import Path

import pytest

from tests.smoke_runs import run_fork

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The folder in which a run with both trackers has ended."""
    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))
        done = run_fork(folder, tiny_model, "report_to=[wandb,trackio]", "launcher=inline")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "did not take the results" not in done.stderr
    return folder


def test_wandb_has_a_run_for_each_stage_that_trains_and_one_for_the_report(tracked: Path):
    files = sorted(tracked.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 4  # the stages of one process do not share one
    results = files[-1].read_bytes()
    for text in (b"smoke-report.html", b"smoke-metrics.json", b"dpo/red_team/refusal"):
        assert text in results


def test_trackio_has_the_metrics_and_the_page(tracked: Path):
    (file,) = (tracked / "trackio").glob("*.db")
    with sqlite3.connect(file) as database:
        runs = {name for (name,) in database.execute("select run_name from metrics")}
        (logged,) = database.execute("select metrics from metrics where run_name = 'smoke-report'")
        artefacts = {name for (name,) in database.execute("select name from artifacts")}
    assert runs == {"smoke-sft", "smoke-sl_cai", "smoke-dpo", "smoke-report"}
    out = tracked / "outputs/smoke/latest/evaluate/out"
    metrics = json.loads((out / "metrics.json").read_text())
    shown = metrics["dpo"]["red_team"]["refusal"]["value"]
    assert json.loads(logged[0])["dpo/red_team/refusal"] == shown
    assert artefacts == {"smoke-report.html", "smoke-metrics.json"}
