"""`cai principles check | show | draft | explain | import`: what a writer of principles needs."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cai.cli import explain as explain_
from cai.cli.draft import draft
from cai.cli.options import add_overrides, verb_parser
from cai.digest import JsonObject
from cai.errors import UsageError
from cai.method.constitution import Constitution
from cai.method.drafts import drafts_path, read_drafts, same_words
from cai.method.principle import Principle
from cai.method.sentences import is_templated
from cai.redact import safe

LABELS = re.compile(
    r"^\s*(?:Critique\s?Request|Revision\s?Request):\s*|\s*(?:Critique|Revision):\s*$",
    re.IGNORECASE,
)

REQUESTS = ("critique", "revision", "comparison")

WIDTH = 118  # of the lines in an imported file


Entry = JsonObject  # a principle or an exemplar as a principle file has it


def main(arguments: list[str]) -> None:
    """Raises UsageError with every problem of every file."""
    options = parse(arguments)
    if options.verb == "check":
        _check(options.files)
    elif options.verb == "show":
        constitution = Constitution.load(options.file)
        if options.texts:
            _show_texts(constitution.principles)
        else:
            _show_table(constitution)
    elif options.verb == "draft":
        draft(options)
    elif options.verb == "explain":
        explain_.explain(options)
    else:
        _import(options.file, options.to)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = verb_parser(
        "principles",
        "Check, show, draft, explain and import principle files.",
        "check principles/mine.yaml",
        "show harmlessness --texts",
        "draft principles/mine.md model=qwen2.5-7b",
        "explain human_harm --candidates harmlessness --pairs 50",
        "import release.json --to principles/mine.yaml",
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    check = verbs.add_parser("check", help="every problem of the files, by line and column")
    check.add_argument("files", nargs="+")
    show = verbs.add_parser("show", help="the principles of a file, with what it extends")
    show.add_argument("file", nargs="?", default="harmlessness")
    show.add_argument("--texts", action="store_true", help="the requests too")
    text = "have a model write the requests that a file's sentences stand for, to edit them"
    drafts = verbs.add_parser("draft", help=text)
    drafts.add_argument("file", help="a principle file; its drafts are kept in NAME.drafts.yaml")
    text = "save the plain templates to edit, and ask no model"
    drafts.add_argument("--templates", action="store_true", help=text)
    add_overrides(drafts)
    text = "how often principles explain which of two answers people preferred"
    explain_.add_parser(verbs.add_parser("explain", help=text))
    text = "make a principle file of a JSON file of the paper's release or llm-swarm's"
    import_ = verbs.add_parser("import", help=text)
    import_.add_argument("file", type=Path)
    import_.add_argument("--to", type=Path, help="the file to write (default: the terminal)")
    options, words = parser.parse_known_args(arguments)
    # argparse takes a verb's last words only where no option stands before them
    if words and ("overrides" not in options or any(word.startswith("-") for word in words)):
        parser.error(f"unrecognized arguments: {' '.join(words)}")
    if words:
        options.overrides += words
    return options


def _check(files: Sequence[str]) -> None:
    problems = []
    for file in files:
        try:
            constitution = Constitution.load(file)
        except UsageError as error:
            problems.append(str(error))
            continue
        print(f"{file}: {_describe(constitution)}")
        sentences = [p for p in constitution.principles if p.sentence]
        if sentences:
            print("What sentences have become; cai principles draft writes better than a template:")
            _show_texts(sentences)
            _tell_unused_drafts(constitution)
    if problems:
        raise UsageError("\n".join(problems))


def _tell_unused_drafts(constitution: Constitution) -> None:
    sentences = {same_words(p.sentence) for p in constitution.principles}
    for file in dict.fromkeys(p.file for p in constitution.principles if p.sentence and p.file):
        for sentence in read_drafts(file)[0]:
            if sentence not in sentences:
                print(safe(f"{drafts_path(file)}: not used, for no sentence reads: {sentence}"))


def _describe(constitution: Constitution) -> str:
    return f"{len(constitution.principles)} principles, {len(constitution.exemplars)} exemplars"


def _show_texts(principles: Sequence[Principle]) -> None:
    """Each text, where a template has made it with a mark."""
    console = Console(soft_wrap=True, markup=False, highlight=False)
    for principle in principles:
        console.print(Text.assemble((principle.id, "bold"), f"  weight {principle.weight:g}"))
        for name in REQUESTS:
            text = getattr(principle, name)
            mark = "template" if is_templated(principle.sentence, name, text) else ""
            label = Text.assemble((f"  {name:<10} ", "cyan"), (f"{mark:<9}" if mark else "", "dim"))
            console.print(label + Text(safe(" ".join(text.split()))))


def _show_table(constitution: Constitution) -> None:
    exemplars = [exemplar.principle.id for exemplar in constitution.exemplars]
    total = sum(principle.weight for principle in constitution.principles)
    table = Table(title=f"{safe(constitution.name)}: {_describe(constitution)}")
    for name in ("principle", "drawn", "exemplars", "tags"):
        table.add_column(name, justify="left" if name in ("principle", "tags") else "right")
    for principle in constitution.principles:
        table.add_row(
            principle.id,
            f"{100 * principle.weight / total:.1f} %",
            str(exemplars.count(principle.id) or ""),
            safe(", ".join(principle.tags)),
        )
    Console(markup=False, highlight=False).print(table)


def _import(file: Path, to: Path | None) -> None:
    text = import_principles(file)
    if to is None:
        print(text, end="")
        return
    if to.exists():
        raise UsageError(f"{to} is already there; choose another name")
    to.write_text(text, encoding="utf-8")
    print(f"{to}: {_describe(Constitution.load(str(to)))}", file=sys.stderr)


def import_principles(path: Path) -> str:
    """A principle file as YAML text. Raises UsageError where the layout is neither of the two."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON: {error}") from None
    exemplars: list[Entry] = []
    try:
        if "constitutions" in content.keys():  # noqa: SIM118 - a list or a text has no keys
            principles, exemplars = _from_swarm(content)
        else:
            principles = _from_release(content)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        principles = []
    if not principles:
        raise UsageError(
            f'{path}: neither {{name: {{"prompt", "edit_request"}}}} '
            f'nor {{"constitutions": [{{"critic", "revision"}}]}}'
        )
    entries = {
        "name": _slug(path.stem) or "imported",
        "description": f"Imported from {path.name}.",
        "principles": principles,
    }
    if exemplars:
        entries["exemplars"] = exemplars
    return yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=WIDTH)


