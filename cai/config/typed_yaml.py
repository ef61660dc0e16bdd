"""YAML files of settings, where text stays as typed: `revision: 123e456` is no number.

YAML reads a scalar by its looks. What it should be is known from the setting's type.
"""

import functools
import os
from pathlib import Path
from typing import Annotated

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.errors import CompactHydraException
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from cai.config.as_typed import as_typed
from cai.config.explain import OPEN, READ_FILES, shown
from cai.config.kinds import (
    UNKNOWN,
    child,
    is_text,
    keys_are_text,
    kind_at,
    may_be_null,
    stays_text,
)
from cai.config.types import in_home

TEXT = "tag:yaml.org,2002:str"
# a defaults list: names of files, all of them text, and ??? for a file that must be named
DEFAULTS: object = Annotated[str | None, "defaults"]
NULL = "tag:yaml.org,2002:null"


class UnreadableFile(ConfigLoadError, CompactHydraException):
    """Hydra shows a compact exception as a line, any other as a traceback."""


class TypedFileSource(FileConfigSource):
    """Hydra's files, read with the types of cai's settings."""

    def load_config(self, config_path: str) -> ConfigResult:
        """Raises UnreadableFile where a file is no YAML, with the line."""
        file = Path(os.path.realpath(Path(self.path) / self._normalize_file_name(config_path)))
        try:
            text = file.read_text(encoding="utf-8-sig")  # an editor may write a byte order mark
            header = ConfigSource._get_header_dict(text)
            section = _section_of_file(config_path, header.get("package"))
            values = _read(text, file, section)
            READ_FILES[file] = section
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
            raise UnreadableFile(f"{file}{place}: {error.problem}") from None
        except UnicodeDecodeError as error:
            raise UnreadableFile(
                f"{file}: not UTF-8 at byte {error.start + 1}; convert it, e.g. with "
                "`iconv -f CP1252 -t UTF-8`"
            ) from None
        except (OSError, ValueError, LookupError, AttributeError, yaml.YAMLError) as error:
            raise UnreadableFile(f"{file}: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise UnreadableFile(f"{file}: holds no settings; write one a line, as `seed: 1`")
        try:
            config, path = OmegaConf.create(values), f"{self.scheme()}://{self.path}"
        except OmegaConfBaseException as error:
            key = getattr(error, "full_key", None) or "a value"
            reason = " ".join(str(error).split("\n")[0].split()) or "is not readable"
            raise UnreadableFile(f"{file}: {key}: {reason}") from None
        return ConfigResult(config=config, path=path, provider=self.provider, header=header)


# In the process of a launched job, Hydra registers its own reader beside this one, which came with
# the job's state. It compares names, and keeps the first of two that have the same.
TypedFileSource.__name__ = FileConfigSource.__name__


def read_files_with_types() -> None:
    """Has Hydra read YAML files so. Hydra takes one reader of files, and has its own."""
    Plugins.instance()  # registers Hydra's own, once
    SourcesRegistry.instance().types["file"] = TypedFileSource


# Hydra's own folders lie in ${outputs}. Every process that resolves them has imported this file.
OmegaConf.register_new_resolver("in_home", in_home, replace=True)


def _section_of_file(config_path: str, package: str | None) -> str:
    """The section that a file's header names, else that of its folder; empty for the whole."""
    if package == "_global_":
        return ""
    group = config_path.rpartition("/")[0].replace("/", ".")
    return group if package in (None, "_group_") else str(package)


@functools.cache
def _read(text: str, file: Path, section: str) -> object:
    """A file's values. One command may compose several times, and reading is half of the work."""
    loader = get_yaml_loader()(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return {}
        _keep_text(node, kind_at(section), file)
        if not section:
            _type_sweep(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _keep_text(node: yaml.Node, kind: object, file: Path) -> None:
    """Tags each scalar of a text setting as text. An empty one, `~` and a rightful null stay.

    A `???` becomes a text that says where it stands.
    """
    if isinstance(node, yaml.ScalarNode):
        is_null = node.tag == NULL and (may_be_null(kind) or node.value in ("", "~"))
        is_text_setting = is_text(kind) and not is_null
        if node.style is None and (is_text_setting or stays_text(node.value, kind)):
            node.tag = TEXT
        if node.value == "???" and kind is not UNKNOWN and kind is not DEFAULTS:
            node.value = f"{OPEN}{shown(file)}:{node.start_mark.line + 1}"
    elif isinstance(node, yaml.SequenceNode):
        for element in node.value:
            _keep_text(element, kind if kind is DEFAULTS else child(kind), file)
    elif isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if keys_are_text(kind) and isinstance(name, yaml.ScalarNode) and name.value != "<<":
                name.tag = TEXT
            # the names of files in a defaults list are text too
            is_defaults = kind is not UNKNOWN and name.value == "defaults"
            below = kind if kind is DEFAULTS else child(kind, str(name.value))
            _keep_text(value, DEFAULTS if is_defaults else below, file)


def _type_sweep(node: yaml.Node) -> None:
    """Writes hydra.sweeper.params as overrides of the command line are written for Hydra."""
    for name in ("hydra", "sweeper", "params"):
        entries = node.value if isinstance(node, yaml.MappingNode) else []
        nodes = [value for key, value in entries if key.value == name]
        if not nodes:
            return
        node = nodes[-1]
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(value, yaml.ScalarNode) and value.value:
            (word,) = as_typed([f"{key.value}={value.value}"], sweep=True)
            key.value, _, value.value = word.partition("=")
            value.tag = TEXT
