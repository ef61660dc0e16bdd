"""The names of a run's stages, models and data sets."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from cai.config.schema import Config, EngineConfig, ModelConfig
from cai.config.types import lookup

# Stands among sft.data and sl_cai.data for what the stage `build` makes.
BUILT = "built"

# The data sets that the stage `probe` makes: the values of its rows' columns, by the set's name.
PROBES = {
    "probe": {"kind": "red_team", "split": "train"},
    "probe_benign": {"kind": "benign", "split": "train"},
    "probe_test": {"split": "test"},
    "probe_test_red_team": {"kind": "red_team", "split": "test"},
    "probe_test_benign": {"kind": "benign", "split": "test"},
}

# A row of the results that is no model of its own: base with the principles as its system prompt.
IN_CONTEXT = "base, principles in context"

# The suite of the prompts of `evaluate.adherence`, each about one principle.
ADHERENCE = "adherence"

# The sections of the config that may name a model and an engine of their own.
MODEL_SECTIONS = ("build", "probe", "revise", "label", "evaluate.judge")


def own_models(config: Config) -> list[str]:
    """The run's models: base, sft, sl_cai, dpo, and with several rounds dpo2, ..."""
    rounds = range(1, config.rounds + 1)
    return ["base", "sft", "sl_cai", *(in_round("dpo", number) for number in rounds)]


def evaluated_models(config: Config) -> list[str]:
    """`evaluate.models`, with the last round's model where they name no model after `dpo`."""
    models = config.evaluate.models
    later = own_models(config)[4:]
    if not later or "dpo" not in models or set(later) & set(models):
        return models
    return [*models, later[-1]]


def other_model(name: str, revision: str | None = None) -> ModelConfig:
    """A model that is none of the run's: the folder of that name, else a hub id."""
    folder = Path(name)
    kind = "path" if folder.is_absolute() or folder.is_dir() else "hub"
    return ModelConfig(name, kind, name, revision)


def helpful_data(config: Config) -> list[str]:
    """The data sets that `sl_cai` reads beside the revisions."""
    return config.sl_cai.data if config.sl_cai.helpful == "data" else []


def unbuilt(names: Sequence[str]) -> list[str]:
    """The data sets among `names` that the stage `build` does not make."""
    return [name for name in names if name != BUILT]


def builds(config: Config) -> bool:
    """Whether the run has the stage `build`: `stages` names it, or its rows are trained on."""
    return "build" in (config.stages or ()) or BUILT in [*config.sft.data, *helpful_data(config)]


def unprobed(names: Iterable[str]) -> list[str]:
    """The data sets among `names` that the stage `probe` does not make."""
    return [name for name in names if name not in PROBES]


def reads_probes(names: Iterable[str]) -> list[str]:
    """["probe"] where that stage makes one of the data sets, else []."""
    return ["probe"] if any(name in PROBES for name in names) else []


def probes(config: Config) -> bool:
    """Whether the run has the stage `probe`: `stages` names it, or its rows are read."""
    return "probe" in (config.stages or ()) or probes_are_read(config)


def probes_are_read(config: Config) -> bool:
    """Whether a stage reads what the stage `probe` makes."""
    revise, label = config.revise, config.label
    selections = [revise.prompts, label.prompts, label.benign]
    selections.append(revise.helpful.prompts if revise.helpful else None)
    names = [name for prompts in selections if prompts for name in prompts.data]
    return bool(reads_probes([*names, *suite_data(config)]))


def in_round(stage: str, number: int) -> str:
    """The name of `label` or `dpo` in a round: label, label2, label3, ..."""
    return stage if number == 1 else f"{stage}{number}"


def first_round(stage: str) -> str:
    """The first round's name of a stage: label of label2."""
    name = stage.rstrip("0123456789")
    return name if name in ("label", "dpo") else stage


def policy_of(number: int) -> str:
    """The stage whose model a round of label and dpo starts at."""
    return "sl_cai" if number == 1 else in_round("dpo", number - 1)


def suite_data(config: Config) -> list[str]:
    """The data sets of the evaluation's prompts, which nothing is trained on."""
    selections = [suite.prompts for suite in config.evaluate.suites.values()]
    if config.evaluate.adherence:
        selections.append(config.evaluate.adherence)
    return sorted({name for selection in selections for name in selection.data})


def own_engines(config: Config) -> dict[str, EngineConfig]:
    """The engines of the configuration by their key: the run's, and those of sections."""
    engines = {"engine": config.engine}
    for section in MODEL_SECTIONS:
        if engine := lookup(config, section).engine:
            engines[f"{section}.engine"] = engine
    return engines
