"""Fits training to its device: one GPU a process, and a step that its memory holds."""

from collections.abc import Callable

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from transformers import PreTrainedModel
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.sft_config import SFTConfig

from cai.config.types import Arguments
from cai.training import shards
from cai.training.forecast import advice, choose_checkpointing, describe, fits
from cai.training.memory import GIB, Tuning, forecast, read_shape

SETTING = "gradient_checkpointing"


def measure_free_memory(device: str) -> int | None:
    """Free bytes on an accelerator, of all processes' the least; None for a CPU.

    All processes must come to the same decision: under FSDP they recompute together.
    """
    if device.startswith("cuda"):
        return min(gather_object([torch.cuda.mem_get_info(device)[0]]))
    if device == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return None


def measure_memory(model: PreTrainedModel | PeftModel, device: str) -> int | None:
    """Bytes of an accelerator for training: what is free, and what the loaded model takes of it.

    A model that is handed round in shards is not there yet. None for a CPU.
    """
    free_bytes = measure_free_memory(device)
    if free_bytes is None or model.device.type in ("cpu", "meta"):
        return free_bytes
    return free_bytes + model.get_memory_footprint()


def loaded_tuning(model: PreTrainedModel | PeftModel, args: SFTConfig | DPOConfig) -> Tuning:
    """What the loaded model, trl's arguments and the launcher decide."""
    weight_bytes = next(model.parameters()).element_size()
    in_half = args.bf16 or args.fp16 or weight_bytes == 2
    return Tuning(
        weight_bytes=weight_bytes,
        compute_bytes=2 if in_half else 4,
        attention=model.config._attn_implementation,
        processes=args.world_size,
        sharded=shards.are_asked_for(),
    )


def take_one_gpu(args: SFTConfig | DPOConfig, say: Callable[[str], object]) -> None:
    """Lets a process that no launcher has started use its first GPU alone.

    With more of them transformers would wrap the model in DataParallel, which trl refuses.
    """
    if args.n_gpu > 1:
        say(
            f"{args.n_gpu} GPUs are visible, and one process trains on the first alone; for all of "
            f"them: launcher=accelerate 'launcher.args=[\"--num_processes={args.n_gpu}\"]'"
        )
        args._n_gpu = 1  # as transformers' Trainer does for a model that is split over devices


def fit_training(
    model: PreTrainedModel | PeftModel,
    args: SFTConfig | DPOConfig,
    tune: Callable[[Tuning], Tuning],
    stage: str,
    settings: Arguments,
    device: str,
    say: Callable[[str], object],
) -> None:
    """One GPU for this process, and gradient checkpointing where memory asks for it.

    `tune` adds what the stage's settings decide. `settings` are the user's own of trl.
    """
    take_one_gpu(args, say)
    tuning = tune(loaded_tuning(model, args))
    memory = measure_memory(model, device)
    fit_memory(model, args, tuning, stage, settings.get(SETTING), memory, say)


def fit_memory(
    model: PreTrainedModel | PeftModel,
    args: SFTConfig | DPOConfig,
    tuning: Tuning,
    stage: str,
    setting: bool | None,
    memory: int | None,
    say: Callable[[str], object],
) -> None:
    """Sets gradient checkpointing in `args`, and warns where training will hardly fit.

    `setting` is the user's own for gradient checkpointing, which stands; None leaves it to the
    forecast. `memory` is in bytes; None (a CPU) forecasts nothing.
    """
    if memory is None:
        return
    shape = read_shape(model.config.get_text_config().to_dict())
    if shape is None:
        args.gradient_checkpointing = True if setting is None else setting
        say(
            f"cai can't forecast the memory of a {model.config.model_type} model, so it "
            f"is trained with {stage}.args.{SETTING}={str(args.gradient_checkpointing).lower()}"
        )
        return
    tuning = choose_checkpointing(shape, tuning, memory, setting)
    args.gradient_checkpointing = tuning.checkpointing
    expected = forecast(shape, tuning)
    line = f"{describe(expected, tuning)}, of {memory / GIB:.0f} GiB, by a forecast"
    if fits(expected, memory):
        say(line)
    else:
        say(f"WARNING: {line}. It will hardly fit. Set {advice(shape, tuning, stage)}")
