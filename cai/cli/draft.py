"""`cai principles draft`: a model writes what sentences stand for, and people edit it."""

import argparse
import asyncio
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

from cai.cli.overrides import check_overrides
from cai.config.compose import compose
from cai.config.schema import Config
from cai.digest import file_digest, seed_of
from cai.engines.base import Completion, Request
from cai.engines.rows import gather_rows
from cai.method.constitution import Constitution
from cai.method.drafting import as_draft, draft_fault, drafting_request
from cai.method.drafts import DRAFTED, addition, drafts_path, read_drafts, same_words
from cai.method.principle import Principle
from cai.method.sentences import is_templated
from cai.redact import safe
from cai.run.process import install_signals, quiet
from cai.stages.base import verb_context

TEMPLATES = "templates"  # the author, where no model has written


class Gap(NamedTuple):
    """A text of a principle that neither a person nor a model has written yet."""

    principle: Principle
    file: Path  # where the principle's sentence stands
    text: str  # its name, one of DRAFTED

    @property
    def template(self) -> str:
        return getattr(self.principle, self.text)


def draft(options: argparse.Namespace) -> None:
    """Has every gap of a principle file filled, shows how, and adds that to the file of drafts.

    Raises UsageError.
    """
    gaps = find_gaps(Constitution.load(options.file))
    if not gaps:
        print(f"{options.file}: nothing to draft: each sentence has its requests")
        return
    author, drafts = TEMPLATES, [gap.template for gap in gaps]
    if not options.templates:
        check_overrides(options.overrides)
        quiet()
        install_signals()
        config = compose(["name=draft", *options.overrides], options.config_dir)
        author = config.engine.model or config.model.name
        drafts = _write(config, gaps)
    console = Console(soft_wrap=True, markup=False, highlight=False)
    filled = list(zip(gaps, drafts, strict=True))
    for principle, group in groupby(filled, lambda pair: pair[0].principle):
        console.print(Text(f"\n{principle.id}: {safe(principle.sentence)}", "bold"))
        for gap, text in group:
            _show(gap, text, console)
    _save([(gap, text) for gap, text in filled if text], author)


def find_gaps(constitution: Constitution) -> list[Gap]:
    """What has no draft yet, in the file and in those that it extends."""
    gaps = []
    for principle in constitution.principles:
        if not principle.sentence or principle.file is None:
            continue
        drafted = read_drafts(principle.file)[0].get(same_words(principle.sentence), {})
        for name in DRAFTED:
            text = getattr(principle, name)
            if name not in drafted and is_templated(principle.sentence, name, text):
                gaps.append(Gap(principle, principle.file, name))
    return gaps


def _write(config: Config, gaps: Sequence[Gap]) -> list[str]:
    """A model's text for each gap; "" where it has written none of use, which is said."""
    root = Path(config.outputs) / config.name
    root.mkdir(parents=True, exist_ok=True)
    context = verb_context("draft", config, root, config.constitution, {})
    sampling = config.revise.sampling.revision

    async def ask_all() -> list[Completion]:
        requests = []
        for principle, _, text in gaps:
            seed = seed_of(config.seed, principle.sentence, text, "draft")
            turns = drafting_request(principle.sentence, text)
            requests.append(model.complete(Request(turns, sampling, seed, principle=principle.id)))
        return await gather_rows(requests)

    waiting = Console(stderr=True).status(f"drafting {len(gaps)} requests")
    with context.models() as open_model, waiting:
        model = open_model("base")
        completions = asyncio.run(ask_all())
    drafts = []
    for gap, completion in zip(gaps, completions, strict=True):
        text = as_draft(completion)
        if fault := draft_fault(text, completion, gap.text):
            print(f"{gap.principle.id}: the model's {gap.text} is not taken: {fault}")
        drafts.append("" if fault else text)
    return drafts


def _show(gap: Gap, text: str, console: Console) -> None:
    """What a run asks for now, and what it will ask for."""
    now = " ".join(gap.template.split())
    if text in ("", gap.template):
        console.print(f"  {gap.text:<10}   {safe(now)}")
    else:
        console.print(Text(f"  {gap.text:<10} - {safe(now)}", "red"))
        console.print(Text(f"  {'':<10} + {safe(text)}", "green"))


def _save(filled: Sequence[tuple[Gap, str]], author: str) -> None:
    """Adds an entry for each principle to the drafts of the file that its sentence stands in."""
    entries: dict[Path, list[dict[str, str]]] = {}
    for (file, principle), group in groupby(filled, lambda pair: (pair[0].file, pair[0].principle)):
        texts = {gap.text: text for gap, text in group}
        origin = {"by": author, "source": f"sha256:{file_digest(file)[:16]}"}
        entry = {"sentence": same_words(principle.sentence), **texts, **origin}
        entries.setdefault(file, []).append(entry)
    additions = {file: addition(file, new) for file, new in entries.items()}
    for file, text in additions.items():
        with drafts_path(file).open("a", encoding="utf-8") as drafts:
            drafts.write(text)
        print(f"\n{drafts_path(file)}: sentences drafted by {author}: {len(entries[file])}")
        print(f"edit it, then: cai principles check {file}")
