"""The number that a run gives to a sweeper."""

import re
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

from cai.cli.run import check_jobs
from cai.config.compose import compose
from cai.errors import CaiError, UsageError
from cai.run.objective import check_objective, objective_of
from cai.run.plan import check_settings
from cai.store.manifest import Manifest

METRICS = {
    model: {"red_team": {"refusal": {"value": share, "low": 0.0, "high": 1.0}}}
    for model, share in (("base", 0.125), ("./own.model", 0.25), ("dpo", 0.5))
}
MANIFESTS = {"evaluate": Manifest("evaluate", 1, "", {}, "", {}, {"metrics": METRICS}, 0.0, 0.0)}


@pytest.mark.parametrize(
    ("objective", "value"),
    [
        ("null", None),
        ("evaluate.red_team.refusal", 0.5),
        ("evaluate.dpo.red_team.refusal", 0.5),
        ("evaluate.base.red_team.refusal", 0.125),
        ("evaluate../own.model.red_team.refusal", 0.25),
    ],
)
def test_it_is_a_metric_of_the_last_model_or_of_one_that_it_names(
    objective: str, value: float | None
):
    config = compose([f"objective={objective}", "evaluate.models=[base,./own.model,dpo]"])
    check_objective(config, None)
    assert objective_of(config, MANIFESTS) == value


def test_a_metric_that_was_not_measured_is_refused_with_those_that_were():
    config = compose(["objective=evaluate.red_team.harmful"])
    check_objective(config, None)
    with pytest.raises(CaiError, match=r"no such metric.* evaluate\.red_team\.refusal; of another"):
        objective_of(config, MANIFESTS)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "hydra/sweeper=optuna wants a number of each run: name a metric with objective="),
        (["objective=evaluate.red_tem.refusal"], "did you mean 'evaluate.red_team.refusal'?"),
        (["objective=evaluate.red_team.refused"], "did you mean 'evaluate.red_team.refusal'?"),
        (["objective=loss"], "objective=loss: there is no such metric"),
        (["objective=evaluate.red_team.refusal", "stages=[sft]"], "stages=['sft'] leaves out"),
    ],
)
def test_one_that_no_run_can_have_is_refused_before_anything_runs(
    overrides: list[str], message: str
):
    with pytest.raises(UsageError, match=re.escape(message)):
        check_objective(compose(overrides), "optuna")


def test_optuna_wants_its_package_and_a_sweep(
    cai: Callable[..., CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = cai("-m", "hydra/sweeper=optuna", "experiment=smoke")
    assert done.returncode == 2 and "pip install hydra-optuna-sweeper" in done.stderr
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    done = cai("hydra/sweeper=optuna", "experiment=smoke")
    assert done.returncode == 2 and "add -m" in done.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages=[Sft]", "stages names 'Sft', which is no stage; did you mean 'sft'"),
        ("stages=[]", r"stages=\[\] names no stage, so nothing would run"),
        ("objective=x", "objective=x: there is no such metric"),
    ],
)
def test_what_a_run_is_to_do_is_checked_by_the_plan(override: str, message: str):
    with pytest.raises(UsageError, match=message):
        check_settings(compose(["experiment=smoke", override]))


def test_every_job_of_a_sweep_is_checked_before_the_first_starts():
    check_jobs(["experiment=smoke", "-m", "seed=1,2", "name=2026_1"], None)
    with pytest.raises(UsageError, match="seed=-2"):
        check_jobs(["experiment=smoke", "-m", "seed=1,-2"], None)
