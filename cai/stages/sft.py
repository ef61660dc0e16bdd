"""Supervised fine-tuning: `sft` on instructions, `sl_cai` on revisions and helpful rows (Bai et al.
2022, section 3.1)."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from cai.config.names import BUILT, helpful_data, unbuilt
from cai.config.schema import Config, SftConfig
from cai.config.types import lookup
from cai.stages.base import Context, Stage
from cai.stages.summary import Summary as BaseSummary
from cai.stages.summary import nonzero, number
from cai.stages.training_rows import Audit
from cai.training.kept_gain import KeptGain


@dataclass(frozen=True)
class Summary(BaseSummary):
    stage: str
    audit: Audit
    held_out_rows: int
    steps: int
    held_out_loss: float | None  # the lowest
    kept: KeptGain | None = None  # what the published folder keeps; None where nothing was measured

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
        if self.kept:
            counts += self.kept.lines()
        return [*self.audit.lines(), *counts]

    def warnings(self) -> list[str]:
        return self.kept.warnings(self.stage) if self.kept else []

    def notes(self) -> list[str]:
        left_out, edited = self.audit.called_bad, self.audit.edited
        if not left_out and not edited:
            return []
        return [
            f"People have reviewed revisions: {left_out} that they called bad were left out, and "
            f"in place of {edited} a person's own text was trained on."
        ]

    def lengths(self) -> dict[str, int]:
        return self.audit.lengths.get("up_to", {})


def run(config: SftConfig, work: Path, context: Context) -> Summary:
    """Writes work/model, or work/adapter, or with LoRA both, and work/history.json."""
    from cai.stages.sft_trainer import load_start, open_trainer
    from cai.stages.tokenized_rows import tokenized_rows
    from cai.training import trainer as training

    tokenized = tokenized_rows(config, context)
    audit = tokenized.audit
    audit.refuse_losses(config, context.stage)
    trainer, probe = open_trainer(config, context, tokenized)
    logs = context.scratch.with_name("logs")
    training.report_curves(trainer, context.report_to, context.stage, context.root.name, logs)
    training.run_training(trainer, context.scratch, context.progress, config.patience)
    probe.measure_trained(trainer)
    load_base = partial(load_start, config, context, tokenized.markers)
    adapter_of = context.adapter_base(config.start) if config.publish == "adapter" else None
    dtype = config.publish_dtype
    training.save_result(trainer, tokenized.tokenizer, work, dtype, load_base, adapter_of)
    history, steps = trainer.state.log_history, trainer.state.global_step
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    writes = trainer.args.process_index == 0
    del trainer  # its memory is needed for what was published
    # the next stages find it merged
    published = context.whole_model(work) if writes else work / "model"
    kept = probe.measure_published(Path(published), context.engine)
    lowest = min(losses, default=None)
    return Summary(context.stage, audit, audit.held_out, steps, lowest, kept)


def _check(kind: str, config: Config) -> None:
    from cai.training.arguments import check_sft

    check_sft(kind, lookup(config, kind), config.model, config.seed)


def _build_input(names: list[str]) -> list[str]:
    return ["build"] if BUILT in names else []


def start_input(config: Config) -> list[str]:
    """The stage whose model sl_cai is tuned from, where it is one of the run's stages."""
    return [name for name in [config.sl_cai.start] if name != "base"]


SFT = Stage(
    kind="sft",
    version=8,
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
    version=8,
    run=run,
    summary=Summary,
    inputs=lambda config, round: [
        *start_input(config),
        "revise",
        *_build_input(helpful_data(config)),
    ],
    data=lambda config, round: [*unbuilt(helpful_data(config)), *config.verdicts],
    check=lambda config: _check("sl_cai", config),
    decontaminates=True,
    trains=True,
)
