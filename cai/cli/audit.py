"""`cai audit`: what sft and sl_cai would be trained on, without training."""

import sys
from collections.abc import Sequence
from pathlib import Path

from cai.cli.main import VERBS
from cai.config.compose import compose, words_are_overrides
from cai.config.schema import Config
from cai.observe.progress import Progress
from cai.report.terminal import audit_table
from cai.run import plan as planning
from cai.run import runner
from cai.run.process import quiet
from cai.run.worker import stage_context
from cai.store.run_folder import Run

AUDITED = ("sft", "sl_cai")


def main(arguments: Sequence[str]) -> None:
    """Prints a table for each stage. Raises CaiError where a stage would refuse its rows, after its table."""
    words_are_overrides(list(arguments), list(VERBS))
    quiet()
    audit(compose(list(arguments)))


def audit(config: Config) -> None:
    from cai.models.load import load_tokenizer
    from cai.models.markers import adopt_markers
    from cai.stages import sft

    run = Run(Path(config.outputs) / config.name)
    steps = {step.stage.name: step for step in planning.plan_run(config, run)}
    done = {name: step.manifest for name, step in steps.items() if step.manifest}
    for name in AUDITED:
        stage = steps[name].stage
        if name in done:
            audit_table(name, done[name].summary)
        elif waiting := [wanted for wanted in stage.inputs(config) if wanted not in done]:
            print(f"{name}: can be audited once {' and '.join(waiting)} have run", file=sys.stderr)
        else:
            spec = runner.spec_of(stage, config, run, done)
            section, context = stage_context(spec, run.root, Progress(name, quiet=True))
            tokenizer = load_tokenizer(context.model_path(section.start))
            adopt_markers(tokenizer)
            _, found = sft.prepare(section, context, tokenizer)
            audit_table(name, found)
            sft.refuse_losses(section, name, found)
