"""The arguments of trl's, peft's and transformers' classes: their names and types.

They are read from the libraries' source files, since importing trl takes seconds and a plan must
answer at once.
"""

import ast
import dataclasses
import functools
import importlib.util
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Optional, Union

from pydantic import TypeAdapter, ValidationError

from cai.config.explain import at
from cai.config.types import OfLibrary, marks
from cai.errors import UsageError, nearest


class Source(NamedTuple):
    """Where a class is written, and the classes that it inherits arguments from."""

    file: str
    name: str
    bases: tuple[str, ...] = ()


SOURCES = {
    "trl.SFTConfig": Source("trl/trainer/sft_config.py", "SFTConfig", ("trl.base",)),
    "trl.DPOConfig": Source("trl/trainer/dpo_config.py", "DPOConfig", ("trl.base",)),
    "trl.base": Source("trl/trainer/base_config.py", "_BaseConfig", ("transformers.training",)),
    "transformers.training": Source("transformers/training_args.py", "TrainingArguments"),
    "peft.LoraConfig": Source("peft/tuners/lora/config.py", "LoraConfig", ("peft.base",)),
    "peft.base": Source("peft/config.py", "PeftConfig", ("peft.mixin",)),
    "peft.mixin": Source("peft/config.py", "PeftConfigMixin"),
    "transformers.BitsAndBytesConfig": Source(
        "transformers/utils/quantization_config.py", "BitsAndBytesConfig"
    ),
}

# trl turns one text into a list
ALSO_TAKEN = {"loss_type": str}

# Types that a source names. Any other name is of the library's own, which may take anything.
SIMPLE = {"str": str, "int": int, "float": float, "bool": bool, "None": None, "dict": dict}
WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a mapping",
    list: "a list",
    types.NoneType: "null",
}


@functools.cache
def argument_kinds(class_name: str) -> Mapping[str, Any]:
    """The type of each argument of a class; Any where it is not simple.

    Empty where the library is not installed, or is written in another way than is known here.
    """
    source = SOURCES[class_name]
    kinds: dict[str, Any] = {}
    for base in source.bases:
        kinds |= argument_kinds(base)
    package, _, path = source.file.partition("/")
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        file = Path(folder) / path
        if file.is_file():
            kinds |= _written_in(file.read_text(encoding="utf-8"), source.name)
    return kinds


def _written_in(text: str, name: str) -> dict[str, Any]:
    """The arguments of a class: its fields, or what its `__init__` takes where it has one."""
    start = re.search(rf"^class {name}\b", text, re.MULTILINE)
    if start is None:
        return {}
    # up to the first method, since to parse a whole file takes ten times as long
    rest = text[start.start() :]
    stop = re.search(r"^(?:class|def|@)|^    (?:@|def (?!__init__))", rest[1:], re.MULTILINE)
    body = ast.parse(rest[: stop.start() + 1] if stop else rest).body[0]
    assert isinstance(body, ast.ClassDef)
    for statement in body.body:
        if isinstance(statement, ast.FunctionDef):
            arguments = [*statement.args.args[1:], *statement.args.kwonlyargs]
            return {each.arg: _kind(each.annotation) for each in arguments}
    return {
        field.target.id: _kind(field.annotation)
        for field in body.body
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and not field.target.id.startswith("_")
    }


def _kind(node: ast.expr | None) -> Any:
    """The type that an annotation names."""
    match node:
        case ast.Constant(value=None):
            return None
        case ast.Constant(value=str() as text):
            return _kind(ast.parse(text, mode="eval").body)
        case ast.Name(id=name):
            return SIMPLE.get(name, list[Any] if name in ("list", "List") else Any)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Union[_kind(left), _kind(right)]  # noqa: UP007
        case ast.Subscript(value=ast.Name(id=outer), slice=inner):
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return _generic(outer, parts)
    return Any


def _generic(outer: str, parts: Sequence[ast.expr]) -> Any:
    if outer == "Literal":
        values = [part.value for part in parts if isinstance(part, ast.Constant)]
        # peft writes one of its choices as a pattern: pissa_niter_[number of iters]
        is_closed = len(values) == len(parts) and not any("[" in str(value) for value in values)
        return Literal[tuple(values)] if is_closed else Any
    kinds = [_kind(part) for part in parts]
    if outer == "Optional":
        return Optional[kinds[0]]  # noqa: UP045
    if outer == "Union":
        return Union[tuple(kinds)]  # noqa: UP007
    if outer in ("list", "List"):
        return list[kinds[0]]
    return dict[kinds[0], kinds[1]] if outer in ("dict", "Dict") else Any


def check_libraries(config: Any, overrides: Sequence[str], above: str = "") -> None:
    """Raises UsageError on an argument that its library's class does not have, or of another type.

    `config` is a config class's instance, or a dict of such.
    """
    for key, class_name, arguments in _library_sections(config, above):
        kinds = argument_kinds(class_name)
        for name, value in arguments.items() if kinds else ():
            setting = f"{key}.{name}"
            if name not in kinds:
                hint = nearest(str(name), list(kinds))
                raise UsageError(
                    f"{at(setting, overrides)}: {class_name} has no such argument{hint}"
                )
            if not _fits(kinds[name], value) and type(value) is not ALSO_TAKEN.get(name):
                raise UsageError(
                    f"{at(setting, overrides, repr(value))}: {class_name} takes "
                    f"{_in_words(kinds[name])} here"
                )


def _library_sections(value: Any, above: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every dict of a library's arguments, with its key and the name of the library's class."""
    if isinstance(value, dict):
        for name, child in value.items():
            yield from _library_sections(child, f"{above}{name}.")
    elif dataclasses.is_dataclass(value):
        for setting in dataclasses.fields(value):
            key, child = f"{above}{setting.name}", getattr(value, setting.name)
            for mark in marks(setting.type, OfLibrary) if child else ():
                yield key, mark.name, child
            yield from _library_sections(child, f"{key}.")


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _fits(kind: Any, value: object) -> bool:
    try:
        _adapter(kind).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def _in_words(kind: Any) -> str:
    """A type in a message: `a number`, `a list of text or null`."""
    outer, parts = typing.get_origin(kind), typing.get_args(kind)
    if outer is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if outer in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_in_words(part) for part in parts))
    if outer is list and parts[0] is not Any:
        return f"a list of {_in_words(parts[0])}"
    return WORDS.get(outer or kind, "an object of its own")
