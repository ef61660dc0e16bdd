"""What a setting may be: choices, ranges, forms of names, and whether it only says how to run."""

import dataclasses
import os
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

T = TypeVar("T")

Arguments = dict[str, Any]  # of a library's class or server, under its own names

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
# numpy, which draws beside torch, takes no other
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]


def matches(pattern: str, advice: str, hide: bool = False) -> AfterValidator:
    """Refuses text that does not match, with advice. `hide` keeps the text out of the message."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise PydanticCustomError("hidden" if hide else "form", "{advice}", {"advice": advice})
        return text

    return AfterValidator(check)


def in_home(text: str) -> str:
    """A path with the home folder for its `~`, which no shell has put there: outputs=~/runs."""
    return os.path.expanduser(text)  # noqa: PTH111  # Path would drop a trailing slash


# a path, or a name that may be one
Located = Annotated[str, AfterValidator(in_home)]


def no_mapping(value: object) -> object:
    """Of a filter's value: a mapping stands there where a person wrote one column in another."""
    if isinstance(value, dict):
        advice = "must be a text; a column within another has a dot in its name: {meta.lang: en}"
        raise PydanticCustomError("form", "{advice}", {"advice": advice})
    return value


Condition = Annotated[str, BeforeValidator(no_mapping)]

NAME_ADVICE = "use letters, digits, dots, dashes and underscores; it names a folder"
URL_ADVICE = "write http://host:port/v1; a key goes into the environment"
KEY_ADVICE = "write the NAME of the environment variable that holds the key"
URL = r"https?://[A-Za-z0-9.:\[\]_-]+(/[A-Za-z0-9._~/-]*)?"

RunName = Annotated[str, matches(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", NAME_ADVICE)]
# in keys of settings, names of metrics, and files
PartName = Annotated[str, matches(r"\w[\w-]{0,99}", "use letters, digits, dashes and underscores")]
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
    "verdicts",
]
Dedupe = Literal["exact", "near", "none"]
Attack = Literal["prefill", "role_play", "refusal_suppression", "base64", "other_language"]
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
    "serves_harm",
    "language",
]


VLLM_SHARE = 0.92  # of a device's memory, which a vLLM server takes unless told otherwise

# Options of vLLM that say where and how fast it computes. All others (quantization, max_model_len,
# ...) may change what it writes, so they are in the keys of stages and of the ledger. An option
# that is not listed counts as one of those: that runs a stage again at worst.
VLLM_RUNTIME = frozenset(
    (
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "data_parallel_size",
        "data_parallel_size_local",
        "data_parallel_backend",
        "data_parallel_address",
        "data_parallel_rpc_port",
        "distributed_executor_backend",
        "device_ids",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "cpu_offload_gb",
        "block_size",
        "max_num_seqs",
        "max_num_batched_tokens",
        "max_loras",
        "max_cpu_loras",
        "max_parallel_loading_workers",
        "enable_prefix_caching",
        "enforce_eager",
        "download_dir",
        "shutdown_timeout",
    )
)


@dataclasses.dataclass(frozen=True)
class RuntimeEntries:
    """Of a dict of a library's options: the names of those that are runtime settings.

    Where no other option is set, the dict is left out of the key as a whole.
    """

    names: frozenset[str]


@dataclasses.dataclass(frozen=True)
class OfLibrary:
    """Of a dict of arguments: the class of a library that takes them (see libraries.py)."""

    name: str


def marks(annotation: object, kind: type[T]) -> list[T]:
    """What is annotated to a setting."""
    return [mark for mark in getattr(annotation, "__metadata__", ()) if isinstance(mark, kind)]


def is_runtime(setting: dataclasses.Field[Any]) -> bool:
    """Whether a field of a config class only says how to run."""
    return RUNTIME in marks(setting.type, str)


def without_runtime(value: object) -> Any:
    """`value` as plain containers, without its runtime settings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {}
        for setting in dataclasses.fields(value):
            part = getattr(value, setting.name)
            entries = next(iter(marks(setting.type, RuntimeEntries)), None)
            if entries is not None:
                part = {name: part[name] for name in part if name not in entries.names}
            if not is_runtime(setting) and (entries is None or part):
                parts[setting.name] = without_runtime(part)
        return parts
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
