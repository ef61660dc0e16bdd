"""`cai review`: a person judges a run's revisions and pairs, or reads all its records."""

import argparse
import getpass
from collections.abc import Sequence
from pathlib import Path

from cai.cli.options import add_run, verb_parser
from cai.config.schema import DataConfig
from cai.data.unfit import UnfitRows
from cai.data.verdicts import VERDICTS, Verdict, read_verdicts
from cai.errors import UsageError
from cai.redact import safe
from cai.review.app import Review, View
from cai.review.queue import load_queues
from cai.review.records import SHAPES, Records, sources
from cai.review.server import serve
from cai.review.verdict_file import VerdictFile
from cai.scoring.agreement import Agreement, agreements
from cai.scoring.statistics import Estimate
from cai.store.run_folder import Run, find_run

KINDS = {"revision": "revisions", "pair": "pairs"}


def main(arguments: list[str]) -> None:
    """Serves a page until Ctrl-C, or prints how far reviewers agree.

    Raises UsageError where the run has nothing to show yet, or an option can't be used.
    """
    options = _parse(arguments)
    if options.agreement:
        _print_agreement(options.agreement)
        return
    root = find_run(options.run)
    name = root.resolve().name
    if options.view:
        pages = View(
            {kind: Records(kind, files) for kind in SHAPES if (files := sources(Run(root), kind))}
        )
        if not pages.records:
            raise UsageError(f"{root}: no stage with records has finished; see `cai status {root}`")
        serve(pages, {"run": name}, options.port, options.open)
        return
    queues = load_queues(Run(root))
    if not queues:
        raise UsageError(
            f"{root}: no revision and no pair to judge; revise and label have not finished, or "
            f"left none (see `cai status {root}`)"
        )
    file = options.to or Path("verdicts") / f"{name}.jsonl"
    verdicts = VerdictFile(file, options.reviewer or _user())
    facts = {"run": name, "reviewer": verdicts.reviewer, "file": str(file)}
    serve(Review(queues, verdicts), facts, options.port, options.open)
    print(f"\n{len(verdicts)} verdicts of {safe(verdicts.reviewer)} in {file}")
    if len(verdicts):
        print(_next_steps(file, name))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = verb_parser(
        "review",
        "Judge a run's revisions and pairs on a page of this machine; each verdict is saved at "
        "once. Opens nothing by itself: it prints the address.",
        "outputs/quickstart",
        "outputs/quickstart --view",
        "--agreement verdicts/ann.jsonl verdicts/ben.jsonl",
    )
    add_run(parser)
    parser.add_argument("--view", action="store_true", help="read all records; nothing is saved")
    text = "where the verdicts go (default: verdicts/RUN.jsonl)"
    parser.add_argument("--to", type=Path, metavar="FILE", help=text)
    parser.add_argument("--reviewer", metavar="NAME", help="who judges (default: your user's name)")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--open", action="store_true", help="open the address in a browser")
    text = "print how far the reviewers of these files agree"
    parser.add_argument("--agreement", nargs="+", metavar="FILE", help=text)
    options = parser.parse_args(arguments)
    if not 0 <= options.port <= 65535:
        raise UsageError(f"--port {options.port}: a port is a number up to 65535")
    if options.to and options.to.suffix != ".jsonl":
        raise UsageError(f"--to {options.to}: a file of verdicts is called NAME.jsonl")
    return options


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        raise UsageError("this user has no name; say who judges with --reviewer NAME") from None


def _next_steps(file: Path, run: str) -> str:
    place = "" if file == Path("verdicts") / f"{run}.jsonl" else f" data.verdicts.path={file}"
    return (
        "to train on them, add to the run's command:\n"
        f"  'verdicts=[verdicts]' 'label.human={{data: [verdicts]}}'{place}\n"
        "to measure its judge by them:\n"
        f"  'label.calibrate={{data: [verdicts]}}'{place}"
    )


def _print_agreement(files: Sequence[str]) -> None:
    """Raises UsageError where no two reviewers have judged the same."""
    verdicts: list[tuple[str, Verdict]] = []
    for file in files:
        config = DataConfig("file", file, format=VERDICTS)
        for verdict in read_verdicts(file, config, UnfitRows()):
            # people of one name in two files are two people
            verdicts.append((f"{verdict.reviewer} ({file})", verdict))
    results = agreements(verdicts)
    if not results:
        reviewers = ", ".join(dict.fromkeys(name for name, _ in verdicts)) or "nobody"
        raise UsageError(f"no two reviewers have judged the same; there are {reviewers}")
    for result in results:
        print(safe(_sentence(result)))


def _sentence(result: Agreement) -> str:
    same = _figures(result.same, 100, "{:.0f}")
    kappa = "none: each has one word for all"
    if result.kappa:
        kappa = _figures(result.kappa, 1, "{:.2f}")
    return (
        f"{result.first} and {result.second}, {result.same.count} {KINDS[result.kind]}: "
        f"the same word for {same} %, Cohen's kappa {kappa}"
    )


def _figures(estimate: Estimate, scale: float, form: str) -> str:
    value, low, high = (
        form.format(scale * number) for number in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} [{low}, {high}]"
