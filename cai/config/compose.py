"""Hydra in, Config out: conf/ with overrides, checked once.

An error says in one line what is wrong.
"""

import argparse
import functools
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from cai.config.checks import check, check_values
from cai.config.explain import missing, sentence, unknown
from cai.config.schema import Config
from cai.errors import CaiError, UsageError, nearest
from cai.paths import shipped

T = TypeVar("T")

TARGET = re.compile(r"\b_target_\b")

# The keys of these sections are arguments of a library, and conf/ does not have them all.
LIBRARY_SECTIONS = ("args", "peft", "options", "template_args")


def words_are_overrides(words: Sequence[str], verbs: Sequence[str]) -> None:
    """Raises UsageError on a word that is neither an override nor a verb."""
    for word in words:
        if "=" not in word and not word.startswith("~"):
            hint = nearest(word, list(verbs)) or "; overrides look like key=value"
            raise UsageError(f"'{word}' is no verb and no override{hint} (see `cai --help`)")


def refuse_targets(words: Sequence[str]) -> None:
    """Raises UsageError where a word, or a file of --config-dir, has Hydra import and call code."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd")
    folder = parser.parse_known_args(words)[0].config_dir
    texts = {f"'{word}'": word for word in words if not word.startswith("-")}
    for file in sorted(Path(folder).rglob("*.y*ml")) if folder else ():
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        texts |= {f"{file}:{number}": line for number, line in enumerate(lines, 1)}
    for place, text in texts.items():
        if TARGET.search(text):
            raise UsageError(f"{place}: cai runs nothing that a configuration names (_target_)")


def compose(overrides: Sequence[str]) -> Config:
    """The checked config. Raises UsageError, which names the key, what set it, and a near name."""
    return load(_compose(overrides), overrides)


def load(composed: DictConfig, overrides: Sequence[str] = ()) -> Config:
    """The checked config of what Hydra has composed. Raises UsageError."""
    try:
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UsageError(missing(str(error.full_key))) from None
    except OmegaConfBaseException as error:
        raise UsageError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
    config = from_json(Config, values, overrides)
    check_values(values, overrides)
    check(config, overrides)
    return _with_system_prompt(config)


def _with_system_prompt(config: Config) -> Config:
    """The run's system prompt is that of every data set which names none of its own."""
    if config.system_prompt is None:
        return config
    data = {
        name: dataset
        if dataset.system is not None
        else replace(dataset, system=config.system_prompt)
        for name, dataset in config.data.items()
    }
    return replace(config, data=data)


def saved(root: Path) -> Config:
    """The config of the last run in a folder. Raises CaiError where run.json is damaged."""
    try:
        values = json.loads((root / "run.json").read_text(encoding="utf-8"))["config"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CaiError(
            f"{root / 'run.json'} is damaged ({error}); the run itself is not: start it again"
        ) from None
    return from_json(Config, values)


def from_json(kind: type[T], values: Any, overrides: Sequence[str] = ()) -> T:
    """A config, or a part of one, from what `dataclasses.asdict` made of it.

    Raises UsageError with a line for each wrong key.
    """
    try:
        return _adapter(kind).validate_python(values)
    except ValidationError as error:
        problems = [sentence(kind, problem, overrides) for problem in error.errors()]
        raise UsageError("\n".join(dict.fromkeys(problems))) from None


@functools.cache
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)


def _compose(overrides: Sequence[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(shipped("conf")), version_base="1.3"):
            return hydra.compose("config", overrides=list(overrides))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UsageError(_explain(error, overrides)) from None
    # Hydra's parser lets these through.
    except (AssertionError, AttributeError, IndexError, TypeError, RecursionError):
        raise UsageError(
            f"these are no overrides that Hydra can read: {' '.join(overrides)}"
        ) from None


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    """What Hydra says is wrong, in one line."""
    text = str(error)
    if match := re.search(r"Could not (?:find|load) '([^']+?)(?:\.yaml)?'", text):
        group, _, name = match[1].rpartition("/")
        files = sorted(path.stem for path in (shipped("conf") / group).glob("*.yaml"))
        default = f"{group}={name}"
        override = next((word for word in overrides if word.split("=")[-1] == name), default)
        hint = nearest(name, files)
        return f"{override}: there is no conf/{match[1]}.yaml{hint} (known: {', '.join(files)})"
    if match := re.search(r"Could not override '([^']+)'", text):
        inner = re.search(r"Key '([^']+)' is not in struct", text)
        key = match[1] if inner is None or match[1].endswith(inner[1]) else f"{match[1]}.{inner[1]}"
        return _not_in_conf(key, overrides)
    if match := re.search(r"Key '([^']+)' is not in struct\s+full_key: (\S+)", text):
        return _not_in_conf(match[2], overrides)
    return " ".join(text.split())


def _not_in_conf(key: str, overrides: Sequence[str]) -> str:
    """An override names a key that conf/ does not have."""
    composed = _compose([word for word in overrides if not word.startswith(key)])
    section = key.rpartition(".")[0]
    node = OmegaConf.select(composed, section) if section else composed
    siblings = [str(name) for name in node] if isinstance(node, DictConfig) else []
    hint = ""
    if section.rpartition(".")[2] in LIBRARY_SECTIONS:
        hint = f"; '+{key}=...' adds one that conf/ does not have"
    return unknown(key, siblings, overrides) + hint
