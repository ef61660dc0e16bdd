"""What the comments of a YAML file say of its settings."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

# `# strict: false` and `# - copied`: what a file mentions, with its meaning above, and does not set
UNSET = re.compile(r"# (\w+):(?: \S+)?")
ENTRY = re.compile(r"(?:# )?- (\w+)")

Keys = tuple[str, ...]  # from the file's root down to a setting


@dataclass
class Comments:
    """Of one file, as lines without their `# `."""

    description: list[str] = field(default_factory=list)  # the comment that the file begins with
    meanings: dict[Keys, list[str]] = field(default_factory=dict)
    # of a list's entries, those that it leaves out too
    entries: dict[Keys, dict[str, list[str]]] = field(default_factory=dict)


def read_comments(file: Path) -> Comments:
    lines = file.read_text(encoding="utf-8").splitlines()
    description = _above(lines, _header_end(lines))
    comments = Comments([line for line in description if not line.startswith("@package")])
    root = yaml.compose("\n".join(lines))
    if isinstance(root, yaml.MappingNode):
        _read_section(root, (), lines, comments)
    for place, line in enumerate(lines):
        is_last = not "".join(lines[place + 1 : place + 2])
        if is_last and (match := UNSET.fullmatch(line)) and (meaning := _above(lines, place)):
            comments.meanings.setdefault((match[1],), meaning)
    return comments


def _header_end(lines: Sequence[str]) -> int:
    return next((place for place, line in enumerate(lines) if not line.startswith("#")), len(lines))


def _above(lines: Sequence[str], end: int) -> list[str]:
    """The lines of comment right above the line `end`."""
    start = end
    while start and lines[start - 1].lstrip().startswith("#"):
        start -= 1
    return [_text(line) for line in lines[start:end]]


def _text(line: str) -> str:
    return line.strip().removeprefix("#").removeprefix(" ")


def _read_section(
    node: yaml.MappingNode, above: Keys, lines: Sequence[str], comments: Comments
) -> None:
    header = _header_end(lines)
    for key, value in node.value:
        keys, line = (*above, key.value), key.start_mark.line
        # the comment that a file begins with is about the file
        if line != header and (meaning := _above(lines, line)):
            comments.meanings[keys] = meaning
        if isinstance(value, yaml.MappingNode):
            _read_section(value, keys, lines, comments)
        elif entries := dict(_read_entries(lines[line + 1 :])):
            comments.entries[keys] = entries


def _read_entries(lines: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The entries, up to the next blank line, that have a comment above them."""
    comment: list[str] = []
    for line in lines:
        if match := ENTRY.fullmatch(line.strip()):
            if comment:
                yield match[1], comment
            comment = []
        elif line.strip().startswith("#"):
            comment.append(_text(line))
        else:
            return
