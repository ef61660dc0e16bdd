"""Supervised fine-tuning: `sft` on instructions, `sl_cai` on revisions and helpful rows (Bai et al.
2022, section 3.1)."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from cai.config.names import BUILT, helpful_data, unbuilt
from cai.config.schema import Config, SftConfig
from cai.config.types import lookup
from cai.stages.base import Context, Stage
from cai.stages.summary import Summary as BaseSummary
from cai.stages.summary import nonzero, number
from cai.stages.training_rows import Audit, prepare


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
    from cai.models.load import load_tokenizer
    from cai.models.markers import adopt_markers
    from cai.stages.sft_trainer import load_unquantised, open_trainer
    from cai.training import trainer as training

    tokenizer = load_tokenizer(context.model_path(config.start))
    markers = adopt_markers(tokenizer)
    rows, audit = prepare(config, context, tokenizer)
    audit.refuse_losses(config, context.stage)
    held_out = int(len(rows) * config.validation)
    trainer: Any = open_trainer(config, context, rows, held_out, tokenizer, markers)
    logs = context.scratch.with_name("logs")
    training.report_curves(trainer, context.report_to, context.stage, context.root.name, logs)
    training.run_training(trainer, context.scratch, context.progress, config.patience)
    merge_into = None
    if config.quantization is not None:
        dtype = str(trainer.model.dtype).removeprefix("torch.")
        merge_into = partial(load_unquantised, config, context, dtype, markers)
    training.save_result(trainer, tokenizer, work, merge_into)
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
    version=6,
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
    version=6,
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
