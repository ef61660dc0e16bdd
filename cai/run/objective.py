"""The number that a run gives to a sweeper which looks for the best one."""

from collections.abc import Mapping, Sequence

from cai.config.names import evaluated_models
from cai.config.schema import Config
from cai.errors import CaiError, UsageError, nearest
from cai.report.metrics import METRICS, Metrics, each_metric
from cai.store.manifest import Manifest

EXAMPLE = "objective=evaluate.red_team.refusal"


def check_objective(config: Config, sweeper: str | None = None) -> None:
    """Raises UsageError on an objective that no run can have, before anything runs.

    `sweeper` wants a number of each run; null where nothing does.
    """
    if config.objective is None:
        if sweeper is not None:
            raise UsageError(
                f"hydra/sweeper={sweeper} wants a number of each run: name a metric with "
                f"{EXAMPLE}, or take hydra/sweeper=basic, which runs every combination"
            )
        return
    if config.stages is not None and "evaluate" not in config.stages:
        raise UsageError(
            f"objective={config.objective}: stages={config.stages} leaves out evaluate, which "
            "measures it"
        )
    # lm-eval names its tasks and metrics itself
    names = _possible_names(evaluated_models(config), config.evaluate.suites)
    if config.objective not in names and not config.evaluate.lm_eval:
        raise UsageError(_unknown(config.objective, names))


def objective_of(config: Config, manifests: Mapping[str, Manifest]) -> float | None:
    """The configured metric of a finished run.

    None where none is configured, and on all machines but the first, which has no results. Raises
    CaiError, which lists the metrics that there are.
    """
    if config.objective is None or "evaluate" not in manifests:
        return None
    metrics: Metrics = manifests["evaluate"].summary["metrics"]
    values: dict[str, float] = {}
    for model, suite, metric, interval in each_metric(metrics):
        values[f"evaluate.{model}.{suite}.{metric}"] = interval["value"]
        # the last model's come last, and stay
        values[f"evaluate.{suite}.{metric}"] = interval["value"]
    if config.objective not in values:
        raise CaiError(_unknown(config.objective, list(values)))
    return values[config.objective]


def _possible_names(models: Sequence[str], suites: Mapping[str, object]) -> list[str]:
    places = [f"{suite}." for suite in suites]
    places += [f"{model}.{suite}." for model in models for suite in suites]
    return [f"evaluate.{place}{metric}" for place in places for metric in METRICS]


def _unknown(objective: str, names: Sequence[str]) -> str:
    examples = ", ".join(name for name in names if name.count(".") == 2)
    return (
        f"objective={objective}: there is no such metric{nearest(objective, names)} (of the last "
        f"model: {examples}; of another: evaluate.MODEL.SUITE.METRIC)"
    )
