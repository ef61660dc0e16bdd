"""The arguments of libraries' classes, read from their sources, are those that the classes have."""

import dataclasses
import inspect

import pytest
from peft import LoraConfig
from transformers import BitsAndBytesConfig
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.sft_config import SFTConfig

from cai.config.argument_kinds import argument_kinds
from cai.config.compose import compose
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
        ("sft.args.num_train_epochs=0", "takes a number above 0 here"),
        ("sft.args.max_steps=0", "takes a whole number of at least 1 here"),
        ("sft.args.max_steps=-5", "takes a whole number of at least 1 here"),
        ("sft.args.learning_rate=-1", "takes a number above 0 here"),
        ("sft.args.per_device_train_batch_size=0", "takes a whole number of at least 1 here"),
        ("sft.args.lr_scheduler_type=cosin", "greedy here; did you mean 'cosine'?"),
        ("sft.args.optim=foo", "takes one of adamw_torch, adamw_torch_fused, "),
        ("sft.args.optim=galore_adamw", "works on the modules that sft.args.optim_target_modules"),
        ("dpo.args.optim=apollo_adamw", "works on the modules that dpo.args.optim_target_modules"),
        ("sft.args.loss_type=foo", "takes one of nll, dft, chunked_nll here"),
        ("sft.args.save_strategy=never", "takes one of no, steps, epoch, best here"),
        ("sft.args.report_to=foo", "takes all, none, or names of transformers' integrations here"),
        ("dpo.args.loss_type=foo", "takes a list of one of sigmoid, hinge, ipo, "),
        ("dpo.args.loss_type=[sigmoid,sigmod]", "did you mean 'sigmoid'?"),
        ("dpo.args.f_divergence_type=kl", "takes one of reverse_kl, forward_kl, "),
        ("dpo.args.beta=0", "takes a number above 0 here"),
        ("sft.peft.r=0", "takes a whole number of at least 1 here"),
        ("sft.peft.lora_dropout=2", "takes a number from 0 up to, but not including, 1 here"),
        ("sft.peft.target_modules='('", "takes a regular expression that can be read here"),
        ("sft.peft.rank_pattern={q_proj: abc}", "takes whole numbers of at least 1 by module"),
        ("sft.peft.rank_pattern={q_proj: 0}", "takes whole numbers of at least 1 by module"),
        ("sft.peft.trainable_token_indices={a: 3}", "takes a list of a whole number or a mapping"),
        (
            "sft.quantization={load_in_4bit: true, bnb_4bit_quant_type: int4}",
            "takes one of fp4, nf4 here",
        ),
        ("sft.args.max_steps=1.5", "trl.SFTConfig takes a whole number here"),
        ("sft.args.max_length=abc", "trl.SFTConfig takes a whole number or null here"),
        ("sft.args.max_length=true", "sft.args.max_length=true"),
        ("sft.args.packing=1", "trl.SFTConfig takes true or false here"),
        ("dpo.args.loss_type=7", "trl.DPOConfig takes a list of one of sigmoid, hinge"),
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
        "sft.args.max_steps=-1",
        "sft.args.lr_scheduler_type=cosine",
        "sft.args.report_to=[wandb,tensorboard]",
        "dpo.args.loss_type=[sigmoid,sft]",
        "sft.peft.target_modules='.*_proj'",
        "sft.peft.trainable_token_indices=[1,2]",
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


def test_a_whole_float_is_a_whole_number():
    config = compose(["sft.args.max_steps=1e3", "sft.args.warmup_steps=1e1"])
    assert repr(config.sft.args["max_steps"]) == "1000"
    assert repr(config.sft.args["warmup_steps"]) == "10.0"


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
