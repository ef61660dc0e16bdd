"""What holds between the settings of a run: `load` makes a Config from a composed Hydra config, checked once."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cai.config.build import ASKING, CHOICES, FORMATS, KINDS, RANGES, build, origin
from cai.config.schema import (
    BUILT,
    Config,
    EngineConfig,
    SftConfig,
    builds,
    evaluated_models,
    lookup,
    own_models,
    unbuilt,
    without_runtime,
)
from cai.errors import UsageError, nearest
from cai.redact import redact


def load(composed: Any, overrides: Sequence[str] = ()) -> Config:
    """Checks a composed Hydra config against the schema, its choices, ranges and names.

    `overrides` are the command line's, so that an error can say which one is to blame. Raises UsageError.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    try:
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UsageError(
            f"{error.full_key} has no value; set it with {error.full_key}=..."
        ) from None
    except OmegaConfBaseException as error:
        raise UsageError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
    config = build(Config, values, overrides)
    for key, allowed in _choices(config).items():
        value = lookup(config, key)
        for one in value if isinstance(value, list) else [value]:
            if one not in allowed:
                hint = nearest(str(one), list(allowed))
                raise UsageError(
                    f"{key}={one}{origin(key, overrides)}: must be one of {', '.join(allowed)}{hint}"
                )
    for key, (low, high) in _ranges(config).items():
        value = lookup(config, key)
        if value is not None and not low <= value <= high:
            raise UsageError(
                f"{key}={value}{origin(key, overrides)}: must be between {low} and {high}"
            )
    _check_finite(without_runtime(config), "", overrides)
    for key, names in data_names(config).items():
        for name in names:
            if name not in config.data:
                hint = nearest(name, list(config.data)) or f"; known: {', '.join(config.data)}"
                raise UsageError(
                    f"{key}{origin(key, overrides)} names the data set '{name}', which is not there{hint}"
                )
    _check_terms(config)
    _check_samplings(config, overrides)
    _check_mixtures(config, overrides)
    _check_build(config, overrides)
    _check_shots(config, overrides)
    _check_models(config, overrides)
    _check_servers(config, overrides)
    _check_adapter(config, overrides)
    _check_tuning(config, overrides)
    _check_rounds(config, overrides)
    _check_benign(config, overrides)
    _check_labelled(config, overrides)
    _refuse_secrets(values, "")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", config.name):
        raise UsageError(
            f"name={config.name!r}: use letters, digits, dots, dashes and underscores; it names a folder"
        )
    return config


def _choices(config: Config) -> dict[str, tuple[str, ...]]:
    named = {f"data.{name}.kind": KINDS["data"] for name in config.data}
    named |= {f"data.{name}.format": FORMATS for name in config.data}
    named |= {
        f"{section}.{key}": CHOICES[key]
        for section in _own_engines(config)
        for key in CHOICES
        if key.startswith("engine.")
    }
    named |= {
        f"{stage}.model.kind": CHOICES["model.kind"]
        for stage in ASKING
        if lookup(config, stage).model
    }
    named["evaluate.judge.name"] = tuple(own_models(config))
    return (
        CHOICES
        | named
        | {f"evaluate.suites.{name}.kind": KINDS["suites"] for name in config.evaluate.suites}
    )


def _ranges(config: Config) -> dict[str, Any]:
    """The fixed ranges, and those of every choice of prompts."""
    helpful = ["revise.helpful"] if config.revise.helpful else []
    build = ["build"] if config.build.prompts else []
    places = [
        "revise",
        "label",
        *build,
        *helpful,
        *(f"evaluate.suites.{name}" for name in config.evaluate.suites),
    ]
    more = [
        key
        for name in ("benign", "calibrate", "human", "demonstrations")
        if lookup(config, key := f"label.{name}")
    ]
    places = [f"{place}.prompts" for place in places] + more
    prompts = {
        f"{place}.{key}": (low, 1 << 60)
        for place in places
        for key, low in (("limit", 1), ("offset", 0))
    }
    engines = {
        f"{place}.{key}": RANGES[key]
        for place in _own_engines(config)
        for key in RANGES
        if key.startswith("engine.")
    }
    certain = {"label.human.probability": (0.5, 1)} if config.label.human else {}
    price = {
        f"report.price.{key}": (0, 1_000_000) for key in ("prompt", "new") if config.report.price
    }
    return (
        RANGES
        | prompts
        | engines
        | price
        | certain
        | {f"{place}.samples": (1, 64) for place in helpful}
    )


