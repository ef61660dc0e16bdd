"""`cai audit`: what sft and sl_cai would be trained on, without training."""

import sys
from collections.abc import Sequence
from pathlib import Path

from cai import conductor, pipeline
from cai.composing import compose, words_are_overrides
from cai.config import Config
from cai.progress import Progress
from cai.store import Run
from cai.tables import audit_table
from cai.worker import quiet, surroundings

AUDITED = ("sft", "sl_cai")


def main(arguments: Sequence[str], verbs: Sequence[str]) -> None:
    """Prints a table for each stage. Raises CaiError where a stage would refuse its rows, after its table."""
    words_are_overrides(list(arguments), verbs)
    quiet()
    audit(compose(list(arguments)))


def audit(config: Config) -> None:
    from cai.stages import sft
    from cai.training.model import load_tokenizer
    from cai.training.templates import adopt_markers

    run = Run(Path(config.outputs) / config.name)
    steps = {step.stage.name: step for step in pipeline.plan(config, run)}
    done = {name: step.manifest for name, step in steps.items() if step.manifest}
    for name in AUDITED:
        stage = steps[name].stage
        if name in done:
            audit_table(name, done[name].summary)
        elif waiting := [wanted for wanted in stage.inputs(config) if wanted not in done]:
            print(f"{name}: can be audited once {' and '.join(waiting)} have run", file=sys.stderr)
        else:
            spec = conductor.spec_of(stage, config, run, done)
            section, context = surroundings(spec, run.root, Progress(name, quiet=True))
            tokenizer = load_tokenizer(context.model_path(section.start))
            adopt_markers(tokenizer)
            _, found = sft.prepare(section, context, tokenizer)
            audit_table(name, found)
            sft.refuse_losses(section, name, found)
