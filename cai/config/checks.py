"""What must hold between settings. What one setting may be stands in schema.py."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cai.config.explain import at, must_be_one_of, origin
from cai.config.kinds import is_number, kind_at
from cai.config.launcher import check_launcher
from cai.config.libraries import check_libraries
from cai.config.names import (
    ADHERENCE,
    BUILT,
    MODEL_SECTIONS,
    PROBES,
    builds,
    evaluated_models,
    own_models,
    unbuilt,
    unprobed,
)
from cai.config.schema import Config, ModelConfig, Prompts, SftConfig
from cai.config.templates import check_templates
from cai.config.types import VLLM_SHARE, lookup
from cai.errors import UsageError, nearest
from cai.redact import redact
from cai.text import well_formed

# the keys that read prompts of the stage probe to train on them
PROBE_TRAINS = (
    "revise.prompts.data",
    "revise.helpful.prompts.data",
    "revise.benign",
    "label.prompts.data",
    "label.benign.data",
)
PROBE_TESTS = [name for name in PROBES if PROBES[name]["split"] == "test"]


def check(config: Config, overrides: Sequence[str] = ()) -> None:
    """Raises UsageError at the first pair of settings that do not fit.

    An override (of the command line) or a line in conf/ is named as what set the value.
    """
    for check_settings in CHECKS:
        check_settings(config, overrides)


def check_values(value: Any, overrides: Sequence[str], key: str = "") -> None:
    """Refuses secrets, halves of characters, numbers that are not finite, and `true` for a number.

    They may stand anywhere in plain containers.
    """
    children = value.items() if isinstance(value, dict) else ()
    for name, child in enumerate(value) if isinstance(value, list) else children:
        check_values(child, overrides, f"{key}.{name}" if key else str(name))
    if isinstance(value, str) and redact(value) != value:
        raise UsageError(
            f"{redact(key)} holds a secret, and a configuration is kept in files: put it into an "
            "environment variable (server.key takes the NAME of one; the hub's own is HF_TOKEN)"
        )
    for text in (value, key):
        if isinstance(text, str) and well_formed(text) != text:
            raise UsageError(
                f"{well_formed(str(at(key, overrides)))}: holds half a surrogate pair, or bytes "
                "that are not UTF-8; write the whole character"
            )
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        raise UsageError(f"{at(key, overrides, value)}: must be a finite number")
    # pydantic reads it as 1
    if isinstance(value, bool) and is_number(kind_at(key)):
        raise UsageError(f"{at(key, overrides, str(value).lower())}: must be a number")


def check_choices(config: Config, overrides: Sequence[str]) -> None:
    """The choices that are narrower than their type."""
    choices = {
        "sft.start": ["base"],
        "sft.revisions": ["none"],
        "sft.helpful": ["data"],
        "sl_cai.revisions": ["last", "all"],
        "evaluate.judge.name": own_models(config),
    }
    for key, allowed in choices.items():
        value = lookup(config, key)
        if value not in allowed:
            raise UsageError(f"{at(key, overrides, value)}: {must_be_one_of(value, allowed)}")


def check_data_names(config: Config, overrides: Sequence[str]) -> None:
    sets = list(config.data)
    for key, names in data_names(config).items():
        if missing := [name for name in unprobed(names) if name not in sets]:
            hint = nearest(missing[0], sets) or f"; known: {', '.join(sets)}"
            raise UsageError(
                f"{at(key, overrides)} names the data set '{missing[0]}', which is not there{hint}"
            )


def data_names(config: Config) -> dict[str, list[str]]:
    """The keys that name data sets, with the names."""
    names = {
        "sft.data": unbuilt(config.sft.data),
        "sl_cai.data": unbuilt(config.sl_cai.data),
        "build.data": config.build.data,
        "revise.benign": config.revise.benign,
        "verdicts": config.verdicts,
    }
    names |= {f"{key}.data": prompts.data for key, prompts in _prompts(config)}
    for name, suite in config.evaluate.suites.items():
        if any(suite.shots):
            names[f"evaluate.suites.{name}.examples"] = suite.examples
    if not builds(config):
        names = {key: value for key, value in names.items() if not key.startswith("build.")}
    return names


def check_verdicts(config: Config, overrides: Sequence[str]) -> None:
    """Files of verdicts stand where they are read, and nothing else stands there."""
    readers = ("verdicts", "label.human.data", "label.calibrate.data")
    for key, names in data_names(config).items():
        for name in unprobed(names):
            holds_verdicts = config.data[name].format == "verdicts"
            if key == "verdicts" and not holds_verdicts:
                raise UsageError(
                    f"{at(key, overrides)}: the data set '{name}' holds no verdicts; name one that "
                    f"`cai review` has written, or set data.{name}.format=verdicts"
                )
            if holds_verdicts and key not in readers:
                raise UsageError(
                    f"{at(key, overrides)}: the data set '{name}' holds people's verdicts, which "
                    f"only {', '.join(readers)} take"
                )


def _prompts(value: Any, key: str = "") -> Iterator[tuple[str, Prompts]]:
    """Every choice of prompts below `value`, with its key."""
    if isinstance(value, Prompts):
        yield key, value
    elif dataclasses.is_dataclass(value) or isinstance(value, dict):
        children = value if isinstance(value, dict) else vars(value)
        for name, child in children.items():
            yield from _prompts(child, f"{key}.{name}" if key else name)


def check_licences(config: Config, overrides: Sequence[str]) -> None:
    for key in ("model", *(f"{section}.model" for section in MODEL_SECTIONS)):
        if (model := lookup(config, key)) is not None:
            check_licence(model, key)


def check_licence(model: ModelConfig, key: str) -> None:
    """Raises UsageError where the model has terms that nobody has accepted."""
    if model.terms is not None and not model.accept_license:
        raise UsageError(
            f"{key}: {model.name} is not free software. Its licence says what it and the "
            "models tuned from it may be used for and what goes with them when they are "
            f"passed on. Read {model.terms}; {key}.accept_license=true says that you accept it"
        )


def check_weights(config: Config, overrides: Sequence[str]) -> None:
    for stage in ("sft", "sl_cai"):
        section: SftConfig = lookup(config, stage)
        weights = section.weights or {}
        if weights and (section.mixing_temperature != 1 or section.mixing_cap is not None):
            raise UsageError(
                f"{at(f'{stage}.weights', overrides)} sets the shares, so "
                f"{stage}.mixing_temperature and mixing_cap, for shares by size, can't be set too"
            )
        for name in weights.keys() - set(section.data):
            key = f"{stage}.weights.{name}"
            # A person may put other data in place of an experiment's, and leave its weights.
            if name not in config.data or "override" in origin(key, overrides):
                hint = nearest(name, section.data) or f"; it has {', '.join(section.data)}"
                raise UsageError(f"{at(key, overrides)}: {stage}.data has no such set{hint}")
        if section.data and not any(weights.get(name, 1) for name in section.data):
            raise UsageError(
                f"{stage}.weights: every share is 0, so there would be nothing to train on"
            )


def check_helpful(config: Config, overrides: Sequence[str]) -> None:
    if config.sl_cai.helpful == "sampled" and config.revise.helpful is None:
        raise UsageError(
            "sl_cai.helpful=sampled: nothing is sampled; say from which prompts with "
            "'revise.helpful={prompts:{data:[seed]}}'"
        )


def check_build(config: Config, overrides: Sequence[str]) -> None:
    if BUILT in config.data:
        raise UsageError(
            f"data.{BUILT}: this name stands for what the stage build has made; "
            "call the set otherwise"
        )
    if not config.build.target and config.build.prompts is None:
        raise UsageError(
            f"{at('build.target', overrides, 0)}: nothing would be built; name prompts to answer "
            "with 'build.prompts={data:[mine]}'"
        )


def check_probe(config: Config, overrides: Sequence[str]) -> None:
    for name in PROBES:
        if name in config.data:
            raise UsageError(
                f"data.{name}: this name stands for what the stage probe has made; "
                "call the set otherwise"
            )
    for key, names in data_names(config).items():
        measured = key.startswith("evaluate.") and key.endswith(".data")
        for name in names:
            if name in PROBES and key not in PROBE_TRAINS and not measured:
                raise UsageError(
                    f"{at(key, overrides)} names '{name}', which are prompts without answers; they "
                    f"are read by {', '.join(PROBE_TRAINS)} and evaluate's suites"
                )
            if name in PROBES and measured != (PROBES[name]["split"] == "test"):
                purposes = ("evaluated on", "trained on")
                fitting = [other for other in PROBES if (other in PROBE_TESTS) == measured]
                raise UsageError(
                    f"{at(key, overrides)} names '{name}', whose prompts are "
                    f"{purposes[measured]}, and nothing is both; take {' or '.join(fitting)}"
                )
            if name in PROBE_TESTS and not config.probe.test:
                raise UsageError(
                    f"{at('probe.test', overrides, 0)}: {key} names '{name}', which would have no "
                    "prompt; set probe.test to a share, e.g. 0.3"
                )


def check_shots(config: Config, overrides: Sequence[str]) -> None:
    for name, suite in config.evaluate.suites.items():
        shots = suite.shots
        setting = at(f"evaluate.suites.{name}.shots", overrides, shots)
        if suite.kind != "instructions" and shots != [0]:
            raise UsageError(
                f"{setting}: only a suite of kind: instructions is asked with examples"
            )
        different = shots and len(set(shots)) == len(shots)
        if not different or not all(0 <= count <= 64 for count in shots):
            raise UsageError(f"{setting}: must be different numbers between 0 and 64, e.g. [0,2]")
        if any(shots) and not suite.examples:
            raise UsageError(
                f"{setting}: examples of what? Name training data in "
                f"evaluate.suites.{name}.examples"
            )


def check_attacks(config: Config, overrides: Sequence[str]) -> None:
    for name, suite in config.evaluate.suites.items():
        setting = at(f"evaluate.suites.{name}.attacks", overrides, suite.attacks)
        if suite.attacks and suite.kind != "red_team":
            raise UsageError(f"{setting}: only a suite of kind: red_team is attacked")
        if len(set(suite.attacks)) < len(suite.attacks):
            raise UsageError(f"{setting}: name each attack once")


def check_models(config: Config, overrides: Sequence[str]) -> None:
    models, names = config.evaluate.models, own_models(config)
    setting = at("evaluate.models", overrides)
    if not models or len(set(models)) < len(models):
        raise UsageError(f"{setting}: name different models, at least one")
    for name in models:
        if name in names:
            continue
        if "/" not in name:
            raise UsageError(
                f"{setting}: '{name}' is no model{nearest(name, names)}; write "
                f"{', '.join(names)}, a folder (/path or ./path) or a hub id (owner/name)"
            )
        if config.engine.kind == "openai":
            raise UsageError(
                f"{setting}: '{name}': a server serves the run's models only; "
                "take engine=transformers"
            )


def check_wins(config: Config, overrides: Sequence[str]) -> None:
    models, wins = evaluated_models(config), config.evaluate.wins
    for pair in wins:
        if len(pair) != 2 or pair[0] == pair[1] or not set(pair) <= set(models):
            first, *_, last = config.evaluate.models * 2
            raise UsageError(
                f"{at('evaluate.wins', overrides, wins)}: write pairs of different models out of "
                f"evaluate.models, e.g. [[{last},{first}]]"
            )


def check_measures(config: Config, overrides: Sequence[str]) -> None:
    evaluate = config.evaluate
    if evaluate.harm and all(suite.kind != "red_team" for suite in evaluate.suites.values()):
        raise UsageError(f"{at('evaluate.harm', overrides)}: no suite is of kind: red_team")
    if evaluate.adherence is not None and ADHERENCE in evaluate.suites:
        raise UsageError(
            f"evaluate.suites.{ADHERENCE}: this name stands for the prompts of evaluate.adherence; "
            "call the suite otherwise"
        )
    for task in evaluate.lm_eval:
        if Path(task).suffix in (".yaml", ".yml") and not Path(task).is_file():
            raise UsageError(f"{at('evaluate.lm_eval', overrides)}: there is no file {task}")


def check_adapter(config: Config, overrides: Sequence[str]) -> None:
    if config.dpo.adapter != "continued":
        return
    if config.sl_cai.peft is None:
        raise UsageError(
            f"{at('dpo.adapter', overrides, 'continued')}: sl_cai tunes every weight, so it leaves "
            "no adapter to continue; set sl_cai.peft, or take dpo=lora or dpo=full"
        )
    if config.dpo.peft is not None:
        raise UsageError(
            f"{at('dpo.peft', overrides)}: with dpo.adapter=continued sl_cai's adapter is trained "
            "on, which sl_cai.peft describes; take dpo=continued, which leaves dpo.peft null"
        )


def check_tuning(config: Config, overrides: Sequence[str]) -> None:
    for stage in ("sft", "sl_cai"):
        section: SftConfig = lookup(config, stage)
        if section.publish == "adapter":
            _check_adapter_alone(stage, section, config, overrides)
        if section.quantization is not None and section.peft is None:
            raise UsageError(
                f"{at(f'{stage}.quantization', overrides)}: quantised weights can't be tuned "
                f"themselves; set {stage}.peft"
            )
        if section.args.get("packing_strategy") == "wrapped":
            raise UsageError(
                f"{at(f'{stage}.args.packing_strategy', overrides)}: wrapped joins rows that then "
                "see each other; use bfd"
            )


def _check_adapter_alone(
    stage: str, section: SftConfig, config: Config, overrides: Sequence[str]
) -> None:
    setting = at(f"{stage}.publish", overrides, "adapter")
    if section.peft is None:
        raise UsageError(f"{setting}: every weight is tuned, so there is none; set {stage}.peft")
    if section.publish_dtype != "float32":
        raise UsageError(
            f"{setting}: an adapter is float32, so {stage}.publish_dtype={section.publish_dtype} "
            "has no use; leave it at float32"
        )
    if config.engine.kind == "openai":
        raise UsageError(
            f"{setting}: your servers need a folder to serve {stage} from; set {stage}.publish="
            "model"
        )


def check_rounds(config: Config, overrides: Sequence[str]) -> None:
    label = config.label
    if config.rounds == 1:
        return
    setting = at("rounds", overrides, config.rounds)
    if label.kind in ("revision", "mixed"):
        raise UsageError(
            f"{setting}: label.kind={label.kind} sets revisions against sl_cai's first answers, "
            "which no later round's model gives; take label.kind=feedback, or rounds=1"
        )
    for key, prompts in (("label.prompts", label.prompts), ("label.benign", label.benign)):
        if prompts is not None and prompts.limit is None:
            raise UsageError(
                f"{setting}: each takes the next {key}.limit prompts, and it is null; "
                "set it to a share of them"
            )


def check_benign(config: Config, overrides: Sequence[str]) -> None:
    label = config.label
    if label.harmless_share is not None and (label.kind != "rule" or label.benign is None):
        raise UsageError(
            f"{at('label.harmless_share', overrides)}: the share is of pairs of label.kind=rule "
            "with label.benign; take label.harmless_share=null, or set these two"
        )
    if label.benign is None:
        return
    setting = at("label.benign", overrides)
    if label.kind not in ("rule", "contrast"):
        raise UsageError(
            f"{setting}: only label.kind=rule and contrast ask harmless prompts, and it is "
            f"{label.kind}; take label.benign=null, or one of these kinds"
        )
    if shared := set(label.benign.data) & set(label.prompts.data):
        raise UsageError(
            f"{setting} and label.prompts both name {', '.join(sorted(shared))}, and a prompt is "
            "either harmless or harmful; take different sets"
        )


def check_labelled(config: Config, overrides: Sequence[str]) -> None:
    """No labelled pair is both trained on and measured on."""
    human, calibrate = config.label.human, config.label.calibrate
    if human is None or calibrate is None or not set(human.data) & set(calibrate.data):
        return
    first, second = sorted((human, calibrate), key=lambda prompts: prompts.offset)
    # Rows are shuffled over all sets of a key, so only keys with the same sets can share them out.
    same_sets = set(human.data) == set(calibrate.data)
    disjoint = first.limit is not None and first.offset + first.limit <= second.offset
    if not same_sets or not disjoint:
        raise UsageError(
            f"{at('label.human', overrides)} and label.calibrate hold the same labelled pairs; "
            "take other sets, or the same sets for both with limit and offset so that no row is "
            "in both"
        )


def check_served_models(config: Config, overrides: Sequence[str]) -> None:
    """A model on a server has its name from the engine."""
    for name in MODEL_SECTIONS:
        section = lookup(config, name)
        if section.model and (section.engine or config.engine).kind == "openai":
            raise UsageError(
                f"{name}.model: a server's model is named by {name}.engine.model, not by this"
            )


def check_machines(config: Config, overrides: Sequence[str]) -> None:
    machines = config.launcher.machines
    if machines.count == 1:
        return
    if config.launcher.kind != "accelerate":
        raise UsageError(
            f"{at('launcher.machines.count', overrides, machines.count)}: only a launcher of "
            "several processes trains on several machines; take launcher=accelerate, fsdp or "
            "deepspeed"
        )
    if machines.address is None:
        raise UsageError(
            f"{at('launcher.machines.address', overrides)}: name machine 0 as the others reach it"
        )
    if machines.rank >= machines.count:
        raise UsageError(
            f"{at('launcher.machines.rank', overrides, machines.rank)}: must be below "
            f"launcher.machines.count, which is {machines.count}; the first machine is 0"
        )


def check_shares(config: Config, overrides: Sequence[str]) -> None:
    """Two vLLM servers that run at once share a device's memory, or have devices of their own.

    In `revise` the helpful model and a critic answer in turn; all other stages close one model
    before they open another.
    """
    if config.revise.model is None and config.revise.engine is None:
        return
    engines = {"engine": config.engine, "revise.engine": config.revise.engine or config.engine}
    options = [engine.options for engine in engines.values()]
    devices = [set(str(own.get("device_ids", "")).split(",")) - {""} for own in options]
    apart = all(devices) and not devices[0] & devices[1]
    if apart or any(engine.kind != "vllm" for engine in engines.values()):
        return
    if any("kv_cache_memory_bytes" in own for own in options):  # vLLM then takes no share
        return
    shares = [own.get("gpu_memory_utilization", VLLM_SHARE) for own in options]
    for key, share in zip(engines, shares, strict=True):
        if isinstance(share, bool) or not isinstance(share, int | float):
            name = at(f"{key}.options.gpu_memory_utilization", overrides, share)
            raise UsageError(f"{name}: a share of the memory is a number from 0 to 1")
    if sum(shares) > 1:
        keys = ", ".join(
            f"{at(f'{key}.options.gpu_memory_utilization', overrides, share)}"
            for key, share in zip(engines, shares, strict=True)
        )
        raise UsageError(
            "revise: the critic is another model, so two vLLM servers run at once, and together "
            f"they ask for {sum(shares):.0%} of a device's memory ({keys}); take shares that add "
            "up to at most 1, or a device for each (options.device_ids). For settings of its own "
            "the critic needs +engine@revise.engine=vllm"
        )


CHECKS: list[Callable[[Config, Sequence[str]], None]] = [
    check_choices,
    check_libraries,
    check_data_names,
    check_verdicts,
    check_templates,
    check_licences,
    check_weights,
    check_helpful,
    check_build,
    check_probe,
    check_shots,
    check_attacks,
    check_models,
    check_measures,
    check_wins,
    check_adapter,
    check_tuning,
    check_rounds,
    check_benign,
    check_labelled,
    check_served_models,
    check_launcher,
    check_machines,
    check_shares,
]