def _check_terms(config: Config) -> None:
    models = {"": config.model} | {f"{stage}.": lookup(config, stage).model for stage in ASKING}
    for place, model in models.items():
        if model is not None and model.terms is not None and not model.accept_license:
            raise UsageError(
                f"{place}model: {model.name} is not free software. Its licence says what it and the models tuned from "
                f"it may be used for and what goes with them when they are passed on. Read {model.terms}; "
                f"{place}model.accept_license=true says that you accept it"
            )


def _refuse_secrets(value: Any, key: str) -> None:
    """A configuration is kept in files and shown in reports: no place for a key."""
    for name, item in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    ):
        _refuse_secrets(item, f"{key}.{name}" if key else str(name))
    if isinstance(value, str) and redact(value) != value:
        raise UsageError(
            f"{redact(key)} holds a secret, and a configuration is kept in files: put it into an environment variable "
            "(server.key takes the NAME of one; the hub's own is HF_TOKEN)"
        )


def _check_finite(value: Any, key: str, overrides: Sequence[str]) -> None:
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        raise UsageError(f"{key}={value}{origin(key, overrides)}: must be a finite number")
    for name, item in value.items() if isinstance(value, dict) else ():
        _check_finite(item, f"{key}.{name}" if key else str(name), overrides)


def data_names(config: Config) -> dict[str, list[str]]:
    """Every key that names data sets, with the names."""
    names = {f"{stage}.data": unbuilt(lookup(config, stage).data) for stage in ("sft", "sl_cai")}
    if builds(config):
        names |= {"build.data": config.build.data}
        names |= {"build.prompts.data": config.build.prompts.data} if config.build.prompts else {}
    names |= {"revise.benign": config.revise.benign}
    names |= (
        {"revise.helpful.prompts.data": config.revise.helpful.prompts.data}
        if config.revise.helpful
        else {}
    )
    names |= {"label.benign.data": config.label.benign.data} if config.label.benign else {}
    names |= {"label.calibrate.data": config.label.calibrate.data} if config.label.calibrate else {}
    names |= {"label.human.data": config.label.human.data} if config.label.human else {}
    names |= (
        {"label.demonstrations.data": shown.data} if (shown := config.label.demonstrations) else {}
    )
    names |= {
        "revise.prompts.data": config.revise.prompts.data,
        "label.prompts.data": config.label.prompts.data,
    }
    names |= {
        f"evaluate.suites.{key}.prompts.data": s.prompts.data
        for key, s in config.evaluate.suites.items()
    }
    shown = {
        key: suite.examples for key, suite in config.evaluate.suites.items() if any(suite.shots)
    }
    return names | {f"evaluate.suites.{key}.examples": examples for key, examples in shown.items()}


def _check_mixtures(config: Config, overrides: Sequence[str]) -> None:
    for stage in ("sft", "sl_cai"):
        section: SftConfig = lookup(config, stage)
        if section.weights and (section.mixing_temperature != 1 or section.mixing_cap is not None):
            raise UsageError(
                f"{stage}.weights{origin(f'{stage}.weights', overrides)} sets the shares, "
                f"so {stage}.mixing_temperature and mixing_cap, for shares by size, can't be set too"
            )
        weights = section.weights or {}
        for name, weight in weights.items():
            key = f"{stage}.weights.{name}"
            # an experiment's shares may name more sets than the `data` that somebody puts in place of its own
            if name not in section.data and (
                name not in config.data or "override" in origin(key, overrides)
            ):
                known = nearest(name, section.data) or f"; it has {', '.join(section.data)}"
                raise UsageError(
                    f"{key}{origin(key, overrides)}: {stage}.data has no such set{known}"
                )
            if weight < 0:
                raise UsageError(
                    f"{key}={weight}{origin(key, overrides)}: a share can't be negative"
                )
        if section.data and not any(weights.get(name, 1) for name in section.data):
            raise UsageError(
                f"{stage}.weights: every share is 0, so there would be nothing to train on"
            )
    if config.sl_cai.helpful == "sampled" and config.revise.helpful is None:
        raise UsageError(
            "sl_cai.helpful=sampled: nothing is sampled; say from which prompts with "
            "'revise.helpful={prompts:{data:[seed]}}'"
        )


