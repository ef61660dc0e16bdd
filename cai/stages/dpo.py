"""Direct preference optimisation on the labelled pairs, starting at the sl_cai model, or in later rounds at that of the
round before. The reference is the model that it starts at, or the sl_cai model in every round."""

from functools import partial
from pathlib import Path
from typing import Any

from cai.config.schema import DpoConfig, in_round, policy_of
from cai.data.parquet import read_rows
from cai.errors import CaiError
from cai.stages.base import Context

SAME = {
    "float32": 1e-3,
    "bfloat16": 0.05,
    "float16": 0.01,
}  # relative error of logits that merging may leave


def run(config: DpoConfig, inputs: Any, work: Path, context: Context) -> dict[str, Any]:
    """Writes work/model (merged), work/adapter (with LoRA) and work/history.json. Returns the last margins.

    A fresh adapter belongs to the model that the round starts at, a continued one to that which sl_cai was tuned from.
    """
    from datasets import Dataset

    from cai.models.load import load_model, load_tokenizer, pick_device
    from cai.training.arguments import lora_config
    from cai.training.guards import (
        GuardCallback,
        find_blind_spots,
        find_warnings,
        generate_answers,
    )
    from cai.training.soft_dpo import open_trainer
    from cai.training.trainer import is_sharded, report_curves, run_training, save_result

    pairs = read_rows(Path(context.inputs[in_round("label", context.round)].path) / "pairs.parquet")
    columns = ("prompt", "chosen", "rejected", "probability")
    rows = Dataset.from_list([{key: pair[key] for key in columns} for pair in pairs])
    held = int(len(rows) * config.validation)
    source = context.model_path(context.policy)
    first = policy_of(1) if config.reference == "first" else context.policy
    tokenizer = load_tokenizer(source)
    device = pick_device(context.engine.device)
    trainer = open_trainer(
        config,
        reference_folder=context.root / "references",
        reference_digest=context.model_digest(first),
        # the model comes from its published folder: with full tuning, trl reloads the reference from that path
        model=continued(context, device)
        if config.adapter == "continued"
        else load_model(source, context.engine.dtype, device, context.engine.attention),
        ref_model=None
        if first == context.policy
        else load_model(
            context.model_path(first), context.engine.dtype, device, context.engine.attention
        ),
        args=arguments(
            config, context.seed, str(context.scratch / "checkpoints"), device, bool(held)
        ),
        train_dataset=rows.select(range(held, len(rows))),
        eval_dataset=rows.select(range(held)) if held else None,
        processing_class=tokenizer,
        peft_config=lora_config("dpo.peft", config.peft) if config.peft is not None else None,
    )
    if not len(trainer.train_dataset):
        raise CaiError(
            f"no pair is left to train on: each of {len(rows)} prompts fills dpo.args.max_length"
        )
    asked = list(dict.fromkeys(map(tuple, trainer.eval_dataset["prompt_ids"] if held else ())))[
        : config.guards.prompts
    ]
    answers = partial(
        generate_answers, tokenizer=tokenizer, prompts=asked, new_tokens=config.guards.new_tokens
    )
    sharded = is_sharded(trainer)
    generated = answers if asked and not sharded else None
    trainer.add_callback(GuardCallback(config.guards, context.progress.say, generated, sharded))
    report_curves(
        trainer,
        context.report_to,
        context.stage,
        context.root.name,
        context.scratch.with_name("logs"),
    )
    run_training(trainer, context.scratch, context.progress, config.patience)
    save_result(trainer, tokenizer, work)
    log = trainer.state.log_history
    last = next((entry for entry in reversed(log) if "rewards/margins" in entry), {})
    figures = {
        key: last[key]
        for key in ("loss", "rewards/chosen", "rewards/margins", "rewards/accuracies")
        if key in last
    }
    # trl drops rows whose prompt alone fills max_length
    dropped = len(rows) - len(trainer.train_dataset) - (len(trainer.eval_dataset) if held else 0)
    summary = {
        "pairs": len(rows),
        "dropped": dropped,
        "held_out_rows": held,
        "steps": trainer.state.global_step,
    }
    return (
        summary
        | figures
        | {
            "signs": [
                *find_warnings(log, config.guards),
                *find_blind_spots(log, config.guards, sharded),
            ]
        }
    )


def continued(context: Context, device: str) -> Any:
    """The policy's adapter, trainable, on the model that sl_cai was tuned from: together the policy.

    trl copies the adapter (as "ref") where that is the reference. Raises CaiError where both are not the policy.
    """
    import torch
    from peft import PeftModel

    from cai.models.load import load_model

    start = "sft" if "sft" in context.inputs else "base"
    base = load_model(
        context.model_path(start), context.engine.dtype, device, context.engine.attention
    )
    adapter = Path(context.inputs[context.policy].path) / "adapter"
    policy: Any = PeftModel.from_pretrained(base, str(adapter), is_trainable=True).eval()
    with torch.no_grad():
        tokens = torch.arange(32, device=device)[None]  # any will do
        wanted = load_model(context.model_path(context.policy), context.engine.dtype, device)(
            tokens
        ).logits.float()
        error = ((policy(tokens).logits.float() - wanted).norm() / wanted.norm()).item()
    if not error <= SAME[str(policy.dtype).removeprefix("torch.")]:
        raise CaiError(
            f"dpo.adapter=continued: {start} with {context.policy}'s adapter is not the {context.policy} model (their "
            f"scores differ by {error:.1%}), so it has another base; take dpo=lora"
        )
    return policy


def arguments(config: DpoConfig, seed: int, folder: str, device: str, held: bool) -> Any:
    """trl's DPOConfig for the stage. Also what `cai plan --check` builds. Raises UsageError."""
    from cai.training.arguments import dpo_config, evaluation_settings
    from cai.training.soft_dpo import check_arguments

    forced = {"output_dir": folder, "seed": seed, "use_cpu": device == "cpu"} | evaluation_settings(
        held
    )
    forced |= {"bf16": False} if not device.startswith("cuda") else {}
    args = dpo_config("dpo.args", config.args, **forced)
    if config.loss == "soft":
        check_arguments(args)
    return args
