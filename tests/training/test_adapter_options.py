"""Whatever peft's options are: the published folder gives the trainer's logits, or a refusal."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, MixtralConfig

from cai.config.schema import DataConfig, EngineConfig, ModelConfig, SftConfig
from cai.data.parquet import write_rows
from cai.errors import UsageError
from cai.models.load import load_model
from cai.stages import dpo, sft
from cai.stages.base import Context, Input
from cai.training import trainer as training
from cai.training.adapters import relative_error
from cai.training.arguments import UNPUBLISHABLE, check_lora, lora_config
from tests.configs import smoke

LINEAR = {"r": 4, "target_modules": "all-linear"}
QUERIES = {"r": 4, "target_modules": ["q_proj"]}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
SHAPE = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPE |= {"hidden_size": 32, "num_key_value_heads": 1, "initializer_range": 0.3, "pad_token_id": 0}
SHAPE |= {"bos_token_id": 1, "eos_token_id": 2}


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny model; and like it, one that shares its embeddings, one with biases, one with
    experts."""
    size: dict[str, Any] = {"vocab_size": AutoConfig.from_pretrained(tiny_model).vocab_size} | SHAPE
    configs = {
        "tied": LlamaConfig(**size, tie_word_embeddings=True),
        "biased": LlamaConfig(**size, attention_bias=True, mlp_bias=True),
        "experts": MixtralConfig(**size, num_local_experts=2, num_experts_per_tok=1),
    }
    folders = {"untied": tiny_model}
    for name, config in configs.items():
        folders[name] = tmp_path_factory.mktemp(name) / "model"
        shutil.copytree(tiny_model, folders[name])
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folders[name])
    return folders


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(3, 120)[None], use_cache=False).logits


def loaded(folder: Path, adapter: Path | None = None) -> torch.Tensor:
    model = load_model(str(folder), "float32", "cpu")
    return logits(PeftModel.from_pretrained(model, str(adapter)) if adapter else model)


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


def settings(lora: dict[str, Any], *words: str) -> SftConfig:
    fast = ["sft.validation=0", "sft.args.learning_rate=0.01", "+sft.args.max_steps=2"]
    config = smoke("sft.limit=null", *fast, *words).sft
    return dataclasses.replace(config, peft=lora)


