"""One adapter for the starting model, of those that a run's stages have trained upon each other.

Each stage's adapter belongs to the model of the stage before, which nobody else has. What they add
to a weight is B A s each, with s the scale: the sum is that of an adapter with the rows of every A,
and the columns of every B s, side by side.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from cai.digest import JsonObject
from cai.errors import UsageError
from cai.store.files import write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# what a sum of plain LoRA has no place for
BEYOND = (
    "alpha_pattern",
    "rank_pattern",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "use_dora",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "fan_in_fan_out",
)


def join_adapters(
    folders: Sequence[Path], target: Path, base: str | None, revision: str | None
) -> None:
    """Writes an adapter that adds to the model `base` what all of `folders` add.

    `base`: its hub id, or None, where it has none. Raises UsageError where an adapter is more than
    plain LoRA.
    """
    configs = [_read_config(folder) for folder in folders]
    parts = [
        _scaled(load_file(folder / WEIGHTS), config)
        for folder, config in zip(folders, configs, strict=True)
    ]
    names = sorted({name for part in parts for name in part})
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        shape = next(part[name] for part in parts if name in part)
        rows = [
            part.get(name) if name in part else _nothing(name, shape, config["r"])
            for part, config in zip(parts, configs, strict=True)
        ]
        side = 0 if ".lora_A." in name else 1
        tensors[name] = torch.cat([row for row in rows if row is not None], side).contiguous()
    rank = sum(config["r"] for config in configs)
    modules = sorted({name for config in configs for name in config["target_modules"]})
    joined = configs[-1] | {
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "target_modules": modules,
        "base_model_name_or_path": base,
        "revision": revision,
    }
    target.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    write_json(target / CONFIG, joined)


def _read_config(folder: Path) -> JsonObject:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    beyond = [name for name in BEYOND if config.get(name)]
    if config.get("peft_type") != "LORA":
        beyond.append(f"peft_type: {config.get('peft_type')}")
    if config.get("bias", "none") != "none":
        beyond.append("bias")
    if not isinstance(config.get("target_modules"), list):
        beyond.append("target_modules as a pattern")
    if beyond:
        raise UsageError(
            f"{folder} is more than plain LoRA ({', '.join(beyond)}), which no adapter for the "
            "starting model can hold; take the whole model: --to safetensors-16"
        )
    return config


def _scaled(tensors: dict[str, torch.Tensor], config: JsonObject) -> dict[str, torch.Tensor]:
    """With the scale in B. Raises UsageError on weights that are neither A nor B."""
    root = config["r"] ** 0.5 if config.get("use_rslora") else config["r"]
    scale = config["lora_alpha"] / root
    if unplaced := [name for name in tensors if ".lora_A." not in name and ".lora_B." not in name]:
        raise UsageError(
            f"the adapter has {unplaced[0]}, which a sum of adapters has no place for; take the "
            "whole model: --to safetensors-16"
        )
    return {
        name: tensor.float() * (scale if ".lora_B." in name else 1.0)
        for name, tensor in tensors.items()
    }


def _nothing(name: str, like: torch.Tensor, rank: int) -> torch.Tensor:
    """A part of an adapter that leaves this weight as it is."""
    if ".lora_A." in name:
        return torch.zeros(rank, like.shape[1])
    return torch.zeros(like.shape[0], rank)
