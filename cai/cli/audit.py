"""`cai audit`: what sft and sl_cai would be trained on, without training."""

import sys
from collections.abc import Mapping
from pathlib import Path

from cai.cli.main import VERBS
from cai.cli.options import add_overrides, verb_parser
from cai.cli.overrides import check_overrides
from cai.config.compose import compose
from cai.config.schema import Config
from cai.observe.progress import Progress
from cai.report.stage_view import StageView
from cai.report.terminal import print_stage_view, wide_console
from cai.run.plan import inputs_of, job_inputs, plan_run
from cai.run.process import quiet
from cai.run.worker import stage_context
from cai.stages import sft
from cai.stages.base import Stage
from cai.stages.training_rows import Audit
from cai.store.manifest import Manifest
from cai.store.run_folder import Run

AUDITED = ("sft", "sl_cai")


def main(arguments: list[str]) -> None:
    """Prints a table for each stage.

    Raises CaiError where a stage would refuse its rows, after its table.
    """
    parser = verb_parser(
        "audit",
        "What sft and sl_cai would be trained on, and what is left out and why. Trains nothing.",
        "experiment=quickstart sft.data=[seed]",
    )
    add_overrides(parser)
    options = parser.parse_args(arguments)
    check_overrides(options.overrides, list(VERBS))
    quiet()
    audit(compose(options.overrides, options.config_dir))


def audit(config: Config) -> None:
    run = Run(Path(config.outputs) / config.name)
    steps = {step.stage.name: step for step in plan_run(config, run)}
    manifests = {name: step.manifest for name, step in steps.items() if step.manifest}
    for name in AUDITED:
        stage = steps[name].stage
        waiting = [source for source in inputs_of(stage, config) if source not in manifests]
        if name in manifests:
            _print_audit(name, sft.Summary.load(manifests[name]).audit)
        elif waiting:
            print(f"{name}: can be audited once {' and '.join(waiting)} have run", file=sys.stderr)
        else:
            _audit_stage(stage, config, run, manifests)


def _audit_stage(stage: Stage, config: Config, run: Run, manifests: Mapping[str, Manifest]) -> None:
    # it loads transformers, and `cai audit --help` answers at once
    from cai.stages.tokenized_rows import tokenized_rows

    inputs = job_inputs(run, {name: manifests[name] for name in inputs_of(stage, config)})
    progress = Progress(stage.name, quiet=True)
    context = stage_context(stage, config, run.root, run.root, inputs, progress)
    section = stage.section(config)
    summary = tokenized_rows(section, context).audit
    _print_audit(stage.name, summary)
    summary.refuse_losses(section, stage.name)


def _print_audit(name: str, summary: Audit) -> None:
    view = StageView(name, "what is trained on", "", tuple(summary.lines()))
    print_stage_view(view, wide_console())
