"""The type of a setting by its key, and whether it takes text as typed."""

import dataclasses
import re
import types
import typing
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union

from cai.config.argument_kinds import argument_kinds
from cai.config.schema import Config
from cai.config.types import OfLibrary, marks

# where nothing is known of a setting, as of Hydra's own
UNKNOWN: object = None

# numbers that YAML or Hydra read, and that a person may have meant as text: 2026_11_29, 017, 1:30
ODD_NUMBER = re.compile(r"[-+]?(0[\dxXbBoO]|\d+[_:])[\w:.]*")
# of these, what YAML reads as another number than is written: 15 and 90
MISREAD_NUMBER = re.compile(r"[-+]?(0\d+|[\d_]+:[\d:_.]*)")


def kind_at(key: str, kind: object = Config) -> object:
    """The type of the setting at `key`, below another type."""
    for name in key.split(".") if key else ():
        kind = child(kind, name)
    return kind


def child(kind: object, name: str | None = None) -> object:
    """The type of an entry of a section or mapping, or of a list's elements (without a name)."""
    for mark in marks(kind, OfLibrary):
        return argument_kinds(mark.name).get(name or "", UNKNOWN)
    for member in members(kind):
        outer = typing.get_origin(member) or member
        if dataclasses.is_dataclass(member) and name is not None:
            fields = [field for field in dataclasses.fields(member) if field.name == name]
            return fields[0].type if fields else UNKNOWN
        if outer is (list if name is None else dict):
            return (UNKNOWN, *typing.get_args(member))[-1]
    return UNKNOWN


def members(kind: object) -> list[object]:
    """The types that a union is made of; the one type where it is none. None for null."""
    outer = typing.get_origin(kind)
    if outer is Annotated:
        return members(typing.get_args(kind)[0])
    if outer in (Union, types.UnionType):
        return [member for part in typing.get_args(kind) for member in members(part)]
    return [type(None) if kind is None else kind]


def is_text(kind: object) -> bool:
    """Whether a scalar for this setting is text, whatever number or word it looks like."""
    scalars = [member for member in members(kind) if not _is_container(member)]
    return any(member is str or _is_choice_of_texts(member) for member in scalars) and not any(
        member in (int, float, bool) for member in scalars
    )


def stays_text(text: str, kind: object) -> bool:
    """Whether a value that looks like a number is kept as the text that was typed."""
    if kind is UNKNOWN or is_number(kind):
        return kind is not UNKNOWN and bool(MISREAD_NUMBER.fullmatch(text))
    takes_text = any(member in (str, Any) for member in members(kind))
    return takes_text and bool(ODD_NUMBER.fullmatch(text))


def is_number(kind: object) -> bool:
    """Whether a setting takes numbers, and neither true nor false."""
    kinds = members(kind)
    return (int in kinds or float in kinds) and not {bool, str} & set(kinds)


def choices_of(kind: object) -> list[str]:
    """The texts that a setting takes, or its elements, where these are few."""
    values = [value for member in members(kind) for value in typing.get_args(member)]
    below = [text for value in values for text in choices_of(value) if not isinstance(value, str)]
    return below + [value for value in values if isinstance(value, str)]


def _is_choice_of_texts(member: object) -> bool:
    values = typing.get_args(member) if typing.get_origin(member) is Literal else ()
    return bool(values) and all(isinstance(value, str) for value in values)


def may_be_null(kind: object) -> bool:
    return kind is UNKNOWN or type(None) in members(kind)


def may_be(kind: object, container: type) -> bool:
    """Whether a setting takes a list, or (`dict`) a mapping or section."""
    outers = [typing.get_origin(member) or member for member in members(kind)]
    return kind is UNKNOWN or any(
        outer in (container, Any) or (container is dict and dataclasses.is_dataclass(outer))
        for outer in outers
    )


def _is_container(member: object) -> bool:
    outer = typing.get_origin(member) or member
    return outer in (list, dict) or dataclasses.is_dataclass(outer)


def in_open_mapping(key: str) -> bool:
    """Whether a key is, or is in, a mapping whose names a person chooses, as `sft.args`.

    Not in `data` and `evaluate.suites`: their entries are sections, of which a new one is rare.
    """
    kind: object = Config
    for name in key.split("."):
        kind = child(kind, name)
        if kind is UNKNOWN:
            return False
        if any(typing.get_origin(member) is dict for member in members(kind)):
            return not has_entries(kind)
    return False


def has_entries(kind: object) -> bool:
    """Whether a mapping's values are sections."""
    values = [typing.get_args(member)[-1] for member in members(kind) if typing.get_args(member)]
    return any(dataclasses.is_dataclass(part) for value in values for part in members(value))


def keys_are_text(kind: object) -> bool:
    """Whether a mapping's names are text: every one but those that nothing is known of."""
    mappings: Sequence[object] = [
        member for member in members(kind) if typing.get_origin(member) is dict
    ]
    return any(str in members(typing.get_args(mapping)[0]) for mapping in mappings)
