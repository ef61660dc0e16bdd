"""The site's pages, laid out as the repository is: written ones as they are, and generated ones."""

import re
import shutil
from pathlib import Path

from website import api, notebook, reference
from website.lists import widened
from website.prose import ROOT

WRITTEN = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "benchmarks/LOG.md")
LINK = re.compile(r"(\]\()([^)\s#:]+)(?=[)#])")


def lay_out(folder: Path) -> None:
    """Writes every page, and what the pages show, into an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in {**written(), **generated()}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for pattern in ("docs/*.png", "docs/*.ipynb", "website/*.css", "website/*.js", "locks/*.txt"):
        for file in ROOT.glob(pattern):
            path = folder / file.relative_to(ROOT)
            path.parent.mkdir(exist_ok=True)
            shutil.copy(file, path)


def written() -> dict[str, str]:
    """Markdown by its path in the repository."""
    files = [*(ROOT / name for name in WRITTEN), *sorted(ROOT.glob("docs/*.md"))]
    return {
        file.relative_to(ROOT).as_posix(): _adapted(file.read_text(encoding="utf-8"), file.parent)
        for file in files
    }


def generated() -> dict[str, str]:
    made = {f"conf/{name}": text for name, text in reference.pages().items()}
    for file in ROOT.glob("docs/*.ipynb"):
        made[f"docs/{file.stem}.md"] = notebook.as_page(file)
    return made | {"docs/api.md": api.page()}


def _adapted(text: str, folder: Path) -> str:
    """Lists as MkDocs reads them; links to a notebook or a folder of settings lead to its page."""

    def to_page(match: re.Match[str]) -> str:
        target = match[2].rstrip("/").removesuffix(".ipynb")
        has_page = target != match[2] or (folder / target).is_dir()
        return f"{match[1]}{target}.md" if has_page else match[0]

    return LINK.sub(to_page, widened(text))
