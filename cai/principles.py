"""`cai principles check | show | import`: what a person who writes principles needs beside an editor."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cai.constitution import Constitution
from cai.errors import UsageError
from cai.importing import import_principles
from cai.redact import safe


def main(arguments: Sequence[str]) -> None:
    """Raises UsageError with every problem of every file."""
    parser = argparse.ArgumentParser(prog="cai principles", description="Check, read and import principle files.")
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
    table = Table(title=f"{safe(found.name)}: {len(found.principles)} principles, {len(shown)} exemplars")
    for name in ("principle", "drawn", "exemplars", "tags"):
        table.add_column(name, justify="left" if name in ("principle", "tags") else "right")
    for p in found.principles:
        table.add_row(p.id, f"{100 * p.weight / total:.1f} %", str(shown.count(p.id) or ""), safe(", ".join(p.tags)))
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
    print(f"{to}: {len(found.principles)} principles, {len(found.exemplars)} exemplars", file=sys.stderr)
