"""What a run has measured, for wandb and trackio. TensorBoard has the curves of training alone."""

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cai.report.metrics import Metrics, each_metric

# The project that transformers sends the curves of training to, so that both stand in one place.
PROJECT = "huggingface"


def send_results(
    trackers: Sequence[str],
    run: str,
    settings: Mapping[str, object],
    metrics: Metrics,
    files: Sequence[Path],
    say: Callable[[str], None],
) -> None:
    """Logs each metric as `MODEL/SUITE/METRIC`, and `files` as an artefact of the run.

    A tracker that fails is named by `say`, and costs nothing else: the files are on the disk.
    """
    values = {
        f"{model}/{suite}/{name}": interval["value"]
        for model, suite, name, interval in each_metric(metrics)
    }
    for tracker in trackers:
        if tracker == "tensorboard":
            continue
        try:
            _send(tracker, run, settings, values, files)
        except Exception as error:  # whatever its server or its library comes up with
            say(f"report_to: {tracker} did not take the results: {error}")


def _send(
    tracker: str,
    run: str,
    settings: Mapping[str, object],
    values: Mapping[str, float],
    files: Sequence[Path],
) -> None:
    """wandb and trackio have the same functions. An artefact is named after the run: a project has
    many."""
    library = importlib.import_module(tracker)
    project = os.environ.get(f"{tracker.upper()}_PROJECT", PROJECT)
    tracked = library.init(project=project, name=f"{run}-report", config=dict(settings))
    tracked.log(dict(values))
    for file in files:
        tracked.log_artifact(str(file), name=f"{run}-{file.name}", type="report")
    library.finish()
