"""Links that leave the site. Whether they answer is asked where there is a network, not here."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

# [text](address), and <address>
LINK = re.compile(r"(?:\]\(|<)(\w+:[^)>]*)")
CODE = re.compile(r"(`{3,})[^`].*?^ *\1$|`[^`\n]+`", re.DOTALL | re.MULTILINE)
LOADED = re.compile(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="((?:https?:)?//[^"]*)"')
HOST = re.compile(r"([a-z0-9-]+\.)+[a-z]{2,}")


def outside_links(pages: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(page, address), of Markdown by its path."""
    for page, text in pages.items():
        for address in LINK.findall(CODE.sub("", text)):
            yield page, address


def fault(address: str) -> str:
    """What is wrong with the form of an address, or nothing."""
    parts = urlsplit(address)
    if parts.scheme != "https":
        return "does not begin with https://"
    if not HOST.fullmatch(parts.netloc):
        return "names no host"
    if re.search(r"\s|[.,;:'\"]$|//", parts.path):
        return "has a space, a // or a mark of punctuation in its path"
    return ""


def loaded_from_elsewhere(site: Path) -> list[str]:
    """Scripts, styles and pictures that the pages of a built site take from another host."""
    found = []
    for page in sorted(site.rglob("*.html")):
        for address in LOADED.findall(page.read_text(encoding="utf-8")):
            found.append(f"{page.relative_to(site)}: loads {address}")
    return found