@pytest.fixture
def tune(
    tmp_path: Path, make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., torch.Tensor]:
    """Trains two steps of sft into the test's folder; returns the trained model's logits."""
    rows = [{"prompt": f"Is it {n}?", "completion": f"It is {n}."} for n in range(4)]
    (tmp_path / "seed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save, trained = training.save_result, []

    def seen(trainer: Any, *rest: Any) -> None:
        trained.append(logits(trainer.model))
        save(trainer, *rest)

    monkeypatch.setattr(training, "save_result", seen)

    def run(model: Path, config: SftConfig) -> torch.Tensor:
        context = make_context("sft", data={"seed": DataConfig("file", f"{tmp_path}/seed.jsonl")})
        own = dataclasses.replace(context.model, path=str(model))
        context = dataclasses.replace(context, model=own, engine=EngineConfig(device="cpu"))
        (tmp_path / "out").mkdir()
        sft.run(config, tmp_path / "out", context)
        return trained[0]

    return run


PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {  # the model, and LoRA's settings
    "rank_pattern": (
        "untied",
        LINEAR | {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"q_proj": 3}},
    ),
    "use_rslora": ("untied", LINEAR | {"use_rslora": True}),
    "use_dora": ("tied", LINEAR | {"use_dora": True}),
    "bias": ("biased", LINEAR | {"bias": "all"}),
    "lora_bias": ("biased", LINEAR | {"lora_bias": True}),
    "head": ("tied", QUERIES | {"modules_to_save": ["lm_head"]}),
    "embeddings": ("tied", QUERIES | {"modules_to_save": ["embed_tokens"]}),
    "both": ("tied", QUERIES | {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "ensure_weight_tying": (
        "tied",
        QUERIES | {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "norm": ("untied", QUERIES | {"modules_to_save": ["norm"]}),
    "adapted embeddings": ("untied", {"r": 4, "target_modules": ["q_proj", "embed_tokens"]}),
    "pissa": ("untied", LINEAR | {"init_lora_weights": "pissa"}),
    "olora": ("tied", LINEAR | {"init_lora_weights": "olora"}),
    "orthogonal": ("untied", LINEAR | {"init_lora_weights": "orthogonal"}),
    "trainable_token_indices": ("tied", QUERIES | {"trainable_token_indices": [40, 41]}),
    "layers_to_transform": ("untied", QUERIES | {"layers_to_transform": [1]}),
    "exclude_modules": ("untied", LINEAR | {"exclude_modules": ["q_proj"]}),
    "target_parameters": ("experts", QUERIES | {"target_parameters": EXPERTS}),
}


QUICK = ("use_dora", "head", "trainable_token_indices")  # each takes seconds


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in PUBLISHED]
)
def test_the_published_folder_gives_the_trained_logits(
    name: str, models: dict[str, Path], tune: Callable[..., torch.Tensor], tmp_path: Path
):
    model, lora = PUBLISHED[name]
    trained = tune(models[model], settings(lora))
    assert apart(trained, loaded(models[model])) > 0.05  # something was learned
    assert apart(trained, loaded(tmp_path / "out/model")) < 1e-3
    assert apart(trained, loaded(models[model], tmp_path / "out/adapter")) < 1e-3


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {  # and what is said
    "tied embeddings": (
        "tied",
        {"r": 4, "target_modules": ["q_proj", "embed_tokens"]},
        r"target_modules names the embeddings, whose weights are the output layer's too",
    ),
    "lora_bias": ("untied", LINEAR | {"lora_bias": True}, "lora_bias=True.*has no bias"),
    "experts": ("experts", LINEAR | {"use_dora": True}, r"peft refuses: .*use_dora=True"),
    "nothing": ("untied", {"r": 4, "target_modules": ["x"]}, r"peft refuses: Target modules"),
    "head": ("untied", {"target_modules": ["lm_head"]}, r"target_modules: trl reads the weights"),
}
REFUSED |= {
    f"starts: {start}": ("untied", LINEAR | {"init_lora_weights": start}, f"={start}: it ")
    for start in ("eva", "corda", "lora_ga", "pissa_niter_4")
}
REFUSED |= {
    name: ("untied", LINEAR | {name: value}, rf"\.{name}: ")
    for name, value in {
        "layer_replication": [[0, 2]],
        "arrow_config": {},
        "inference_mode": True,
        "alora_invocation_tokens": [40],
    }.items()
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_published_is_refused_before_a_step(
    name: str, models: dict[str, Path], tune: Callable[..., torch.Tensor]
):
    model, lora, message = REFUSED[name]
    with pytest.raises(UsageError, match=rf"^sft\.peft.*{message}"):
        tune(models[model], settings(lora))


def test_whole_modules_beside_bfloat16_weights_are_computed_as_they_are_trained(
    models: dict[str, Path], tune: Callable[..., torch.Tensor], tmp_path: Path
):
    lora = QUERIES | {"modules_to_save": ["embed_tokens", "lm_head"]}
    with pytest.raises(UsageError, match=r"modules_to_save .*take sft\.frozen_dtype=float32"):
        tune(models["tied"], settings(lora, "sft.frozen_dtype=bfloat16"))
    shutil.rmtree(tmp_path / "out")
    mixed = settings(lora, "sft.frozen_dtype=bfloat16", "+sft.args.bf16=true")
    trained = tune(models["tied"], mixed)  # in bfloat16, so up to its rounding
    assert relative_error(loaded(tmp_path / "out/model"), trained) < 0.05


# options that decide nothing about weights, or that the table of all others covers
OTHERS = "r lora_alpha lora_dropout target_modules fan_in_fan_out layers_pattern alpha_pattern"
OTHERS += " modules_to_save init_lora_weights loftq_config eva_config corda_config lora_ga_config"
OTHERS += " task_type peft_type auto_mapping peft_version base_model_name_or_path revision"
OTHERS += " runtime_config megatron_config megatron_core"
# new in peft, of other papers; tried once, and check_merged and check_start hold for them
OTHERS += " velora_config monteclora_config use_qalora qalora_group_size use_bdlora kasa_config"


def test_every_option_of_peft_is_known():
    """Where a new version of peft has another one, somebody says what it does."""
    names = {field.name for field in dataclasses.fields(LoraConfig) if field.init}
    assert names - {*OTHERS.split(), *PUBLISHED, *UNPUBLISHABLE} == set()


@pytest.fixture
def preferences(tmp_path: Path, make_context: Callable[..., Context]) -> Callable[..., Context]:
    """The context of dpo, whose policy is a model's folder."""

    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    rows = [
        {
            "prompt": turn("user", f"Is {n} even?"),
            "chosen": turn("assistant", "Yes."),
            "rejected": turn("assistant", "No, it is not."),
            "probability": 0.9,
            "chosen_ended": True,
            "rejected_ended": True,
        }
        for n in range(4)
    ]
    (tmp_path / "label").mkdir()
    write_rows(tmp_path / "label" / "pairs.parquet", rows)
    (tmp_path / "sl_cai").mkdir()

    def make(policy: Path) -> Context:
        (tmp_path / "sl_cai" / "model").symlink_to(policy)
        inputs = {name: Input(str(tmp_path / name), name) for name in ("sl_cai", "label")}
        return make_context("dpo", scratch=tmp_path / "scratch", inputs=inputs)

    return make


def prefer(context: Context, lora: dict[str, Any] | None, *words: str) -> None:
    fast = ["dpo.validation=0.5", "dpo.args.learning_rate=0.01", "+dpo.args.max_steps=2"]
    config = smoke(*fast, *words).dpo
    (context.root / "dpo").mkdir()
    dpo.run(dataclasses.replace(config, peft=lora), context.root / "dpo", context)


@pytest.mark.parametrize("start", ["pissa", "olora", False])
def test_an_adapter_that_changes_dpos_policy_or_reference_is_refused(
    start: str | bool, models: dict[str, Path], preferences: Callable[..., Context]
):
    context = preferences(models["untied"])
    with pytest.raises(UsageError, match=r"^dpo\.peft: with this adapter DPO's .* differ by"):
        prefer(context, LINEAR | {"init_lora_weights": start})


def test_tokens_of_a_model_that_shares_its_embeddings_are_trained_by_dpo(
    models: dict[str, Path], preferences: Callable[..., Context]
):
    context = preferences(models["tied"])
    prefer(context, QUERIES | {"trainable_token_indices": [40, 41]})
    assert apart(loaded(models["tied"]), loaded(context.root / "dpo/model")) > 0.01


@pytest.mark.parametrize("lora", ["trainable_token_indices", "adapted embeddings"])
def test_the_reference_of_a_continued_adapter_has_its_tokens_too(
    lora: str,
    models: dict[str, Path],
    tune: Callable[..., torch.Tensor],
    preferences: Callable[..., Context],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """trl's copy leaves out what has no dot behind the adapter's name."""
    name, options = PUBLISHED[lora]
    tune(models[name], settings(options))
    context = preferences(tmp_path / "out/model")
    (tmp_path / "sl_cai/adapter").symlink_to(tmp_path / "out/adapter")
    own = dataclasses.replace(context.model, path=str(models[name]))
    rewards = []

    def seen(trainer: Any, *_: Any) -> None:
        rewards.append(trainer.evaluate()["eval_rewards/chosen"])
        raise InterruptedError

    monkeypatch.setattr(training, "run_training", seen)
    with pytest.raises(InterruptedError):
        prefer(dataclasses.replace(context, model=own), None, "dpo=continued")
    assert rewards == [pytest.approx(0, abs=1e-5)]


def test_trained_biases_leave_dpo_without_a_reference():
    with pytest.raises(UsageError, match=r"dpo\.peft\.bias=all: dpo's reference is the same model"):
        assert dpo.STAGE.check
        config = smoke()
        biased = dataclasses.replace(config.dpo, peft=LINEAR | {"bias": "all"})
        dpo.STAGE.check(dataclasses.replace(config, dpo=biased))


def test_plain_settings_are_not_refused():
    assert lora_config("sft.peft", LINEAR).r == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"target_modules": ["q_proj", "v_pro"]},
            "sft.peft.target_modules: the model has no module 'v_pro'; did you mean 'v_proj'?; it",
        ),
        ({"modules_to_save": ["lm_haed"]}, "sft.peft.modules_to_save: the model has no module"),
        ({"exclude_modules": ["gate"]}, "sft.peft.exclude_modules: the model has no module 'gate'"),
        ({"target_modules": "nope.*"}, "sft.peft: peft refuses: Target modules nope"),
        ({"layers_to_transform": [7]}, "sft.peft: peft refuses: "),
        ({"trainable_token_indices": {"embed": [3]}}, "sft.peft: peft refuses: "),
    ],
)
def test_an_adapter_that_does_not_fit_the_model_is_refused_before_it_loads(
    settings: dict[str, Any], message: str, tmp_path: Path, tiny_model: Path
):
    shutil.copy(tiny_model / "config.json", tmp_path)  # no weights
    model = ModelConfig("tiny", "path", str(tmp_path))
    with pytest.raises(UsageError) as caught:
        check_lora("sft.peft", QUERIES | settings, model)
    assert str(caught.value).startswith(message)
    check_lora("sft.peft", QUERIES | {"init_lora_weights": "pissa"}, model)
    check_lora("sft.peft", LINEAR | {"modules_to_save": ["lm_head"]}, model)


def test_of_a_model_that_is_not_here_nothing_is_known():
    check_lora("sft.peft", {"target_modules": ["nope"]}, ModelConfig("x", "hub", "no/where"))
