"""Adapters: DPO may train an earlier stage's further, and what is published is what was trained.

peft's options are a person's to choose. Some can't be merged, or make another model of the one that
training starts at: these are refused before a step is taken.
"""

import copy
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor
from torch.nn import Module
from transformers import AutoConfig, AutoModelForCausalLM, Trainer
from trl.trainer.utils import use_adapter

from cai.config.schema import ModelConfig
from cai.errors import CaiError, UsageError, nearest
from cai.models.load import load_model
from cai.models.source import read_config

# largest relative logit error that merging an adapter may cause
MERGE_ERROR = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.01}

SHOWN_TOKENS = 32  # any tokens will do


class NamedModel(NamedTuple):
    """A stage's model."""

    stage: str
    path: str


def load_continued(
    start: NamedModel,
    policy: NamedModel,
    adapter: Path,
    dtype: str,
    attention: str | None,
    device: str,
) -> PeftModel:
    """The policy as its adapter, trainable, on the model that the adapter belongs to (`start`).

    trl copies the adapter (as "ref") where that is the reference. Raises CaiError where `start`
    with the adapter is not the policy.
    """
    base = load_model(start.path, dtype, device, attention)
    model = PeftModel.from_pretrained(base, str(adapter), is_trainable=True).eval()
    published = first_logits(load_model(policy.path, dtype, device))
    error = relative_error(first_logits(model), published)
    saved_dtype = str(AutoConfig.from_pretrained(policy.path).dtype).removeprefix("torch.")
    if not error <= max(MERGE_ERROR[dtype], MERGE_ERROR.get(saved_dtype, 0.0)):
        raise CaiError(
            f"dpo.adapter=continued: {start.stage} with {policy.stage}'s adapter is not the "
            f"{policy.stage} model (their scores differ by {error:.1%}), so it has another base; "
            "take dpo=lora"
        )
    return model


def first_logits(model: Any) -> Tensor:
    """The model's float32 logits of a few tokens, (tokens, vocabulary), on the CPU."""
    was_training = model.training
    model.eval()
    token_ids = torch.arange(SHOWN_TOKENS, device=model.device)[None]
    with torch.no_grad():
        logits = model(input_ids=token_ids, use_cache=False).logits[0].float().cpu()
    model.train(was_training)
    return logits


def relative_error(logits: Tensor, expected: Tensor) -> float:
    return ((logits - expected).norm() / expected.norm()).item()


@contextmanager
def refusals_explained(key: str) -> Iterator[None]:
    """Makes a UsageError about the setting `key` of what peft raises where it makes an adapter."""
    try:
        yield
    except (ValueError, NotImplementedError, AttributeError) as error:
        frames = traceback.walk_tb(error.__traceback__)
        if not any(frame.f_globals["__name__"].startswith("peft.") for frame, _ in frames):
            raise
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{key}: peft refuses: {reason}") from error


def rehearse_adapter(key: str, lora: LoraConfig, config: ModelConfig) -> None:
    """Raises UsageError where peft could not make the adapter, before any weights are read.

    It is made on a model without weights. Of a model that is not here yet nothing is known, and
    what the adapter needs is seen once its stage has loaded it.
    """
    values = read_config(config)
    try:
        with torch.device("meta"):
            shape = AutoConfig.for_model(**values) if values else None
            model = AutoModelForCausalLM.from_config(shape) if shape else None
    except (ValueError, TypeError, AttributeError, KeyError):  # `shape` says part of it
        return
    if model is None:
        return
    for name in ("target_modules", "exclude_modules", "modules_to_save"):
        check_modules(f"{key}.{name}", getattr(lora, name), model)
    lora = copy.deepcopy(lora)
    lora.init_lora_weights = False  # there are no weights that it could be drawn from
    with refusals_explained(key), torch.device("meta"):
        get_peft_model(model, lora)


def check_modules(setting: str, names: str | Collection[str] | None, model: Module) -> None:
    """Raises UsageError on a module that the model does not have. peft passes over it silently."""
    if names is None or isinstance(names, str):  # all-linear, or a pattern
        return
    modules = dict(model.named_modules())
    paths = [path for path, module in modules.items() if not [*module.children()]]
    leaves = {path.rpartition(".")[2] for path in paths}
    present = sorted(name for name in leaves if not name.isdigit())
    for name in sorted(names):
        if not any(f".{path}".endswith(f".{name}") for path in modules):
            raise UsageError(
                f"{setting}: the model has no module '{name}'{nearest(name, present)}; it has "
                f"{', '.join(present)}"
            )


