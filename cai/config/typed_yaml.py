"""YAML files of settings, where text stays as typed: `revision: 123e456` is no number.

YAML reads a scalar by its looks. What it should be is known from the setting's type.
"""

import functools
import os
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.errors import CompactHydraException
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader

from cai.config.kinds import UNKNOWN, child, is_text, keys_are_text, kind_at, may_be_null

TEXT = "tag:yaml.org,2002:str"
NULL = "tag:yaml.org,2002:null"


class UnreadableFile(ConfigLoadError, CompactHydraException):
    """Hydra shows a compact exception as a line, any other as a traceback."""


class TypedFileSource(FileConfigSource):
    """Hydra's files, read with the types of cai's settings."""

    def load_config(self, config_path: str) -> ConfigResult:
        """Raises UnreadableFile where a file is no YAML, with the line."""
        file = Path(os.path.realpath(Path(self.path) / self._normalize_file_name(config_path)))
        try:
            text = file.read_text(encoding="utf-8")
            header = ConfigSource._get_header_dict(text)
            values = _read(text, config_path, header.get("package"))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
            raise UnreadableFile(f"{file}{place}: {error.problem}") from None
        except (OSError, ValueError, LookupError, AttributeError, yaml.YAMLError) as error:
            raise UnreadableFile(f"{file}: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise UnreadableFile(f"{file}: holds no settings; write one a line, as `seed: 1`")
        config, path = OmegaConf.create(values), f"{self.scheme()}://{self.path}"
        return ConfigResult(config=config, path=path, provider=self.provider, header=header)


# In the process of a launched job, Hydra registers its own reader beside this one, which came with
# the job's state. It compares names, and keeps the first of two that have the same.
TypedFileSource.__name__ = FileConfigSource.__name__


def read_files_with_types() -> None:
    """Has Hydra read YAML files so. Hydra takes one reader of files, and has its own."""
    Plugins.instance()  # registers Hydra's own, once
    SourcesRegistry.instance().types["file"] = TypedFileSource


def _kind_of_file(config_path: str, package: str | None) -> Any:
    """What a file holds: the section that its header names, else that of its folder."""
    if package == "_global_":
        return kind_at("")
    group = config_path.rpartition("/")[0].replace("/", ".")
    return kind_at(group if package in (None, "_group_") else str(package))


@functools.cache
def _read(text: str, config_path: str, package: str | None) -> Any:
    """A file's values. One command may compose several times, and reading is half of the work."""
    loader = get_yaml_loader()(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return {}
        _keep_text(node, _kind_of_file(config_path, package))
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _keep_text(node: yaml.Node, kind: Any) -> None:
    """Tags each scalar of a text setting as text. An empty one, `~` and a rightful null stay."""
    if isinstance(node, yaml.ScalarNode):
        is_null = node.tag == NULL and (may_be_null(kind) or node.value in ("", "~"))
        if node.style is None and is_text(kind) and not is_null:
            node.tag = TEXT
    elif isinstance(node, yaml.SequenceNode):
        for element in node.value:
            _keep_text(element, child(kind))
    elif isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if keys_are_text(kind) and isinstance(name, yaml.ScalarNode) and name.value != "<<":
                name.tag = TEXT
            # the names of files in a defaults list are text too
            entry = list[dict[str, str | list[str] | None] | str]
            is_defaults = kind is not UNKNOWN and name.value == "defaults"
            _keep_text(value, entry if is_defaults else child(kind, str(name.value)))
