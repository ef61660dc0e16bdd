"""The modules of a model whose weights lie on this machine, by the names in its files.

Safetensors' header has them, so no weight is read and no library loaded: for `cai plan`.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from cai.config.schema import ModelConfig
from cai.config.types import Arguments
from cai.errors import UsageError, nearest
from cai.models.source import local_config

LARGEST_HEADER = 1 << 27  # bytes; a model of 100,000 weights has a tenth of it


def saved_modules(config: ModelConfig) -> set[str] | None:
    """Paths such as model.layers.0.mlp; None where the model's weights are not here."""
    try:
        file = local_config(config)
    except UsageError:  # an adapter's folder that names no base
        return None
    folder = file.parent if file else Path("nowhere")
    weights: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        weights |= _weights(path)
    modules: set[str] = set()
    for name in weights:
        parts = name.split(".")
        modules.update(".".join(parts[:depth]) for depth in range(1, len(parts)))
    # an output layer that shares the embeddings' weights is in no file
    return modules | {"lm_head"} if modules else None


def _weights(path: Path) -> set[str]:
    """The names of the weights in a file; none where it is damaged."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if size <= LARGEST_HEADER else {}
        return set(header) - {"__metadata__"}
    except (OSError, ValueError, TypeError, RecursionError):
        return set()


def absent_modules(key: str, settings: Arguments, modules: set[str]) -> list[str]:
    """A sentence for each module that LoRA's settings at `key` name and that `modules` lack."""
    sentences: list[str] = []
    for setting in ("target_modules", "exclude_modules", "modules_to_save"):
        names = settings.get(setting) or ()
        if isinstance(names, str):
            names = [] if names == "all-linear" else [names]
            absent = [name for name in names if not _matches_any(name, modules)]
        else:
            absent = [name for name in names if not _is_any(str(name), modules)]
        sentences += [f"{key}.{setting}: {_absent(str(name), modules)}" for name in absent]
    return sentences


def _is_any(name: str, modules: set[str]) -> bool:
    return any(f".{path}".endswith(f".{name}") for path in modules)


def _matches_any(pattern: str, modules: set[str]) -> bool:
    """As peft matches a text: a pattern of the whole path."""
    return any(re.fullmatch(pattern, path) for path in modules)


def _absent(name: str, modules: set[str]) -> str:
    names = sorted({path.rpartition(".")[2] for path in _leaves(modules)})
    names = [leaf for leaf in names if not leaf.isdigit()]
    hint = nearest(name, names)
    return f"the model's files have no module '{name}'{hint}; they have {', '.join(names)}"


def _leaves(modules: set[str]) -> Sequence[str]:
    """The modules that hold no others."""
    parents = {path.rpartition(".")[0] for path in modules}
    return sorted(modules - parents)
