"""What must hold between the settings of data: what names a set, and what may stand in it."""

import dataclasses
from collections.abc import Iterator, Sequence

from cai.config.explain import at, origin
from cai.config.names import BUILT, PROBES, builds, unbuilt
from cai.config.schema import Config, Prompts, SftConfig
from cai.config.types import lookup
from cai.errors import UsageError, nearest

# the keys that read prompts of the stage probe to train on them
PROBE_TRAINS = (
    "revise.prompts.data",
    "revise.helpful.prompts.data",
    "revise.benign",
    "label.prompts.data",
    "label.benign.data",
)
# the keys that take people's verdicts
VERDICT_KEYS = ("verdicts", "label.human.data", "label.calibrate.data")
PROBE_TESTS = [name for name in PROBES if PROBES[name]["split"] == "test"]


def check_data_names(config: Config, overrides: Sequence[str]) -> None:
    """Every data set that a setting names is there, and is of a kind that the setting reads."""
    for key, names in data_names(config).items():
        for name in names:
            if name in PROBES:
                _check_probe(key, name, config, overrides)
            else:
                _check_set(key, name, config, overrides)


def _check_set(key: str, name: str, config: Config, overrides: Sequence[str]) -> None:
    """Files of verdicts stand where they are read, and nothing else stands there."""
    if name not in config.data:
        hint = nearest(name, list(config.data)) or f"; known: {', '.join(config.data)}"
        raise UsageError(
            f"{at(key, overrides)} names the data set '{name}', which is not there{hint}"
        )
    holds_verdicts = config.data[name].format == "verdicts"
    if key == "verdicts" and not holds_verdicts:
        raise UsageError(
            f"{at(key, overrides)}: the data set '{name}' holds no verdicts; name one that "
            f"`cai review` has written, or set data.{name}.format=verdicts"
        )
    if holds_verdicts and key not in VERDICT_KEYS:
        raise UsageError(
            f"{at(key, overrides)}: the data set '{name}' holds people's verdicts, which "
            f"only {', '.join(VERDICT_KEYS)} take"
        )


def _check_probe(key: str, name: str, config: Config, overrides: Sequence[str]) -> None:
    """Prompts of the stage probe are trained on or measured on, as its split says."""
    measured = key.startswith("evaluate.") and key.endswith(".data")
    if key not in PROBE_TRAINS and not measured:
        raise UsageError(
            f"{at(key, overrides)} names '{name}', which are prompts without answers; they "
            f"are read by {', '.join(PROBE_TRAINS)} and evaluate's suites"
        )
    if measured != (PROBES[name]["split"] == "test"):
        purposes = ("evaluated on", "trained on")
        fitting = [probe for probe in PROBES if (probe in PROBE_TESTS) == measured]
        raise UsageError(
            f"{at(key, overrides)} names '{name}', whose prompts are "
            f"{purposes[measured]}, and nothing is both; take {' or '.join(fitting)}"
        )
    if name in PROBE_TESTS and not config.probe.test:
        raise UsageError(
            f"{at('probe.test', overrides, 0)}: {key} names '{name}', which would have no "
            "prompt; set probe.test to a share, e.g. 0.3"
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


def _prompts(value: object, key: str = "") -> Iterator[tuple[str, Prompts]]:
    """Every choice of prompts below `value`, with its key."""
    if isinstance(value, Prompts):
        yield key, value
    elif dataclasses.is_dataclass(value) or isinstance(value, dict):
        children = value if isinstance(value, dict) else vars(value)
        for name, child in children.items():
            yield from _prompts(child, f"{key}.{name}" if key else name)


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


def check_made_names(config: Config, overrides: Sequence[str]) -> None:
    for name, stage in {BUILT: "build", **dict.fromkeys(PROBES, "probe")}.items():
        if name in config.data:
            raise UsageError(
                f"data.{name}: this name stands for what the stage {stage} has made; "
                "call the set otherwise"
            )


def check_build(config: Config, overrides: Sequence[str]) -> None:
    if not config.build.target and config.build.prompts is None:
        raise UsageError(
            f"{at('build.target', overrides, 0)}: nothing would be built; name prompts to answer "
            "with 'build.prompts={data:[mine]}'"
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
