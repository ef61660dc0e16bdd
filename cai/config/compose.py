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
from typing import TypeVar

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from cai.config.as_typed import OVERRIDE, as_typed, groups_of_files
from cai.config.checks import check, check_values
from cai.config.explain import (
    OPEN,
    READ_FILES,
    at,
    files_that_set,
    missing,
    sentence,
    shown,
    unknown,
)
from cai.config.kinds import UNKNOWN, has_entries, kind_at, may_be_null
from cai.config.libraries import whole_numbers
from cai.config.schema import Config
from cai.config.typed_yaml import read_files_with_types
from cai.errors import CaiError, UsageError, nearest
from cai.paths import own_conf, shipped

T = TypeVar("T")

REFERS = "${...} takes the value of another setting, ${oc.env:NAME} of the environment"

SECTIONS_OF_STAGES = ("build", "sft", "revise", "sl_cai", "label", "dpo", "evaluate", "report")

TARGET = re.compile(r"\b_target_\b")


def words_are_overrides(words: Sequence[str], verbs: Sequence[str]) -> None:
    """Raises UsageError on a word that is neither an override nor a verb."""
    for word in words:
        if "=" not in word and not word.startswith("~"):
            hint = nearest(word, list(verbs)) or "; overrides look like key=value"
            raise UsageError(f"'{word}' is no verb and no override{hint} (see `cai --help`)")


def with_own_folder(words: Sequence[str]) -> list[str]:
    """With a --config-dir for the folder ./conf, where there is one and the words name no other."""
    folder, _ = own_folder(words)
    conf = own_conf() if folder is None else None
    return [*words, *(["--config-dir", conf] if conf else [])]


