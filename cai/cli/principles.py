"""`cai principles check | show | import`: what a person who writes principles needs beside an editor."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cai.errors import UsageError
from cai.method.constitution import Constitution
from cai.redact import safe

LABELS = re.compile(
    r"^\s*(?:Critique\s?Request|Revision\s?Request):\s*|\s*(?:Critique|Revision):\s*$",
    re.IGNORECASE,
)


def import_principles(path: Path) -> str:
    """A principle file as YAML text. Raises UsageError where the layout is neither of the two."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON: {error}") from None
    try:
        if isinstance(found, dict) and "constitutions" in found:
            principles, exemplars = _swarm(found)
        elif isinstance(found, dict) and found:
            principles, exemplars = _release(found), []
        else:
            raise TypeError
    except (KeyError, TypeError, IndexError, AttributeError):
        raise UsageError(
            f'{path}: neither {{name: {{"prompt", "edit_request"}}}} '
            f'nor {{"constitutions": [{{"critic", "revision"}}]}}'
        ) from None
    name = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-") or "imported"
    content = {"name": name, "description": f"Imported from {path.name}.", "principles": principles}
    if exemplars:
        content["exemplars"] = exemplars
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=118)


def _principle(name: str, critique: str, revision: str, **more: Any) -> dict[str, Any]:
    """Neither layout has comparisons, so one is made from the revision request."""
    comparison = f"Which of these answers is in less need of this change? {revision}"
    return {
        "id": name,
        **more,
        "critique": critique,
        "revision": revision,
        "comparison": comparison,
    }


def _release(found: dict[str, Any]) -> list[dict[str, Any]]:
    principles = []
    for name, entry in found.items():
        prompt = entry["prompt"]
        critique = prompt[0] if isinstance(prompt, list) else prompt
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        principles.append(_principle(slug, _bare(critique), _bare(entry["edit_request"])))
    return principles


def _swarm(found: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rules = [(_bare(one["critic"]), _bare(one["revision"])) for one in found["constitutions"]]
    principles = [_principle(f"principle-{n}", *texts) for n, texts in enumerate(rules, 1)]
    exemplars = []
    for number, chat in enumerate(found.get("system_chat", []), 1):
        texts = [_bare(turn["content"]) for turn in chat]
        asked = (texts[-4], texts[-2])
        if asked in rules:
            shown = f"principle-{rules.index(asked) + 1}"
        else:  # the request that it shows is none of the principles: keep it for the example alone
            shown = f"exemplar-{number}"
            principles.append(_principle(shown, *asked, weight=0))
        dialogue = [
            {"role": turn["role"], "content": turn["content"].strip()} for turn in chat[:-4]
        ]
        exemplars.append(
            {"principle": shown, "dialogue": dialogue, "critique": texts[-3], "revision": texts[-1]}
        )
    return principles, exemplars


def _bare(text: str) -> str:
    """Without the labels around it: "CritiqueRequest: ... Critique:"."""
    return LABELS.sub("", LABELS.sub("", text.strip())).strip()


def main(arguments: Sequence[str]) -> None:
    """Raises UsageError with every problem of every file."""
    parser = argparse.ArgumentParser(
        prog="cai principles", description="Check, read and import principle files."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    check = verbs.add_parser("check", help="every problem of the files, by line and column")
    check.add_argument("files", nargs="+")
    show = verbs.add_parser("show", help="the principles of a file, with what it extends")
    show.add_argument("file", nargs="?", default="harmlessness")
    show.add_argument("--texts", action="store_true", help="the requests too")
    bring = verbs.add_parser(
        "import", help="make a principle file of a JSON file of the paper's release or llm-swarm's"
    )
    bring.add_argument("file", type=Path)
    bring.add_argument("--to", type=Path, help="the file to write (default: the terminal)")
    options = parser.parse_args(arguments)
    if options.verb == "check":
        _check(options.files)
    elif options.verb == "show":
        _show(options.file, options.texts)
    else:
        _import(options.file, options.to)


def _check(files: Sequence[str]) -> None:
    problems = []
    for file in files:
        try:
            found = Constitution.load(file)
            print(f"{file}: {len(found.principles)} principles, {len(found.exemplars)} exemplars")
        except UsageError as error:
            problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))


def _show(file: str, texts: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found = Constitution.load(file)
    shown = [one.principle.id for one in found.exemplars]
    total = sum(p.weight for p in found.principles)
    console = Console(soft_wrap=texts, markup=False, highlight=False)
    if texts:
        for p in found.principles:
            console.print(Text.assemble((p.id, "bold"), f"  weight {p.weight:g}"))
            for name in ("critique", "revision", "comparison"):
                console.print(Text.assemble((f"  {name:<10} ", "cyan"), safe(getattr(p, name))))
        return
    table = Table(
        title=f"{safe(found.name)}: {len(found.principles)} principles, {len(shown)} exemplars"
    )
    for name in ("principle", "drawn", "exemplars", "tags"):
        table.add_column(name, justify="left" if name in ("principle", "tags") else "right")
    for p in found.principles:
        table.add_row(
            p.id,
            f"{100 * p.weight / total:.1f} %",
            str(shown.count(p.id) or ""),
            safe(", ".join(p.tags)),
        )
    console.print(table)


def _import(file: Path, to: Path | None) -> None:
    text = import_principles(file)
    if to is None:
        print(text, end="")
        return
    if to.exists():
        raise UsageError(f"{to} is already there; choose another name")
    to.write_text(text, encoding="utf-8")
    found = Constitution.load(str(to))
    print(
        f"{to}: {len(found.principles)} principles, {len(found.exemplars)} exemplars",
        file=sys.stderr,
    )
