"""`cai status`: how far a run is, from its folder alone."""

from pathlib import Path

from cai.cli.plan import plan_table
from cai.errors import CaiError, UsageError
from cai.redact import safe


def main(arguments: list[str]) -> None:
    from cai.config.compose import saved
    from cai.observe.progress import status_lines
    from cai.run import plan as planning
    from cai.store.run_folder import Run, find_run

    words = [word for word in arguments if word != "--verify"]
    root = find_run(words[0] if words else None)
    if len(words) < len(arguments):
        _verify(root)
        return
    try:
        config = saved(root)
    except UsageError as error:
        raise CaiError(
            f"{root / 'run.json'} is of another version of cai ({error}). `cai plan` with the run's overrides says "
            "what would run today; `cai show` and `cai status --verify` read what is there"
        ) from None
    steps = planning.plan_run(config, Run(root))
    plan_table(steps)
    for step in steps:
        if step.state == "partial" and step.key:
            folder = Run(root).folder(step.stage.name, step.key)
            print(
                "".join(
                    f"  {safe(line)}\n"
                    for line in status_lines(folder / "scratch" / "progress.json")
                ),
                end="",
            )


def _verify(root: Path) -> None:
    from cai.store.run_folder import Run

    found = list(Run(root).verify_all())
    for folder, damaged in found:
        print(safe(str(damaged or f"{folder}: sound")))
    if count := sum(damaged is not None for _, damaged in found):
        raise CaiError(f"{count} of {len(found)} stages damaged")
