"""`cai status`: how far a run is, from its folder alone."""

from pathlib import Path

from cai.cli.options import add_run, verb_parser
from cai.cli.plan import print_plan
from cai.config.compose import saved
from cai.errors import CaiError, UsageError
from cai.observe.progress import status_lines
from cai.redact import safe
from cai.run.plan import plan_run
from cai.store.run_folder import Run, find_run


def main(arguments: list[str]) -> None:
    """Raises CaiError where the run is another version's, or --verify finds damage."""
    parser = verb_parser(
        "status",
        "How far a run is, and of a stage at work, what is slow.",
        "outputs/quickstart",
        "--verify",
    )
    add_run(parser)
    parser.add_argument(
        "--verify", action="store_true", help="read every file and compare it with its digest"
    )
    options = parser.parse_args(arguments)
    root = find_run(options.run)
    if options.verify:
        _verify(root)
    else:
        _print_status(root)


def _print_status(root: Path) -> None:
    try:
        config = saved(root)
    except UsageError as error:
        raise CaiError(
            f"{root / 'run.json'} is of another version of cai ({error}). `cai plan` with the "
            "run's overrides says what would run today; `cai show` and `cai status --verify` read "
            "what is there"
        ) from None
    run = Run(root)
    steps = plan_run(config, run)
    print_plan(steps)
    for step in steps:
        if step.state == "partial" and step.key:
            scratch = run.folder(step.stage.name, step.key) / "scratch"
            for line in status_lines(scratch / "progress.json"):
                print(f"  {safe(line)}")


def _verify(root: Path) -> None:
    results = list(Run(root).verify_all())
    for folder, damaged in results:
        print(safe(str(damaged or f"{folder}: sound")))
    if count := sum(damaged is not None for _, damaged in results):
        raise CaiError(f"{count} of {len(results)} stages damaged")
