"""`cai audit`: what sft and sl_cai would be trained on, without training."""

import sys
from pathlib import Path

from cai.cli.main import VERBS
from cai.cli.options import add_overrides, verb_parser
from cai.config.compose import compose, words_are_overrides
from cai.config.schema import Config
from cai.observe.progress import Progress
from cai.report.old_summaries import audit_view
from cai.report.terminal import print_stage_view, wide_console
from cai.run.plan import Step, plan_run
from cai.run.process import quiet
from cai.run.runner import spec_of
from cai.run.worker import stage_context
from cai.stages import sft
from cai.store.run_folder import Manifest, Run

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
    words_are_overrides(options.overrides, list(VERBS))
    quiet()
    audit(compose(options.overrides))


def audit(config: Config) -> None:
    run = Run(Path(config.outputs) / config.name)
    steps = {step.stage.name: step for step in plan_run(config, run)}
    manifests = {name: step.manifest for name, step in steps.items() if step.manifest}
    for name in AUDITED:
        waiting = [stage for stage in steps[name].stage.inputs(config) if stage not in manifests]
        if name in manifests:
            _print_audit(name, manifests[name].summary)
        elif waiting:
            print(f"{name}: can be audited once {' and '.join(waiting)} have run", file=sys.stderr)
        else:
            _audit_stage(steps[name], config, run, manifests)


def _audit_stage(step: Step, config: Config, run: Run, manifests: dict[str, Manifest]) -> None:
    # they load transformers, and `cai audit --help` answers at once
    from cai.models.load import load_tokenizer
    from cai.models.markers import adopt_markers

    name = step.stage.name
    spec = spec_of(step.stage, config, run, manifests)
    section, context = stage_context(spec, run.root, Progress(name, quiet=True))
    tokenizer = load_tokenizer(context.model_path(section.start))
    adopt_markers(tokenizer)
    _, summary = sft.prepare(section, context, tokenizer)
    _print_audit(name, summary)
    sft.refuse_losses(section, name, summary)


def _print_audit(name: str, summary: dict) -> None:
    print_stage_view(audit_view(name, summary), wide_console())