def own_folder(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """A person's folder of configuration files, which --config-dir names, and the other words."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd")
    options, overrides = parser.parse_known_args(words)
    return options.config_dir, overrides


def refuse_targets(words: Sequence[str]) -> None:
    """Raises UsageError where a word, or a file of --config-dir, has Hydra import and call code."""
    folder, _ = own_folder(words)
    texts = {f"'{word}'": word for word in words if not word.startswith("-")}
    for file in sorted(Path(folder).rglob("*.y*ml")) if folder else ():
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        texts |= {f"{file}:{number}": line for number, line in enumerate(lines, 1)}
    for place, text in texts.items():
        if TARGET.search(text):
            raise UsageError(f"{place}: cai runs nothing that a configuration names (_target_)")


def compose(overrides: Sequence[str], folder: str | None = None) -> Config:
    """The checked config. Raises UsageError, which names the key, what set it, and a near name.

    `folder` holds configuration files of a person's own beside those of conf/.
    """
    return load(_compose(overrides, folder), overrides)


def load(composed: DictConfig, overrides: Sequence[str] = ()) -> Config:
    """The checked config of what Hydra has composed. Raises UsageError."""
    try:
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UsageError(missing(str(error.full_key))) from None
    except OmegaConfBaseException as error:
        reason = " ".join(str(error).split("full_key:")[0].split()) or "is not readable"
        raise UsageError(f"{at(str(error.full_key), overrides)}: {reason}; {REFERS}") from None
    refuse_open(values)
    values = whole_numbers(values)
    config = from_json(Config, values, overrides)
    check_values(values, overrides)
    check(config, overrides)
    return _with_system_prompt(config)


def refuse_open(value: object, key: str = "") -> None:
    """Raises UsageError on a `???` of a file that nothing has filled in."""
    children = value.items() if isinstance(value, dict) else ()
    for name, child in enumerate(value) if isinstance(value, list) else children:
        refuse_open(child, f"{key}.{name}" if key else str(name))
    if isinstance(value, str) and value.startswith(OPEN):
        raise UsageError(missing(key, value.removeprefix(OPEN)))


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


def from_json(kind: type[T], values: object, overrides: Sequence[str] = ()) -> T:
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


def _compose(overrides: Sequence[str], folder: str | None = None) -> DictConfig:
    GlobalHydra.instance().clear()
    READ_FILES.clear()
    read_files_with_types()
    words = as_typed(overrides, folder=folder)
    if folder is not None:
        if not Path(folder).is_dir():
            raise UsageError(f"--config-dir={folder}: there is no such folder")
        place = QuotedString(f"file://{Path(folder).resolve()}", Quote.single).with_quotes()
        words.append(f"hydra.searchpath=[{place}]")
    try:
        with hydra.initialize_config_dir(str(shipped("conf")), version_base="1.3"):
            return hydra.compose("config", words)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UsageError(_explain(error, overrides, folder)) from None
    # Hydra's parser lets these through.
    except (AssertionError, AttributeError, IndexError, TypeError, RecursionError):
        raise UsageError(
            f"these are no overrides that Hydra can read: {' '.join(overrides)}"
        ) from None


def _explain(error: Exception, overrides: Sequence[str], folder: str | None) -> str:
    """What Hydra says is wrong, in one line."""
    text = str(error)
    if sentence_of_group := _about_groups(text, overrides, folder):
        return sentence_of_group
    if match := re.search(r"Could not (?:find|load) '([^']+?)(?:\.yaml)?'", text):
        group, _, name = match[1].rpartition("/")
        files = groups_of_files(folder).get(group, [])
        default = f"{group}={name}"
        parent = re.search(r"In '([^']+)': Could not", text)
        stands = f"{_named(parent[1])}: {default}" if parent else default
        override = next((word for word in overrides if word.split("=")[-1] == name), stands)
        hint = nearest(name, files)
        return f"{override}: there is no conf/{match[1]}.yaml{hint} (known: {', '.join(files)})"
    if match := re.search(r"In '([^']+)': (\w+) raised while composing config:(.*)", text, re.S):
        reason = " ".join(match[3].split("full_key:")[0].split())
        key = re.search(r"full_key: (\S+)", match[3])
        return f"{_named(match[1])}: {key[1] + ': ' if key else ''}{reason}"
    if match := re.match(r"Multiple values for (\S+)\. .*: (\S+)'$", text):
        return f"{match[1]} is named already; write {match[1]}={match[2]}, without a +"
    match = re.search(r"Could not override '([^']+)'", text)
    if match and not any(match[1] in word for word in overrides):
        return f"a defaults list overrides '{match[1]}', which no defaults list before it names"
    if match:
        inner = re.search(r"Key '([^']+)' is not in struct", text)
        key = match[1] if inner is None or match[1].endswith(inner[1]) else f"{match[1]}.{inner[1]}"
        return _not_in_conf(key, overrides, folder)
    if match := re.search(r"Key '([^']+)' is not in struct\s+full_key: (\S+)", text):
        return _not_in_conf(match[2], overrides, folder)
    if "${" in text and (cause := error.__cause__):
        text = f"{text}: {str(cause).splitlines()[0]}; {REFERS}"
    return " ".join(text.split())


def _about_groups(text: str, overrides: Sequence[str], folder: str | None) -> str | None:
    """What is wrong with an override that takes a file away; None where `text` is about others."""
    if match := re.search(r"config groups is not supported: '\++([^=]+)=", text):
        return f"++{match[1]}=...: a file is named without ++; write {match[1]}=..."
    if match := re.match(r"Could not delete '([^']+)'. No match in the defaults list", text):
        return f"~{match[1]}: no defaults list names this; take the override away"
    if not text.startswith("Config group override must be a string or a list"):
        return None
    groups = groups_of_files(folder)
    for match in filter(None, map(OVERRIDE.fullmatch, overrides)):
        group, _, section = match[2].partition("@")
        is_group = group in groups or group.startswith("hydra/")
        if is_group and match[3].strip().lower() == "null":
            return f"{match[0]}: {_without_a_file(group, section, groups.get(group, []))}"
    return text


def _without_a_file(group: str, section: str, files: Sequence[str]) -> str:
    """What a person may have meant who set a group of files to null."""
    if section and may_be_null(kind_at(section)):
        return f"a file of {group}/ can't be null; write {section}=null"
    choices = f" (known: {', '.join(files)})" if files else ""
    advice = f"a group of files can't be null; name a file{choices}, or take the override away"
    if (section or group) in SECTIONS_OF_STAGES:
        advice += ". To leave a stage out, name the others in 'stages=[...]'"
    return advice


def _named(config: str) -> str:
    """The file that Hydra calls experiment/mine."""
    files = (file for file in READ_FILES if file.with_suffix("").as_posix().endswith(f"/{config}"))
    return next(map(shown, files), config)


def _not_in_conf(key: str, overrides: Sequence[str], folder: str | None) -> str:
    """An override names a key that conf/ does not have."""
    remaining = [word for word in overrides if not word.lstrip("+").startswith(key)]
    composed = _compose(remaining, folder)
    names, section, depth = key.split("."), composed, 0
    while depth < len(names) and isinstance(section, DictConfig) and names[depth] in section:
        section, depth = section[names[depth]], depth + 1
    siblings = [str(name) for name in section] if isinstance(section, DictConfig) else []
    parent = ".".join(names[:depth])
    is_new_entry = depth + 1 < len(names) and has_entries(kind_at(parent))
    if kind_at(key) is UNKNOWN or is_new_entry:
        return unknown(".".join(names[: depth + 1]), siblings, overrides)
    if section is None:
        remedy = f"'{parent}={{...}}'"
        if names[depth - 1] in ("model", "engine"):
            remedy += f" or '+{names[depth - 1]}@{parent}=...'"
        return f"{at(key, overrides)}: {parent} is null; set it whole, with {remedy}"
    files = files_that_set(names[0], names[1:])
    remedy = f"'{names[0]}={files[0]}' has it" if files else f"'+{key}=...' adds it"
    return f"{at(key, overrides)} is not in this configuration; {remedy}"
