"""The trainer of a round of DPO: its policy, its reference model, its guards."""

from functools import partial
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.dpo_config import DPOConfig

from cai.config.names import in_round, policy_of
from cai.config.schema import DpoConfig
from cai.data.parquet import read_rows
from cai.data.split import opening_turn, validation_first
from cai.errors import CaiError
from cai.messages import from_dicts
from cai.models.load import load_model, pick_device
from cai.models.markers import restore_head_bias
from cai.stages.base import Context
from cai.training import adapters, arguments, fit, shards, soft_dpo
from cai.training.forecast import dpo_tuning
from cai.training.guards import (
    GuardCallback,
    find_blind_spots,
    find_warnings,
    generate_answers,
)
from cai.training.published import Probe, margin_probe
from cai.training.trainer import is_sharded

COLUMNS = ("prompt", "chosen", "rejected", "probability", "chosen_ended", "rejected_ended")


def load_pairs(config: DpoConfig, context: Context) -> tuple[Dataset, int]:
    """The round's labelled pairs, and how many of them, the first, are held out."""
    pairs = read_rows(context.output(in_round("label", context.round)) / "pairs.parquet")
    prompts = [opening_turn(from_dicts(pair["prompt"])) for pair in pairs]
    order, held_out = validation_first(prompts, config.validation)
    return Dataset.from_list([{key: pairs[row][key] for key in COLUMNS} for row in order]), held_out


def open_trainer(
    config: DpoConfig,
    context: Context,
    rows: Dataset,
    held_out: int,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[soft_dpo.PreferenceTrainer, Probe]:
    """Trains on labelled pairs but the first `held_out`, and watches what those say.

    The probe measures what training gains on a few of them. Raises CaiError where no pair is left.
    A fresh adapter belongs to the model that the round starts at, a continued one to the model that
    sl_cai was tuned from.
    """
    engine = context.engine
    device = pick_device(engine.device)
    # a continued adapter, too, leaves the other weights alone
    frozen = config.peft is not None or config.adapter == "continued"
    dtype = config.frozen_dtype if frozen else "float32"
    load = partial(load_model, dtype=dtype, device=device, attention=engine.attention)
    policy = _load_policy(config, context, dtype, device)
    reference = policy_of(1) if config.reference == "first" else context.policy
    separate = reference != context.policy
    folder = str(context.scratch / "checkpoints")
    args = arguments.dpo_arguments(config, context.seed, folder, device, bool(held_out))
    _fit(config, context, policy, args, separate, device)
    key = "sl_cai.peft" if config.adapter == "continued" else "dpo.peft"
    # a process may have no weights, or only a part
    checked = frozen and not shards.are_asked_for()
    start_logits = adapters.first_logits(policy) if checked else None
    with adapters.refusals_explained(key):
        trainer = soft_dpo.open_trainer(
            config,
            reference_folder=context.root / "references",
            reference_digest=context.model_digest(reference),
            model=policy,
            ref_model=load(context.model_path(reference)) if separate else None,
            args=args,
            train_dataset=rows.select(range(held_out, len(rows))),
            eval_dataset=rows.select(range(held_out)) if held_out else None,
            processing_class=tokenizer,
            peft_config=arguments.lora_config("dpo.peft", config.peft) if config.peft else None,
        )
    if not len(trainer.train_dataset):
        raise CaiError(
            f"no pair is left to train on: each of {len(rows)} prompts fills dpo.args.max_length"
        )
    _complete_weights(trainer)
    if start_logits is not None:
        adapters.check_adapter(trainer, "dpo")
        adapters.check_start(trainer, start_logits, key)
    trainer.add_callback(_guards(config, context, trainer, tokenizer, bool(held_out)))
    measured = trainer.eval_dataset if held_out else trainer.train_dataset
    return trainer, margin_probe(trainer, measured, bool(held_out), args.beta, args.max_length)


def _complete_weights(trainer: soft_dpo.PreferenceTrainer) -> None:
    """What trl and peft leave to do."""
    arguments.train_in_float32(trainer)
    restore_head_bias(trainer.model)
    # where the reference's scores are precomputed, they are there already
    precomputed = trainer.args.precompute_ref_log_probs
    if "ref" in getattr(trainer.model, "peft_config", ()) and not precomputed:
        adapters.complete_reference(trainer.model)


def _fit(
    config: DpoConfig, context: Context, policy: Any, args: DPOConfig, separate: bool, device: str
) -> None:
    lora = config.peft
    if config.adapter == "continued":
        lora = policy.peft_config["default"].to_dict()
    tune = partial(dpo_tuning, config, lora, separate)
    fit.fit_training(policy, args, tune, "dpo", config.args, device, context.progress.say)


def _load_policy(config: DpoConfig, context: Context, dtype: str, device: str) -> Any:
    """Where dpo.adapter=continued trains on with sl_cai's adapter: the model that has it."""
    if config.adapter != "continued":
        # from its published folder, where trl reloads the reference from if every weight is tuned
        start = context.model_path(context.policy)
        return shards.load_to_train(start, dtype, device, context.engine.attention)
    start = _adapter_start(context)
    return adapters.load_continued(
        adapters.NamedModel(start, context.model_path(start)),
        adapters.NamedModel(context.policy, context.model_path(context.policy)),
        context.output(context.policy) / "adapter",
        config.frozen_dtype,
        context.engine.attention,
        device,
    )


def _adapter_start(context: Context) -> str:
    """The model that sl_cai's adapter was trained on."""
    return "sft" if "sft" in context.inputs else "base"


def load_start(config: DpoConfig, context: Context) -> PreTrainedModel:
    """The model that the adapter belongs to, in float32, to merge it into."""
    start = _adapter_start(context) if config.adapter == "continued" else context.policy
    return load_model(context.model_path(start), "float32", "cpu")


def _guards(
    config: DpoConfig,
    context: Context,
    trainer: soft_dpo.PreferenceTrainer,
    tokenizer: PreTrainedTokenizerBase,
    validates: bool,
) -> GuardCallback:
    prompts: Any = trainer.eval_dataset
    prompt_ids = prompts["prompt_ids"] if validates else ()
    distinct_prompts = list(dict.fromkeys(map(tuple, prompt_ids)))[: config.guards.prompts]
    sharded = is_sharded(trainer)
    answer = None
    if distinct_prompts and not sharded:
        answer = partial(
            generate_answers,
            tokenizer=tokenizer,
            prompts=distinct_prompts,
            new_tokens=config.guards.new_tokens,
        )
    return GuardCallback(config.guards, context.progress.say, answer, sharded)


def guard_warnings(config: DpoConfig, trainer: soft_dpo.PreferenceTrainer) -> list[str]:
    """What the guards saw, or could not see, in sentences."""
    history, sharded = trainer.state.log_history, is_sharded(trainer)
    return [
        *find_warnings(history, config.guards),
        *find_blind_spots(history, config.guards, sharded),
    ]
