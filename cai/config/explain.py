"""What is wrong with a setting, in one line: the key, its value, what set it, what it may be."""

import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union

import yaml
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from cai.errors import nearest
from cai.paths import shipped


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
    parts = key.split(".")
    for file in sorted(shipped("conf").rglob("*.yaml")):
        for position, part in enumerate(parts[:-1], 1):
            if part in (file.parent.name, file.stem) and (
                line := _line(file, parts[position:], value)
            ):
                return f" (conf/{file.relative_to(shipped('conf')).as_posix()}:{line})"
    return ""


def _line(file: Path, path: Sequence[str], value: object = None) -> int | None:
    """The line of a YAML file that sets the key at `path`, to `value` where it is given."""
    node = yaml.compose(file.read_text(encoding="utf-8"), yaml.SafeLoader)
    line = None
    for name in path:
        entries = node.value if isinstance(node, yaml.MappingNode) else []
        places = {key.value: (key.start_mark.line + 1, entry) for key, entry in entries}
        line, node = places.get(name, (None, None))
    is_other = isinstance(node, yaml.ScalarNode) and node.value != str(value).strip("'")
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
    error, value, path = problem["type"], problem["input"], problem["loc"]
    message = problem["msg"][:1].lower() + problem["msg"][1:]
    # An element of a list goes by the name of the list.
    key = ".".join(map(str, path[:-1] if path and isinstance(path[-1], int) else path))
    if error == "missing":
        return missing(key)
    if error == "hidden":
        return f"{key}: {message}"
    if error == "unexpected_keyword_argument":
        section, _ = _type_at(kind, path[:-1])
        return unknown(key, [field.name for field in dataclasses.fields(section)], overrides)
    setting, limits = _type_at(kind, path)
    if error == "literal_error":
        return f"{at(key, overrides, value)}: {must_be_one_of(value, typing.get_args(setting))}"
    if error.startswith(("greater_than", "less_than")):
        message = f"must be {_range(limits)}"
    return f"{at(key, overrides, repr(value))}: {message}"


def _type_at(kind: Any, path: Sequence[str | int]) -> tuple[Any, tuple[Any, ...]]:
    """The type of the setting at `path` below a config class, and what is annotated to it."""
    annotations: tuple[Any, ...] = ()
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
                annotations += kind.__metadata__
            kind = typing.get_args(kind)[0]  # of `X | None`: X
    return kind, annotations


def _range(annotations: Sequence[Any]) -> str:
    """`between 1 and 64`, `at least 0`, ..."""
    limits: dict[str, float] = {}
    for annotation in annotations:
        for limit in annotation.metadata if isinstance(annotation, FieldInfo) else ():
            limits |= dataclasses.asdict(limit)
    if limits.keys() == {"ge", "le"}:
        return f"between {limits['ge']} and {limits['le']}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return " and ".join(f"{words[name]} {limit}" for name, limit in limits.items())


def missing(key: str) -> str:
    return f"{key} has no value; set it with {key}=..."


def unknown(key: str, siblings: list[str], overrides: Sequence[str]) -> str:
    """A message about a key that its section, which has the keys `siblings`, does not have."""
    hint = nearest(key.split(".")[-1], siblings)
    known = f" (known: {', '.join(siblings)})" if siblings else ""
    return f"unknown key '{key}'{origin(key, overrides)}{hint}{known}"
