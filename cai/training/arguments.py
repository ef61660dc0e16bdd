"""The configs of trl, peft and bitsandbytes, built from ours."""

import importlib.util
import inspect
from typing import Any, TypeVar

from peft import LoraConfig
from transformers import BitsAndBytesConfig, Trainer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.sft_config import SFTConfig

from cai.config.schema import DpoConfig, ModelConfig, SftConfig
from cai.config.types import Arguments
from cai.errors import UsageError, nearest, not_installed
from cai.models.load import knows_bfloat16
from cai.training.adapters import rehearse_adapter

LibraryConfig = TypeVar("LibraryConfig")

# peft's options of adapters that can't be published as a model, and why
UNPUBLISHABLE = {
    "layer_replication": "layers that share their weights can't be saved as a model",
    "arrow_config": "it chooses between adapters, and trains none",
    "inference_mode": "such an adapter is not trained",
    "alora_invocation_tokens": "an adapter that works behind some tokens alone can't be merged",
}

# values of init_lora_weights, by how they begin, that no training of cai's starts with, and why
UNREADY_STARTS = {
    "eva": "it needs a pass over data that cai does not make; take true, orthogonal or pissa",
    "corda": "it needs a pass over data that cai does not make; take true, orthogonal or pissa",
    "lora_ga": "it needs a pass over data that cai does not make; take true, orthogonal or pissa",
    "loftq": "it quantises weights that are merged into later; take true, and quantization",
    "pissa_niter": "it draws numbers that no folder keeps, so the adapter fits no model that is "
    "loaded again; take pissa",
}


TRL_DEFAULTS = {
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 1,
    "save_total_limit": 1,
    "dataloader_pin_memory": False,
    "gradient_checkpointing": False,
    # True would log an average in place of a loss that is not finite
    "logging_nan_inf_filter": False,
    # False would let early stopping count anew after a resume
    "restore_callback_states_from_checkpoint": True,
}

# trl's arguments that change d or what is made of it. The soft loss is defined on the plain d.
PLAIN_ARGUMENTS = {
    "loss_type": ["sigmoid"],
    "loss_weights": None,
    "ld_alpha": None,
    "f_divergence_type": "reverse_kl",
    "use_weighting": False,
}


def sft_config(key: str, settings: Arguments, **fixed: object) -> SFTConfig:
    """trl's SFTConfig. `key` says where `settings` come from; `fixed` are cai's own.

    Raises UsageError on a name or a value that trl does not take, as do the functions below.
    """
    return _build(SFTConfig, key, {**TRL_DEFAULTS, **settings}, fixed)


def dpo_config(key: str, settings: Arguments, **fixed: object) -> DPOConfig:
    return _build(DPOConfig, key, {**TRL_DEFAULTS, **settings}, fixed)


def lora_config(key: str, settings: Arguments) -> LoraConfig:
    """Also raises UsageError where the adapter could not be trained and published as a model."""
    config = _build(LoraConfig, key, settings, {"task_type": "CAUSAL_LM"})
    for name, reason in UNPUBLISHABLE.items():
        if getattr(config, name):
            raise UsageError(f"{key}.{name}: {reason}; leave it out")
    start = config.init_lora_weights
    for begins, reason in UNREADY_STARTS.items():
        if isinstance(start, str) and start.startswith(begins):
            raise UsageError(f"{key}.init_lora_weights={start}: {reason}")
    targets = config.target_modules
    if targets == "lm_head" or (isinstance(targets, set) and "lm_head" in targets):
        raise UsageError(
            f"{key}.target_modules: trl reads the weights of lm_head without an adapter, which "
            "would never be trained; take modules_to_save=[lm_head], which trains all of them"
        )
    return config


