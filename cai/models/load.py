"""Loads models and tokenizers with the dtype that the device is good at."""

import ctypes
import os
from pathlib import Path
from typing import Any

from cai.errors import CaiError, UsageError
from cai.models.chat_template import CHATML, give_template
from cai.models.source import adapter_base, split_revision, tokenizer_source


def pick_device(wanted: str) -> str:
    """`auto` takes CUDA, then Apple's MPS, then the CPU. Under a launcher each process has its own local rank."""
    import torch

    if wanted == "auto":
        wanted = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    elif wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "engine.device=cuda: this machine has no CUDA device; use engine.device=auto"
        )
    return (
        f"cuda:{os.environ['LOCAL_RANK']}"
        if wanted == "cuda" and "LOCAL_RANK" in os.environ
        else wanted
    )


def pick_dtype(wanted: str, device: str) -> Any:
    """`auto` is float32 on a CPU (few have fast bf16), bfloat16 on CUDA and MPS where the device knows it."""
    import torch

    if wanted != "auto":
        return getattr(torch, wanted)
    return (
        torch.bfloat16
        if device.startswith("cuda") and torch.cuda.is_bf16_supported()
        else torch.float32
    )


def _source(model: str) -> dict[str, Any]:
    name, revision = split_revision(model)
    return {"pretrained_model_name_or_path": name, "revision": revision, "trust_remote_code": False}


def load_tokenizer(model: str) -> Any:
    """The tokenizer, with a pad token and a chat template. Raises UsageError where no answer could end."""
    tokenizer = bare_tokenizer(model)
    if tokenizer.chat_template is None:
        give_template(tokenizer, CHATML, model)
    tokenizer.padding_side = "left"
    return tokenizer


def bare_tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    tokenizer: Any = _explained(AutoTokenizer.from_pretrained, tokenizer_source(model))
    if tokenizer.eos_token is None:
        raise UsageError(
            f"{model}: its tokenizer has no end-of-sequence token, so no answer could end"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    model: str, dtype: str, device: str, attention: str | None = None, quantization: Any = None
) -> Any:
    """A causal language model on its device, in eval mode as transformers leaves it. An adapter is merged."""
    from transformers import AutoModelForCausalLM

    if (base := adapter_base(model)) is not None:
        if quantization is not None:
            raise UsageError(
                f"{model} is an adapter, which can't be merged into quantised weights; merge it before"
            )
        return _merged(load_model(base, dtype, device, attention), model)
    if device == "cpu":
        _hold_memory()
    arguments = {"dtype": pick_dtype(dtype, device), "attn_implementation": attention}
    if quantization is None:
        return _explained(AutoModelForCausalLM.from_pretrained, model, **arguments).to(device)
    arguments |= {"quantization_config": quantization, "device_map": {"": device}}
    return _explained(AutoModelForCausalLM.from_pretrained, model, **arguments)


def _hold_memory() -> None:
    """Has this process hold what large tensors on the CPU give back, where its C library is glibc: each would else come
    fresh from the system, which fills it with zeros page by page (5 to 13 % of the time of training)."""
    mmap_max, trim_threshold = -4, -1
    try:
        glibc = ctypes.CDLL("libc.so.6")
        glibc.mallopt(mmap_max, 0)
        glibc.mallopt(trim_threshold, 2**31 - 1)
    except (OSError, AttributeError):
        return


def _merged(base: Any, adapter: str) -> Any:
    from peft import PeftModel

    try:
        model = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    except (OSError, ValueError, RuntimeError, AttributeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CaiError(f"can't merge the adapter {adapter} into its base model: {reason}") from None
    return model.requires_grad_(True)  # peft froze the base


def _explained(load: Any, model: str, **arguments: Any) -> Any:
    try:
        return load(**_source(model), **arguments)
    except (OSError, ValueError, ImportError) as error:
        raise CaiError(
            f"can't load the model {model}: {str(error).strip().splitlines()[0]}"
        ) from None


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Weights as safetensors and the tokenizer with its chat template; plain `from_pretrained` loads the folder."""
    model.config._name_or_path = ""  # a path of this machine is nobody's business
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
