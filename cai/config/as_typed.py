"""Overrides of the command line as a person means them, written so that Hydra reads them so.

Hydra's grammar makes a number of `2026_11_29` and `1e5`, and knows neither letters beyond ASCII nor
`=` in a value. Both are read as text here where the setting is text: such a value goes to Hydra in
quotes. An argument of a library needs no `+`.
"""

import functools
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from cai.config.kinds import (
    child,
    in_open_mapping,
    is_text,
    kind_at,
    may_be,
    may_be_null,
    stays_text,
)
from cai.errors import UsageError
from cai.paths import shipped

OVERRIDE = re.compile(r"(\+{0,2})([^=+~-][^=]*)=(.*)", re.DOTALL)
QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
# what Hydra's grammar reads as one character, outside quotes
ESCAPED = re.compile(r"\\([\\()\[\]{}:=, \t])")
# Hydra's own functions: sweeps and casts
FUNCTION = re.compile(r"(bool|float|glob|int|interval|range|shuffle|sort|str|tag) ?\(.*\)", re.S)
CHOICE = re.compile(r"\s*choice ?\((.*)\)\s*", re.S)
GROUP = str | list[str] | None
BRACKETS = {"[": "]", "{": "}", "(": ")"}


def as_typed(words: Sequence[str], sweep: bool = False, folder: str | None = None) -> list[str]:
    """The overrides among `words` for Hydra; flags and what follows them stay as they are.

    `sweep`: commas separate the values of a sweep. `folder` holds groups of a person's own.
    Raises UsageError on an override that no quoting makes readable.
    """
    groups = groups_of_files(folder)
    return [_as_typed(word, groups, sweep) for word in words]


def displayed(word: str) -> str:
    """An override that was written for Hydra, as a person would have typed it."""
    match = OVERRIDE.fullmatch(word)
    if match is None:
        return word
    plus, key, value = match.groups()
    if QUOTED.fullmatch(value):
        value = str(_parser().parse_override(f"x={value}").value())
    return f"{'' if plus == '++' else plus}{key}={value}"


@functools.cache
def groups_of_files(folder: str | None) -> Mapping[str, list[str]]:
    """The groups of files, `model`, `engine`, ..., each with the names of its files."""
    roots = [shipped("conf"), *([Path(folder)] if folder else [])]
    files = sorted(path.relative_to(root) for root in roots for path in root.rglob("*.y*ml"))
    groups: dict[str, list[str]] = {}
    for file in files:
        if len(file.parts) > 1:
            groups.setdefault(file.parent.as_posix(), []).append(file.stem)
    return groups


def repeated(words: Sequence[str]) -> list[str]:
    """A sentence for each setting that the overrides among `words` set to two values.

    Hydra takes the last, without a word. Two mappings are joined, so they are no such case.
    """
    values: dict[str, list[str]] = {}
    for word in words:
        if match := OVERRIDE.fullmatch(word):
            values.setdefault(match[2], []).append(match[3].strip())
    return [
        f"{key} is set twice: {key}={set_to[-1]} holds, and {key}={set_to[-2]} does not"
        for key, set_to in values.items()
        if len({*set_to}) > 1 and not all(value.startswith("{") for value in set_to)
    ]


def _as_typed(word: str, groups: Container[str], sweep: bool) -> str:
    match = OVERRIDE.fullmatch(word)
    if match is None:
        return word
    plus, key, value = match.groups()
    group, _, package = key.partition("@")
    kind = kind_at(package or group.replace("/", "."))
    if group in groups and not value.strip().startswith("{"):
        kind = GROUP
    elif in_open_mapping(key):
        plus = "++"
    if chosen := CHOICE.fullmatch(value):
        value = chosen[1]  # Hydra drops the quotes of a value in choice(...), not of a,b
    values = list(_split(value, ","))
    if len(values) > 1 and not sweep:
        raise UsageError(
            f"{word}: commas separate the values of a sweep, which is -m; for one text with commas "
            f"in it write \"{key}='{value}'\", for a list '{key}=[{value}]'"
        )
    written = f"{plus}{key}={','.join(_quoted(element.strip(), kind) for element in values)}"
    if not _is_readable(written):
        raise UsageError(_unreadable(word, key, value))
    return written


def _quoted(text: str, kind: object) -> str:
    """A value, with quotes where Hydra would not read it as its setting's type does."""
    if not text or QUOTED.fullmatch(text):
        return text
    inner = text[1:-1]
    if text[0] == "[" and text[-1] == "]" and may_be(kind, list):
        elements = _split(inner, ",") if inner.strip() else ()
        return f"[{','.join(_quoted(element.strip(), child(kind)) for element in elements)}]"
    if text[0] == "{" and text[-1] == "}" and may_be(kind, dict):
        pairs = [pair for pair in _split(inner, ",") if inner.strip()]
        names = [pair.partition(":")[0].strip().strip("'\"") for pair in pairs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UsageError(f"{text}: '{twice[0]}' stands twice, and one value would be lost")
        return f"{{{','.join(_pair(pair, kind) for pair in pairs)}}}"
    if FUNCTION.fullmatch(text):
        return text
    is_null = text.lower() == "null" and may_be_null(kind)
    is_kept = is_text(kind) or stays_text(text, kind)
    if is_null or (not is_kept and _is_readable(f"x={text}")):
        return text
    return QuotedString(ESCAPED.sub(r"\1", text), Quote.single).with_quotes()


def _pair(text: str, kind: object) -> str:
    name, colon, value = text.partition(":")
    return f"{name}{colon}{_quoted(value.strip(), child(kind, name.strip()))}"


def _split(text: str, separator: str) -> Iterator[str]:
    """`text` at each separator that stands outside quotes and brackets."""
    start, position, depth = 0, 0, 0
    while position < len(text):
        character = text[position]
        quoted = QUOTED.match(text, position)
        if character == "\\":
            position += 1
        elif quoted and text[:position].rstrip()[-1:] in ("", ",", ":", *BRACKETS):
            position = quoted.end() - 1
        elif character in BRACKETS:
            depth += 1
        elif character in BRACKETS.values():
            depth -= 1
        elif character == separator and depth == 0:
            yield text[start:position]
            start = position + 1
        position += 1
    yield text[start:]


@functools.cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def _is_readable(override: str) -> bool:
    try:
        _parser().parse_override(override)
    # the last four: Hydra's parser lets these through
    except (HydraException, AssertionError, AttributeError, IndexError, TypeError, RecursionError):
        return False
    return True


def _unreadable(word: str, key: str, value: str) -> str:
    if not _is_readable(f"{key}=x"):
        return (
            f"{word}: the key of an override holds letters from a to z, digits, dots and _ alone; "
            "write other names into a YAML file, e.g. experiment/mine.yaml in a folder that "
            "--config-dir names"
        )
    return (
        f"{word}: Hydra can't read this value; a text is written "
        f'"{key}={QuotedString(value, Quote.single).with_quotes()}", a mapping '
        f"'{key}={{name: value}}' with names of letters from a to z; others stand in a YAML file"
    )
