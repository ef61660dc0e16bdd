"""`cai try FILE "prompt"`: the editing loop of a person who writes principles. The model stays loaded, and the ledger
makes what did not change instant."""

import argparse
import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cai.config.schema import Config, ReviseConfig
from cai.engines.base import Completion, Engine, Request, listened
from cai.engines.ledger import Recorded
from cai.engines.rows import gather_rows
from cai.errors import UsageError, nearest
from cai.messages import Prompt, user
from cai.method.constitution import Constitution
from cai.method.critique import CritiqueStep, Revision, revise
from cai.paths import resolve_file
from cai.redact import printable, safe
from cai.report.terminal import word_diff
from cai.stages.base import verb_context


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cai try",
        description="First answer, critique and revision under a principle file as it stands now.",
    )
    parser.add_argument("file", help="a principle file")
    parser.add_argument("prompt", nargs="?", help="what a person might ask")
    parser.add_argument("--principle", metavar="ID", help="this principle instead of a drawn one")
    parser.add_argument("--against", metavar="FILE", help="another principle file, side by side")
    parser.add_argument(
        "--suite", type=int, metavar="N", help="N red-team and N harmless prompts instead of one"
    )
    parser.add_argument("--watch", action="store_true", help="again whenever the file is saved")
    parser.add_argument(
        "--run", metavar="RUN", help="the helpful model (sft) of this run instead of the base model"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        help="Hydra overrides, e.g. revise.rounds=2 model=path model.path=...",
    )
    options = parser.parse_intermixed_args(arguments)
    if (
        options.prompt and "=" in options.prompt and " " not in options.prompt
    ):  # an override where the prompt was left out
        options.overrides.insert(0, options.prompt)
        options.prompt = None
    if (options.prompt is None) == (options.suite is None):
        raise UsageError("cai try: give a prompt in quotes, or --suite N")
    return options


def main(arguments: Sequence[str]) -> None:
    """Raises UsageError; with --watch, problems of the file are shown and waited out."""
    from rich.console import Console
    from rich.text import Text

    from cai.config.compose import compose
    from cai.run.process import install_signals, quiet

    quiet()
    install_signals()
    options = parse(arguments)
    overrides = list(options.overrides)
    if options.run:
        tuned = Path(options.run) / "latest" / "sft" / "out" / "model"
        if not tuned.is_dir():
            raise UsageError(
                f"--run {options.run}: no finished sft stage there; see `cai status {options.run}`"
            )
        overrides = ["model=path", f"model.path={tuned}", *overrides]
    config = compose(["experiment=quickstart", "name=try", *overrides])
    console = Console()
    session = Session(config, options, console)
    watched = [
        resolve_file(name, "principles", ".yaml")
        for name in (options.file, options.against)
        if name
    ]
    try:
        while True:
            saved = [path.stat().st_mtime_ns for path in watched]
            try:
                session.show()
            except UsageError as error:
                if not options.watch:
                    raise
                console.print(Text(printable(str(error)), "red"))
            if not options.watch:
                return
            console.print("[dim]waiting for the file to be saved; Ctrl-C ends[/]")
            while [path.stat().st_mtime_ns if path.exists() else 0 for path in watched] == saved:
                time.sleep(0.3)
    finally:
        session.close()


