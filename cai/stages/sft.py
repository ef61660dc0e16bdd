"""Supervised fine-tuning: `sft` on instructions, `sl_cai` on revisions and helpful rows (section 3.1)."""

from pathlib import Path
from typing import Any

from cai.config import SftConfig
from cai.data.audit import Overlap
from cai.data.formats import load_dialogues, shuffled
from cai.data.mixture import mix
from cai.dialogue import Dialogue, from_dicts
from cai.stages.base import Context, held_out_texts, read_rows


def run(config: SftConfig, inputs: Any, work: Path, context: Context) -> dict[str, Any]:
    """Writes work/model and work/history.json. Returns the audit's counts and the held-out loss."""
    from trl.trainer.sft_trainer import SFTTrainer

    from cai.training.model import load_model, load_tokenizer, pick_device
    from cai.training.trainer import lora_config, run_training, save_result, tokenised

    dialogues, counts = training_rows(config, context)
    source = context.model_path(config.start)
    tokenizer = load_tokenizer(source)
    rows, audit = tokenised(tokenizer, shuffled(dialogues, context.seed), config.max_length)
    held = int(len(rows) * config.validation)
    train, validation = rows.select(range(held, len(rows))), rows.select(range(held)) if held else None
    device = pick_device(context.engine.device)
    trainer = SFTTrainer(
        model=load_model(source, context.engine.dtype, device),
        args=arguments(context.stage, config, context.seed, str(context.scratch / "checkpoints"), device, bool(held)),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        peft_config=lora_config(f"{context.stage}.peft", config.peft) if config.peft is not None else None,
    )
    run_training(trainer, context.scratch, context.progress, config.patience)
    save_result(trainer, tokenizer, work)
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    summary = counts | audit | {"held_out_rows": held, "steps": trainer.state.global_step}
    summary |= {"held_out_loss": min(losses)} if losses else {}
    return summary


def training_rows(config: SftConfig, context: Context) -> tuple[list[Dialogue], dict[str, Any]]:
    """The dialogues that are trained on, and where they came from. What an evaluation suite holds is left out."""
    revised: list[Dialogue] = []
    if config.revisions != "none":
        revised = revision_rows(Path(context.inputs["revise"].path) / "training.parquet", config.revisions)
    if config.helpful == "sampled":
        sampled = read_rows(Path(context.inputs["revise"].path) / "helpful.parquet")
        sources, skipped = {"sampled": [from_dicts(row["messages"]) for row in sampled]}, 0
    else:
        loaded = load_dialogues(config.data, context.data, context.seed)
        answered = [(tags["source"], d) for d, tags in loaded.dialogues if d[-1].role == "assistant"]
        sources, skipped = (
            {name: [d for own, d in answered if own == name] for name in config.data},
            loaded.skipped.count,
        )
    overlap = Overlap(held_out_texts(context))
    kept = {
        name: [d for d in rows if not any(m.content in overlap for m in d if m.role == "user")]
        for name, rows in sources.items()
    }
    ratio = None if config.helpful_ratio is None else round(len(revised) * config.helpful_ratio)
    limit = min((most for most in (config.limit, ratio) if most is not None), default=None)
    mixed = mix(kept, config.weights, limit, context.seed)
    counts = {
        "skipped": skipped,
        "overlapping": sum(map(len, sources.values())) - sum(map(len, kept.values())),
        "instructions": sum(map(len, mixed.values())),
        "sources": {name: len(rows) for name, rows in mixed.items()},
    }
    counts |= {"revisions": len(revised)} if config.revisions != "none" else {}
    return [*(d for rows in mixed.values() for d in rows), *revised], counts


def revision_rows(path: Path, which: str) -> list[Dialogue]:
    """Prompts with their revisions as the answer: of `all` rounds (the paper), or the `last`."""
    rows = read_rows(path)
    return [from_dicts(row["messages"]) for row in rows if which == "all" or row["last"]]


def arguments(stage: str, config: SftConfig, seed: int, folder: str, device: str, held: bool) -> Any:
    """trl's SFTConfig for a stage. Also what `cai plan --check` builds. Raises UsageError."""
    from cai.training.trainer import trl_config, watching

    forced = {"output_dir": folder, "max_length": config.max_length, "seed": seed, "packing": False}
    forced |= watching(held) | {"use_cpu": device == "cpu"} | ({"bf16": False} if not device.startswith("cuda") else {})
    return trl_config("sft", f"{stage}.args", config.args, **forced)
