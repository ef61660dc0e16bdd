"""Composes conf/ with overrides through Hydra, and says in one line what is wrong with them."""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cai.config.build import build, origin
from cai.config.checks import load
from cai.config.schema import Config
from cai.errors import CaiError, UsageError, nearest
from cai.paths import shipped

TARGET = re.compile(r"\b_target_\b")


def words_are_overrides(words: Sequence[str], verbs: Sequence[str]) -> None:
    """Raises UsageError on a word that is neither an override nor a verb."""
    for word in words:
        if "=" not in word and not word.startswith("~"):
            hint = nearest(word, list(verbs)) or "; overrides look like key=value"
            raise UsageError(f"'{word}' is no verb and no override{hint} (see `cai --help`)")


def refuse_targets(words: Sequence[str]) -> None:
    """Raises UsageError where an override, or a file of --config-dir, names something for Hydra to import and call."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd")
    folder = parser.parse_known_args(words)[0].config_dir
    texts = {f"'{word}'": word for word in words if not word.startswith("-")}
    for file in sorted(Path(folder).rglob("*.y*ml")) if folder else ():
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        texts |= {f"{file}:{number}": line for number, line in enumerate(lines, 1)}
    for where, text in texts.items():
        if TARGET.search(text):
            raise UsageError(f"{where}: cai runs nothing that a configuration names (_target_)")


def compose(overrides: Sequence[str]) -> Config:
    """The checked config. Raises UsageError that names the key or group, its origin and the nearest valid name."""
    return load(compose_raw(overrides), overrides)


def saved(root: Path) -> Config:
    """The config of the last run in a folder. Raises CaiError where it is damaged, or another version's."""
    try:
        values = json.loads((root / "run.json").read_text(encoding="utf-8"))["config"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CaiError(
            f"{root / 'run.json'} is damaged ({error}); the run itself is not: start it again"
        ) from None
    return build(Config, values)


def compose_raw(overrides: Sequence[str]) -> Any:
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(shipped("conf")), version_base="1.3"):
            return hydra.compose("config", overrides=list(overrides))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UsageError(_explain(error, overrides)) from None
    except (
        AssertionError,
        AttributeError,
        IndexError,
        TypeError,
        RecursionError,
    ):  # what its parser lets through
        raise UsageError(
            f"these are no overrides that Hydra can read: {' '.join(overrides)}"
        ) from None


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    text = str(error)
    if match := re.search(r"Could not (?:find|load) '([^']+?)(?:\.yaml)?'", text):
        group, _, name = match[1].rpartition("/")
        known = sorted(path.stem for path in (shipped("conf") / group).glob("*.yaml"))
        wrong = next((word for word in overrides if word.split("=")[-1] == name), f"{group}={name}")
        return f"{wrong}: there is no conf/{match[1]}.yaml{nearest(name, known)} (known: {', '.join(known)})"
    if match := re.search(r"Could not override '([^']+)'", text):
        inner = re.search(r"Key '([^']+)' is not in struct", text)
        key = match[1] if inner is None or match[1].endswith(inner[1]) else f"{match[1]}.{inner[1]}"
        return _unknown(key, overrides)
    if match := re.search(r"Key '([^']+)' is not in struct\s+full_key: (\S+)", text):
        return _unknown(match[2], overrides)
    return " ".join(text.split())


def _unknown(key: str, overrides: Sequence[str]) -> str:
    from omegaconf import DictConfig, OmegaConf

    rest = [word for word in overrides if not word.startswith(key)]
    *parents, leaf = key.split(".")
    node = OmegaConf.select(compose_raw(rest), ".".join(parents)) if parents else compose_raw(rest)
    known = [str(name) for name in node] if isinstance(node, DictConfig) else []
    extra = (
        f"; '+{key}=...' adds one that conf/ does not have"
        if parents and parents[-1] in ("args", "peft", "options")
        else ""
    )
    return f"unknown key '{key}'{origin(key, overrides)}{nearest(leaf, known)} (known: {', '.join(known)}){extra}"
