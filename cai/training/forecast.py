"""What a training stage's settings mean for memory, and whether it fits. Loads no torch."""

from dataclasses import replace

from cai.config.schema import DpoConfig, SftConfig
from cai.config.types import Arguments
from cai.training.memory import GIB, USABLE, Forecast, Shape, Tuning, forecast

# what trl takes where a setting is left out
BATCH_ROWS, DPO_LENGTH = 8, 1024


def sft_tuning(config: SftConfig, loaded: Tuning) -> Tuning:
    """`loaded` has what the model, the engine's settings and the launcher decide."""
    if config.quantization is not None:
        four_bits = bool(config.quantization.get("load_in_4bit"))
        # four bits, and a scale of 32 bits for each 64 weights
        loaded = replace(loaded, weight_bytes=0.56 if four_bits else 1.0, embedding_bytes=2)
    return replace(
        loaded,
        rows=config.args.get("per_device_train_batch_size", BATCH_ROWS),
        tokens=config.max_length,
        lora=config.peft,
        moment_bytes=moment_bytes(config.args),
    )


def dpo_tuning(config: DpoConfig, lora: Arguments | None, separate: bool, loaded: Tuning) -> Tuning:
    """`lora` describes the adapter, also a continued one. `separate`: the reference is a model of
    its own whatever is tuned. `loaded`: as for sft_tuning."""
    tuning = replace(
        loaded,
        # a batch holds the chosen and the rejected answers
        rows=2 * config.args.get("per_device_train_batch_size", BATCH_ROWS),
        tokens=config.args.get("max_length", DPO_LENGTH),
        lora=lora,
        moment_bytes=moment_bytes(config.args),
    )
    # the reference is the model with its adapter switched off, or is asked before training
    precomputed = config.args.get("precompute_ref_log_probs") and not tuning.sharded
    copied = separate or (lora is None and not precomputed)
    return replace(tuning, reference_bytes=tuning.weight_bytes if copied else 0)


def moment_bytes(args: Arguments) -> int:
    """Of the optimizer, for each trained weight: Adam has two float32 numbers."""
    optimizer = str(args.get("optim", "adamw"))
    if optimizer in ("sgd", "adafactor"):  # adafactor has a number for each row and column
        return 0
    return 2 if "8bit" in optimizer else 8


def choose_checkpointing(
    shape: Shape, tuning: Tuning, memory: float, setting: bool | None
) -> Tuning:
    """With gradient checkpointing where `setting` asks for it, or where it is None and is needed.

    `memory` is in bytes: what is free, and what the loaded model takes.
    """
    if setting is not None:
        return replace(tuning, checkpointing=setting)
    plain = replace(tuning, checkpointing=False)
    return plain if fits(forecast(shape, plain), memory) else replace(tuning, checkpointing=True)


def fits(expected: Forecast, memory: float) -> bool:
    return expected.total <= USABLE * memory


def describe(expected: Forecast, tuning: Tuning) -> str:
    """The forecast in a line."""
    how = ", with gradient checkpointing" if tuning.checkpointing else ""
    return f"about {expected.total / GIB:.0f} GiB on a device{how} (in GiB: {expected.parts()})"


def advice(shape: Shape, tuning: Tuning, stage: str) -> str:
    """The settings to change first, the gentlest first. `stage` is the section's key."""
    preference = stage == "dpo"
    tips: list[str] = []
    if not tuning.checkpointing:
        tips.append(f"{stage}.args.gradient_checkpointing=true")
    if tuning.rows > (2 if preference else 1):
        tips.append(
            f"a lower {stage}.args.per_device_train_batch_size, with a higher "
            "gradient_accumulation_steps"
        )
    if tuning.reference_bytes and not tuning.sharded:
        tips.append("dpo.args.precompute_ref_log_probs=true")
    length = "dpo.args.max_length" if preference else f"{stage}.max_length"
    tips.append(f"a lower {length}")
    if tuning.lora is None:
        tips.append("dpo=lora" if preference else f"{stage}.peft (LoRA)")
        tips.append(f"{stage}.args.optim=adamw_8bit")
    elif tuning.weight_bytes >= 2 and not preference:
        tips.append(f"{stage}.quantization (QLoRA)")
    if not tuning.sharded:
        tips.append("launcher=fsdp over several GPUs")
    return "; or ".join(tips)
