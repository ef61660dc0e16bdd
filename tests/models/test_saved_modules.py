"""The modules that a model's files have, without reading a weight."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from cai.config.schema import ModelConfig
from cai.models.saved_modules import absent_modules, saved_modules


def folder(path: Path) -> ModelConfig:
    return ModelConfig("mine", "path", str(path))


def test_they_are_those_of_the_loaded_model(tiny_model: Path):
    modules = saved_modules(folder(tiny_model))
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert modules and modules - {"lm_head"} <= {name for name, _ in model.named_modules()}
    assert {f"model.layers.0.self_attn.{name}_proj" for name in "qkvo"} <= modules


@pytest.mark.parametrize(
    ("settings", "absent"),
    [
        ({"target_modules": ["q_proj", "self_attn.k_proj"]}, None),
        ({"target_modules": "all-linear", "modules_to_save": ["lm_head", "embed_tokens"]}, None),
        ({"target_modules": r".*\.[qv]_proj"}, None),
        ({"target_modules": ["q_prj"]}, "peft.target_modules: the model's files have no module"),
        ({"target_modules": r"[qv]_proj"}, "no module '[qv]_proj'; did you mean '"),
        (
            {"modules_to_save": ["head"]},
            "peft.modules_to_save: the model's files have no module 'h",
        ),
        ({"exclude_modules": ["proj"]}, "peft.exclude_modules: the model's files have no module"),
    ],
)
def test_a_module_that_is_not_there_is_named(
    settings: dict[str, object], absent: str | None, tiny_model: Path
):
    modules = saved_modules(folder(tiny_model))
    assert modules
    sentences = absent_modules("peft", settings, modules)
    assert len(sentences) == (absent is not None)
    assert (absent or "") in "".join(sentences)


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, b"\x02" + b"\0" * 7 + b"[]", b"\1"])
def test_where_nothing_is_known_nothing_is_said(content: bytes, tmp_path: Path):
    assert saved_modules(folder(tmp_path / "nowhere")) is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "model.safetensors").write_bytes(content)
    assert saved_modules(folder(tmp_path)) is None
    assert saved_modules(ModelConfig("x", "hub", "nobody/nothing")) is None
