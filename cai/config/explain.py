"""What is wrong with a setting, in one line: the key, its value, what set it, what it may be."""

import dataclasses
import functools
import json
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union

import yaml
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from cai.config.kinds import UNKNOWN, kind_at, members
from cai.errors import nearest
from cai.paths import shipped

# The YAML files of the last composition, each with the section that it holds: empty for the whole.
READ_FILES: dict[Path, str] = {}

# What stands for ??? in a file: OmegaConf would merge nothing, and leave the value of another file.
OPEN = "??? in "


# what settings take, in the words of cai, by pydantic's kinds of errors
NEEDED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    "string_type": "must be a text",
    "list_type": "must be a list, e.g. [a, b]",
    "dict_type": "must be a mapping, e.g. {a: 1}",
    "dataclass_type": "must be a mapping of settings",
}


def shown(file: Path) -> str:
    """A YAML file in a message: `conf/dpo/full.yaml`, or a file of the person's own."""
    root = shipped("conf").resolve()
    return f"conf/{file.relative_to(root).as_posix()}" if file.is_relative_to(root) else str(file)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting in a message: its key, its value where there is one, and what set it.

    What set it is looked up as the message is written: that parses the files of conf/, and most
    checks find nothing to say.
    """

    key: str
    overrides: Sequence[str]
    value: object = None

    def __str__(self) -> str:
        value = "" if self.value is None else f"={self.value}"
        return f"{self.key}{value}{origin(self.key, self.overrides, self.value)}"


def at(key: str, overrides: Sequence[str], value: object = None) -> Setting:
    """How a message names a setting: f"{at('seed', overrides)}: ..."."""
    return Setting(key, overrides, value)


def origin(key: str, overrides: Sequence[str], value: object = None) -> str:
    """What set a key: ` (override 'x=1')`, or ` (conf/dpo/full.yaml:3)`, or nothing.

    A file is named only where it has `value`: a file of the person's own may have set it.
    """
    for override in reversed(overrides):
        # of `model@label.model` what stands behind the @
        name = override.split("=", 1)[0].lstrip("+~").rpartition("@")[2]
        if f"{key}.".startswith(f"{name}.") or name.startswith(f"{key}."):
            return f" (override '{override}')"
    for file in sorted(READ_FILES, key=_rank):
        for path in _paths_below(READ_FILES[file], key):
            if line := _line(file, path, value):
                return f" ({shown(file)}:{line})"
    return ""


def _rank(file: Path) -> tuple[bool, bool, Path]:
    """A person's own files are looked at first, then those of experiments, which set the rest."""
    return shown(file).startswith("conf/"), READ_FILES[file] != "", file


def _paths_below(section: str, key: str) -> Iterator[list[str]]:
    """Where a file that holds `section` may set `key`.

    A file of one section may be put into another of its kind: sft@sl_cai=revisions.
    """
    parts = key.split(".")
    for position in range(len(parts)):
        place = ".".join(parts[:position])
        kinds = {member for member in members(kind_at(section)) if dataclasses.is_dataclass(member)}
        if place == section or kinds & set(members(kind_at(place))):
            yield parts[position:]


