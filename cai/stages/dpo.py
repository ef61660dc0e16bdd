"""Direct preference optimisation on the labelled pairs.

It starts at the sl_cai model, or in later rounds at the model of the round before. The reference is
the model that it starts at, or the sl_cai model in every round.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

from cai.config.names import in_round, policy_of
from cai.config.schema import Config, DpoConfig
from cai.errors import CaiError
from cai.stages import label
from cai.stages.base import Context, Stage, Warn
from cai.stages.sft import start_input
from cai.stages.summary import Summary as BaseSummary
from cai.stages.summary import nonzero, number
from cai.training.kept_gain import KeptGain

LAST_METRICS = {
    "loss": "last loss",
    "rewards/chosen": "reward of the chosen",
    "rewards/margins": "reward margin",
    "rewards/accuracies": "reward accuracy",
}


@dataclass(frozen=True)
class Summary(BaseSummary):
    pairs: int
    dropped: int  # pairs whose prompt alone fills max_length, or that the template refuses
    held_out_rows: int
    steps: int
    metrics: dict[str, float]  # of the last logged step, by trl's names
    guards: list[str]  # what the guards saw, or could not see, in sentences
    kept: KeptGain | None = None  # what the published folder keeps; None where nothing was measured

    counted: ClassVar = ("pairs", "steps")

    def description(self) -> str:
        return "direct preference optimisation on those pairs"

    def lines(self) -> list[tuple[str, str]]:
        return [
            *nonzero(
                ("pairs", self.pairs),
                ("pairs held out", self.held_out_rows),
                ("steps", self.steps),
            ),
            *((LAST_METRICS[name], number(value)) for name, value in self.metrics.items()),
            *(self.kept.lines() if self.kept else []),
            *nonzero(
                (
                    "pairs dropped: the prompt fills max_length, or the template refuses it",
                    self.dropped,
                )
            ),
        ]

    def warnings(self) -> list[str]:
        return [*self.guards, *(self.kept.warnings("dpo") if self.kept else [])]


def run(config: DpoConfig, work: Path, context: Context) -> Summary:
    """Writes work/model (merged), work/adapter (with LoRA) and work/history.json."""
    from cai.models.load import load_tokenizer
    from cai.stages.dpo_trainer import guard_warnings, load_pairs, load_start, open_trainer
    from cai.training import trainer as training

    rows, held_out = load_pairs(config, context)
    tokenizer = load_tokenizer(context.model_path(context.policy))
    trainer, probe = open_trainer(config, context, rows, held_out, tokenizer)
    logs = context.scratch.with_name("logs")
    training.report_curves(trainer, context.report_to, context.stage, context.root.name, logs)
    training.run_training(trainer, context.scratch, context.progress, config.patience)
    probe.measure_trained(trainer)
    load_base = partial(load_start, config, context)
    training.save_result(trainer, tokenizer, work, config.publish_dtype, load_base)
    history, steps = trainer.state.log_history, trainer.state.global_step
    warnings = guard_warnings(config, trainer)
    last = next((entry for entry in reversed(history) if "rewards/margins" in entry), {})
    remaining = len(trainer.train_dataset) + (len(trainer.eval_dataset) if held_out else 0)
    del trainer  # its memory is needed for what was published
    return Summary(
        pairs=len(rows),
        dropped=len(rows) - remaining,
        held_out_rows=held_out,
        steps=steps,
        metrics={name: last[name] for name in LAST_METRICS if name in last},
        guards=warnings,
        kept=probe.measure_published(work / "model", context.engine),
    )


def _check(config: Config) -> None:
    from cai.training.arguments import check_dpo, check_reference

    check_dpo(config.dpo, config.model, config.seed)
    continued = config.dpo.adapter == "continued"
    key, lora = ("sl_cai.peft", config.sl_cai.peft) if continued else ("dpo.peft", config.dpo.peft)
    check_reference(key, lora or {})


def heed_judge(config: Config, inputs: Mapping[str, BaseSummary], warn: Warn) -> None:
    """Says why the judge of the pairs can't be relied on.

    Raises CaiError where the configuration asks for a judge that can.
    """
    labels = [summary for summary in inputs.values() if isinstance(summary, label.Summary)]
    warnings = [text for summary in labels for text in summary.warnings()]
    for text in warnings:
        warn(text)
    if warnings and config.label.require_judge:
        raise CaiError(
            "label.require_judge: no DPO on this feedback. Take another judge (label.judge, "
            "label.model), other comparisons in the principle file, or label.require_judge=false"
        )


def _inputs(config: Config, round: int) -> list[str]:
    adapter_of = start_input(config) if config.dpo.adapter == "continued" else []
    first = [policy_of(1)] if round > 1 and config.dpo.reference == "first" else []
    return [*adapter_of, *first, policy_of(round), in_round("label", round)]


def _settings(section: DpoConfig, config: Config, round: int) -> DpoConfig:
    # in the first round the policy is the first model, so `reference` makes no difference
    return replace(section, reference="policy") if round == 1 else section


STAGE = Stage(
    kind="dpo",
    version=10,
    run=run,
    summary=Summary,
    inputs=_inputs,
    settings=_settings,
    check=_check,
    before=heed_judge,
    trains=True,
    repeats=True,
)
