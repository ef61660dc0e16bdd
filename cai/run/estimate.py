"""What `cai plan` expects of training's memory and of the hours: arithmetic, not a measurement.

The hours count floating-point operations for each weight: 2 for a token that is read or written, 6
for one that is trained on, 8 in DPO (docs/scale.md).
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cai.config.schema import Config, DpoConfig, SftConfig
from cai.models.source import read_config
from cai.stages.base import Stage
from cai.training.forecast import DPO_LENGTH, dpo_tuning, sft_tuning
from cai.training.memory import GIB, Shape, Tuning, forecast, read_shape

PEAK = 990.0  # TFLOP/s in bfloat16 of an H100; `cai plan --tflops` takes another
# the shares of the peak that training, reading and writing reach
TRAINING, READING, WRITING = 0.4, 0.5, 0.2
FILLED = 0.5  # rows fill this share of max_length, and answers of max_new_tokens
PROMPT_TOKENS, EXEMPLAR_TOKENS = 300, 250


@dataclass(frozen=True)
class Tokens:
    read: float = 0
    written: float = 0
    trained: float = 0


@dataclass(frozen=True)
class Processes:
    """What `accelerate launch` is asked for."""

    number: int
    sharded: bool


def processes(config: Config) -> Processes:
    """Those of training. A --config_file is not read."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--num_processes", type=int, default=1)
    parser.add_argument("--use_fsdp", action="store_true")
    parser.add_argument("--use_deepspeed", action="store_true")
    parser.add_argument("--zero_stage", type=int, default=3)
    if config.launcher.kind != "accelerate":
        return Processes(1, False)
    known = parser.parse_known_args(config.launcher.args)[0]
    sharded = known.use_fsdp or (known.use_deepspeed and known.zero_stage == 3)
    return Processes(known.num_processes, sharded)


def tuning_of(stage: Stage, config: Config) -> Tuning:
    """How a training stage trains, on a GPU: what is trained has float32 weights."""
    section: SftConfig | DpoConfig = stage.section(config)
    lora = section.peft
    if isinstance(section, DpoConfig) and section.adapter == "continued":
        lora = config.sl_cai.peft
    launched = processes(config)
    known: dict[str, Any] = {
        "weight_bytes": 4.0 if lora is None or section.frozen_dtype == "float32" else 2.0,
        "attention": config.engine.attention,
        "processes": launched.number,
        "sharded": launched.sharded,
    }
    if isinstance(section, SftConfig):
        return sft_tuning(section, **known)
    separate = section.reference == "first" and stage.round > 1
    return dpo_tuning(section, lora, separate, **known)


def describe_memory(stage: Stage, config: Config, shape: Shape) -> str:
    """About how much a GPU must hold: with gradient checkpointing, and without it."""
    tuning = tuning_of(stage, config)
    setting = stage.section(config).args.get("gradient_checkpointing")
    sizes = {
        checkpointing: forecast(shape, replace(tuning, checkpointing=checkpointing)).total / GIB
        for checkpointing in ([True, False] if setting is None else [setting])
    }
    texts = [
        f"{size:.0f} GiB{' with gradient checkpointing' if checkpointing else ''}"
        for checkpointing, size in sizes.items()
    ]
    return f"about {' or '.join(texts)} on each GPU"


def estimate_lines(config: Config, stages: Mapping[str, Stage], tflops: float) -> list[str]:
    """What is expected of the named stages, which have to run. Empty where none of them trains."""
    training = [stage for stage in stages.values() if stage.trains]
    if not training:
        return []
    values = read_config(config.model)
    if values is None:
        return ["memory and hours are unknown until the model is here (model.shape says its sizes)"]
    shape = read_shape(values)
    if shape is None:
        return ["memory and hours are unknown: cai can't forecast this kind of model"]
    lines = [f"{stage.name:<9}{describe_memory(stage, config, shape)}" for stage in training]
    return [*lines, *_hours(config, stages, shape, tflops)]


