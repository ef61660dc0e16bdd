"""`cai plan`: each stage done, partial, or what would run and why."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cai.cli.main import VERBS
from cai.cli.options import add_overrides, number_from_0, verb_parser
from cai.cli.overrides import check_overrides
from cai.config.compose import compose
from cai.config.libraries import library_sections
from cai.config.schema import Config
from cai.errors import UsageError
from cai.models.saved_modules import absent_modules, saved_modules
from cai.observe.log import say
from cai.redact import safe
from cai.run import estimate, runner
from cai.run.packages import missing_packages
from cai.run.plan import Step, plan_run
from cai.stages.base import Stage
from cai.store.run_folder import Run

HOURS = 2 * 3600.0  # seconds from which hours are shown

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
        type=number_from_0,
        help="estimate for GPUs of this peak in bfloat16 (990: an H100), not for this machine",
    )
    options = parser.parse_intermixed_args(arguments)
    check_overrides(options.overrides, list(VERBS))
    config = compose(options.overrides, options.config_dir)
    if options.check:
        runner.check(config)
    if options.tflops is not None and not 0 < options.tflops < math.inf:
        raise UsageError(f"--tflops={options.tflops}: must be a number above 0")
    steps = plan_run(config, Run(Path(config.outputs) / config.name))
    print_plan(steps)
    for sentence in unready(config):
        say(f"WARNING: a run would stop here: {sentence}", logging.WARNING)
    to_run = {step.stage.name: step.stage for step in steps if step.state != "done"}
    selected = {name: to_run[name] for name in config.stages or to_run if name in to_run}
    if selected:
        print_estimate(config, selected, options.tflops)


def unready(config: Config) -> Iterator[str]:
    """What a run on this machine would refuse before its first stage, as far as files tell."""
    yield from map(str, missing_packages(config))
    modules = saved_modules(config.model)
    for key, class_name, arguments in library_sections(config):
        if class_name == "peft.LoraConfig" and modules is not None:
            yield from absent_modules(key, arguments, modules)


def print_plan(steps: Sequence[Step]) -> None:
    """One line for each stage."""
    console = Console(soft_wrap=True)
    for step in steps:
        name, state = (f"{step.stage.name:<9}", "bold"), (f"{step.state:<9}", COLOURS[step.state])
        console.print(Text.assemble(name, state, safe(step.why)))


def print_estimate(config: Config, selected: Mapping[str, Stage], tflops: float | None) -> None:
    """What the stages that would run take, in a table, and what training holds in memory."""
    console = Console(soft_wrap=True, highlight=False)
    expected = estimate.estimate_run(config, selected, tflops)
    if expected is None:
        why = "the model is not here yet (model.shape says its sizes), or is of an unknown kind"
        console.print(f"\nno estimate: {why}")
        return
    console.print(f"\nestimated, on {expected.machine.describe()}:", style="bold")
    console.print(estimate_table(expected))
    if expected.machine.device != "cpu":
        for line in estimate.memory_lines(config, selected):
            console.print(safe(line))


def estimate_table(expected: estimate.Estimate) -> Table:
    """A row a stage, and their sum. `?` stands where nobody can say."""
    hours = expected.seconds > HOURS
    priced = any(stage.price is not None for stage in expected.stages)
    columns = ["hours" if hours else "minutes", "tokens", "GB that stay"]
    table = Table(box=None, show_edge=False, pad_edge=False)
    table.add_column("stage", style="bold")
    for column in [*columns, *(["price"] if priced else [])]:
        table.add_column(column, justify="right")
    unit = 3600 if hours else 60
    for stage in [*expected.stages, expected.whole()]:
        seconds, work = stage.seconds, stage.work
        cells = [
            "?" if seconds is None else f"{seconds / unit:.1f}",
            "?" if work is None else f"{work.total:,.0f}".replace(",", "\u202f"),
            f"{stage.disk / 1e9:.2f}",
        ]
        price = ["?" if stage.price is None else f"{stage.price:.2f}"] if priced else []
        table.add_row(stage.stage, *cells, *price)
    return table
