"""What the runner refuses before anything runs, and what it says on the way."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from cai.config.compose import compose
from cai.errors import UsageError
from cai.run import process, runner
from cai.run.plan import plan_run
from cai.store.run_folder import Run
from tests.configs import smoke


def test_chosen_stages_need_their_inputs(tmp_path: Path):
    config = compose(["experiment=smoke", "stages=[revise,label]", f"outputs={tmp_path}"])
    with pytest.raises(UsageError, match=r"stage 'revise' needs sft.*stages=\[sft,revise,label\]"):
        runner.run_stages(config, lambda line: None)


def test_an_unknown_stage_is_named(tmp_path: Path):
    config = compose(["experiment=smoke", "stages=[revize]", f"outputs={tmp_path}"])
    with pytest.raises(UsageError, match=r"'revize'.*did you mean 'revise'"):
        runner.run_stages(config, lambda line: None)


def label_with_warnings(root: Path, summaries: dict[str, Any]) -> None:
    """A run whose label stage is done, by a judge that can't be relied on."""
    made, config = Run(root / "smoke"), smoke()
    for name in ("sft", "revise", "sl_cai", "label"):
        step = next(step for step in plan_run(config, made) if step.stage.name == name)
        assert step.key is not None
        work, _ = made.begin(name, step.key)
        (work / "output").write_text(step.key)
        summary = summaries[name]
        made.publish(name, 1, step.key, step.ingredients, summary, time.time())


def test_what_a_kill_left_beside_a_finished_stage_is_removed(
    tmp_path: Path, summaries: dict[str, Any]
):
    label_with_warnings(tmp_path, summaries)
    left = (tmp_path / "smoke/latest/sft").resolve() / "scratch"
    (left / "checkpoints").mkdir(parents=True)
    runner.run_stages(
        compose(["experiment=smoke", f"outputs={tmp_path}", "stages=[sft]"]), lambda line: None
    )
    assert not left.exists()


@pytest.mark.parametrize("required", [False, True])
def test_warnings_about_the_judge_are_said_before_dpo_and_stop_it_where_asked(
    required: bool, tmp_path: Path, summaries: dict[str, Any]
):
    label_with_warnings(tmp_path, summaries)
    said: list[str] = []
    config = smoke(f"outputs={tmp_path}", f"label.require_judge={required}")
    # dpo itself fails, for there is no pair in the stand-in's output:
    # what counts is whether it has started
    with pytest.raises(Exception, match=r"label\.require_judge: no DPO" if required else "pairs"):
        runner.run_stages(config, said.append)
    assert said[0] == "will run dpo, evaluate, report"
    assert said[1].startswith("about ") and " on this machine (" in said[1]
    del said[:2]
    assert said[:4] == [f"{name}: up to date" for name in ("sft", "revise", "sl_cai", "label")]
    assert said[4] == "WARNING: The judge goes by position."
    assert said[5:] == ([] if required else ["dpo: not run yet"])
    assert (tmp_path / "smoke" / "dpo").exists() != required
    logged = [
        json.loads(line) for line in (tmp_path / "smoke/logs/log.jsonl").read_text().splitlines()
    ]
    assert [line["message"] for line in logged[:2]] == ["the run begins", "sft: up to date"]
    assert ("dpo", "warning", said[4]) in [
        (line["stage"], line["level"], line["message"]) for line in logged
    ]
    assert (logged[-1]["stage"], logged[-1]["level"]) == ("dpo", "error")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "+dpo.args.bata=0.3",
            "dpo.args.bata (override '+dpo.args.bata=0.3'): trl.DPOConfig has no such argument; "
            "did you mean 'beta'",
        ),
        ("+sft.peft.rank=3", ": peft.LoraConfig has no such argument"),
        (
            "dpo.args.loss_type=[ipo]",
            "dpo.args.loss_type=['ipo']: soft labels have a loss of their own; set dpo.loss=trl",
        ),
        ("+sft.args.output_dir=x", "sft.args.output_dir is set by cai itself"),
    ],
)
def test_a_wrong_argument_of_trl_or_peft_fails_before_anything_runs(override: str, message: str):
    with pytest.raises(UsageError) as caught:
        runner.check(smoke(override))
    assert message in str(caught.value)


SERVED = ["engine=openai", "engine.server.key=NO_SUCH_VARIABLE"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (SERVED, "server.key: the environment variable NO_SUCH_VARIABLE is not set"),
        ([f"+engine@label.{SERVED[0]}", f"label.{SERVED[1]}"], "NO_SUCH_VARIABLE is not set"),
        (
            ["engine=openai", "engine.model=large"],
            "engine.model=large: every stage would ask this one model",
        ),
    ],
    ids=str,
)
def test_a_server_that_can_not_be_asked_fails_before_anything_runs(
    overrides: list[str], message: str
):
    with pytest.raises(UsageError, match=re.escape(message)):
        runner.check(smoke(*overrides))


def test_deepspeed_is_asked_for_and_not_there(monkeypatch: pytest.MonkeyPatch):
    config = smoke("launcher=deepspeed")
    assert "--multi_gpu" not in process.launch_arguments(
        config
    )  # accelerate takes one kind of launch at a time
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "deepspeed" else name
    )
    with pytest.raises(UsageError, match=r"pip install -e '\.\[deepspeed\]'"):
        runner.check(config)
