"""`cai show`: read what a stage made."""

import argparse
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

from cai.cli.options import positive_int, verb_parser
from cai.config.names import first_round
from cai.data.parquet import Row, read_rows
from cai.errors import CaiError, UsageError, nearest
from cai.method.gates import GATES
from cai.redact import safe
from cai.report.terminal import marked_text
from cai.store.run_folder import Run, find_run

Field = tuple[str, str | Text]  # a name and what stands beside it


def _revision_fields(row: Row, coloured: bool) -> Iterator[Field]:
    yield "prompt", row["prompt"][-1]["content"]
    yield "answer", row["answer"]
    before = row["answer"]
    for number, step in enumerate(row["steps"], 1):
        yield f"critique {number}", f"[{step['principle']}] {step['critique']}"
        yield f"revision {number}", marked_text(before, step["revision"], coloured)
        if step["gates"]:
            yield "left out", ", ".join(step["gates"])
        else:
            before = step["revision"]


def _pair_fields(row: Row, coloured: bool) -> Iterator[Field]:
    yield "prompt", row["prompt"][-1]["content"]
    yield f"chosen {row['probability']:.2f}", row["chosen"][-1]["content"]
    yield "rejected", row["rejected"][-1]["content"]
    yield "principle", ", ".join(row["principles"]) or "none: labelled by people"


def _answer_fields(row: Row, coloured: bool) -> Iterator[Field]:
    yield row["suite"], row["prompt"][-1]["content"]
    yield row["model"], row["answer"] + ("  (refuses)" if row["refuses"] else "")
    for verdict in row["verdicts"]:
        word = "keeps" if verdict["keeps"] > 0.5 else "breaks"
        yield f"{word} {verdict['keeps']:.2f}", verdict["principle"]


def _instruction_fields(row: Row, coloured: bool) -> Iterator[Field]:
    yield row["source"], row["messages"][-2]["content"]
    yield "answer", row["messages"][-1]["content"]


def _probe_fields(row: Row, coloured: bool) -> Iterator[Field]:
    yield row["principle"], f"[{row['kind']}, {row['split']}] {row['prompt']}"


def _read_answers(file: Path) -> list[Row]:
    """evaluate's answers, each with what the judge says of it by principle, where it was asked."""
    verdicts: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    judged = file.with_name("adherence.parquet")
    for row in read_rows(judged) if judged.exists() else ():
        verdicts[_answer_key(row)].append(row)
    return [row | {"verdicts": verdicts[_answer_key(row)]} for row in read_rows(file)]


def _answer_key(row: Row) -> tuple[object, ...]:
    return row["model"], row["suite"], row["id"], row["sample"]


class Readable(NamedTuple):
    """A file of a stage, and how a row of it is shown."""

    file: str
    fields: Callable[[Row, bool], Iterator[Field]]
    read: Callable[[Path], list[Row]] = read_rows


READABLE = {
    "build": Readable("instructions.parquet", _instruction_fields),
    "probe": Readable("probes.parquet", _probe_fields),
    "revise": Readable("revisions.parquet", _revision_fields),
    "label": Readable("pairs.parquet", _pair_fields),
    "evaluate": Readable("answers.parquet", _answer_fields, _read_answers),
}


def main(arguments: list[str]) -> None:
    """Raises UsageError where the stage is not done, CaiError where no record fits."""
    options = _parse(arguments)
    root, stage = find_run(options.run), options.stage
    manifest = Run(root).latest(stage)
    if manifest is None:
        raise UsageError(f"{root}: the stage '{stage}' has not finished; see `cai status {root}`")
    folder = Run(root).folder(stage, manifest.key) / "out"
    if not show_records(stage, folder, options.n, options.random, options.id, options.gated):
        raise CaiError(f"{root}: no record of {stage} is like that")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = verb_parser(
        "show",
        "Read what a stage made.",
        "outputs/quickstart revise --gated echo",
        "label --random 3",
    )
    stages, gates = ", ".join(READABLE), ", ".join(GATES)
    parser.add_argument(
        "run", nargs="?", help="a run's folder, e.g. outputs/quickstart (default: the newest)"
    )
    text = f"one of {stages}, label2 and so on of later rounds (default: revise)"
    parser.add_argument("place", nargs="?", metavar="stage", help=text)
    parser.add_argument("--stage", help="the same")
    parser.add_argument(
        "-n", type=positive_int, default=5, metavar="N", help="how many records (default 5)"
    )
    parser.add_argument(
        "--random", type=positive_int, metavar="N", help="N records drawn anew at every call"
    )
    parser.add_argument("--id", help="the records whose id begins so")
    parser.add_argument(
        "--gated", metavar="GATE", help=f"chains with a revision that failed it: {gates}"
    )
    options = parser.parse_args(arguments)
    if options.run and first_round(options.run) in READABLE:  # `cai show revise`
        options.run, options.place = None, options.run
    options.stage = options.stage or options.place or "revise"
    if options.gated is not None and (options.stage != "revise" or options.gated not in GATES):
        hint = "only revise has gates" if options.stage != "revise" else f"one of {gates}"
        raise UsageError(
            f"cai show --gated {options.gated}: {hint}{nearest(options.gated, list(GATES))}"
        )
    if first_round(options.stage) not in READABLE:
        hint = nearest(options.stage, list(READABLE))
        raise UsageError(f"cai show: no records of '{options.stage}'{hint} ({stages})")
    return options


def show_records(
    stage: str,
    folder: Path,
    count: int,
    sample: int | None = None,
    id_prefix: str | None = None,
    gate: str | None = None,
) -> int:
    """Prints a stage's first `count` records, or `sample` random ones. Returns how many.

    `id_prefix`: only those whose id begins so; `gate`: only chains with a revision that failed it.
    """
    console = Console(soft_wrap=True)
    readable = READABLE[first_round(stage)]
    rows = [row for row in readable.read(folder / readable.file) if _fits(row, id_prefix, gate)]
    rows = rows[:count] if sample is None else random.sample(rows, min(sample, len(rows)))
    for row in rows:
        for name, text in [("id", row["id"]), *readable.fields(row, console.is_terminal)]:
            shown_text = safe(text) if isinstance(text, str) else text
            console.print(Text.assemble((f"{name:>12}  ", "bold cyan"), shown_text))
        console.print()
    return len(rows)


def _fits(row: Row, id_prefix: str | None, gate: str | None) -> bool:
    if not row["id"].startswith(id_prefix or ""):
        return False
    return gate is None or any(gate in step["gates"] for step in row["steps"])
