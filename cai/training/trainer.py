"""trl's trainers: their configs from ours, checkpoints that resume by themselves, and what a run leaves behind."""

import dataclasses
import importlib.util
import inspect
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from cai.data.audit import length_metrics
from cai.errors import CaiError, UsageError, nearest
from cai.messages import Dialogue
from cai.models.chat_template import training_tokens
from cai.observe.progress import Progress
from cai.store.files import broken_seal, seal, write_json

DEFAULTS = {
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 1,
    "save_total_limit": 1,
    "dataloader_pin_memory": False,
    "gradient_checkpointing": False,
    "logging_nan_inf_filter": False,  # it would show an average in place of a loss that is no number
    "restore_callback_states_from_checkpoint": True,  # else early stopping would count from the resume
}


def trl_config(kind: str, key: str, args: dict[str, Any], **forced: Any) -> Any:
    """trl's SFTConfig or DPOConfig from `args`. Raises UsageError on a name or value that trl does not take."""
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.sft_config import SFTConfig

    schema = {"sft": SFTConfig, "dpo": DPOConfig}[kind]
    names = [f.name for f in dataclasses.fields(schema) if f.init]
    for name in args:
        if name not in names:
            raise UsageError(
                f"{key}.{name}: trl.{schema.__name__} has no such argument{nearest(name, names)}"
            )
        if name in forced:
            raise UsageError(f"{key}.{name} is set by cai itself; leave it out")
    try:
        return schema(**(DEFAULTS | args | forced))
    except (TypeError, ValueError, ImportError) as error:
        raise UsageError(
            f"{key}: trl.{schema.__name__} refuses: {str(error).strip().splitlines()[0]}"
        ) from None


def lora_config(key: str, args: dict[str, Any]) -> Any:
    """peft's LoraConfig from `args`. Raises UsageError on a name or value that peft does not take."""
    import peft

    names = [f.name for f in dataclasses.fields(peft.LoraConfig)]
    for name in args:
        if name not in names:
            raise UsageError(
                f"{key}.{name}: peft.LoraConfig has no such argument{nearest(name, names)}"
            )
    try:
        return peft.LoraConfig(task_type="CAUSAL_LM", **args)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{key}: peft.LoraConfig refuses: {str(error).splitlines()[0]}") from None


def bits_config(key: str, args: dict[str, Any]) -> Any:
    """transformers' BitsAndBytesConfig from `args`. Raises UsageError on a name that it does not take, or where
    bitsandbytes is missing."""
    from transformers import BitsAndBytesConfig

    names = [name for name in inspect.signature(BitsAndBytesConfig).parameters if name != "kwargs"]
    for name in args:
        if name not in names:
            hint = nearest(name, names)
            raise UsageError(
                f"{key}.{name}: transformers.BitsAndBytesConfig has no such argument{hint}"
            )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(
            f"{key}: bitsandbytes is not installed; pip install 'constitutional-ai[qlora]'"
        )
    try:
        return BitsAndBytesConfig(**args)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{key}: transformers.BitsAndBytesConfig refuses: {str(error).splitlines()[0]}"
        ) from None


def refuse_leaks(model: Any, key: str) -> None:
    """Raises CaiError where packed rows see each other: where a row's scores change with the row that stands before it.

    Whether they do is a matter of the attention's implementation and the model's code, so the model itself is asked.
    """
    import torch

    length, vocabulary = 8, model.get_input_embeddings().weight.shape[0]
    one, other, row = (
        torch.arange(3 * length, device=model.device).remainder(vocabulary).view(3, length)
    )
    positions = torch.arange(length, device=model.device).repeat(2)[None]
    training = model.training
    model.eval()
    with torch.no_grad():
        scores = [
            model(
                input_ids=torch.cat((first, row))[None], position_ids=positions, use_cache=False
            ).logits[0, length:]
            for first in (one, other)
        ]
    model.train(training)
    if not torch.allclose(*scores, atol=1e-3, rtol=1e-3):
        raise CaiError(
            f"{key}: packed rows would see each other in this model with attention "
            f"'{model.config._attn_implementation}'; set engine.attention=flash_attention_2, or leave packing out and "
            "set train_sampling_strategy=group_by_length"
        )


