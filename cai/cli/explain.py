"""`cai principles explain`: which principles explain what people preferred."""

import argparse
import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from cai.cli.options import add_overrides
from cai.config.compose import compose, words_are_overrides
from cai.config.schema import Config, DataConfig, Prompts
from cai.data.prompts import load_preferences
from cai.data.split import validation_first
from cai.digest import seed_of
from cai.engines.base import Completion, Request
from cai.engines.rows import gather_results
from cai.errors import UsageError, nearest
from cai.method.constitution import Constitution, find_file
from cai.method.explaining import (
    NO_PRINCIPLE,
    Pair,
    Vote,
    as_principles,
    proposal_request,
    read_proposal,
    vote,
)
from cai.method.principle import Principle
from cai.observe.progress import Progress
from cai.paths import shipped
from cai.report.pictures import percent
from cai.report.stage_view import StageView, Table
from cai.report.terminal import print_stage_view, wide_console
from cai.run.process import install_signals, quiet
from cai.scoring.explanations import Explanation, explanation, longer_share
from cai.stages.base import OpenModel, verb_context

PAIRS = 100  # unless --pairs says otherwise

ASKED = 4  # pairs that a proposal is asked of, for each principle to propose

WIDTH = 98  # of the lines in a written file


def add_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="a data set with labelled pairs, or a file")
    source = parser.add_mutually_exclusive_group()
    text = "the candidates: a principle file (default: harmlessness)"
    source.add_argument("--candidates", metavar="FILE", default="harmlessness", help=text)
    text = "N candidates that the model proposes from half of the pairs, measured on the others"
    source.add_argument("--propose", type=int, metavar="N", help=text)
    text = f"how many pairs are read (default {PAIRS})"
    parser.add_argument("--pairs", type=int, metavar="N", default=PAIRS, help=text)
    text = "a principle file to write, of those that explain more than chance"
    parser.add_argument("--to", type=Path, metavar="FILE", help=text)
    add_overrides(parser)


