"""`cai try FILE "prompt"`: the editing loop of a person who writes principles.

The model stays loaded, and the ledger makes what did not change instant."""

import argparse
import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, cycle
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cai.cli.options import add_overrides, positive_int, verb_parser
from cai.cli.overrides import check_overrides
from cai.config.compose import compose, saved
from cai.config.schema import Config, Prompts
from cai.data.prompts import load_prompts
from cai.engines.base import Completion, Engine, Request
from cai.engines.ledger import Recorded
from cai.engines.rows import gather_rows
from cai.errors import UsageError, nearest
from cai.messages import Prompt, user
from cai.method.constitution import Constitution, find_file
from cai.method.critique import CritiqueStep, Revision, revise
from cai.method.drafts import drafts_path
from cai.method.refusal import refuses
from cai.redact import printable, safe
from cai.report.pictures import percent
from cai.report.terminal import marked_text
from cai.run.plan import trained_inputs
from cai.run.process import install_signals, quiet
from cai.scoring.statistics import share
from cai.stages.base import verb_context
from cai.store.files import modified
from cai.text import well_formed, word_count

MOST_CHANGED = 5  # revisions of a suite that are shown after a save

POLL = 0.3  # seconds between two looks at the watched files


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = verb_parser(
        "try",
        "First answer, critique and revision under a principle file as it stands now.",
        'principles/mine.yaml "How do I pick a lock?" --watch',
        "principles/mine.yaml --suite 20 --against harmlessness",
    )
    parser.add_argument("file", help="a principle file")
    parser.add_argument("prompt", nargs="?", type=well_formed, help="what a person might ask")
    parser.add_argument("--principle", metavar="ID", help="this principle instead of a drawn one")
    parser.add_argument("--against", metavar="FILE", help="another principle file, side by side")
    text = "N red-team and N harmless prompts"
    parser.add_argument("--suite", type=positive_int, metavar="N", help=f"{text} instead of one")
    parser.add_argument("--watch", action="store_true", help="again whenever the file is saved")
    text = "the helpful model (sft) of this run instead of the base model"
    parser.add_argument("--run", metavar="RUN", help=text)
    add_overrides(parser)
    options = parser.parse_intermixed_args(arguments)
    # an override where the prompt was left out
    if options.prompt and "=" in options.prompt and " " not in options.prompt:
        options.overrides.insert(0, options.prompt)
        options.prompt = None
    check_overrides(options.overrides)
    if (options.prompt is None) == (options.suite is None):
        raise UsageError("cai try: give a prompt in quotes, or --suite N")
    return options


def main(arguments: list[str]) -> None:
    """Raises UsageError; with --watch, problems of the file are shown and waited out."""
    options = parse(arguments)
    quiet()
    install_signals()
    overrides = [*_model_overrides(options.run), *options.overrides]
    config = compose(["experiment=quickstart", "name=try", *overrides], options.config_dir)
    console = Console()
    session = Session(config, options, console)
    try:
        if options.watch:
            _watch(session, options, console)
        else:
            session.show()
    finally:
        session.close()


def _model_overrides(run: str | None) -> list[str]:
    if run is None:
        return []
    root = Path(run)
    config = saved(root) if (root / "run.json").is_file() else None
    inputs = trained_inputs(config, root) if config else {}
    if config is None or "sft" not in inputs:
        raise UsageError(f"--run {run}: no finished sft stage there; see `cai status {run}`")
    context = verb_context("try", config, root, config.constitution, inputs)
    return ["model=path", f"model.path={context.model_path('sft')}"]


def _watch(session: "Session", options: argparse.Namespace, console: Console) -> None:
    """Shows the session again whenever a file is saved, until Ctrl-C."""
    names = [name for name in (options.file, options.against) if name]
    files = [file for name in names for file in (find_file(name), drafts_path(find_file(name)))]
    while True:
        saved = modified(files)
        try:
            session.show()
        except UsageError as error:
            console.print(Text(printable(str(error)), "red"))
        console.print("[dim]waiting for the file to be saved; Ctrl-C ends[/]")
        while modified(files) == saved:
            time.sleep(POLL)


