"""`cai principles check | show | import`: what a writer of principles needs beside an editor."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cai.cli.options import verb_parser
from cai.errors import UsageError
from cai.method.constitution import Constitution
from cai.redact import safe

LABELS = re.compile(
    r"^\s*(?:Critique\s?Request|Revision\s?Request):\s*|\s*(?:Critique|Revision):\s*$",
    re.IGNORECASE,
)

REQUESTS = ("critique", "revision", "comparison")

WIDTH = 118  # of the lines in an imported file


Entry = dict[str, Any]  # a principle or an exemplar as a principle file has it


def main(arguments: list[str]) -> None:
    """Raises UsageError with every problem of every file."""
    parser = verb_parser(
        "principles",
        "Check, show and import principle files.",
        "check principles/mine.yaml",
        "show harmlessness --texts",
        "import release.json --to principles/mine.yaml",
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    check = verbs.add_parser("check", help="every problem of the files, by line and column")
    check.add_argument("files", nargs="+")
    show = verbs.add_parser("show", help="the principles of a file, with what it extends")
    show.add_argument("file", nargs="?", default="harmlessness")
    show.add_argument("--texts", action="store_true", help="the requests too")
    text = "make a principle file of a JSON file of the paper's release or llm-swarm's"
    import_ = verbs.add_parser("import", help=text)
    import_.add_argument("file", type=Path)
    import_.add_argument("--to", type=Path, help="the file to write (default: the terminal)")
    options = parser.parse_args(arguments)
    if options.verb == "check":
        _check(options.files)
    elif options.verb == "show":
        constitution = Constitution.load(options.file)
        (_show_texts if options.texts else _show_table)(constitution)
    else:
        _import(options.file, options.to)


def _check(files: Sequence[str]) -> None:
    problems = []
    for file in files:
        try:
            print(f"{file}: {_describe(Constitution.load(file))}")
        except UsageError as error:
            problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))


def _describe(constitution: Constitution) -> str:
    return f"{len(constitution.principles)} principles, {len(constitution.exemplars)} exemplars"


def _show_texts(constitution: Constitution) -> None:
    console = Console(soft_wrap=True, markup=False, highlight=False)
    for principle in constitution.principles:
        console.print(Text.assemble((principle.id, "bold"), f"  weight {principle.weight:g}"))
        for name in REQUESTS:
            text = safe(getattr(principle, name))
            console.print(Text.assemble((f"  {name:<10} ", "cyan"), text))


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


def _from_release(content: dict[str, Any]) -> list[Entry]:
    principles = []
    for name, entry in content.items():
        prompt = entry["prompt"]
        critique = prompt[0] if isinstance(prompt, list) else prompt
        principles.append(_principle(_slug(name), _bare(critique), _bare(entry["edit_request"])))
    return principles


def _from_swarm(content: dict[str, Any]) -> tuple[list[Entry], list[Entry]]:
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