def explain(options: argparse.Namespace) -> None:
    """Prints how often each candidate explains a pair. Raises UsageError and CaiError."""
    words_are_overrides(options.overrides, [])
    if options.to is not None and options.to.exists():
        raise UsageError(f"{options.to} is already there; choose another name")
    for name in ("propose", "pairs"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UsageError(f"--{name}: a number of 1 or more")
    quiet()
    install_signals()
    config = compose(["name=explain", *options.overrides], options.config_dir)
    pairs = _load_pairs(options.data, options.pairs, config)
    session = Session(config)
    try:
        if options.propose:
            first, pairs = _halves(pairs)
            chosen = session.choose(first, options.propose)
            principles = [row.principle for row in chosen]
        else:
            chosen, principles = [], list(Constitution.load(options.candidates).principles)
        rows = session.measure([NO_PRINCIPLE, *principles], pairs)
    finally:
        session.context.progress.finish()
    _show(rows, chosen, pairs, options.data, session.judge_name)
    if options.to is not None:
        good = [row for row in rows[1:] if row.against_chance == "better"]
        origin = f"{options.data}, chosen by {session.judge_name}"
        _write(options.to, good, None if options.propose else options.candidates, origin)


def _load_pairs(data: str, count: int, config: Config) -> list[Pair]:
    sets = dict(config.data)
    if data not in sets:
        if not Path(data).is_file():
            hint = nearest(data, list(sets)) or f" (data sets: {', '.join(sets)})"
            raise UsageError(f"'{data}' is no data set and no file{hint}")
        sets[data] = DataConfig("file", data)
    loaded = load_preferences(Prompts([data], limit=count), sets, config.seed)
    return [Pair(*row) for row in loaded]


def _halves(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """The pairs that proposals come from and are chosen on, and the others; no prompt in both."""
    order, size = validation_first([pair.prompt.id for pair in pairs], 0.5)
    if not 0 < size < len(pairs):
        raise UsageError("--propose needs pairs of two prompts at least")
    ordered = [pairs[place] for place in order]
    return ordered[:size], ordered[size:]


class Session:
    """Asks the model through the ledger of `outputs/explain`, so nothing is asked twice."""

    def __init__(self, config: Config):
        root = Path(config.outputs) / config.name
        root.mkdir(parents=True, exist_ok=True)
        context = verb_context("explain", config, root, config.constitution, {})
        self.context = replace(context, progress=Progress("explain"))
        self.config = config
        self.judge_name = config.engine.model or config.model.name

    def choose(self, pairs: Sequence[Pair], count: int) -> list[Explanation]:
        """At most `count` proposals, those first that explain most of these pairs."""
        proposals = self._propose(pairs[: ASKED * count])
        rows = self.measure(as_principles(proposals), pairs)
        return sorted(rows, key=lambda row: -row.gain)[:count]

    def _propose(self, pairs: Sequence[Pair]) -> list[str]:
        """Sentences. Raises UsageError where the model wrote none."""
        sampling, seed = self.config.revise.sampling.revision, self.config.seed
        requests = []
        for pair in pairs:
            draw = seed_of(seed, pair.prompt.id, pair.better, "explain")
            messages = proposal_request(pair, better_first=draw % 2 == 0)
            requests.append(Request(messages, sampling, draw))
        self.context.progress.start(len(requests), "proposals")

        async def ask(open_model: OpenModel):
            model = open_model("base")
            rows = [model.complete(request) for request in requests]
            return await gather_results(rows, self.config.engine.max_failures)

        with self.context.models() as open_model:
            completions = asyncio.run(ask(open_model))
        written = [read_proposal(c) for c in completions if isinstance(c, Completion)]
        sentences = [sentence for sentence in written if sentence is not None]
        if not sentences:
            raise UsageError(
                f"none of {len(requests)} proposals of {self.judge_name} is a short sentence; take "
                "a larger model, or --candidates"
            )
        return sentences

    def measure(self, principles: Sequence[Principle], pairs: Sequence[Pair]) -> list[Explanation]:
        """Every pair by every principle alone, in both orders."""
        self.context.progress.start(2 * len(principles) * len(pairs), "comparisons")

        async def ask(open_model: OpenModel):
            judge = open_model("base").complete
            rows = [vote(pair, principle, judge) for principle in principles for pair in pairs]
            return await gather_results(rows, self.config.engine.max_failures)

        with self.context.models() as open_model:
            results = asyncio.run(ask(open_model))
        votes = [result if isinstance(result, Vote) else None for result in results]
        starts = range(0, len(votes), len(pairs))
        return [
            explanation(principle, votes[start : start + len(pairs)])
            for principle, start in zip(principles, starts, strict=True)
        ]


def _show(
    rows: Sequence[Explanation],
    chosen: Sequence[Explanation],
    pairs: Sequence[Pair],
    data: str,
    judge: str,
) -> None:
    """`chosen`: what proposals explained of the pairs that they were chosen on."""
    judgements = sum(row.agrees + row.against + row.undecided for row in rows)
    turned = sum(row.undecided for row in rows) / max(1, judgements)
    letters = sum(row.letters for row in rows) / len(rows)
    lines = [("pairs", str(len(pairs))), ("judge", judge)]
    if longer := longer_share(pairs):
        lines.append(("the longer answer is the preferred one", percent(longer)))
    lines.append(("the judge's choice turns with the order", f"{100 * turned:.0f} %"))
    lines.append(("probability of the letters A and B together", f"{letters:.2f}"))
    if unjudged := sum(row.unjudged for row in rows):
        lines.append(("comparisons too long for the judge, or failed", str(unjudged)))
    warnings = []
    if turned > 0.5:
        warnings.append(
            f"The judge ({judge}) goes by position: {100 * turned:.0f} % of its choices turn with "
            "the order of the answers. What is left says little of the principles."
        )
    view = StageView(
        name="explain",
        description=f"which principles explain the preferences of {data}",
        counts="",
        lines=tuple(lines),
        tables=(_table(rows, chosen),),
        warnings=tuple(warnings),
    )
    print_stage_view(view, wide_console())


def _table(rows: Sequence[Explanation], chosen: Sequence[Explanation]) -> Table:
    earlier = {row.principle.id: row.explains for row in chosen}
    columns = ("principle", "agrees", "against", "no preference", "explains", "than chance")
    cells = []
    for row in rows:
        counts = (str(count) for count in (row.agrees, row.against, row.undecided))
        explains = percent(row.explains) if row.explains else ""
        name = row.principle.sentence or row.principle.id
        where_chosen = earlier.get(row.principle.id)
        last = (percent(where_chosen) if where_chosen else "",) if chosen else ()
        cells.append((name, *counts, explains, row.against_chance, *last))
    title = "Explains: of the pairs that a principle decides, those where it chooses as people did"
    return Table(title, (*columns, "where chosen") if chosen else columns, tuple(cells))


def _write(to: Path, rows: Sequence[Explanation], candidates: str | None, origin: str) -> None:
    """A principle file: of sentences, or of what the candidates' file has by these ids."""
    if not rows:
        print(f"{to}: not written: no candidate explains more than chance")
        return
    comment = f"# Principles that explain preferences of {origin}.\n"
    for row in rows:
        assert row.explains is not None
        decided = row.agrees + row.against
        comment += f"# {row.principle.id}: {percent(row.explains)} of {decided} pairs\n"
    if candidates is None:
        content = {"principles": [{"sentence": row.principle.sentence} for row in rows]}
    else:
        file = find_file(candidates)
        is_shipped = file.resolve().parent == shipped("principles").resolve()
        base = file.name if is_shipped else os.path.relpath(file, to.parent)
        content = {"extends": base, "only": [row.principle.id for row in rows]}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=WIDTH)
    to.write_text(comment + text, encoding="utf-8")
    print(f"{to}: {len(Constitution.load(str(to)).principles)} principles")
