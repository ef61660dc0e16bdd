"""The arguments of trl's, peft's and transformers' classes: their names, types and choices.

They are read from the libraries' source files, since importing trl takes seconds and a plan must
answer at once.
"""

import ast
import functools
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Optional, Union, get_args, get_origin


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

# Types that a source names. Any other name is of the library's own, which may take anything.
SIMPLE = {"str": str, "int": int, "float": float, "bool": bool, "None": None, "dict": dict}

# Classes of choices, and where they are written. Beside one, `str` takes no other text.
CHOICES = {
    "IntervalStrategy": "transformers/trainer_utils.py",
    "SaveStrategy": "transformers/trainer_utils.py",
    "HubStrategy": "transformers/trainer_utils.py",
    "SchedulerType": "transformers/trainer_utils.py",
    "OptimizerNames": "transformers/training_args.py",
}

# how the words about an argument name its choices, in one sentence
NAMED = re.compile(r"(?:Possible values are|Options):? (.*?)\. ", re.DOTALL)
CHOICE = re.compile(r"'(\w+)'|`(\w+)`")


@functools.cache
def argument_kinds(class_name: str) -> Mapping[str, object]:
    """The type of each argument of a class; Any where it is not simple.

    Empty where the library is not installed, or is written in another way than is known here.
    """
    source = SOURCES[class_name]
    kinds: dict[str, object] = {}
    for base in source.bases:
        kinds |= argument_kinds(base)
    return kinds | written_in(source_text(source.file), source.name)


@functools.cache
def source_text(file: str) -> str:
    """A file of a library, e.g. trl/trainer/sft_config.py; empty where it is not installed."""
    package, _, path = file.partition("/")
    spec = importlib.util.find_spec(package)
    files = [Path(folder) / path for folder in (spec and spec.submodule_search_locations) or ()]
    return next((path.read_text(encoding="utf-8") for path in files if path.is_file()), "")


def written_in(text: str, name: str) -> dict[str, object]:
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
            return {argument.arg: _kind(argument.annotation) for argument in arguments}
    return {
        field.target.id: _narrowed(_kind(field.annotation), _choices(field.value))
        for field in body.body
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and not field.target.id.startswith("_")
    }


def _choices(value: ast.expr | None) -> list[str]:
    """The texts that an argument takes, where its `field(metadata={...})` names them.

    None where its own default is no such text: the words name some of what may be joined then.
    """
    keywords = value.keywords if isinstance(value, ast.Call) else []
    arguments = {keyword.arg: keyword.value for keyword in keywords}
    metadata = arguments.get("metadata")
    entries: dict[str, Any] = {}
    if isinstance(metadata, ast.Dict):
        for name, entry in zip(metadata.keys, metadata.values, strict=True):
            if isinstance(name, ast.Constant) and isinstance(entry, ast.Constant | ast.List):
                entries[str(name.value)] = ast.literal_eval(entry)
    sentence = NAMED.search(f"{entries.get('help', '')} ")
    named = [first or second for first, second in CHOICE.findall(sentence[1] if sentence else "")]
    choices: list[str] = entries.get("choices", named)
    default = arguments.get("default")
    is_open = isinstance(default, ast.Constant) and default.value not in (None, *choices)
    return [] if is_open else choices


def _narrowed(kind: object, choices: Sequence[str]) -> object:
    """A type with choices in place of any text."""
    outer, parts = get_origin(kind), get_args(kind)
    if not choices or outer is Literal:
        return kind
    if kind is str:
        return Literal[tuple(choices)]
    if outer is list:
        return list[_narrowed(parts[0], choices)]
    members = tuple(_narrowed(part, choices) for part in parts)
    return Union[members] if parts else kind  # noqa: UP007


@functools.cache
def _class_of_choices(name: str) -> object:
    definition = re.search(rf"^class {name}\(.*?(?=^\S)", source_text(CHOICES[name]), re.M | re.S)
    values = re.findall(r'^    [A-Z]\w* = "(.+?)"', definition[0] if definition else "", re.M)
    return Literal[tuple(values)] if values else Any


def _kind(node: ast.expr | None) -> object:
    """The type that an annotation names."""
    match node:
        case ast.Constant(value=None):
            return None
        case ast.Constant(value=str() as text):
            return _kind(ast.parse(text, mode="eval").body)
        case ast.Name(id=name) if name in CHOICES:
            return _class_of_choices(name)
        case ast.Name(id=name):
            return SIMPLE.get(name, list[Any] if name in ("list", "List") else Any)
        case ast.BinOp(left=ast.Name(id=name) as left, right=ast.Name(id="str")) if name in CHOICES:
            return _kind(left)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Union[_kind(left), _kind(right)]  # noqa: UP007
        case ast.Subscript(value=ast.Name(id=outer), slice=inner):
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return _generic(outer, parts)
    return Any


def _generic(outer: str, parts: Sequence[ast.expr]) -> object:
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
