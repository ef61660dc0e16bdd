"""Runs trl's trainers: resumes from checkpoints, shows progress, and saves what a run leaves."""

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.utils import broadcast_object_list
from peft import PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.integrations.integration_utils import (
    TensorBoardCallback,
    get_reporting_integration_callbacks,
)

from cai.errors import CaiError
from cai.models.load import save_model
from cai.models.merged import write_base
from cai.models.source import AdapterBase
from cai.observe.progress import Progress
from cai.store.files import write_json
from cai.training.adapters import check_merged, first_logits, is_quantized
from cai.training.checkpoints import (
    SealCheckpoints,
    find_newest_checkpoint,
    has_ended,
    keep_batch,
)

# Parts of names in trl's log that differ between two equal runs. "train_loss" is a mean over the
# steps since the resume.
UNREPEATABLE = ("runtime", "per_second", "total_flos", "num_tokens", "train_loss")


class ReportProgress(TrainerCallback):
    """Keeps the bar up to date. Raises CaiError at a loss or a gradient that is not finite."""

    def __init__(self, progress: Progress):
        self.progress = progress

    def on_train_begin(self, args, state, control, **_):
        self.progress.start(state.max_steps, "steps")
        if state.global_step:
            self.progress.note = f"resumed at step {state.global_step}"
            self.progress.resume(state.global_step)

    def on_step_end(self, args, state, control, **_):
        self.progress.advance()

    def on_log(self, args, state, control, logs=None, **_):
        logs = logs or {}
        # fp16's scaler skips steps whose gradient is not finite
        names = ("loss", "eval_loss") if args.fp16 else ("loss", "eval_loss", "grad_norm")
        stage = self.progress.stage
        for name in names:
            if not math.isfinite(logs.get(name, 0.0)):
                raise CaiError(
                    f"{stage}: {name} is {logs[name]} at step {state.global_step}; nothing is "
                    f"published. Lower {stage}.args.learning_rate or max_grad_norm, or raise "
                    "warmup_steps"
                )
        if "loss" in logs:
            self.progress.note = f"loss {logs['loss']:.3f}"


class EndTracking(TrainerCallback):
    """Ends wandb's run with the stage's: else the next stage's curves would go on in it."""

    def on_train_end(self, args, state, control, **_):
        wandb = sys.modules.get("wandb")  # transformers' callback has imported it, where it is used
        if wandb is not None and wandb.run is not None:
            wandb.finish()


def report_curves(
    trainer: Trainer, reporters: Sequence[str], stage: str, run: str, folder: Path
) -> None:
    """Shows the curves during training: TensorBoard's files in `folder`, wandb's and trackio's."""
    trainer.args.run_name = f"{run}-{stage}"
    for callback in get_reporting_integration_callbacks(list(reporters)):
        trainer.add_callback(callback)
    trainer.add_callback(EndTracking())
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = str(folder)


def run_training(trainer: Trainer, scratch: Path, progress: Progress, patience: int | None) -> None:
    """Trains from the newest sound checkpoint below scratch/, if there is one.

    Raises CaiError where a loss or a gradient is not finite: what follows could only be thrown
    away. Also where another number of processes can't go on from the checkpoint.
    """
    trainer.remove_callback(PrinterCallback)  # the progress bar says it
    trainer.add_callback(ReportProgress(progress))
    trainer.add_callback(SealCheckpoints(trainer.accelerator))
    if patience is not None and trainer.args.load_best_model_at_end:
        trainer.add_callback(EarlyStoppingCallback(patience))
    checkpoint = None
    if trainer.args.process_index == 0:  # this one removes what is damaged, and tells the others
        checkpoint = find_newest_checkpoint(scratch / "checkpoints", progress.say)
    checkpoint = broadcast_object_list([checkpoint])[0]
    if checkpoint is not None and has_ended(checkpoint):
        _take_no_step(trainer)
    elif checkpoint is not None:
        keep_batch(trainer.args, checkpoint, progress.stage, is_sharded(trainer))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def _take_no_step(trainer: Trainer) -> None:
    """Lets `train()` load the checkpoint and the best model, and do nothing between."""

    # transformers takes a step before it looks at should_training_stop, which no callback can
    # prevent, so its method for one epoch is replaced. test_trainer.py fails where it is no longer
    # called: test_killed_after_a_checkpoint_training_ends_where_it_would_have.
    def end_training(**_: object) -> None:
        trainer.control.should_training_stop = True

    trainer._run_epoch = end_training  # pyright: ignore[reportAttributeAccessIssue]


