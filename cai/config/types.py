"""What a setting may be: choices, ranges, forms of names, and whether it only says how to run."""

import dataclasses
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

T = TypeVar("T")

# A runtime setting changes how a stage runs, never what it makes. It is left out of every stage's
# key, so changing it runs nothing again.
RUNTIME = "runtime"
Runtime = Annotated[T, RUNTIME]

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Few = Annotated[int, Field(ge=1, le=64)]
FewOrZero = Annotated[int, Field(ge=0, le=64)]
Share = Annotated[float, Field(ge=0, le=1)]
HeldOut = Annotated[float, Field(ge=0, le=0.9)]
Certainty = Annotated[float, Field(ge=0.5, le=1)]
Length = Annotated[int, Field(ge=8, le=1 << 24)]
Money = Annotated[float, Field(ge=0, le=1_000_000)]


def matches(pattern: str, advice: str, hide: bool = False) -> AfterValidator:
    """Refuses text that does not match, with advice. `hide` keeps the text out of the message."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise PydanticCustomError("hidden" if hide else "form", "{advice}", {"advice": advice})
        return text

    return AfterValidator(check)


NAME_ADVICE = "use letters, digits, dots, dashes and underscores; it names a folder"
URL_ADVICE = "write http://host:port/v1; a key goes into the environment"
KEY_ADVICE = "write the NAME of the environment variable that holds the key"
URL = r"https?://[A-Za-z0-9.:\[\]_-]+(/[A-Za-z0-9._~/-]*)?"

RunName = Annotated[str, matches(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", NAME_ADVICE)]
# A configuration goes into files, so an address must hold no password, and a key is only named.
ServerUrl = Annotated[str, matches(URL, URL_ADVICE, hide=True)]
KeyName = Annotated[str, matches(r"[A-Z][A-Z0-9_]*", KEY_ADVICE, hide=True)]

Dtype = Literal["float32", "bfloat16", "float16"]
# of a chat template, which Jinja reads as a name
TemplateArgument = Annotated[str, matches(r"[A-Za-z_][A-Za-z0-9_]*", "takes names of arguments")]

EngineKind = Literal["transformers", "vllm", "openai", "scripted"]
Tracker = Literal["tensorboard", "wandb", "trackio"]
Format = Literal[
    "auto",
    "messages",
    "sharegpt",
    "alpaca",
    "completion",
    "demonstration",
    "preference",
    "scored",
    "prompt",
]
Dedupe = Literal["exact", "near", "none"]
Gate = Literal[
    "empty",
    "unchanged",
    "copied",
    "echo",
    "leakage",
    "repetition",
    "cut_off",
    "benign_refused",
    "complied",
    "off_topic",
    "language",
]


def is_runtime(setting: dataclasses.Field[Any]) -> bool:
    """Whether a field of a config class only says how to run."""
    return RUNTIME in getattr(setting.type, "__metadata__", ())


def without_runtime(value: Any) -> Any:
    """`value` as plain containers, without its runtime settings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        settings = (f for f in dataclasses.fields(value) if not is_runtime(f))
        return {f.name: without_runtime(getattr(value, f.name)) for f in settings}
    if isinstance(value, dict):
        return {key: without_runtime(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_runtime(item) for item in value]
    return value


def lookup(value: Any, key: str) -> Any:
    """`lookup(config, "dpo.args")`, through dataclasses and dicts."""
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value
