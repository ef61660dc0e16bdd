"""What `cai plan` expects: memory and hours; and the recipes for GPUs that people start from."""

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cai.config.compose import compose
from cai.config.launcher import launch_of
from cai.config.names import PROBES
from cai.config.schema import Config, Prompts
from cai.config.types import lookup
from cai.errors import UsageError
from cai.run import machine
from cai.run.estimate import (
    Estimate,
    estimate_run,
    memory_lines,
    tuning_of,
)
from cai.run.outlook import Outlook
from cai.run.plan import STAGES, check_settings, plan_run, stages
from cai.run.process import launch_arguments
from cai.run.work import count_prompts
from cai.store.run_folder import Run
from cai.training.memory import GIB, USABLE, forecast, read_shape
from tests.configs import smoke

# the recipes, with the memory of the GPU that each is for
CARDS = {"gpu-24gb": 24, "gpu-7b": 80, "gpu-7b-full": 80, "gpu-70b": 80}
UNPINNED = {"cai_harmless"}  # its commit is not known here


def recipe(name: str, *words: str) -> Config:
    terms = ["model.accept_license=true"] if name == "gpu-70b" else []
    return compose([f"experiment={name}", *terms, *words])


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What stages took on this machine, and which wheels are here, is nothing to a test."""
    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "cache"))


def planned(config: Config, tflops: float | None = 990) -> Estimate:
    expected = estimate_run(config, {stage.name: stage for stage in stages(config)}, tflops)
    assert expected is not None
    return expected


def hours(expected: Estimate) -> dict[str, float]:
    return {stage.stage: (stage.seconds or 0) / 3600 for stage in expected.stages}


@pytest.mark.parametrize("name", CARDS)
def test_a_recipe_is_composed_checked_and_planned(name: str, tmp_path: Path):
    config = recipe(name)
    check_settings(config)
    quantised = config.sft.quantization is not None
    for stage in STAGES:
        if not quantised or importlib.util.find_spec("bitsandbytes") is not None:
            stage.check(config)  # builds what trl and peft take
    steps = plan_run(config, Run(tmp_path))
    assert [step.state for step in steps] == ["run"] * len(steps)
    lines = memory_lines(config, {stage.name: stage for stage in stages(config)})
    assert [line.split()[0] for line in lines] == ["sft", "sl_cai", "dpo"]
    expected = planned(config, None)
    assert expected.machine.device == "cuda"
    # whose prompts no limit counts, and which are not here
    assert expected.unknown == ["evaluate"]
    assert min(spent for name, spent in hours(expected).items() if name[0] != "e") >= 0


@pytest.mark.parametrize("name", CARDS)
def test_a_recipe_fits_its_card(name: str):
    """With gradient checkpointing, which is chosen where it is needed."""
    config = recipe(name)
    shape = read_shape(config.model.shape or {})
    assert shape is not None
    for stage in stages(config):
        if stage.trains:
            tuning = replace(tuning_of(stage, config), checkpointing=True)
            assert forecast(shape, tuning).total < USABLE * CARDS[name] * 1e9, stage.name


def test_the_page_about_gpus_says_what_the_plan_says():
    page = (Path(__file__).parents[2] / "docs/gpu.md").read_text()
    rows = re.findall(
        r"^\| `([\w-]+).*\| (\d+) GiB \| ([\d.]+)(?: \((\d+) TFLOP/s\))? \|$", page, re.M
    )
    assert [name for name, *_ in rows] == [*CARDS]
    for name, size, total, tflops in rows:
        config = recipe(name)
        memory = memory_lines(config, {stage.name: stage for stage in stages(config)})
        sizes = [re.search(r"(\d+) GiB with gradient", text) for text in memory]
        assert int(size) == max(int(found[1]) for found in sizes if found)
        spent = planned(config, float(tflops or 990)).seconds / 3600
        assert spent == pytest.approx(float(total), abs=0.06 * float(total))


@pytest.mark.parametrize("name", CARDS)
def test_a_recipe_has_an_experts_settings(name: str):
    config = recipe(name)
    number = launch_of(config).processes
    for key in ("sft", "sl_cai", "dpo"):
        args: dict[str, Any] = lookup(config, key).args
        rows = args["per_device_train_batch_size"] * args["gradient_accumulation_steps"]
        assert rows * number >= 64, key
        assert (args["lr_scheduler_type"], args["warmup_steps"] > 0) == ("cosine", True)
        assert 1 <= args["num_train_epochs"] <= 3
    full = config.dpo.peft is None
    assert (config.sft.peft is None) == (config.sl_cai.peft is None) == full
    assert (config.dpo.args["beta"], config.dpo.args["learning_rate"]) == (
        0.1,
        5e-7 if full else 5e-6,
    )
    assert {config.sft.max_length, config.sl_cai.max_length, config.dpo.args["max_length"]} == {
        2048
    }
    for sampling in (config.revise.sampling.answer, config.revise.sampling.revision):
        assert 768 <= sampling.max_new_tokens <= 1024
    assert 768 <= config.label.sampling.max_new_tokens <= 1024
    # 10,000 prompts each, and no prompt in both
    revised, labelled = config.revise.prompts, config.label.prompts
    assert revised.data == labelled.data
    assert (revised.limit, labelled.limit) == (10_000, 10_000)
    assert labelled.offset == revised.offset + 10_000
    assert (config.label.principles, config.label.require_judge) == (4, True)
    assert config.label.calibrate is not None and config.label.human is not None
    assert (config.evaluate.seeds, config.evaluate.harm) == (3, True)


@pytest.mark.parametrize("name", CARDS)
def test_a_recipes_models_and_data_are_pinned(name: str):
    config = recipe(name)
    assert re.fullmatch("[0-9a-f]{40}", config.model.revision or "")
    hub = {name for name, data in config.data.items() if data.kind == "hub"}
    pinned = {
        name for name in hub if re.fullmatch("[0-9a-f]{40}", config.data[name].revision or "")
    }
    assert hub - pinned == UNPINNED


def test_more_and_faster_gpus_take_fewer_hours():
    one = hours(planned(recipe("gpu-7b")))
    words = ["launcher=accelerate", 'launcher.args=["--num_processes=8"]']
    eight = hours(planned(recipe("gpu-7b", *words), 99.0))
    # eight GPUs of a tenth of the speed
    assert eight["sl_cai"] == pytest.approx(10 / 8 * one["sl_cai"], abs=0.1)


def test_hours_are_those_of_the_operations():
    """20,000 rows, a tenth held out, half of 2,048 tokens, two epochs; 6 operations a weight."""
    config = recipe("gpu-7b")
    tokens = 18_000 * 1_024 * 2
    expected = 6 * 7.6e9 * tokens / (0.4 * 990e12 * 3600)
    assert hours(planned(config))["sft"] == pytest.approx(expected, abs=0.06)


def test_what_can_not_be_counted_is_named():
    expected = planned(recipe("gpu-7b", "label.prompts.limit=null"))
    assert expected.unknown == ["label", "dpo", "evaluate"]
    assert expected.whole().stage == "all but label, dpo, evaluate"


def test_prompts_that_are_still_to_be_written_are_counted(tmp_path: Path):
    law = tmp_path / "law.yaml"
    law.write_text("- Never give doses.\n- Say who to ask.\n- {sentence: Be kind., weight: 0}\n")
    config = compose(["experiment=smoke", f"constitution={law}", "probe.target=10"])
    rows = {name: count_prompts(Prompts([name]), config) for name in PROBES}
    assert {name: size and size[0] for name, size in rows.items()} == {
        "probe": 14,
        "probe_benign": 14,
        "probe_test": 12,
        "probe_test_red_team": 6,
        "probe_test_benign": 6,
    }


def test_an_unknown_model_has_no_estimate():
    config = recipe("gpu-7b")
    for shape in (None, {"num_experts": 8}):
        unknown = replace(config, model=replace(config.model, shape=shape))
        assert estimate_run(unknown, {}) is None


def test_a_folders_own_sizes_count(tiny_model: Path):
    config = smoke("model=path", f"model.path={tiny_model}")
    sizes = json.loads((tiny_model / "config.json").read_text())
    shape = read_shape(sizes)
    assert shape is not None
    assert forecast(shape, tuning_of(stages(config)[0], config)).total < GIB
    assert planned(config, None).machine.device == "cpu"


def test_a_sharded_stage_divides_its_weights():
    assert launch_of(recipe("gpu-7b-full")).sharded
    assert not launch_of(recipe("gpu-7b", "launcher=accelerate")).sharded
    zero_2 = 'launcher.args=["--num_processes=4",--use_deepspeed,"--zero_stage=2"]'
    assert not launch_of(recipe("gpu-7b", "launcher=accelerate", zero_2)).sharded


def test_several_machines_need_a_launcher_an_address_and_a_rank():
    several = ["experiment=gpu-7b-full", "launcher.machines.count=2"]
    with pytest.raises(UsageError, match=r"launcher\.machines\.address.*name machine 0"):
        compose(several)
    several.append("launcher.machines.address=host0")
    with pytest.raises(UsageError, match=r"must be below launcher\.machines\.count, which is 2"):
        compose([*several, "launcher.machines.rank=2"])
    with pytest.raises(UsageError, match="take launcher=accelerate"):
        compose([*several, "launcher.kind=process"])
    arguments = launch_arguments(compose([*several, "launcher.machines.rank=1"]))
    assert {"--num_machines=2", "--machine_rank=1", "--main_process_ip=host0"} <= {*arguments}


CPU = machine.Machine("cpu", 0.4)


@pytest.fixture
def quick_machine(monkeypatch: pytest.MonkeyPatch):
    """Of 400 GFLOP/s: measuring it in a test would measure the other tests."""
    monkeypatch.setattr(machine, "measure", lambda: CPU.tflops)


def test_the_quickstart_is_estimated_on_this_cpu(quick_machine: None):
    expected = planned(
        compose(["experiment=bench", "evaluate.suites.red_team.prompts.limit=48"]), None
    )
    assert expected.machine == CPU and expected.unknown == []
    assert 60 < expected.seconds < 3600
    work = {stage.stage: stage.work for stage in expected.stages}
    assert work["sft"] and 40_000 < work["sft"].trained < 60_000
    # three models of 4 bytes a weight, and adapters of 4.9 million
    assert sum(stage.disk for stage in expected.stages) == pytest.approx(1.67e9, rel=0.01)
    alone = planned(
        compose(["experiment=bench", "sft.publish=adapter", "sl_cai.publish=adapter"]), None
    )
    assert sum(stage.disk for stage in alone.stages) == pytest.approx(0.6e9, rel=0.02)


def test_what_a_stage_took_here_corrects_the_next_estimate(quick_machine: None):
    config = compose(["experiment=bench"])
    first = hours(planned(config, None))
    machine.note_pace("sft", "cpu", 100.0, 300.0)
    machine.note_pace("dpo", "cpu", 5.0, 50.0)  # too short to say anything
    machine.note_pace("label", "cuda", 100.0, 300.0)
    second = hours(planned(config, None))
    start = 4 / 3600
    assert second["sft"] - start == pytest.approx(3 * (first["sft"] - start))
    assert (second["dpo"], second["label"]) == (first["dpo"], first["label"])
    (Path(machine.cache()) / "pace.json").write_text("damaged")
    assert hours(planned(config, None)) == first


def test_tokens_of_a_server_and_hours_have_prices(quick_machine: None):
    server = ["+engine@revise.engine=openai", "revise.engine.model=large"]
    server += ["revise.engine.server.urls=[http://127.0.0.1:1/v1]"]
    price = "report.price={prompt: 1.0, new: 2.0, hour: 3600.0}"
    expected = planned(compose(["experiment=bench", *server, price]), None)
    stages_by_name = {stage.stage: stage for stage in expected.stages}
    revise, sft = stages_by_name["revise"], stages_by_name["sft"]
    assert revise.seconds is None and revise.work is not None
    assert revise.price == pytest.approx((revise.work.read + 2 * revise.work.written) / 1e6)
    assert sft.price == sft.seconds
    assert expected.unknown == ["revise"]


def test_a_recipe_for_gpus_is_not_estimated_in_days_of_a_cpu(quick_machine: None):
    words = ["engine=transformers", "launcher=inline"]
    expected = planned(recipe("gpu-7b", *words), None)
    assert (expected.machine.device, expected.machine.tflops) == ("cuda", 990)


def test_a_run_says_what_it_will_take_and_learns_from_its_stages(
    quick_machine: None, tmp_path: Path
):
    config = compose(["experiment=bench", "evaluate.suites.red_team.prompts.limit=48"])
    outlook = Outlook(config, plan_run(config, Run(tmp_path)))
    will_run, about = outlook.lines()
    assert will_run == "will run sft, revise, sl_cai, label, dpo, evaluate, report"
    assert re.match(r"about \d+ min on this machine \(.* 400 GFLOP/s just now\): sft \d", about)
    assert about.endswith("; 1.67 GB of disk")
    expected = {stage.stage: stage for stage in planned(config, None).stages}
    seconds = {name: stage.seconds or 0 for name, stage in expected.items()}
    rest = sum(seconds.values()) - seconds["sft"] - seconds["revise"]
    assert outlook.later("revise") == pytest.approx(rest)
    assert (outlook.later("report"), outlook.later("build")) == (0, None)
    outlook.note("sft", 3 * seconds["sft"], whole=True)
    assert outlook.later("revise") == pytest.approx(3 * rest)
    # and so does the next run
    again = {stage.stage: stage.seconds or 0 for stage in planned(config, None).stages}
    assert again["sft"] == pytest.approx(3 * seconds["sft"], rel=1e-3)
    outlook.note("dpo", 300, whole=False)  # resumed: nobody knows what all of it would have taken
    assert planned(config, None).stages[4] == expected["dpo"]
    assert Outlook(config, []).lines() == []