def recomputes(model: Any, tokens: int, tuned: int, free: int | None) -> bool:
    """Whether gradient checkpointing is needed: training would take more than nine tenths of the free memory.

    `tokens` in a batch, `tuned` weights, `free` bytes beside the loaded model; None: not known (a CPU). A layer keeps
    about 17 numbers a token and hidden unit (Korthikanti et al. 2022, section 4.1, without the attention's scores), the
    output layer two float32 numbers a token and word; a tuned weight has a gradient and two moments.
    """
    if free is None:
        return False
    config = model.config.get_text_config()
    size = next(model.parameters()).element_size()
    activations = tokens * (
        17 * config.num_hidden_layers * config.hidden_size * size + 8 * config.vocab_size
    )
    return activations + 3 * size * tuned > 0.9 * free


def free_memory(device: str) -> int | None:
    """Bytes that are free on an accelerator; None for a CPU."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    if device == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return None


def show_curves(trainer: Any, names: Sequence[str], stage: str, run: str, folder: Path) -> None:
    """Shows the curves while training runs: TensorBoard's as files in `folder`, wandb's and trackio's in their way."""
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    trainer.args.run_name = f"{run}-{stage}"
    for callback in get_reporting_integration_callbacks(list(names)):
        trainer.add_callback(callback)
    for callback in trainer.callback_handler.callbacks:
        if type(callback).__name__ == "TensorBoardCallback":
            callback.logging_dir = str(folder)


def watching(validation: bool) -> dict[str, Any]:
    """Arguments that evaluate at every checkpoint and keep the best, where rows are held out for it."""
    if not validation:
        return {"eval_strategy": "no", "save_strategy": "steps"}
    best = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
    }
    return {"eval_strategy": "steps", "save_strategy": "steps"} | best


def tokenised(
    tokenizer: Any, dialogues: Sequence[Dialogue], max_length: int
) -> tuple[Any, dict[str, Any]]:
    """A data set with input_ids and labels (the answers alone), and the audit's counts and lengths.

    A row that is longer than `max_length` tokens is cut at its end; one that keeps no trained token is left out.
    """
    from datasets import Dataset

    rows: list[dict[str, list[int]]] = []
    lengths: list[int] = []
    counts = {
        "rows": len(dialogues),
        "truncated": 0,
        "lost_end_of_turn": 0,
        "dropped": 0,
        "trained_tokens": 0,
    }
    for dialogue in dialogues:
        try:
            ids, labels = training_tokens(tokenizer, dialogue)
        except ValueError as error:
            raise CaiError(f"this model's chat template can't be trained on: {error}") from None
        lengths.append(len(ids))
        counts["truncated"] += len(ids) > max_length
        # a turn ends where its trained tokens end, whichever token the template ends it with
        ends = [
            place
            for place, (one, after) in enumerate(pairwise([*labels, -100]))
            if one != -100 and after == -100
        ]
        counts["lost_end_of_turn"] += sum(place >= max_length for place in ends)
        ids, labels = ids[:max_length], labels[:max_length]
        trained = sum(label != -100 for label in labels)
        counts["dropped"] += not trained
        counts["trained_tokens"] += trained
        if trained:
            rows.append({"input_ids": ids, "labels": labels})
    return Dataset.from_list(rows), counts | {"lengths": length_metrics(lengths)}


