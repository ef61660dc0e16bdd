"""`cai plan`: each stage done, partial, or what would run and why."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from cai.cli.main import VERBS
from cai.redact import safe
from cai.run.plan import Step


def main(arguments: list[str]) -> None:
    from cai.config.compose import compose, words_are_overrides
    from cai.run import plan as planning
    from cai.store.run_folder import Run

    check = "--check" in arguments
    words = [word for word in arguments if word != "--check"]
    words_are_overrides(words, list(VERBS))
    config = compose(words)
    if check:
        from cai.run import runner

        runner.check(config)
    plan_table(planning.plan_run(config, Run(Path(config.outputs) / config.name)))


COLOURS = {"done": "green", "partial": "yellow", "run": "cyan"}


def plan_table(steps: Sequence["Step"]) -> None:

    console = Console(soft_wrap=True)
    for step in steps:
        name, state = (f"{step.stage.name:<9}", "bold"), (f"{step.state:<9}", COLOURS[step.state])
        console.print(Text.assemble(name, state, safe(step.why)))
