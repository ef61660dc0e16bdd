"""The trainer of a stage of supervised fine-tuning: its model, its adapter, its arguments."""

from functools import partial
from typing import Any

from transformers import PreTrainedModel
from trl.trainer.sft_trainer import SFTTrainer

from cai.config.schema import SftConfig
from cai.models.load import load_model, pick_device
from cai.models.markers import embed_markers, restore_head_bias, train_markers
from cai.stages.base import Context
from cai.stages.tokenized_rows import TokenizedRows
from cai.training import arguments, fit
from cai.training.adapters import check_adapter, refusals_explained
from cai.training.cpu_head import install_lean_head
from cai.training.forecast import sft_tuning
from cai.training.published import Probe, loss_probe
from cai.training.shards import load_to_train
from cai.training.tokens import check_packing
from cai.training.trainer import is_sharded


def open_trainer(
    config: SftConfig, context: Context, tokens: TokenizedRows
) -> tuple[SFTTrainer, Probe]:
    """Trains on the rows but those held out, which give the held-out loss.

    The probe measures what training gains on the first rows.
    """
    stage, rows, held_out = context.stage, tokens.rows, tokens.audit.held_out
    device = pick_device(context.engine.device)
    model = _load(config, context, device, tokens.markers)
    folder = str(context.scratch / "checkpoints")
    args = arguments.sft_arguments(stage, config, context.seed, folder, device, bool(held_out))
    if args.packing:
        check_packing(model, f"{stage}.args.packing")
    tune = partial(sft_tuning, config)
    fit.fit_training(model, args, tune, stage, config.args, device, context.progress.say)
    peft = None
    if config.peft is not None:
        lora = train_markers(model, tokens.markers, config.peft)
        peft = arguments.lora_config(f"{stage}.peft", lora)
    with refusals_explained(f"{stage}.peft"):
        trainer: Any = SFTTrainer(
            model=model,
            args=args,
            train_dataset=rows.select(range(held_out, len(rows))),
            eval_dataset=rows.select(range(held_out)) if held_out else None,
            processing_class=tokens.tokenizer,
            peft_config=peft,
        )
    arguments.train_in_float32(trainer)
    restore_head_bias(trainer.model)
    if not is_sharded(trainer):
        check_adapter(trainer, stage)
    install_lean_head(trainer.model, ("entropy", "is_top1"))
    return trainer, loss_probe(trainer, rows, bool(held_out))


def _load(config: SftConfig, context: Context, device: str, markers: list[int]) -> PreTrainedModel:
    """The model that is trained."""
    quantization = None
    if config.quantization is not None:
        key = f"{context.stage}.quantization"
        quantization = arguments.quantization_config(key, config.quantization)
    source = context.model_path(config.start)
    dtype = config.frozen_dtype if config.peft is not None else "float32"
    model = load_to_train(source, dtype, device, context.engine.attention, quantization)
    embed_markers(model, markers)
    return model


def load_start(config: SftConfig, context: Context, markers: list[int]) -> PreTrainedModel:
    """The model that training started at, in float32, to merge an adapter into."""
    model = load_model(context.model_path(config.start), "float32", "cpu")
    embed_markers(model, markers)
    return model
