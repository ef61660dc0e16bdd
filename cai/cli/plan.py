"""`cai plan`: each stage done, partial, or what would run and why."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from cai.cli.main import VERBS
from cai.cli.options import add_overrides, verb_parser
from cai.config.compose import compose, words_are_overrides
from cai.errors import UsageError
from cai.redact import safe
from cai.run import estimate, runner
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
    parser.add_argument(
        "--tflops",
        type=float,
        default=estimate.PEAK,
        help="the peak of a GPU in bfloat16, for the estimate of hours (990: an H100)",
    )
    options = parser.parse_intermixed_args(arguments)
    words_are_overrides(options.overrides, list(VERBS))
    config = compose(options.overrides, options.config_dir)
    if options.check:
        runner.check(config)
    if options.tflops <= 0:
        raise UsageError(f"--tflops={options.tflops}: must be above 0")
    steps = plan_run(config, Run(Path(config.outputs) / config.name))
    print_plan(steps)
    to_run = {step.stage.name: step.stage for step in steps if step.state != "done"}
    selected = {name: to_run[name] for name in config.stages or to_run if name in to_run}
    print_estimate(estimate.estimate_lines(config, selected, options.tflops))


def print_plan(steps: Sequence[Step]) -> None:
    """One line for each stage."""
    console = Console(soft_wrap=True)
    for step in steps:
        name, state = (f"{step.stage.name:<9}", "bold"), (f"{step.state:<9}", COLOURS[step.state])
        console.print(Text.assemble(name, state, safe(step.why)))


def print_estimate(lines: Sequence[str]) -> None:
    """What training needs, where it is known."""
    if lines:
        console = Console(soft_wrap=True, highlight=False)
        console.print("\nestimated, not measured, on GPUs (docs/gpu.md):", style="bold")
        for line in lines:
            console.print(safe(line))
