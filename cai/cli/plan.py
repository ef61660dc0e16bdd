"""`cai plan`: each stage done, partial, or what would run and why."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from cai.cli.main import VERBS
from cai.cli.options import add_overrides, verb_parser
from cai.config.compose import compose, words_are_overrides
from cai.redact import safe
from cai.run import runner
from cai.run.plan import Step, plan_run
from cai.store.run_folder import Run

COLOURS = {"done": "green", "partial": "yellow", "run": "cyan"}


def main(arguments: list[str]) -> None:
    """Raises UsageError where the configuration is wrong."""
    parser = verb_parser(
        "plan",
        "Each stage: done, partial, or what would run and why. Runs nothing.",
        "experiment=quickstart revise.rounds=2",
    )
    add_overrides(parser)
    parser.add_argument(
        "--check", action="store_true", help="also build every config of trl and peft"
    )
    options = parser.parse_intermixed_args(arguments)
    words_are_overrides(options.overrides, list(VERBS))
    config = compose(options.overrides)
    if options.check:
        runner.check(config)
    print_plan(plan_run(config, Run(Path(config.outputs) / config.name)))


def print_plan(steps: Sequence[Step]) -> None:
    """One line for each stage."""
    console = Console(soft_wrap=True)
    for step in steps:
        name, state = (f"{step.stage.name:<9}", "bold"), (f"{step.state:<9}", COLOURS[step.state])
        console.print(Text.assemble(name, state, safe(step.why)))