def check_adapter(trainer: Trainer, stage: str) -> None:
    """Raises UsageError where the adapter could not be trained, or published as a model."""
    model: Any = trainer.model
    if not isinstance(model, PeftModel):
        return
    embeddings: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    if isinstance(embeddings, LoraLayer) and embeddings.weight is head.weight:
        raise UsageError(
            f"{stage}.peft.target_modules names the embeddings, whose weights are the output "
            "layer's too in this model: merged, the adapter would change both. Take "
            "modules_to_save for them, or trainable_token_indices"
        )
    whole = any(isinstance(module, ModulesToSaveWrapper) for module in model.modules())
    halves = any(weights.dtype in (torch.bfloat16, torch.float16) for weights in model.parameters())
    if whole and halves and not (trainer.args.bf16 or trainer.args.fp16):
        raise UsageError(
            f"{stage}.peft.modules_to_save are trained in float32, which the other weights' "
            f"{stage}.frozen_dtype can't be multiplied with; take {stage}.frozen_dtype=float32, or "
            f"{stage}.args.bf16=true"
        )
    if not is_quantized(model):  # such weights are not merged into
        _rehearse_merge(model, f"{stage}.peft")


def is_quantized(model: PeftModel) -> bool:
    return bool(getattr(model.get_base_model(), "is_quantized", False))


def _rehearse_merge(model: PeftModel, key: str) -> None:
    """Merges a copy of the smallest layer of each kind: what peft can't merge, it says so."""
    smallest: dict[object, tuple[int, Any]] = {}
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            size = sum(weights.numel() for weights in cast(Module, layer).parameters())
            kind = (type(layer), getattr(layer.get_base_layer(), "bias", None) is None)
            if kind not in smallest or size < smallest[kind][0]:
                smallest[kind] = (size, layer)
    for _, layer in smallest.values():
        try:
            with torch.no_grad():
                copy.deepcopy(layer).merge(adapter_names=["default"])
        except (RuntimeError, NotImplementedError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UsageError(f"{key}: nothing could be published of it: {reason}") from None


def complete_reference(model: PeftModel) -> None:
    """Copies to the adapter "ref" what trl leaves out: its copy is by names with ".default." in.

    Parameters of embeddings and of single tokens (trainable_token_indices) have it at the end.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, weights in parameters.items():
        if name.endswith(".default"):
            parameters[f"{name.removesuffix('.default')}.ref"].data.copy_(weights.data)


def check_start(trainer: Any, start_logits: Tensor, key: str) -> None:
    """Raises UsageError where DPO's policy or reference is another model than it should start at.

    `start_logits`: the policy's `first_logits` before its adapter. An adapter that is drawn from
    the weights (init_lora_weights=pissa) changes these, and with them the reference, which is the
    model without the adapter.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    with trainer.accelerator.autocast():
        errors = {"policy": relative_error(first_logits(model), start_logits)}
        if trainer.ref_model is None:
            with use_adapter(model, "ref" if "ref" in model.peft_config else None):
                errors["reference"] = relative_error(first_logits(model), start_logits)
    for name, error in errors.items():
        if not error <= _tolerance(trainer, model):
            raise UsageError(
                f"{key}: with this adapter DPO's {name} would not be the model that it starts at: "
                f"their scores differ by {error:.1%} before the first step. Take "
                "init_lora_weights=true, and no embeddings among target_modules"
            )


def check_merged(trainer: Trainer, trained_logits: Tensor, merged: Any) -> None:
    """Raises CaiError where the merged model is not the trained one, up to rounding."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    error = relative_error(first_logits(merged), trained_logits)
    if not error <= _tolerance(trainer, model):
        raise CaiError(
            f"the adapter, merged, is not what was trained: their scores differ by {error:.1%}, "
            "and nothing is published. Take fewer of peft's own options"
        )


def _tolerance(trainer: Trainer, model: Any) -> float:
    """By the formats of the weights, and of the arithmetic."""
    formats = {str(weights.dtype).removeprefix("torch.") for weights in model.parameters()}
    formats |= {"bfloat16"} if trainer.args.bf16 else set()
    formats |= {"float16"} if trainer.args.fp16 else set()
    return max(MERGE_ERROR.get(name, 0.0) for name in formats)
