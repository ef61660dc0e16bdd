"""Supervised fine-tuning: `sft` on instructions, `sl_cai` on revisions and helpful rows (section 3.1)."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from cai.config.schema import BUILT, SftConfig
from cai.data.audit import text_metrics
from cai.data.mixture import mix
from cai.data.parquet import read_rows
from cai.data.prompts import UnfitRows, read_dialogues, shuffled
from cai.errors import CaiError
from cai.messages import Dialogue, from_dicts
from cai.stages.base import Context

Row = tuple[Dialogue, dict[str, Any]]  # with its tags


def run(config: SftConfig, inputs: Any, work: Path, context: Context) -> dict[str, Any]:
    """Writes work/model and work/history.json. Returns the audit and the held-out loss."""
    from trl.trainer.sft_trainer import SFTTrainer

    from cai.models.load import load_model, load_tokenizer, pick_device
    from cai.models.markers import adopt_markers, embed_markers, pass_bias_on, training_markers
    from cai.training.cpu_head import lean_head
    from cai.training.trainer import (
        bits_config,
        free_memory,
        lora_config,
        recomputes,
        refuse_leaks,
        run_training,
        save_result,
        show_curves,
    )

    source = context.model_path(config.start)
    tokenizer = load_tokenizer(source)
    added = adopt_markers(tokenizer)
    rows, audit = prepare(config, context, tokenizer)
    refuse_losses(config, context.stage, audit)
    held = int(len(rows) * config.validation)
    train, validation = (
        rows.select(range(held, len(rows))),
        rows.select(range(held)) if held else None,
    )
    device = pick_device(context.engine.device)
    quantization = None
    if config.quantization is not None:
        quantization = bits_config(f"{context.stage}.quantization", config.quantization)
    model = load_model(source, context.engine.dtype, device, context.engine.attention, quantization)
    embed_markers(model, added)
    args = arguments(
        context.stage,
        config,
        context.seed,
        str(context.scratch / "checkpoints"),
        device,
        bool(held),
    )
    if args.packing:
        refuse_leaks(model, f"{context.stage}.args.packing")
    if "gradient_checkpointing" not in config.args:
        tuned = (
            0 if config.peft is not None else sum(weights.numel() for weights in model.parameters())
        )
        tokens = args.per_device_train_batch_size * config.max_length
        args.gradient_checkpointing = recomputes(model, tokens, tuned, free_memory(device))
    peft = None if config.peft is None else training_markers(model, added, config.peft)
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        peft_config=None if peft is None else lora_config(f"{context.stage}.peft", peft),
    )
    pass_bias_on(trainer.model)
    lean_head(trainer.model, ("entropy", "is_top1"))
    show_curves(
        trainer,
        context.report_to,
        context.stage,
        context.root.name,
        context.scratch.with_name("logs"),
    )
    run_training(trainer, context.scratch, context.progress, config.patience)

    def unquantised() -> Any:
        whole = load_model(source, str(model.dtype).removeprefix("torch."), "cpu")
        embed_markers(whole, added)
        return whole

    save_result(trainer, tokenizer, work, unquantised if quantization else None)
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    summary = audit | {"held_out_rows": held, "steps": trainer.state.global_step}
    summary |= {"held_out_loss": min(losses)} if losses else {}
    return summary


def prepare(config: SftConfig, context: Context, tokenizer: Any) -> tuple[Any, dict[str, Any]]:
    """The data set that is trained on, shuffled and tokenised, and its audit. `cai audit` shows just this."""
    from cai.training.trainer import tokenised

    drawn, counts = training_rows(config, context)
    drawn = shuffled(drawn, context.seed)
    rows, tokens = tokenised(tokenizer, [dialogue for dialogue, _ in drawn], config.max_length)
    return rows, counts | tokens | {"texts": text_metrics(drawn)}


def refuse_losses(config: SftConfig, stage: str, audit: Mapping[str, Any]) -> None:
    """Raises CaiError where no token would be trained, or more rows are lost than `max_lost` allows."""
    if not audit["trained_tokens"]:
        raise CaiError(
            f"{stage}: no trained token is left in {audit['rows']} rows; "
            f"raise {stage}.max_length (now {config.max_length}) or add data"
        )
    unfit = audit["skipped"] + audit["no_answer"] + audit["overlapping"]
    kept = (1 - unfit / audit["read"]) * (1 - audit["dropped"] / audit["rows"])
    if 1 - kept > config.max_lost:
        raise CaiError(
            f"{stage}: {1 - kept:.0%} of the rows are lost, and {stage}.max_lost is {config.max_lost:g}: of "
            f"{audit['read']} read, {audit['skipped']} do not fit, {audit['no_answer']} have no answer and "
            f"{audit['overlapping']} repeat an evaluation prompt; of {audit['rows']} drawn, {audit['dropped']} keep no "
            f"trained token. Mend the data (see `cai audit`), raise {stage}.max_length, or raise {stage}.max_lost"
        )


def training_rows(config: SftConfig, context: Context) -> tuple[list[Row], dict[str, Any]]:
    """The dialogues that are trained on, with their tags, and where they came from.

    What an evaluation suite holds is left out. Data sets are read once, row by row: only what is drawn is in memory.
    """
    revised: list[Row] = []
    if config.revisions != "none":
        revised = revision_rows(
            Path(context.inputs["revise"].path) / "training.parquet", config.revisions
        )
    unfit, lost = UnfitRows(), {"no_answer": 0, "overlapping": 0}
    overlaps = dict.fromkeys(context.held_out, 0)

    def usable(rows: Iterable[Row]) -> Iterator[Row]:
        for dialogue, tags in rows:
            asked = [m.content for m in dialogue if m.role == "user"]
            held = [
                name
                for name, overlap in context.overlaps.items()
                if any(text in overlap for text in asked)
            ]
            for name in held:
                overlaps[name] += 1
            if held:
                lost["overlapping"] += 1
            elif dialogue[-1].role != "assistant":
                lost["no_answer"] += 1
            else:
                yield dialogue, tags

    def made_by(stage: str, file: str, source: str) -> Iterator[Row]:
        for row in read_rows(Path(context.inputs[stage].path) / file):
            yield from_dicts(row["messages"]), {"source": source}

    def of_set(name: str) -> Iterable[Row]:
        if name == BUILT:
            return made_by("build", "instructions.parquet", BUILT)
        return read_dialogues(name, context.data[name], context.seed, unfit)

    if config.helpful == "sampled":
        sources = {"sampled": usable(made_by("revise", "helpful.parquet", "sampled"))}
    else:
        sources = {name: usable(of_set(name)) for name in config.data}
    ratio = None if config.helpful_ratio is None else round(len(revised) * config.helpful_ratio)
    limit = min((most for most in (config.limit, ratio) if most is not None), default=None)
    mixed, sizes = mix(
        sources, context.seed, limit, config.weights, config.mixing_temperature, config.mixing_cap
    )
    drawn = {name: len(rows) for name, rows in mixed.items()}
    counts = {
        "read": unfit.count + sum(lost.values()) + sum(sizes.values()) + len(revised),
        "skipped": unfit.count,
        "skipped_first": unfit.examples,
        **lost,
        "overlaps": overlaps,
        "not_drawn": sum(sizes.values()) - sum(drawn.values()),
        "instructions": sum(drawn.values()),
        "sources": drawn,
    }
    counts |= {"revisions": len(revised)} if config.revisions != "none" else {}
    return [*chain.from_iterable(mixed.values()), *revised], counts


def revision_rows(path: Path, which: str) -> list[Row]:
    """Prompts with their revisions as the answer: of `all` rounds (the paper), or the `last`."""
    rows = read_rows(path)
    kept = (row for row in rows if which == "all" or row["last"])
    return [(from_dicts(row["messages"]), {"source": "revisions"}) for row in kept]


def arguments(
    stage: str, config: SftConfig, seed: int, folder: str, device: str, held: bool
) -> Any:
    """trl's SFTConfig for a stage. Also what `cai plan --check` builds. Raises UsageError."""
    from cai.training.trainer import trl_config, watching

    forced = {"output_dir": folder, "max_length": config.max_length, "seed": seed}
    forced |= (
        watching(held)
        | {"use_cpu": device == "cpu"}
        | ({"bf16": False} if not device.startswith("cuda") else {})
    )
    # held-out rows are never packed, so that their loss is comparable
    return trl_config("sft", f"{stage}.args", {"eval_packing": False} | config.args, **forced)