def run_training(trainer: Any, scratch: Path, progress: Progress, patience: int | None) -> None:
    """Trains from the newest sound checkpoint below scratch/, if there is one.

    Raises CaiError where a loss or a gradient is no number any more: what follows could only be thrown away.
    """
    from accelerate.utils import broadcast_object_list
    from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback

    class Report(TrainerCallback):
        """Keeps `progress` up to date."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress.start(state.max_steps, "steps")
            if state.global_step:
                progress.note = f"resumed at step {state.global_step}"
                progress.resume(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress.advance()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            for name in (
                "loss",
                "eval_loss",
                *(() if args.fp16 else ("grad_norm",)),
            ):  # fp16's scaler skips such steps
                if not math.isfinite((logs or {}).get(name, 0.0)):
                    raise CaiError(
                        f"{progress.stage}: {name} is {logs[name]} at step {state.global_step}; nothing is published. "
                        f"Lower {progress.stage}.args.learning_rate or max_grad_norm, or raise warmup_steps"
                    )
            if logs and "loss" in logs:
                progress.note = f"loss {logs['loss']:.3f}"

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer.accelerator.wait_for_everyone()  # each process writes its own state of the random numbers
            if args.process_index == 0:
                seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    trainer.remove_callback(PrinterCallback)  # the bar says it
    trainer.add_callback(Report())
    if patience is not None and trainer.args.load_best_model_at_end:
        trainer.add_callback(EarlyStoppingCallback(patience))
    # one process looks, and removes what is damaged; the others are told
    newest = (
        newest_checkpoint(scratch / "checkpoints", progress.say)
        if trainer.args.process_index == 0
        else None
    )
    newest = broadcast_object_list([newest])[0]
    if newest and _ended(Path(newest)):

        def no_step(**_: Any) -> None:
            trainer.control.should_training_stop = True

        trainer._run_epoch = no_step
    trainer.train(resume_from_checkpoint=newest)


def _ended(checkpoint: Path) -> bool:
    """Whether training had ended there, and only its result was not saved: transformers would take another step."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    return state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"]


def newest_checkpoint(folder: Path, say: Callable[[str], object]) -> str | None:
    """The newest checkpoint that holds trainer_state.json, which is written last, and whose files are as they were
    saved; incomplete and damaged ones are removed."""
    found = sorted(
        folder.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]), reverse=True
    )
    for path in found:
        if (path / "trainer_state.json").is_file() and _readable(path / "trainer_state.json"):
            if (wrong := broken_seal(path)) is None:
                return str(path)
            say(
                f"{wrong} is damaged; training goes on from the checkpoint before, or from the beginning"
            )
        shutil.rmtree(path)
    return None


def _readable(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text()), dict)
    except ValueError:
        return False


def save_result(
    trainer: Any, tokenizer: Any, work: Path, base: Callable[[], Any] | None = None
) -> None:
    """work/model: full weights (an adapter is merged, and kept in work/adapter too); work/history.json: the curve.

    Where the trained model's weights are quantised, `base` loads them as they were, and the adapter is merged there.
    """
    from cai.models.load import save_model

    state = None
    if is_sharded(trainer):  # all processes put the shards together
        sharded = trainer.model if trainer.is_fsdp_enabled else trainer.deepspeed
        state = trainer.accelerator.get_state_dict(sharded)
    if int(os.environ.get("RANK", "0")):
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    model = model if state is None else _in_one_piece(model, state)
    if not all(bool(weights.isfinite().all()) for weights in model.parameters()):
        raise CaiError(
            "the trained weights are no numbers any more: lower the learning rate; nothing is published"
        )
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(
            work / "adapter", selected_adapters=["default"]
        )  # trl's copy "ref" is no result
        if base is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(base(), str(work / "adapter"))
        _settle_adapter(work / "adapter")
        model = model.merge_and_unload()
    save_model(model, tokenizer, work / "model")
    write_json(work / "history.json", history(trainer.state.log_history))


def is_sharded(trainer: Any) -> bool:
    """Whether a process holds only a part of the weights: by FSDP, or DeepSpeed's ZeRO-3."""
    plugin = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    return trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)


def _in_one_piece(sharded: Any, state: dict[str, Any]) -> Any:
    """A sharded model anew, with its whole weights."""
    from peft import PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # or this one would be sharded too
    model = AutoModelForCausalLM.from_config(sharded.config, dtype=next(iter(state.values())).dtype)
    if isinstance(sharded, PeftModel):
        model = get_peft_model(model, sharded.peft_config["default"])
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model


def _settle_adapter(folder: Path) -> None:
    """peft names the folder that the base lay in, and writes sets in an order that changes from run to run."""
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": None}
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    write_json(file, config)
    (folder / "README.md").unlink(missing_ok=True)  # a template full of "[More Information Needed]"


def history(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """trl's log without what differs between two equal runs (times and speeds)."""
    timed = (
        "runtime",
        "per_second",
        "total_flos",
        "num_tokens",
        "train_loss",
    )  # the last is a mean since the resume
    return [
        {k: v for k, v in sorted(entry.items()) if not any(word in k for word in timed)}
        for entry in log
    ]