def _check_build(config: Config, overrides: Sequence[str]) -> None:
    if BUILT in config.data:
        raise UsageError(
            f"data.{BUILT}: this name stands for what the stage build has made; call the set otherwise"
        )
    if not config.build.target and config.build.prompts is None:
        raise UsageError(
            f"build.target=0{origin('build.target', overrides)}: nothing would be built; name prompts to answer with "
            "'build.prompts={data:[mine]}'"
        )


def _check_shots(config: Config, overrides: Sequence[str]) -> None:
    for name, suite in config.evaluate.suites.items():
        key = f"evaluate.suites.{name}.shots"
        given = f"{key}={suite.shots}{origin(key, overrides)}"
        if suite.kind != "instructions" and suite.shots != [0]:
            raise UsageError(f"{given}: only a suite of kind: instructions is asked with examples")
        if (
            not suite.shots
            or len(set(suite.shots)) < len(suite.shots)
            or not all(0 <= k <= 64 for k in suite.shots)
        ):
            raise UsageError(f"{given}: must be different numbers between 0 and 64, e.g. [0,2]")
        if any(suite.shots) and not suite.examples:
            raise UsageError(
                f"{given}: examples of what? Name training data in evaluate.suites.{name}.examples"
            )


def _check_models(config: Config, overrides: Sequence[str]) -> None:
    models, own, wins = config.evaluate.models, own_models(config), config.evaluate.wins
    given = f"evaluate.models{origin('evaluate.models', overrides)}"
    if not models or len(set(models)) < len(models):
        raise UsageError(f"{given}: name different models, at least one")
    for name in models:
        if name not in own and "/" not in name:
            hint = nearest(name, own)
            raise UsageError(
                f"{given}: '{name}' is no model{hint}; write {', '.join(own)}, a folder (/path or ./path) or a hub "
                "id (owner/name)"
            )
        if name not in own and config.engine.kind == "openai":
            raise UsageError(
                f"{given}: '{name}': a server serves the run's models only; take engine=transformers"
            )
    if config.evaluate.harm and not any(
        suite.kind == "red_team" for suite in config.evaluate.suites.values()
    ):
        raise UsageError(
            f"evaluate.harm{origin('evaluate.harm', overrides)}: no suite is of kind: red_team"
        )
    for task in config.evaluate.lm_eval:
        if Path(task).suffix in (".yaml", ".yml") and not Path(task).is_file():
            raise UsageError(
                f"evaluate.lm_eval{origin('evaluate.lm_eval', overrides)}: there is no file {task}"
            )
    for pair in wins:
        if len(pair) != 2 or pair[0] == pair[1] or not set(pair) <= set(evaluated_models(config)):
            raise UsageError(
                f"evaluate.wins={wins}{origin('evaluate.wins', overrides)}: write pairs of different models out of "
                f"evaluate.models, e.g. [[{models[-1]},{models[0]}]]"
            )


def _check_adapter(config: Config, overrides: Sequence[str]) -> None:
    if config.dpo.adapter != "continued":
        return
    if config.sl_cai.peft is None:
        raise UsageError(
            f"dpo.adapter=continued{origin('dpo.adapter', overrides)}: sl_cai tunes every weight, so it leaves no "
            "adapter to continue; set sl_cai.peft, or take dpo=lora or dpo=full"
        )
    if config.dpo.peft is not None:
        raise UsageError(
            f"dpo.peft{origin('dpo.peft', overrides)}: with dpo.adapter=continued sl_cai's adapter is trained on, "
            "which sl_cai.peft describes; take dpo=continued, which leaves dpo.peft null"
        )


def _check_tuning(config: Config, overrides: Sequence[str]) -> None:
    for stage in ("sft", "sl_cai"):
        section: SftConfig = lookup(config, stage)
        key = f"{stage}.quantization"
        if section.quantization is not None and section.peft is None:
            raise UsageError(
                f"{key}{origin(key, overrides)}: quantised weights can't be tuned themselves; set {stage}.peft"
            )
        key = f"{stage}.args.packing_strategy"
        if section.args.get("packing_strategy") == "wrapped":
            raise UsageError(
                f"{key}{origin(key, overrides)}: wrapped joins rows that then see each other; use bfd"
            )


def _check_rounds(config: Config, overrides: Sequence[str]) -> None:
    if config.rounds == 1:
        return
    given = f"rounds={config.rounds}{origin('rounds', overrides)}"
    if config.label.kind not in ("feedback", "rule"):
        raise UsageError(
            f"{given}: label.kind={config.label.kind} sets revisions against sl_cai's first answers, which no later "
            "round's model gives; take label.kind=feedback, or rounds=1"
        )
    for key in ("label.prompts", *(["label.benign"] if config.label.benign else [])):
        if lookup(config, key).limit is None:
            raise UsageError(
                f"{given}: each takes the next {key}.limit prompts, and it is null; set it to a share of them"
            )


