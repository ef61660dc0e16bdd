"""What `cai plan` expects: memory and hours; and the recipes for GPUs that people start from."""

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cai.config.compose import compose
from cai.config.schema import Config
from cai.config.types import lookup
from cai.errors import UsageError
from cai.run.estimate import estimate_lines, processes, tuning_of
from cai.run.plan import STAGES, check_engines, plan_run, stages
from cai.run.process import launch_arguments
from cai.store.run_folder import Run
from cai.training.memory import GIB, USABLE, forecast, read_shape

# the recipes, with the memory of the GPU that each is for
CARDS = {"gpu-24gb": 24, "gpu-7b": 80, "gpu-7b-full": 80, "gpu-70b": 80}
UNPINNED = {"cai_harmless"}  # its commit is not known here


def recipe(name: str, *words: str) -> Config:
    terms = ["model.accept_license=true"] if name == "gpu-70b" else []
    return compose([f"experiment={name}", *terms, *words])


def planned(config: Config, tflops: float = 990) -> list[str]:
    return estimate_lines(config, {stage.name: stage for stage in stages(config)}, tflops)


def hours(line: str) -> dict[str, float]:
    return {name: float(number) for name, number in re.findall(r"(\w+) (\d+\.\d)[,;)]", line)}


@pytest.mark.parametrize("name", CARDS)
def test_a_recipe_is_composed_checked_and_planned(name: str, tmp_path: Path):
    config = recipe(name)
    check_engines(config)
    quantised = config.sft.quantization is not None
    for stage in STAGES:
        if not quantised or importlib.util.find_spec("bitsandbytes") is not None:
            stage.check(config)  # builds what trl and peft take
    steps = plan_run(config, Run(tmp_path))
    assert [step.state for step in steps] == ["run"] * len(steps)
    lines = planned(config)
    assert [line.split()[0] for line in lines] == ["sft", "sl_cai", "dpo", "hours"]
    assert hours(lines[-1]).keys() == {"sft", "revise", "sl_cai", "label", "dpo"}


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
        *memory, line = planned(recipe(name), float(tflops or 990))
        sizes = [re.search(r"(\d+) GiB with gradient", text) for text in memory]
        assert int(size) == max(int(found[1]) for found in sizes if found)
        spent = re.search(r"about ([\d.]+)", line)
        assert spent and float(spent[1]) == pytest.approx(float(total), abs=0.5)


@pytest.mark.parametrize("name", CARDS)
def test_a_recipe_has_an_experts_settings(name: str):
    config = recipe(name)
    number = processes(config).number
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
    one = hours(planned(recipe("gpu-7b"))[-1])
    words = ["launcher=accelerate", 'launcher.args=["--num_processes=8"]']
    eight = hours(planned(recipe("gpu-7b", *words), 99.0)[-1])
    # eight GPUs of a tenth of the speed
    assert eight["sl_cai"] == pytest.approx(10 / 8 * one["sl_cai"], abs=0.1)


def test_hours_are_those_of_the_operations():
    """20,000 rows, a tenth held out, half of 2,048 tokens, two epochs; 6 operations a weight."""
    config = recipe("gpu-7b")
    tokens = 18_000 * 1_024 * 2
    expected = 6 * 7.6e9 * tokens / (0.4 * 990e12 * 3600)
    assert hours(planned(config)[-1])["sft"] == pytest.approx(expected, abs=0.06)


def test_what_can_not_be_counted_is_named():
    (line,) = [
        line for line in planned(recipe("gpu-7b", "label.prompts.limit=null")) if "hours" in line
    ]
    assert line.endswith("without label, dpo, evaluate)")


def test_an_unknown_model_has_no_estimate():
    config = recipe("gpu-7b")
    assert planned(replace(config, model=replace(config.model, shape=None))) == [
        "memory and hours are unknown until the model is here (model.shape says its sizes)"
    ]
    experts = replace(config.model, shape={"num_experts": 8})
    assert planned(replace(config, model=experts))[0].endswith("can't forecast this kind of model")


def test_a_folders_own_sizes_count(tiny_model: Path):
    config = compose(["experiment=smoke", "model=path", f"model.path={tiny_model}"])
    sizes = json.loads((tiny_model / "config.json").read_text())
    shape = read_shape(sizes)
    assert shape is not None
    assert forecast(shape, tuning_of(stages(config)[0], config)).total < GIB
    assert len(planned(config)) >= 3


def test_a_sharded_stage_divides_its_weights():
    assert processes(recipe("gpu-7b-full")).sharded
    assert not processes(recipe("gpu-7b", "launcher=accelerate")).sharded
    zero_2 = 'launcher.args=["--num_processes=4",--use_deepspeed,"--zero_stage=2"]'
    assert not processes(recipe("gpu-7b", "launcher=accelerate", zero_2)).sharded


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