def _principle(name: str, critique: str, revision: str, **weight: float) -> Entry:
    """Neither layout has comparisons, so one is made from the revision request."""
    return {
        "id": name,
        **weight,
        "critique": critique,
        "revision": revision,
        "comparison": f"Which of these answers is in less need of this change? {revision}",
    }


def _from_release(content: JsonObject) -> list[Entry]:
    principles = []
    for name, entry in content.items():
        prompt = entry["prompt"]
        critique = prompt[0] if isinstance(prompt, list) else prompt
        principles.append(_principle(_slug(name), _bare(critique), _bare(entry["edit_request"])))
    return principles


def _from_swarm(content: JsonObject) -> tuple[list[Entry], list[Entry]]:
    """A chat ends in a critique request, a critique, a revision request and a revision."""
    requests = [
        (_bare(entry["critic"]), _bare(entry["revision"])) for entry in content["constitutions"]
    ]
    principles = [_principle(f"principle-{n}", *texts) for n, texts in enumerate(requests, 1)]
    exemplars: list[Entry] = []
    for number, chat in enumerate(content.get("system_chat", []), 1):
        *_, critique_request, critique, revision_request, revision = (
            _bare(turn["content"]) for turn in chat
        )
        texts = (critique_request, revision_request)
        if texts in requests:
            name = f"principle-{requests.index(texts) + 1}"
        else:  # the chat shows none of the principles: one is made for it that is never drawn
            name = f"exemplar-{number}"
            principles.append(_principle(name, *texts, weight=0))
        dialogue = [
            {"role": turn["role"], "content": turn["content"].strip()} for turn in chat[:-4]
        ]
        exemplars.append(
            {"principle": name, "dialogue": dialogue, "critique": critique, "revision": revision}
        )
    return principles, exemplars


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _bare(text: str) -> str:
    """Without the labels around it: "CritiqueRequest: ... Critique:"."""
    return LABELS.sub("", LABELS.sub("", text.strip())).strip()