def _check_benign(config: Config, overrides: Sequence[str]) -> None:
    if config.label.benign is None:
        return
    given = f"label.benign{origin('label.benign', overrides)}"
    if config.label.kind != "rule":
        raise UsageError(
            f"{given}: only label.kind=rule asks harmless prompts, and it is {config.label.kind}; take "
            "label.benign=null, or label.kind=rule"
        )
    if both := sorted({*config.label.benign.data} & {*config.label.prompts.data}):
        raise UsageError(
            f"{given} and label.prompts both name {', '.join(both)}, and a prompt is either harmless or harmful; take "
            "different sets"
        )


def _check_labelled(config: Config, overrides: Sequence[str]) -> None:
    """No labelled pair is both trained on and measured on. Rows are shuffled over all sets of a key together, so only
    keys with the same sets can share them out."""
    trained, measured = config.label.human, config.label.calibrate
    if trained is None or measured is None or not set(trained.data) & set(measured.data):
        return
    first, second = sorted((trained, measured), key=lambda rows: rows.offset)
    apart = first.limit is not None and first.offset + first.limit <= second.offset
    if set(trained.data) != set(measured.data) or not apart:
        raise UsageError(
            f"label.human{origin('label.human', overrides)} and label.calibrate hold the same labelled pairs; take "
            "other sets, or the same sets for both with limit and offset so that no row is in both"
        )


def _check_samplings(config: Config, overrides: Sequence[str]) -> None:
    rules = (
        ("temperature", lambda v: v >= 0, "must be 0 (greedy) or more"),
        ("top_p", lambda v: 0 < v <= 1, "must be above 0 and at most 1"),
        ("top_k", lambda v: v >= 0, "must be 0 (off) or more"),
        ("max_new_tokens", lambda v: v >= 1, "must be at least 1"),
    )
    keys = [
        "label.sampling",
        "label.thought",
        "evaluate.sampling",
        "build.sampling.instructions",
        "build.sampling.answer",
        *(f"revise.sampling.{k}" for k in ("answer", "critique", "revision")),
    ]
    for key in keys:
        for name, good, message in rules:
            if not good(value := lookup(config, f"{key}.{name}")):
                raise UsageError(
                    f"{key}.{name}={value}{origin(f'{key}.{name}', overrides)}: {message}"
                )


def _own_engines(config: Config) -> list[str]:
    """The stages with an engine of their own, beside the run's."""
    return [stage for stage in ASKING if lookup(config, f"{stage}.engine") is not None]


def _check_servers(config: Config, overrides: Sequence[str]) -> None:
    for key in ["engine", *(f"{stage}.engine" for stage in _own_engines(config))]:
        engine: EngineConfig = lookup(config, key)
        if engine.kind != "openai":
            if engine.model is not None:
                raise UsageError(
                    f"{key}.model{origin(f'{key}.model', overrides)}: only kind: openai has such a name"
                )
            if (
                engine.kind == "vllm" and engine.options.get("data_parallel_size", 1) != 1
            ):  # vllm.LLM refuses it later
                name = f"{key}.options.data_parallel_size"
                raise UsageError(
                    f"{name}{origin(name, overrides)}: vLLM has copies of a model only as a server: start `vllm serve "
                    f"MODEL --data-parallel-size N` and take {key}=openai (see docs/scale.md)"
                )
            continue
        if not engine.server.urls:
            raise UsageError(
                f"{key}.server.urls is empty; name a server, e.g. [http://127.0.0.1:8000/v1]"
            )
        for url in engine.server.urls:  # it goes into files: no name and key in it
            if not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]_-]+(/[A-Za-z0-9._~/-]*)?", url):
                raise UsageError(
                    f"{key}.server.urls: write http://host:port/v1; a key goes into the environment"
                )
        if engine.server.key is not None and not re.fullmatch(
            r"[A-Z][A-Z0-9_]*", engine.server.key
        ):
            raise UsageError(
                f"{key}.server.key: write the NAME of the environment variable that holds the key"
            )
    for stage in ASKING:
        section = lookup(config, stage)
        if section.model and (section.engine or config.engine).kind == "openai":
            raise UsageError(
                f"{stage}.model: a server's model is named by {stage}.engine.model, not by this"
            )
