"""Loads models and tokenizers, with the dtype that the device is good at."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cai.errors import CaiError, UsageError
from cai.models.chat_template import CHATML, adopt_turn_end, give_template, stop_ids
from cai.models.source import adapter_base, split_revision, tokenizer_source
from cai.models.steady_template import as_brought, steady

Loaded = TypeVar("Loaded")


def pick_device(setting: str) -> str:
    """`auto` takes CUDA, then MPS, then the CPU. Under a launcher each process has its own GPU."""
    if setting == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "engine.device=cuda: this machine has no CUDA device; use engine.device=auto"
        )
    device = setting
    if setting == "auto":
        mps_or_cpu = "mps" if torch.backends.mps.is_available() else "cpu"
        device = "cuda" if torch.cuda.is_available() else mps_or_cpu
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return device


def pick_dtype(setting: str, device: str) -> torch.dtype:
    """The number format of generation. `auto` is the fastest one of the device.

    That is bfloat16 on a CUDA device that computes in it, float16 on an older one (T4, V100), which
    only emulates bfloat16, and float32 elsewhere.
    """
    if setting != "auto":
        return getattr(torch, setting)
    if not device.startswith("cuda"):
        return torch.float32
    return torch.bfloat16 if knows_bfloat16() else torch.float16


def knows_bfloat16() -> bool:
    """Whether the CUDA device computes in bfloat16 itself."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer, with a pad token and a chat template.

    Raises UsageError where no answer could end.
    """
    tokenizer = bare_tokenizer(model)
    if tokenizer.chat_template is None:
        give_template(tokenizer, CHATML, model)
    steady(tokenizer, model)
    adopt_turn_end(tokenizer, model)
    tokenizer.padding_side = "left"
    return tokenizer


def bare_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer with a pad token, and with a chat template only if it brings one."""
    tokenizer = _load_or_explain(AutoTokenizer.from_pretrained, tokenizer_source(model))
    if tokenizer.eos_token is None:
        raise UsageError(
            f"{model}: its tokenizer has no end-of-sequence token, so no answer could end"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    model: str,
    dtype: str,
    device: str,
    attention: str | None = None,
    quantization: BitsAndBytesConfig | None = None,
) -> PreTrainedModel:
    """A causal language model on its device, in eval mode as transformers leaves it.

    An adapter is merged into its base, in float32: a sum in bfloat16 would lose small updates.
    """
    if (base := adapter_base(model)) is not None:
        if quantization is not None:
            raise UsageError(
                f"{model} is an adapter, which can't be merged into quantised weights; "
                "merge it before"
            )
        merged: Any = _merge_adapter(load_model(base, "float32", device, attention), model)
        return merged.to(pick_dtype(dtype, device))
    if device == "cpu":
        _keep_freed_memory()
    arguments: dict[str, object] = {"dtype": pick_dtype(dtype, device)}
    arguments["attn_implementation"] = attention
    if quantization is not None:
        arguments |= {"quantization_config": quantization, "device_map": {"": device}}
    loaded: Any = _load_or_explain(AutoModelForCausalLM.from_pretrained, model, **arguments)
    return loaded if quantization is not None else loaded.to(device)


def _keep_freed_memory() -> None:
    """Makes glibc keep the memory of large tensors that are freed.

    Without this the system hands out fresh pages each time and fills them with zeros, which takes
    5 to 13 % of the time of training on a CPU. Other C libraries are left as they are.
    """
    mmap_max, trim_threshold = -4, -1
    try:
        glibc = ctypes.CDLL("libc.so.6")
        glibc.mallopt(mmap_max, 0)
        glibc.mallopt(trim_threshold, 2**31 - 1)
    except (OSError, AttributeError):
        return


def _merge_adapter(base: PreTrainedModel, adapter: str) -> PreTrainedModel:
    try:
        model = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    except (OSError, ValueError, RuntimeError, AttributeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CaiError(f"can't merge the adapter {adapter} into its base model: {reason}") from None
    return model.requires_grad_(True)  # peft froze the base


def _load_or_explain(load: Callable[..., Loaded], model: str, **arguments: object) -> Loaded:
    name, revision = split_revision(model)
    try:
        return load(name, revision=revision, trust_remote_code=False, **arguments)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CaiError(f"can't load the model {model}: {reason}") from None


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a folder that plain `from_pretrained` loads: safetensors, tokenizer, chat template.

    Its generation_config stops where training has learnt to end.
    """
    set_stops(model.generation_config, tokenizer)
    model.config._name_or_path = ""  # a path of this machine is nobody's business
    model.save_pretrained(folder)
    as_brought(tokenizer)
    tokenizer.save_pretrained(folder)


def set_stops(config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> None:
    """Adds the tokens that end an assistant's turn to those that end generation."""
    if config is not None:
        ids = stop_ids(tokenizer, cast(int | list[int] | None, config.eos_token_id))
        config.eos_token_id = ids if len(ids) > 1 else ids[0]
