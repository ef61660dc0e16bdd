"""What each setting may be: its choices and ranges, and an instance of the schema from plain containers."""

import dataclasses
import re
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from cai.errors import UsageError, nearest
from cai.paths import shipped

T = TypeVar("T")

GATES = (  # see cai/gates.py
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
)

CHOICES = {
    "model.kind": ("hub", "path", "wheel"),
    "engine.kind": ("transformers", "vllm", "openai", "scripted"),
    "engine.device": ("auto", "cpu", "cuda", "mps"),
    "engine.dtype": ("auto", "float32", "bfloat16", "float16"),
    "launcher.kind": ("inline", "process", "accelerate"),
    "sft.start": ("base",),
    "sft.revisions": ("none",),
    "sl_cai.start": ("base", "sft"),
    "sl_cai.revisions": ("last", "all"),
    "sft.helpful": ("data",),
    "sl_cai.helpful": ("data", "sampled"),
    "revise.draw": ("random", "cycle", "all"),
    "revise.exemplar_choice": ("sampled", "fixed"),
    "revise.form": ("chat", "text"),
    "revise.when_gated": ("previous", "drop"),
    "revise.gates": GATES,
    "label.kind": ("feedback", "revision", "mixed", "rule"),
    "label.judge": ("base", "sft", "sl_cai"),
    "dpo.loss": ("soft", "trl"),
    "dpo.reference": ("policy", "first"),
    "dpo.adapter": ("fresh", "continued"),
    "report_to": ("tensorboard", "wandb", "trackio"),
    "evaluate.refusal": ("rules", "classifier"),
}

KINDS = {
    "data": ("hub", "file", "wheel", "package"),
    "suites": ("red_team", "benign", "instructions"),
}

FORMATS = (
    "auto",
    "messages",
    "sharegpt",
    "alpaca",
    "completion",
    "demonstration",
    "preference",
    "scored",
    "prompt",
)

ASKING = (
    "build",
    "revise",
    "label",
    "evaluate.judge",
)  # the stages that may have a model and an engine of their own

RANGES = {
    "rounds": (1, 99),
    "build.target": (0, 1 << 30),
    "build.rounds": (1, 1 << 20),
    "build.requests": (1, 1 << 20),
    "build.shown": (1, 64),
    "build.shown_built": (0, 64),
    "build.max_similarity": (0.01, 1),
    "sft.limit": (1, 1 << 60),
    "sl_cai.limit": (1, 1 << 60),
    "sl_cai.helpful_ratio": (0, 1000),
    "sft.mixing_temperature": (1, 1000),
    "sl_cai.mixing_temperature": (1, 1000),
    "sft.mixing_cap": (1, 1 << 60),
    "sl_cai.mixing_cap": (1, 1 << 60),
    "sft.max_length": (8, 1 << 24),
    "sl_cai.max_length": (8, 1 << 24),
    "revise.rounds": (1, 64),
    "revise.exemplars": (0, 16),
    "engine.batch_rows": (1, 1 << 16),
    "engine.batch_tokens": (1, 1 << 30),
    "engine.max_failures": (0, 0.5),
    "engine.server.concurrency": (1, 1 << 16),
    "engine.server.timeout": (0.001, 1 << 20),
    "engine.server.retries": (0, 100),
    "engine.server.backoff": (0.001, 60),
    "engine.server.patience": (0, 1 << 20),
    "label.min_margin": (0, 0.5),
    "sft.max_lost": (0, 1),
    "sl_cai.max_lost": (0, 1),
    "label.ratio": (0.01, 0.99),
    "label.limit": (1, 1 << 60),
    "label.answers": (2, 16),
    "label.max_similarity": (0, 1),
    "label.principles": (1, 64),
    "label.thoughts": (0, 64),
    "label.thought_clamp": (0.5, 1),
    "sft.validation": (0, 0.9),
    "sl_cai.validation": (0, 0.9),
    "dpo.validation": (0, 0.9),
    "dpo.guards.falling": (1, 1 << 30),
    "dpo.guards.prompts": (0, 1024),
    "dpo.guards.new_tokens": (1, 1 << 16),
    "dpo.guards.longer": (1, 1000),
    "dpo.guards.shorter": (0, 1),
    "dpo.guards.repetitive": (0, 1),
    "dpo.max_probability": (0.5, 1),
    "evaluate.seeds": (1, 64),
    "evaluate.judge.principles": (1, 64),
    "evaluate.judge.limit": (1, 1 << 60),
    "evaluate.lm_eval_limit": (1, 1 << 60),
    "report.records": (0, 1_000_000),
}


def build(kind: type[T], values: Any, overrides: Sequence[str] = ()) -> T:
    """An instance of the dataclass `kind` from plain containers. Raises UsageError naming every key at fault."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=True)
        raise UsageError(
            "\n".join(dict.fromkeys(_sentence(kind, one, overrides) for one in found))
        ) from None


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
