"""`cai show`: read what a stage made."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from cai.config.names import first_round
from cai.errors import CaiError, UsageError, nearest
from cai.redact import safe
from cai.report.terminal import word_diff


def main(arguments: list[str]) -> None:
    import argparse

    from cai.method.gates import GATES
    from cai.store.run_folder import Run, find_run

    parser = argparse.ArgumentParser(prog="cai show", description="Read what a stage made.")
    parser.add_argument(
        "run", nargs="?", help="a run's folder, e.g. outputs/quickstart (default: the newest)"
    )
    help = f"one of {', '.join(SHOWN)}, label2 and so on of later rounds (default: revise)"
    parser.add_argument("place", nargs="?", metavar="stage", help=help)
    parser.add_argument("--stage", help="the same")
    parser.add_argument("-n", type=int, default=5, metavar="N", help="how many records (default 5)")
    parser.add_argument(
        "--random", type=int, metavar="N", help="N records drawn anew at every call"
    )
    parser.add_argument("--id", help="the records whose id begins so")
    parser.add_argument(
        "--gated", metavar="GATE", help=f"chains with a revision that failed it: {', '.join(GATES)}"
    )
    options = parser.parse_args(arguments)
    if options.run and first_round(options.run) in SHOWN:  # `cai show revise`
        options.run, options.place = None, options.run
    options.stage = options.stage or options.place or "revise"
    if options.gated is not None and (options.stage != "revise" or options.gated not in GATES):
        hint = (
            "only revise has gates" if options.stage != "revise" else f"one of {', '.join(GATES)}"
        )
        raise UsageError(
            f"cai show --gated {options.gated}: {hint}{nearest(options.gated, list(GATES))}"
        )
    if first_round(options.stage) not in SHOWN:
        raise UsageError(
            f"cai show: no records of '{options.stage}'{nearest(options.stage, list(SHOWN))} ({', '.join(SHOWN)})"
        )
    root = find_run(options.run)
    manifest = Run(root).latest(options.stage)
    if manifest is None:
        raise UsageError(
            f"{root}: the stage '{options.stage}' has not finished; see `cai status {root}`"
        )
    folder = Run(root).folder(options.stage, manifest.key) / "out"
    shown = show_records(
        options.stage, folder, options.n, options.random, options.id, options.gated
    )
    if not shown:
        raise CaiError(f"{root}: no record of {options.stage} is like that")


def _chain(row: dict[str, Any], say: Callable[..., None], coloured: bool) -> None:
    say("prompt", row["prompt"][-1]["content"])
    say("answer", row["answer"])
    before = row["answer"]
    for number, step in enumerate(row["steps"], 1):
        say(f"critique {number}", f"[{step['principle']}] {step['critique']}")
        say(f"revision {number}", word_diff(before, step["revision"], coloured))
        if step["gates"]:
            say("left out", ", ".join(step["gates"]))
        else:
            before = step["revision"]


def _pair(row: dict[str, Any], say: Callable[..., None], coloured: bool) -> None:
    say("prompt", row["prompt"][-1]["content"])
    say(f"chosen {row['probability']:.2f}", row["chosen"][-1]["content"])
    say("rejected", f"{row['rejected'][-1]['content']}")
    say("principle", ", ".join(row["principles"]) or "none: labelled by people")


def _answer(row: dict[str, Any], say: Callable[..., None], coloured: bool) -> None:
    say(f"{row['suite']}", row["prompt"][-1]["content"])
    say(f"{row['model']}", row["answer"] + ("  (refuses)" if row["refuses"] else ""))


def _built(row: dict[str, Any], say: Callable[..., None], coloured: bool) -> None:
    say(f"{row['source']}", row["messages"][-2]["content"])
    say("answer", row["messages"][-1]["content"])


SHOWN = {
    "build": ("instructions.parquet", _built),
    "revise": ("revisions.parquet", _chain),
    "label": ("pairs.parquet", _pair),
    "evaluate": ("answers.parquet", _answer),
}


def show_records(
    stage: str,
    folder: Path,
    count: int,
    drawn: int | None = None,
    begins: str | None = None,
    gate: str | None = None,
) -> int:
    """A stage's first `count` records, or `drawn` random ones, in colour on a terminal. Returns how many it has shown.

    `begins`: only those whose id begins so; `gate`: only chains with a revision that failed it.
    """
    import random

    from rich.text import Text

    from cai.data.parquet import read_rows

    console = Console(soft_wrap=True)
    file, form = SHOWN[first_round(stage)]

    def say(name: str, text: "str | Text") -> None:
        console.print(
            Text.assemble(
                (f"{name:>12}  ", "bold cyan"), safe(text) if isinstance(text, str) else text
            )
        )

    rows = [row for row in read_rows(folder / file) if row["id"].startswith(begins or "")]
    rows = [
        row for row in rows if gate is None or any(gate in step["gates"] for step in row["steps"])
    ]
    rows = rows[:count] if drawn is None else random.sample(rows, min(drawn, len(rows)))
    for row in rows:
        say("id", row["id"])
        form(row, say, console.is_terminal)
        console.print()
    return len(rows)
