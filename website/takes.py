"""What a setting takes, in words, from its type in the schema."""

import dataclasses
import re
import types
import typing
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union

from cai.config.explain import limits_in_words
from cai.config.types import OfLibrary, marks

SIMPLE = {
    bool: "`true` or `false`",
    str: "text",
    type(None): "`null`",
    None: "`null`",
    Any: "anything",
}


def takes(kind: Any) -> str:
    """`whole number from 1 to 64, or null`, ..."""
    for library in marks(kind, OfLibrary):
        null = ", or `null`" if "None" in str(kind) else ""
        return f"arguments of `{library.name}`{null}"
    return _words(kind, ())


def _words(kind: Any, limits: Sequence[Any]) -> str:
    outer, inner = typing.get_origin(kind), typing.get_args(kind)
    if outer is Annotated:
        return _words(inner[0], [*limits, *kind.__metadata__])
    if outer in (Union, types.UnionType):
        words = [_words(each, limits) for each in inner]
        return ", or ".join([" or ".join(words[:-1]), words[-1]])
    if outer is Literal:
        return "one of " + ", ".join(f"`{value}`" for value in inner)
    if outer is list:
        words = _words(inner[0], ()).removeprefix("one of ")
        return "list of " + re.sub("^(list|mapping)", r"\1s", words)
    if outer is dict:
        return f"mapping from names to {_words(inner[1], ())}"
    if dataclasses.is_dataclass(kind):
        return f"mapping of {', '.join(f'`{each.name}`' for each in dataclasses.fields(kind))}"
    if kind in (int, float):
        number = "whole number" if kind is int else "number"
        return f"{number} {limits_in_words(limits)}".rstrip()
    return SIMPLE[kind]
