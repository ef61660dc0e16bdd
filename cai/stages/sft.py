"""Supervised fine-tuning: `sft` on instructions, `sl_cai` on revisions and helpful rows (Bai et al.
2022, section 3.1)."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cai.config.names import BUILT, helpful_data, unbuilt
from cai.config.schema import Config, SftConfig
from cai.config.types import lookup
from cai.stages.base import Context, Stage
from cai.stages.summary import Summary as BaseSummary
from cai.stages.summary import nonzero, number
from cai.stages.training_rows import Audit, prepare

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Summary(BaseSummary):
    stage: str
    audit: Audit
    held_out_rows: int
    steps: int
    held_out_loss: float | None  # the lowest

    counted: ClassVar = ("rows", "steps")

    @property
    def rows(self) -> int:
        return self.audit.rows

    def description(self) -> str:
        if self.stage == "sl_cai":
            return "tuned on the revisions and on helpful rows"
        return "tuned the starting model on instructions"

    def lines(self) -> list[tuple[str, str]]:
        counts = nonzero(("rows held out", self.held_out_rows), ("steps", self.steps))
        if self.held_out_loss is not None:
            counts.append(("held-out loss", number(self.held_out_loss)))
        return [*self.audit.lines(), *counts]

    def lengths(self) -> dict[str, int]:
        return self.audit.lengths.get("up_to", {})


def run(config: SftConfig, work: Path, context: Context) -> Summary:
    """Writes work/model, with LoRA work/adapter, and work/history.json."""
    from trl.trainer.sft_trainer import SFTTrainer

    from cai.models.load import load_model, load_tokenizer, pick_device
    from cai.models.markers import adopt_markers, embed_markers, restore_head_bias, train_markers
    from cai.training import arguments as options
    from cai.training import trainer as training
    from cai.training.cpu_head import install_lean_head
    from cai.training.tokens import check_packing

    source = context.model_path(config.start)
    tokenizer = load_tokenizer(source)
    markers = adopt_markers(tokenizer)
    rows, audit = prepare(config, context, tokenizer)
    audit.refuse_losses(config, context.stage)
    held_out = int(len(rows) * config.validation)
    device = pick_device(context.engine.device)
    quantization = None
    if config.quantization is not None:
        quantization = options.quantization_config(
            f"{context.stage}.quantization", config.quantization
        )
    engine = context.engine
    model = load_model(source, engine.dtype, device, engine.attention, quantization)
    embed_markers(model, markers)
    folder = str(context.scratch / "checkpoints")
    args = options.sft_arguments(
        context.stage, config, context.seed, folder, device, bool(held_out)
    )
    if args.packing:
        check_packing(model, f"{context.stage}.args.packing")
    if "gradient_checkpointing" not in config.args:
        trained_weights = 0 if config.peft else sum(p.numel() for p in model.parameters())
        tokens = args.per_device_train_batch_size * config.max_length
        free = options.measure_free_memory(device)
        args.gradient_checkpointing = options.needs_checkpointing(
            model, tokens, trained_weights, free
        )
    peft = None
    if config.peft is not None:
        lora = train_markers(model, markers, config.peft)
        peft = options.lora_config(f"{context.stage}.peft", lora)
    trainer: Any = SFTTrainer(
        model=model,
        args=args,
        train_dataset=rows.select(range(held_out, len(rows))),
        eval_dataset=rows.select(range(held_out)) if held_out else None,
        processing_class=tokenizer,
        peft_config=peft,
    )
    restore_head_bias(trainer.model)
    install_lean_head(trainer.model, ("entropy", "is_top1"))
    logs = context.scratch.with_name("logs")
    training.report_curves(trainer, context.report_to, context.stage, context.root.name, logs)
    training.run_training(trainer, context.scratch, context.progress, config.patience)

    def unquantised():
        whole = load_model(source, str(model.dtype).removeprefix("torch."), "cpu")
        embed_markers(whole, markers)
        return whole

    training.save_result(trainer, tokenizer, work, unquantised if quantization else None)
    history = trainer.state.log_history
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    steps = trainer.state.global_step
    return Summary(context.stage, audit, held_out, steps, min(losses, default=None))


def _check(kind: str, config: Config) -> None:
    from cai.training.arguments import check_sft

    check_sft(kind, lookup(config, kind), config.seed)


def _build_input(names: list[str]) -> list[str]:
    return ["build"] if BUILT in names else []


def start_input(config: Config) -> list[str]:
    """The stage whose model sl_cai is tuned from, where it is one of the run's stages."""
    return [name for name in [config.sl_cai.start] if name != "base"]


SFT = Stage(
    kind="sft",
    version=5,
    run=run,
    summary=Summary,
    inputs=lambda config, round: _build_input(config.sft.data),
    data=lambda config, round: unbuilt(config.sft.data),
    check=lambda config: _check("sft", config),
    decontaminates=True,
    trains=True,
)
SL_CAI = Stage(
    kind="sl_cai",
    version=5,
    run=run,
    summary=Summary,
    inputs=lambda config, round: [
        *start_input(config),
        "revise",
        *_build_input(helpful_data(config)),
    ],
    data=lambda config, round: unbuilt(helpful_data(config)),
    check=lambda config: _check("sl_cai", config),
    decontaminates=True,
    trains=True,
)
