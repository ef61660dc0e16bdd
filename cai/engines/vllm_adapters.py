"""Adapters as vLLM serves them: unmerged, on the weights of their base."""

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from cai.config.types import Arguments
from cai.errors import UsageError

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has room for


def adapter_options(folders: Sequence[str]) -> Arguments:
    """vLLM's options that make room for adapters. Raises UsageError where vLLM can't take one."""
    ranks: list[int] = []
    modules: set[str] = set()  # vLLM would wrap lm_head too if they were not named
    for folder in folders:
        rank, adapted = _read_adapter(Path(folder))
        ranks.append(rank)
        modules |= adapted
    return {
        "enable_lora": True,
        "max_lora_rank": max(ranks),
        "lora_target_modules": sorted(modules),
    }


def _read_adapter(folder: Path) -> tuple[int, set[str]]:
    """The rank that vLLM must have room for, and the names of the modules."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    try:
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            names = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"{folder}: no adapter_model.safetensors that can be read ({error})"
        ) from None
    modules = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names}
    largest = max([config.get("r", 0), *(config.get("rank_pattern") or {}).values()])
    rank = next((rank for rank in LORA_RANKS if rank >= largest), None)
    if rank is None or config.get("peft_type") != "LORA" or "lm_head" in modules:
        raise UsageError(
            f"{folder}: of adapters, engine=vllm takes LoRA with r up to {LORA_RANKS[-1]} and "
            "without lm_head (vLLM can't score prompts with that); engine=transformers takes any"
        )
    return rank, modules
