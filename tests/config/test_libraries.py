"""The arguments of libraries' classes, read from their sources, are those that the classes have."""

import dataclasses
import inspect

import pytest
from peft import LoraConfig
from transformers import BitsAndBytesConfig
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.sft_config import SFTConfig

from cai.config.compose import compose
from cai.config.libraries import argument_kinds
from cai.errors import UsageError

CLASSES = {"trl.SFTConfig": SFTConfig, "trl.DPOConfig": DPOConfig, "peft.LoraConfig": LoraConfig}


@pytest.mark.parametrize("name", CLASSES)
def test_the_arguments_read_are_those_of_the_class(name: str):
    fields = {field.name for field in dataclasses.fields(CLASSES[name]) if field.init}
    assert argument_kinds(name).keys() == fields


def test_the_arguments_of_quantization():
    arguments = argument_kinds("transformers.BitsAndBytesConfig").keys()
    assert arguments == inspect.signature(BitsAndBytesConfig).parameters.keys() - {"kwargs"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sft.args.learning_rate=abc", "trl.SFTConfig takes a number here"),
        ("sft.args.learning_rate='1e-5'", "trl.SFTConfig takes a number here"),
        (
            "sl_cai.args.lerning_rate=1",
            "trl.SFTConfig has no such argument; did you mean 'learning",
        ),
        ("sft.args.max_steps=1.5", "trl.SFTConfig takes a whole number here"),
        ("sft.args.max_length=abc", "trl.SFTConfig takes a whole number or null here"),
        ("sft.args.max_length=true", "sft.args.max_length=true"),
        ("sft.args.packing=1", "trl.SFTConfig takes true or false here"),
        ("dpo.args.loss_type=7", "trl.DPOConfig takes a list of text here"),
        ("dpo.args={loss_weights: [a]}", "trl.DPOConfig takes a list of a number or null here"),
        ("dpo.peft.r=abc", "peft.LoraConfig takes a whole number here"),
        ("dpo.peft.bias=nothing", "peft.LoraConfig takes one of none, all, lora_only here"),
        (
            "sft.peft={r: 4, modul_to_save: []}",
            "peft.LoraConfig has no such argument; did you mean",
        ),
        (
            "sft.quantization={load_in_4bits: true}",
            "has no such argument; did you mean 'load_in_4bit'",
        ),
    ],
)
def test_a_librarys_argument_is_checked_before_the_library_loads(override: str, message: str):
    with pytest.raises(UsageError) as caught:
        compose(["experiment=quickstart", override])
    text = str(caught.value)
    assert message in text and f"(override '{override}')" in text and "\n" not in text


@pytest.mark.parametrize(
    "override",
    [
        "sft.args.optim=adamw_torch",
        "sft.args.max_steps=3",
        "sft.args.learning_rate=1",
        "sft.args.lr_scheduler_kwargs={num_cycles: 2}",
        "sft.args.lr_scheduler_kwargs.num_cycles=2",
        "sft.args.report_to=none",
        "dpo.args.loss_type=sigmoid",
        "sft.peft.init_lora_weights=pissa_niter_16",
        "sft.peft.target_modules=[q_proj]",
        "sft.peft.rank_pattern={q_proj: 4}",
        "sft.peft.layer_replication=[[0,2]]",
    ],
)
def test_what_the_library_takes_is_taken(override: str):
    compose(["experiment=quickstart", override])


@pytest.mark.parametrize("name", CLASSES)
def test_the_librarys_own_defaults_are_taken(name: str):
    section = {
        "trl.SFTConfig": "sft.args",
        "trl.DPOConfig": "dpo.args",
        "peft.LoraConfig": "sft.peft",
    }
    written = {
        field.name: field.default
        for field in dataclasses.fields(CLASSES[name])
        if field.init and isinstance(field.default, int | float | str | bool)
    }
    assert len(written) > 10
    words = [f"{section[name]}.{key}={str(value) or repr('')}" for key, value in written.items()]
    compose(["experiment=quickstart", *(word for word in words if "=-" not in word)])