class Session:
    """A loaded model, a ledger, and what was shown last."""

    def __init__(self, config: Config, options: argparse.Namespace, console: "Console"):
        self.config, self.options, self.console = config, options, console
        root = Path(config.outputs) / config.name
        root.mkdir(parents=True, exist_ok=True)
        self.context = verb_context("try", config, root, options.file, {})
        self.ledger = self.context.ledger()
        self.before: dict[str, str] = {}  # prompt id -> the last revision shown, for --suite
        self._engine: Engine | None = None
        self._heard: Callable[[str], object] | None = (
            None  # told the words of a text as the model writes it
        )

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
        self.ledger.close()

    def show(self) -> None:
        files = [name for name in (self.options.file, self.options.against) if name]
        rules = [self._rules(Constitution.load(name)) for name in files]
        if self.options.suite:
            self._suite(files, rules)
        elif len(rules) == 1:
            self._one(rules[0])
        else:
            self._side_by_side(files, rules)

    def _rules(self, constitution: Constitution) -> Constitution:
        if self.options.principle is None:
            return constitution
        kept = tuple(p for p in constitution.principles if p.id == self.options.principle)
        if not kept:
            known = [p.id for p in constitution.principles]
            raise UsageError(
                f"no principle '{self.options.principle}'{nearest(self.options.principle, known)}"
            )
        return Constitution(constitution.name, kept, constitution.exemplars)

    def _open(self) -> Engine:
        if self._engine is None:
            with self.console.status("loading the model"):
                self._engine = self.context.open_model("base")
        return listened(self._engine, self._heard)

    def _revise(
        self, jobs: Sequence[tuple[Prompt, Constitution]], heard: Any = None
    ) -> list[Revision]:
        """Every chain through the ledger; `heard` is told each completion with its request."""
        recorded = Recorded(
            self._open, self.ledger, self.context.stage, self.context.model_digest("base")
        )

        async def ask(request: Request) -> Completion:
            completion = await recorded.complete(request)
            if heard is not None:
                heard(completion)
            return completion

        settings: ReviseConfig = self.config.revise
        rows = [revise(prompt, rules, settings, self.config.seed, ask) for prompt, rules in jobs]

        async def everything() -> list[Revision]:
            return await gather_rows(rows)

        return asyncio.run(everything())

    def _prompt(self) -> Prompt:
        return Prompt.of((user(self.options.prompt),), "try")

    def _one(self, rules: Constitution) -> None:
        """Each text streams as the model writes it, and then stands as it will be kept."""
        from rich.live import Live
        from rich.text import Text

        self._say("prompt", self.options.prompt)
        kinds = [
            "answer",
            *(["critique", "revision"] if self.config.revise.critique else ["revision"]) * 99,
        ]

        def heard(completion: Completion) -> None:
            writing.truncate(0)
            kind = kinds.pop(0)
            if kind != "revision":
                self._say(kind, completion.text)

        writing = Text(style="dim")
        if self.console.is_terminal:
            self._heard = lambda words: writing.append(safe(words))
        with Live(writing, console=self.console, transient=True, refresh_per_second=12):
            revision = self._revise([(self._prompt(), rules)], heard)[0]
        before = revision.answer
        for step in revision.steps:
            self._step(before, step)
            before = before if step.gates else step.revision

    def _step(self, before: str, step: CritiqueStep) -> None:
        self.console.print(
            f"[bold cyan]{'revision':>10}[/]  ", self._diff(before, step.revision), end="\n"
        )
        gates = f"; [yellow]would be left out: {', '.join(step.gates)}[/]" if step.gates else ""
        self.console.print(f"{'':>10}  [dim]by {step.principle_id}{gates}[/]")

    def _diff(self, before: str, after: str) -> Any:
        return word_diff(before, after, self.console.is_terminal)

    def _say(self, name: str, text: str) -> None:
        from rich.text import Text

        self.console.print(Text.assemble((f"{name:>10}  ", "bold cyan"), safe(text)))

    def _side_by_side(self, files: Sequence[str], rules: Sequence[Constitution]) -> None:
        from rich.table import Table
        from rich.text import Text

        one, other = self._revise([(self._prompt(), each) for each in rules])
        self._say("prompt", self.options.prompt)
        self._say("answer", one.answer)
        table = Table(expand=True)
        for name in files:
            table.add_column(Text(safe(Path(name).stem)))
        for left, right in zip(one.steps, other.steps, strict=False):
            table.add_row(
                Text(f"by {left.principle_id}"), Text(f"by {right.principle_id}"), style="dim"
            )
            table.add_row(Text(safe(left.critique)), Text(safe(right.critique)), end_section=True)
            table.add_row(
                self._diff(right.revision, left.revision),
                self._diff(left.revision, right.revision),
                end_section=True,
            )
        self.console.print(table)

    def _suite(self, files: Sequence[str], rules: Sequence[Constitution]) -> None:
        """Refusals, gates and length over both kinds of prompts, and which revisions differ from the last time."""
        from dataclasses import replace

        from rich.table import Table
        from rich.text import Text

        from cai.config.schema import Prompts
        from cai.data.prompts import load_prompts
        from cai.method.refusal import refuses
        from cai.scoring.statistics import share

        count, data, seed = self.options.suite, self.config.data, self.config.seed
        red_team = load_prompts(replace(self.config.revise.prompts, limit=count), data, seed)
        harmless = load_prompts(Prompts(self.config.sft.data, count), data, seed)
        with self.console.status("answering"):
            found = [
                self._revise([(prompt, each) for prompt in (*red_team, *harmless)])
                for each in rules
            ]
        table = Table(
            "file",
            "prompts",
            "first answer refuses",
            "revision refuses",
            "passes the gates",
            "words",
        )
        for name, revisions in zip(files, found, strict=True):
            for kind, part in (
                ("red-team", revisions[: len(red_team)]),
                ("harmless", revisions[len(red_team) :]),
            ):
                last = [r.steps[-1].revision if r.steps else "" for r in part]
                figures = [
                    share(sum(hits), len(part))
                    for hits in (
                        [refuses(r.answer) for r in part],
                        [refuses(text) for text in last],
                        [bool(r.final) for r in part],
                    )
                ]
                shown = [
                    f"{100 * f.value:.0f} % [{100 * f.low:.0f}, {100 * f.high:.0f}]"
                    for f in figures
                ]
                words = sum(len(text.split()) for text in last) / len(last)
                table.add_row(
                    Text(safe(Path(name).stem)), f"{len(part)} {kind}", *shown, f"{words:.0f}"
                )
        self.console.print(table)
        now = {r.prompt.id: r.steps[-1].revision if r.steps else "" for r in found[0]}
        changed = [
            r
            for r in found[0]
            if r.prompt.id in self.before and self.before[r.prompt.id] != now[r.prompt.id]
        ]
        if self.before:
            self.console.print(
                f"{len(changed)} of {len(now)} revisions changed since the file was saved before"
            )
        for revision in changed[:5]:
            self._say("prompt", revision.prompt.text)
            self.console.print(
                f"[bold cyan]{'revision':>10}[/]  ",
                self._diff(self.before[revision.prompt.id], now[revision.prompt.id]),
            )
        self.before = now