def save_result(
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    work: Path,
    publish_dtype: str = "float32",
    load_base: Callable[[], PreTrainedModel] | None = None,
    adapter_of: AdapterBase | None = None,
) -> None:
    """Writes the full weights to work/model and the curve to work/history.json.

    An adapter is merged, and is in work/adapter too. It is merged in float32, since a sum in
    bfloat16 would lose most of a small update. `load_base`, which is needed where the adapter was
    trained on other weights, loads the base model in float32. `publish_dtype` is the number format
    of work/model. With `adapter_of`, the model that the adapter belongs to, there is no work/model.
    Raises CaiError where a weight is not finite, or the merged model is not the trained one.
    """
    model = _gather_model(trainer)
    if model is None:
        return
    trained_logits = None
    if isinstance(model, PeftModel) and not is_sharded(trainer) and not is_quantized(model):
        with trainer.accelerator.autocast():
            trained_logits = first_logits(model)
    if not all(bool(weights.isfinite().all()) for weights in model.parameters()):
        raise CaiError(
            "the trained weights are no numbers any more: lower the learning rate; "
            "nothing is published"
        )
    work.mkdir(parents=True, exist_ok=True)
    write_json(work / "history.json", drop_unrepeatable(trainer.state.log_history))
    if isinstance(model, PeftModel):
        _save_adapter(model, work / "adapter")
        if adapter_of:
            write_base(work / "adapter", adapter_of)
            return
        model = _merge(model, work / "adapter", load_base)
        if trained_logits is not None:
            check_merged(trainer, trained_logits, model)
    model = model.to(getattr(torch, publish_dtype))
    # trl switches the cache off where it trains with gradient checkpointing
    model.config.use_cache = True
    save_model(model, tokenizer, work / "model")


def _merge(
    model: PeftModel, adapter: Path, load_base: Callable[[], PreTrainedModel] | None
) -> PreTrainedModel:
    """The base model with the adapter in its weights, in float32 where `load_base` is there."""
    if load_base and any(weights.dtype != torch.float32 for weights in model.parameters()):
        model = PeftModel.from_pretrained(load_base(), str(adapter))
    return model.merge_and_unload()


def is_sharded(trainer: Trainer) -> bool:
    """Whether a process holds only a part of the weights: by FSDP, or DeepSpeed's ZeRO-3."""
    plugin = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    return trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)


def _gather_model(trainer: Trainer) -> PreTrainedModel | PeftModel | None:
    """The trained model with its whole weights; None in all processes but the first."""
    state: Any = None
    if is_sharded(trainer):  # all processes put the shards together
        sharded_model = trainer.model if trainer.is_fsdp_enabled else trainer.deepspeed
        state = trainer.accelerator.get_state_dict(sharded_model)
    if int(os.environ.get("RANK", "0")):
        return None
    model = trainer.accelerator.unwrap_model(trainer.model)
    return model if state is None else _rebuild_model(model, state)


def _rebuild_model(
    sharded_model: PreTrainedModel | PeftModel, state: Mapping[str, torch.Tensor]
) -> PreTrainedModel | PeftModel:
    """A model like the sharded one, with the whole weights of `state`, to be saved."""
    unset_hf_deepspeed_config()  # or this model would be sharded too
    dtype = next(iter(state.values())).dtype
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(sharded_model.config, dtype=dtype)
        # a model from a config knows neither where its answers stop nor how they are sampled
        model.generation_config = sharded_model.generation_config
        if isinstance(sharded_model, PeftModel):
            model = get_peft_model(model, sharded_model.peft_config["default"])
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model


def _save_adapter(model: PeftModel, folder: Path) -> None:
    """Writes the adapter's folder, the same on every machine and in every run.

    peft writes down where the base model lay, and sets in an order that changes.
    """
    # trl's copy of the adapter, "ref", is no result
    model.save_pretrained(str(folder), selected_adapters=["default"])
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": None}
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    write_json(file, config)
    (folder / "README.md").unlink(missing_ok=True)  # a template full of "[More Information Needed]"


def drop_unrepeatable(log: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """trl's log without what differs between two equal runs, such as times and speeds."""
    entries = []
    for entry in log:
        names = [name for name in sorted(entry) if not any(part in name for part in UNREPEATABLE)]
        entries.append({name: entry[name] for name in names})
    return entries
