"""The settings that the Python API takes: names, values and meaning are those of conf/."""

from collections.abc import Collection, Mapping
from functools import cache
from typing import Literal, TypedDict, TypeVar

import yaml

from cai.config.compose import from_json
from cai.config.types import Arguments
from cai.errors import UsageError, nearest
from cai.paths import shipped

T = TypeVar("T")


class SamplingSettings(TypedDict, total=False):
    """How texts are sampled. `temperature` 0 is greedy; `top_p` 1 and `top_k` 0 filter nothing."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int


class ReviseSampling(TypedDict, total=False):
    answer: SamplingSettings
    critique: SamplingSettings
    revision: SamplingSettings


class ReviseSettings(TypedDict, total=False):
    """Of conf/revise/default.yaml, which has the meanings and the defaults."""

    rounds: int
    draw: Literal["random", "cycle", "all", "relevant"]
    exemplars: int
    exemplar_choice: Literal["sampled", "fixed"]
    form: Literal["chat", "text"]
    critique: bool
    stop_when_unchanged: bool
    gates: list[str]
    sampling: ReviseSampling


class CompareSettings(TypedDict, total=False):
    """Of conf/label/default.yaml, which has the meanings and the defaults."""

    principles: int
    thoughts: int
    thought: SamplingSettings
    thought_clamp: float


class ServerSettings(TypedDict, total=False):
    """`key` is the NAME of the environment variable that holds it; times are in seconds."""

    urls: list[str]
    key: str | None
    concurrency: int
    timeout: float
    retries: int
    backoff: float
    patience: float


class EngineSettings(TypedDict, total=False):
    """Of conf/engine/*.yaml, which have the meanings and the defaults."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    device: Literal["auto", "cpu", "cuda", "mps"]
    attention: str | None
    batch_rows: int
    batch_tokens: int
    python: str | None
    options: Arguments
    extra_body: Arguments
    server: ServerSettings
    max_failures: float


def read_settings(
    kind: type[T], file: str, settings: Mapping[str, object], names: Collection[str]
) -> T:
    """The settings of a file of conf/ ("revise/default"), with those given in their place.

    `names` are those that may be given. Raises UsageError, which names each that is wrong.
    """
    for name in settings:
        if name not in names:
            hint = nearest(name, sorted(names))
            raise UsageError(f"there is no setting '{name}'{hint} ({', '.join(sorted(names))})")
    return from_json(kind, _merged(_defaults(file), settings))


@cache
def _defaults(file: str) -> Arguments:
    return yaml.safe_load((shipped("conf") / f"{file}.yaml").read_text(encoding="utf-8"))


def _merged(defaults: Mapping[str, object], settings: Mapping[str, object]) -> Arguments:
    """Mappings are merged key by key, as on the command line; all else is replaced."""
    merged = dict(defaults)
    for name, value in settings.items():
        default = defaults.get(name)
        if isinstance(default, Mapping) and isinstance(value, Mapping):
            value = _merged(default, value)
        merged[name] = value
    return merged