class Session:
    """A loaded model, a ledger, and what was shown last."""

    def __init__(self, config: Config, options: argparse.Namespace, console: Console):
        self.config, self.options, self.console = config, options, console
        root = Path(config.outputs) / config.name
        root.mkdir(parents=True, exist_ok=True)
        self.context = verb_context("try", config, root, options.file, {})
        self.ledger = self.context.ledger()
        self.before: dict[str, str] = {}  # prompt id -> the last revision shown, for --suite
        self._engine: Engine | None = None
        # told the words of a text as the model writes it
        self._heard: Callable[[str], object] | None = None

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
        self.ledger.close()

    def show(self) -> None:
        """Everything once, by the files as they are now. Raises UsageError."""
        files = [name for name in (self.options.file, self.options.against) if name]
        constitutions = [self._choose(Constitution.load(name)) for name in files]
        if self.options.suite:
            self._show_suite(files, constitutions)
        elif len(constitutions) == 1:
            self._show_chain(constitutions[0])
        else:
            self._show_side_by_side(files, constitutions)

    def _choose(self, constitution: Constitution) -> Constitution:
        """With --principle, that principle alone."""
        name = self.options.principle
        if name is None:
            return constitution
        principles = tuple(p for p in constitution.principles if p.id == name)
        if not principles:
            ids = [principle.id for principle in constitution.principles]
            raise UsageError(f"no principle '{name}'{nearest(name, ids)}")
        return Constitution(constitution.name, principles, constitution.exemplars)

    def _open(self) -> Engine:
        if self._engine is None:
            with self.console.status("loading the model"):
                self._engine = self.context.open_model("base")
        return self._engine

    def _revise(
        self,
        jobs: Sequence[tuple[Prompt, Constitution]],
        tell: Callable[[Completion], None] | None = None,
    ) -> list[Revision]:
        """Every chain through the ledger; `tell` gets each completion."""
        recorded = Recorded(
            self._open, self.ledger, self.context.stage, self.context.model_digest("base")
        )

        async def ask(request: Request) -> Completion:
            completion = await recorded.complete(request, self._heard)
            if tell is not None:
                tell(completion)
            return completion

        async def revise_all() -> list[Revision]:
            settings, seed = self.config.revise, self.config.seed
            return await gather_rows(
                [revise(prompt, constitution, settings, seed, ask) for prompt, constitution in jobs]
            )

        return asyncio.run(revise_all())

    def _prompt(self) -> Prompt:
        return Prompt.of((user(self.options.prompt),), "try")

    def _show_chain(self, constitution: Constitution) -> None:
        """Each text streams as the model writes it, and then stands as it will be kept."""
        self._print("prompt", self.options.prompt)
        step_kinds = ["critique", "revision"] if self.config.revise.critique else ["revision"]
        kinds = chain(["answer"], cycle(step_kinds))
        writing = Text(style="dim")

        def tell(completion: Completion) -> None:
            writing.truncate(0)
            kind = next(kinds)
            if kind != "revision":
                self._print(kind, completion.text)

        if self.console.is_terminal:
            self._heard = lambda words: writing.append(safe(words))
        with Live(writing, console=self.console, transient=True, refresh_per_second=12):
            revision = self._revise([(self._prompt(), constitution)], tell)[0]
        before = revision.answer
        for step in revision.steps:
            self._print_step(before, step)
            before = before if step.gates else step.revision

    def _print_step(self, before: str, step: CritiqueStep) -> None:
        self._print("revision", self._marked(before, step.revision))
        gates = f"; [yellow]would be left out: {', '.join(step.gates)}[/]" if step.gates else ""
        self.console.print(f"{'':>10}  [dim]by {step.principle_id}{gates}[/]")

    def _marked(self, before: str, after: str) -> Text:
        return marked_text(before, after, self.console.is_terminal)

    def _print(self, name: str, text: str | Text) -> None:
        body = safe(text) if isinstance(text, str) else text
        self.console.print(Text.assemble((f"{name:>10}  ", "bold cyan"), body))

    def _show_side_by_side(
        self, files: Sequence[str], constitutions: Sequence[Constitution]
    ) -> None:
        left, right = self._revise([(self._prompt(), rules) for rules in constitutions])
        self._print("prompt", self.options.prompt)
        self._print("answer", left.answer)
        table = Table(expand=True)
        for name in files:
            table.add_column(Text(safe(Path(name).stem)))
        for steps in zip(left.steps, right.steps, strict=False):
            first, second = steps
            table.add_row(*(Text(f"by {step.principle_id}") for step in steps), style="dim")
            table.add_row(*(Text(safe(step.critique)) for step in steps), end_section=True)
            table.add_row(
                self._marked(second.revision, first.revision),
                self._marked(first.revision, second.revision),
                end_section=True,
            )
        self.console.print(table)

    def _show_suite(self, files: Sequence[str], constitutions: Sequence[Constitution]) -> None:
        """Refusals, gates and length over both kinds of prompts, and which revisions are new."""
        count, data, seed = self.options.suite, self.config.data, self.config.seed
        red_team = load_prompts(replace(self.config.revise.prompts, limit=count), data, seed)
        harmless = load_prompts(Prompts(self.config.sft.data, count), data, seed)
        prompts = [*red_team, *harmless]
        with self.console.status("answering"):
            revisions = [
                self._revise([(prompt, constitution) for prompt in prompts])
                for constitution in constitutions
            ]
        columns = ("first answer refuses", "revision refuses", "passes the gates", "words")
        table = Table("file", "prompts", *columns)
        for name, rows in zip(files, revisions, strict=True):
            parts = {"red-team": rows[: len(red_team)], "harmless": rows[len(red_team) :]}
            for kind, part in parts.items():
                stem = Text(safe(Path(name).stem))
                table.add_row(stem, f"{len(part)} {kind}", *_suite_cells(part))
        self.console.print(table)
        self._show_changed(revisions[0])

    def _show_changed(self, revisions: Sequence[Revision]) -> None:
        """Which revisions differ from those before the file was saved."""
        texts = {revision.prompt.id: _last_text(revision) for revision in revisions}
        changed = [
            revision
            for revision in revisions
            if self.before.get(revision.prompt.id, texts[revision.prompt.id])
            != texts[revision.prompt.id]
        ]
        if self.before:
            self.console.print(
                f"{len(changed)} of {len(texts)} revisions changed since the file was saved before"
            )
        for revision in changed[:MOST_CHANGED]:
            name = revision.prompt.id
            self._print("prompt", revision.prompt.text)
            self._print("revision", self._marked(self.before[name], texts[name]))
        self.before = texts


def _last_text(revision: Revision) -> str:
    return revision.steps[-1].revision if revision.steps else ""


def _suite_cells(revisions: Sequence[Revision]) -> list[str]:
    """How many first answers refuse, revisions refuse, and pass the gates; and mean words."""
    texts = [_last_text(revision) for revision in revisions]
    counts = (
        sum(refuses(revision.answer) for revision in revisions),
        sum(refuses(text) for text in texts),
        sum(bool(revision.final) for revision in revisions),
    )
    words = sum(word_count(text) for text in texts) / len(texts)
    return [*(percent(share(count, len(revisions))) for count in counts), f"{words:.0f}"]