def _hours(config: Config, stages: Mapping[str, Stage], shape: Shape, tflops: float) -> list[str]:
    gpus = processes(config).number
    hours: dict[str, float] = {}
    unknown: list[str] = []
    for name, stage in stages.items():
        tokens = _count_tokens(stage, config)
        if tokens is None:
            unknown.append(name)
            continue
        passes = 2 * (tokens.read / READING + tokens.written / WRITING)
        # a reference reads what DPO is trained on
        passes += (8 if stage.kind == "dpo" else 6) * tokens.trained / TRAINING
        hours[name] = shape.weights * passes / (tflops * 1e12 * gpus * 3600)
    known = {name: spent for name, spent in hours.items() if spent >= 0.05}
    if not known:
        return []
    total = ", ".join(f"{name} {spent:.1f}" for name, spent in known.items())
    without = f"; without {', '.join(unknown)}" if unknown else ""
    on = f"{gpus} GPU{'s' if gpus > 1 else ''} of {tflops:.0f} TFLOP/s"
    return [f"hours    about {sum(known.values()):.1f} on {on} ({total}{without})"]


def _count_tokens(stage: Stage, config: Config) -> Tokens | None:
    """The tokens of a stage; None where nobody can say without reading its data."""
    counters = {
        "sft": lambda: _sft_tokens(config.sft, config.sft.limit),
        "revise": lambda: _revise_tokens(config),
        "sl_cai": lambda: _sft_tokens(config.sl_cai, _sl_cai_rows(config)),
        "label": lambda: _label_tokens(config),
        "dpo": lambda: _dpo_tokens(config),
        "report": Tokens,
    }
    return counters[stage.kind]() if stage.kind in counters else None


def _sft_tokens(section: SftConfig, rows: int | None) -> Tokens | None:
    if rows is None:
        return None
    epochs = section.args.get("num_train_epochs", 3)
    trained_rows = rows * (1 - section.validation)
    return Tokens(trained=trained_rows * epochs * FILLED * section.max_length)


def _sl_cai_rows(config: Config) -> int | None:
    """The revisions, where every gate is passed, and the helpful rows beside them."""
    section, prompts = config.sl_cai, config.revise.prompts.limit
    if prompts is None:
        return None
    revisions = prompts * (config.revise.rounds if section.revisions == "all" else 1)
    if section.helpful_ratio is not None:
        return round(revisions * (1 + section.helpful_ratio))
    return None if section.limit is None else revisions + section.limit


def _revise_tokens(config: Config) -> Tokens | None:
    section, prompts = config.revise, config.revise.prompts.limit
    if prompts is None:
        return None
    critiques = section.sampling.critique.max_new_tokens if section.critique else 0
    new_tokens = section.sampling.answer.max_new_tokens
    new_tokens += section.rounds * (critiques + section.sampling.revision.max_new_tokens)
    requests = section.rounds * (2 if section.critique else 1)
    asked = PROMPT_TOKENS + EXEMPLAR_TOKENS * section.exemplars
    return Tokens(read=prompts * requests * asked, written=prompts * FILLED * new_tokens)


def _label_tokens(config: Config) -> Tokens | None:
    section, prompts = config.label, config.label.prompts.limit
    if prompts is None or section.kind == "revision":
        return None if prompts is None else Tokens()
    answer = FILLED * section.sampling.max_new_tokens
    written = prompts * section.answers * answer
    comparisons = prompts * section.answers * (section.answers - 1) // 2
    orders = 2 * section.principles * max(1, section.thoughts)
    written += (
        comparisons * orders * FILLED * section.thought.max_new_tokens * bool(section.thoughts)
    )
    read = comparisons * orders * (PROMPT_TOKENS + 2 * answer)
    return Tokens(read=0 if section.kind == "rule" else read, written=written)


def _dpo_tokens(config: Config) -> Tokens | None:
    section, pairs = config.dpo, config.label.limit or config.label.prompts.limit
    if pairs is None:
        return None
    for more in (config.label.human, config.label.demonstrations):
        if more is not None:
            pairs += more.limit or 0
    epochs = section.args.get("num_train_epochs", 3)
    length = section.args.get("max_length", DPO_LENGTH)
    return Tokens(trained=2 * pairs * (1 - section.validation) * epochs * FILLED * length)
