"""Principles in prose: Markdown, or plain text.

Every list item and every paragraph is a principle. A heading is a tag of what stands below it.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from cai.method.yaml_file import YamlFile, mapping_node

PROSE = (".md", ".txt")

# bullets and numbers of word processors, which Markdown does not know
BULLET = re.compile(r"^([ \t]*)[•◦▪‣·–][ \t]+", re.MULTILINE)
NUMBER = re.compile(r"^([ \t]*\d{1,3})[、．][ \t]*", re.MULTILINE)

COMMENT = re.compile(r"<!--.*?(-->|\Z)", re.DOTALL)

SENTENCE_END = re.compile(r"[.!?。！？…][)\"'”’»」』]?$")

# tokens with text that is no principle, and what people call them
UNREADABLE = {"table_open": "table", "fence": "code block", "html_block": "block of HTML"}


class Statement(NamedTuple):
    """What a list item or a paragraph says about how to behave."""

    text: str
    line: int  # from 0
    heading: str  # the nearest one above it; "" where there is none


class Fault(NamedTuple):
    """Something in the file that is no statement and no heading."""

    line: int
    problem: str


def prose_root(file: YamlFile) -> yaml.Node:
    """The root that a YAML file would have which says the same; what is wrong goes to the file."""

    def mark(line: int) -> yaml.Mark:
        return yaml.Mark(str(file.path), 0, line, 0, None, 0)

    source = file.source()
    statements, faults = read_prose(source)
    if strange := yaml.reader.Reader.NON_PRINTABLE.search(source):
        line = source.count("\n", 0, strange.start())
        faults.append(Fault(line, f"character U+{ord(strange[0]):04X} is not allowed"))
    for line, problem in faults:
        file.report(mark(line), problem)
    entries = [
        mapping_node({"sentence": text} | ({"tags": [heading]} if heading else {}), mark(line))
        for text, line, heading in statements
    ]
    return yaml.SequenceNode("tag:yaml.org,2002:seq", entries, mark(0))


def read_prose(text: str) -> tuple[list[Statement], list[Fault]]:
    """The statements of a text, and what in it can't be read as one."""
    text = NUMBER.sub(r"\1. ", BULLET.sub(r"\1- ", text))
    # indented text is no code here: people indent as they like
    tokens = MarkdownIt("commonmark").enable("table").disable("code").parse(text)
    statements: list[Statement] = []
    faults: list[Fault] = []
    heading = ""
    leads: list[str] = []  # what introduces each list that is open: "The assistant never:"
    for place, token in enumerate(tokens):
        line = token.map[0] if token.map else 0
        if token.type in UNREADABLE and not _is_comment(token):
            markup = UNREADABLE[token.type]
            faults.append(Fault(line, f"a {markup} is no principle; write sentences, or a list"))
        elif token.type == "heading_open":
            heading = _plain(tokens[place + 1])
        elif token.type.endswith("list_open"):
            leads.append(_plain(tokens[place - 2]) if _introduces(tokens, place - 3) else "")
        elif token.type.endswith("list_close"):
            leads.pop()
        elif token.type == "paragraph_open" and not _introduces(tokens, place):
            for offset, sentence in enumerate(_sentences(tokens[place + 1])):
                whole = " ".join(part for part in (*leads, sentence) if part)
                statements.append(Statement(whole, line + offset, heading))
    return statements, faults


def _is_comment(token: Token) -> bool:
    return token.type == "html_block" and not COMMENT.sub("", token.content).strip()


def _introduces(tokens: Sequence[Token], place: int) -> bool:
    """Whether the paragraph that begins at `place` ends in a colon, and a list follows it."""
    if not 0 <= place < len(tokens) - 3 or tokens[place].type != "paragraph_open":
        return False
    is_list = tokens[place + 3].type.endswith("list_open")
    return is_list and _plain(tokens[place + 1]).endswith((":", "："))


def _sentences(paragraph: Token) -> list[str]:
    """A paragraph whose every line ends a sentence is a list without bullets."""
    lines = _lines(paragraph)
    is_list = all(SENTENCE_END.search(line) for line in lines)
    return lines if is_list else [" ".join(lines)]


def _plain(inline: Token) -> str:
    return " ".join(_lines(inline))


def _lines(inline: Token) -> list[str]:
    """The text without marks for emphasis and links, line by line."""
    text = ""
    for child in inline.children or []:
        is_break = child.type in ("softbreak", "hardbreak")
        text += "\n" if is_break else "" if child.type == "html_inline" else child.content
    return [line.strip() for line in text.splitlines() if line.strip()]