@functools.cache
def _parsed(text: str) -> yaml.Node | None:
    return yaml.compose(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _line(file: Path, path: Sequence[str], value: object = None) -> int | None:
    """The line of a YAML file that sets the key at `path`, to `value` where it is given."""
    node, line = _parsed(file.read_text(encoding="utf-8-sig")), None
    for name in path:
        entries = node.value if isinstance(node, yaml.MappingNode) else []
        places = {key.value: (key.start_mark.line + 1, entry) for key, entry in entries}
        line, node = places.get(name, (None, None))
    # as Python writes it, and as YAML does
    written = {str(value).strip("'"), *({"~", ""} if value == "null" else ())}
    is_other = isinstance(node, yaml.ScalarNode) and node.value not in written
    return None if value is not None and is_other else line


def files_that_set(group: str, path: Sequence[str]) -> list[str]:
    """The names of the files of a group in conf/ that set the key at `path` of its section."""
    files = sorted((shipped("conf") / group).glob("*.yaml"))
    return [file.stem for file in files if _line(file, path)]


def must_be_one_of(value: object, allowed: Sequence[str]) -> str:
    """The end of a message about a choice."""
    return f"must be one of {', '.join(allowed)}{nearest(str(value), list(allowed))}"


def sentence(kind: type, problem: ErrorDetails, overrides: Sequence[str]) -> str:
    """What pydantic says is wrong with a value, in one line."""
    error, value = problem["type"], problem["input"]
    path = [part for part in problem["loc"] if part != "[key]"]  # pydantic's mark of a name
    message = problem["msg"][:1].lower() + problem["msg"][1:]
    # An element of a list goes by the name of the list.
    key = ".".join(map(str, path[:-1] if path and isinstance(path[-1], int) else path))
    if error == "missing":
        return missing(key)
    if error == "invalid_key":
        return unknown(".".join(map(str, path)), [], overrides)
    if error == "hidden":
        return f"{key}: {message}"
    if error == "unexpected_keyword_argument":
        section, _ = _type_at(kind, path[:-1])
        assert dataclasses.is_dataclass(section)
        return unknown(key, [field.name for field in dataclasses.fields(section)], overrides)
    setting, limits = _type_at(kind, path)
    if error == "literal_error":
        return f"{at(key, overrides, value)}: {must_be_one_of(value, typing.get_args(setting))}"
    message = NEEDED.get(error, message)
    if error.startswith(("greater_than", "less_than")):
        message = f"must be {limits_in_words(limits)}"
    if value is None:
        message = f"can't be null: it {message}"
    return f"{at(key, overrides, as_written(value))}: {message}"


def as_written(value: object) -> str:
    """A value as YAML has it, with quotes around a text."""
    is_word = value is None or isinstance(value, bool)
    return json.dumps(value) if is_word else repr(value)


def _type_at(kind: object, path: Sequence[str | int]) -> tuple[object, tuple[object, ...]]:
    """The type of the setting at `path` below a config class, and what is annotated to it."""
    annotations: tuple[object, ...] = ()
    for name in path:
        if dataclasses.is_dataclass(kind):
            types = {field.name: field.type for field in dataclasses.fields(kind)}
            kind = types.get(str(name), Any)
        else:
            # The elements of a list or dict. A dict's wrong key has none: pydantic adds '[key]'.
            kind = (Any, *typing.get_args(kind))[-1]
        annotations = ()
        while (outer := typing.get_origin(kind)) in (Annotated, Union, UnionType):
            if outer is Annotated:
                annotations += typing.get_args(kind)[1:]
            kind = typing.get_args(kind)[0]  # of `X | None`: X
    return kind, annotations


def limits_in_words(annotations: Sequence[object]) -> str:
    """`between 1 and 64`, `at least 0`, ..., or nothing, of what is annotated to a number."""
    limits: dict[str, float] = {}
    for annotation in annotations:
        for limit in annotation.metadata if isinstance(annotation, FieldInfo) else ():
            limits |= dataclasses.asdict(limit)
    if limits.keys() == {"ge", "le"}:
        return f"between {limits['ge']} and {limits['le']}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return " and ".join(f"{words[name]} {limit}" for name, limit in limits.items())


def missing(key: str, place: str = "") -> str:
    stands = f" (??? in {place})" if place else ""
    return f"{key} has no value{stands}; set it with {key}=..."


def unknown(key: str, siblings: list[str], overrides: Sequence[str]) -> str:
    """A message about a key that its section, which has the keys `siblings`, does not have."""
    for file, section in READ_FILES.items():
        if section and f"{key}.".startswith(f"{section}.") and kind_at(section) is UNKNOWN:
            return (
                f"{shown(file)}: what it sets would stand below '{section}', which is no setting; "
                "write `# @package _global_` as its first line"
            )
    hint = nearest(key.split(".")[-1], siblings)
    choices = f" (known: {', '.join(siblings)})" if siblings else ""
    return f"unknown key '{key}'{origin(key, overrides)}{hint}{choices}"