def quantization_config(key: str, settings: Arguments) -> BitsAndBytesConfig:
    """Also raises UsageError where bitsandbytes is missing."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise not_installed(key, "bitsandbytes", ".[qlora]")
    return _build(BitsAndBytesConfig, key, settings, {})


def _build(
    config_class: type[LibraryConfig],
    key: str,
    settings: Arguments,
    fixed: Arguments,
) -> LibraryConfig:
    class_name = f"{config_class.__module__.partition('.')[0]}.{config_class.__name__}"
    names = [name for name in inspect.signature(config_class).parameters if name != "kwargs"]
    for name in settings:
        if name not in names:
            hint = nearest(name, names)
            raise UsageError(f"{key}.{name}: {class_name} has no such argument{hint}")
        if name in fixed:
            raise UsageError(f"{key}.{name} is set by cai itself; leave it out")
    try:
        return config_class(**settings, **fixed)
    except (TypeError, ValueError, AttributeError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{key}: {class_name} refuses: {reason}") from None


def evaluation_settings(validation: bool) -> dict[str, str | bool]:
    """Settings that evaluate at every checkpoint and keep the best, where rows are held out."""
    if not validation:
        return {"eval_strategy": "no", "save_strategy": "steps"}
    return {
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
    }


def sft_arguments(
    stage: str, config: SftConfig, seed: int, folder: str, device: str, held_out: bool
) -> SFTConfig:
    """trl's SFTConfig for a stage. Raises UsageError."""
    fixed = {"output_dir": folder, "max_length": config.max_length, "seed": seed}
    fixed |= evaluation_settings(held_out) | {"use_cpu": device == "cpu"}
    # held-out rows are never packed, so that their loss is comparable
    settings = {"eval_packing": False} | _precision(device, config.args) | config.args
    return sft_config(f"{stage}.args", settings, **fixed)


def dpo_arguments(
    config: DpoConfig, seed: int, folder: str, device: str, held_out: bool
) -> DPOConfig:
    """trl's DPOConfig for the stage. Raises UsageError."""
    fixed = {"output_dir": folder, "seed": seed}
    fixed |= evaluation_settings(held_out) | {"use_cpu": device == "cpu"}
    settings = _precision(device, config.args) | config.args
    args = dpo_config("dpo.args", settings, **fixed)
    if config.loss == "soft":
        check_soft_arguments(args)
    return args


def _precision(device: str, settings: Arguments) -> dict[str, bool]:
    """In which numbers trl computes with its float32 weights, where `settings` do not say.

    bfloat16 on a CUDA device that knows it, float16 on an older one, and else float32.
    """
    if settings.get("bf16") or settings.get("fp16"):
        return {"bf16": False, "fp16": False}  # the one that is set replaces its own
    on_cuda = device.startswith("cuda")
    bf16 = on_cuda and knows_bfloat16()
    return {"bf16": bf16, "fp16": on_cuda and not bf16}


def train_in_float32(trainer: Trainer) -> None:
    """Makes every trained weight float32, whatever the frozen ones are.

    A step of a usual size does not change a bfloat16 number: full tuning at 5e-7 would change 0.3 %
    of them. trl makes an adapter on quantised weights bfloat16. Sharded training keeps one format
    for all weights, so it is left as it is.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return
    model: Any = trainer.model
    for weights in model.parameters():
        if weights.requires_grad:
            weights.data = weights.data.float()


def check_soft_arguments(args: DPOConfig) -> None:
    """Raises UsageError where trl's DPOConfig asks for what the soft loss does not have."""
    for name, plain_value in PLAIN_ARGUMENTS.items():
        if getattr(args, name) != plain_value:
            raise UsageError(
                f"dpo.args.{name}={getattr(args, name)}: soft labels have a loss of their own; "
                f"set dpo.loss=trl, or leave dpo.args.{name} at {plain_value}"
            )
    if not 0 <= args.label_smoothing < 0.5:
        raise UsageError(
            f"dpo.args.label_smoothing={args.label_smoothing}: must be at least 0 and below 0.5"
        )


def check_sft(stage: str, config: SftConfig, model: ModelConfig, seed: int) -> None:
    """Builds everything that `sft` or `sl_cai` hands to libraries. Raises UsageError."""
    if config.quantization is not None:
        quantization_config(f"{stage}.quantization", config.quantization)
    sft_arguments(stage, config, seed, "unused", "cpu", config.validation > 0)
    check_lora(f"{stage}.peft", config.peft, model)


def check_dpo(config: DpoConfig, model: ModelConfig, seed: int) -> None:
    """Builds everything that `dpo` hands to libraries. Raises UsageError."""
    dpo_arguments(config, seed, "unused", "cpu", config.validation > 0)
    check_lora("dpo.peft", config.peft, model)


def check_lora(key: str, settings: Arguments | None, model: ModelConfig) -> None:
    """Raises UsageError where the model can't have such an adapter."""
    if settings is not None:
        rehearse_adapter(key, lora_config(key, settings), model)


def check_reference(key: str, settings: Arguments) -> None:
    """Raises UsageError where the model without its adapter is no reference for DPO.

    `settings` are LoRA's of the adapter that dpo trains, found at `key`.
    """
    if settings.get("bias", "none") != "none":
        raise UsageError(
            f"{key}.bias={settings['bias']}: dpo's reference is the same model without the "
            f"adapter, and it would have the trained biases; take {key}.bias=none, or dpo=full"
        )
