"""llms.txt (llmstxt.org): the site's pages for language models, each with its first sentence."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from website.prose import first_sentence

# a title, then the first paragraph that is neither a table, a list, an image nor code
TITLE = re.compile(r"^# (.+)$", re.MULTILINE)
PARAGRAPH = re.compile(r"\n\n(?![#|!<:?\s]|- |```)(.+?)(?=\n\n|\Z)", re.DOTALL)
LINK = re.compile(r"\[([^\]]+)\]\([^)]*\)")


def llms_txt(name: str, description: str, nav: list[Any], folder: Path) -> str:
    """`folder`: of the pages' Markdown, which lies beside each page under the same name."""
    sections = [f"# {name}\n\n> {description}\n"]
    for title, pages in _sections(nav):
        lines = [_line(folder, page) for page in pages]
        sections.append(f"## {title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(sections)


def _sections(nav: list[Any]) -> Iterator[tuple[str, list[str]]]:
    for entry in nav:
        for title, pages in entry.items():
            yield title, list(_paths(pages))


def _paths(pages: Any) -> Iterator[str]:
    if isinstance(pages, str):
        yield pages
    elif isinstance(pages, dict):
        yield from _paths(list(pages.values()))
    else:
        for page in pages:
            yield from _paths(page)


def _line(folder: Path, page: str) -> str:
    text = (folder / page).read_text(encoding="utf-8")
    title, paragraph = TITLE.search(text), PARAGRAPH.search(text)
    assert title, f"{page} has no title"
    sentence = first_sentence(_plain(" ".join(paragraph[1].split()))) if paragraph else ""
    # what is generated from docstrings is in the page alone
    address = page.replace(".md", ".html") if "\n::: " in text else page
    return f"- [{_plain(title[1])}]({address}): {sentence}".removesuffix(": ")


def _plain(text: str) -> str:
    return LINK.sub(r"\1", text).replace("&lt;", "<").replace("&gt;", ">").replace("\\", "")
