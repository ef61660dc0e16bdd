"""Training keeps what it learns, whatever the formats of generation and of frozen weights are."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from cai.config.compose import compose
from cai.config.schema import Config, DataConfig, EngineConfig
from cai.errors import CaiError, UsageError
from cai.method.constitution import Constitution
from cai.models import numerics
from cai.models.load import load_model
from cai.models.numerics import numerics as numerics_of
from cai.run.plan import ingredients, stages
from cai.stages import sft
from cai.stages.base import Context
from cai.training.kept_gain import KeptGain
from tests.configs import smoke

LORA = "{r: 4, lora_alpha: 8, target_modules: all-linear}"


@pytest.fixture
def tune(tmp_path: Path, make_context: Callable[..., Context]) -> Callable[..., Any]:
    """Runs the stage sft with another engine format; returns its work folder and summary."""
    file = tmp_path / "seed.jsonl"
    rows = [{"prompt": f"Is it {n}?", "completion": f"It is {n}."} for n in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(name: str, dtype: Any, *words: str) -> tuple[Path, sft.Summary]:
        data = {"seed": DataConfig(kind="file", path=str(file))}
        context = make_context("sft", data=data, scratch=tmp_path / f"scratch-{name}")
        context = replace(context, engine=EngineConfig(device="cpu", dtype=dtype))
        work = tmp_path / name
        work.mkdir()
        limits = ("sft.limit=null", "sft.validation=0.25")
        return work, sft.run(smoke(*limits, *words).sft, work, context)

    return run


def test_an_adapter_alone_makes_the_same_model_again(
    tune: Callable[..., Any], make_context: Callable[..., Context], tmp_path: Path
):
    words = (f"sft.peft={LORA}", "sft.args.learning_rate=0.01")
    (whole, measured), (alone, kept) = (
        tune("a", "float32", *words),
        tune("b", "float32", *words, "sft.publish=adapter"),
    )
    assert not (alone / "model").exists() and measured.kept == kept.kept
    shutil.rmtree(tmp_path / "merged")  # as the end of a run does
    folder = Path(make_context("sft").whole_model(alone))
    assert folder.parent == tmp_path / "merged"
    for file in (whole / "model").iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes(), file.name
    other = replace(make_context("sft").model, template="inst")
    with pytest.raises(CaiError, match="belongs to a model 'base' that is not there"):
        make_context("sft", model=other).whole_model(alone)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sft.peft=null"], "every weight is tuned, so there is none; set sft.peft"),
        (["sft.publish_dtype=bfloat16"], "an adapter is float32"),
        (["engine=openai"], "your servers need a folder to serve sft from"),
    ],
)
def test_an_adapter_alone_is_refused_where_it_can_not_be(words: list[str], message: str):
    with pytest.raises(UsageError, match=rf"^sft\.publish=adapter .*: {message}"):
        compose(["experiment=bench", "sft.publish=adapter", *words])


def weights_of(work: Path) -> dict[str, torch.Tensor]:
    return load_file(work / "model" / "model.safetensors")


def test_full_tuning_does_not_depend_on_the_format_of_generation(tune: Callable[..., Any]):
    """With bfloat16 weights, steps of 5e-7 would change almost none of them."""
    words = ("sft.peft=null", "sft.args.learning_rate=5e-7", "sft.args.num_train_epochs=1")
    (exact, _), (rounded, _) = tune("a", "float32", *words), tune("b", "bfloat16", *words)
    one, other = weights_of(exact), weights_of(rounded)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert {values.dtype for values in one.values()} == {torch.float32}


def test_bfloat16_arithmetic_keeps_small_steps(tune: Callable[..., Any], tiny_model: Path):
    """As on a GPU: float32 weights, computed with in bfloat16."""
    words = ("sft.peft=null", "sft.args.learning_rate=1e-6", "sft.args.num_train_epochs=1")
    (exact, _), (mixed, _) = (
        tune("a", "float32", *words),
        tune("b", "float32", *words, "+sft.args.bf16=true"),
    )
    start = load_file(tiny_model / "model.safetensors")
    one, other = weights_of(exact), weights_of(mixed)
    moved = torch.cat([(one[name] != start[name]).flatten() for name in start])
    moved_mixed = torch.cat([(other[name] != start[name]).flatten() for name in start])
    assert moved_mixed.float().mean() > 0.9 * moved.float().mean() > 0


def test_an_adapter_on_bfloat16_weights_is_float32_and_merged_in_float32(
    tune: Callable[..., Any], tiny_model: Path
):
    words = (f"sft.peft={LORA}", "sft.frozen_dtype=bfloat16", "sft.args.learning_rate=1e-3")
    work, summary = tune("a", "float32", *words)
    adapter = load_file(work / "adapter" / "adapter_model.safetensors")
    assert {values.dtype for values in adapter.values()} == {torch.float32}
    base = load_model(str(tiny_model), "float32", "cpu")
    expected = PeftModel.from_pretrained(base, str(work / "adapter")).merge_and_unload()
    published = weights_of(work)
    assert all(
        torch.equal(values, published[name])
        for name, values in expected.state_dict().items()
        if name in published
    )
    assert summary.kept and summary.kept.share and summary.kept.share > 0.9
    assert summary.kept.held_out and not summary.warnings()


def test_a_published_model_that_forgot_is_named(tune: Callable[..., Any]):
    """Where little of a gain is kept, the stage says so, and what to set."""
    gain = ("sft.args.learning_rate=3e-3", "sft.args.num_train_epochs=6")
    _, summary = tune("a", "float32", f"sft.peft={LORA}", *gain, "sft.publish_dtype=bfloat16")
    assert summary.kept and summary.kept.share
    # the measurement itself, on scores where only a tenth was kept
    little = KeptGain("loss", -2.0, -1.0, -1.9, rows=16, held_out=True)
    (warning,) = replace(summary, kept=little).warnings()
    assert "keeps 10% of what sft gained" in warning and "sft.publish_dtype=float32" in warning
    assert replace(summary, kept=replace(little, published=-1.05)).warnings() == []
    # no gain: nothing can be kept or lost
    assert replace(summary, kept=replace(little, trained=-2.0)).warnings() == []


def parts(config: Config, name: str) -> dict[str, Any]:
    stage = next(stage for stage in stages(config) if stage.name == name)
    return ingredients(stage, config, Constitution.load(config.constitution))


def test_auto_is_another_key_on_another_device(monkeypatch: pytest.MonkeyPatch):
    config = smoke("model.path=/nowhere")
    monkeypatch.setattr(numerics, "_auto_device", lambda: "cpu")
    on_cpu = parts(config, "evaluate")
    monkeypatch.setattr(numerics, "_auto_device", lambda: "mps")
    assert parts(config, "evaluate") != on_cpu
    assert on_cpu["numerics"] == {"engine": {"device": "cpu", "dtype": "float32"}}
    assert "numerics" not in parts(config, "report")


def test_a_device_that_is_named_needs_no_torch():
    named = EngineConfig(device="cuda", dtype="bfloat16")
    assert numerics_of(named) == {"device": "cuda", "dtype": "bfloat16"}
