"""Where models come from (hub, folder, wheel), and what decides their content. Loads nothing heavy."""

import dataclasses
import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cai.config.schema import ModelConfig, other_model
from cai.digest import digest, file_digest
from cai.errors import UsageError
from cai.models.chat_template import template_text
from cai.observe.log import say
from cai.paths import cache
from cai.store.files import broken_seal, seal

CONVERSION = 1  # raise when convert_gguf would write other bytes

MODEL_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")


def fingerprint(config: ModelConfig) -> dict[str, Any]:
    """What decides the model, without loading it: for stage keys and the ledger."""
    template = {"template": digest(template_text(config.template))} if config.template else {}
    return content_parts(config) | template


def content_parts(config: ModelConfig) -> dict[str, Any]:
    if config.kind == "path":
        folder, base = Path(config.path), adapter_base(config.path)
        if base is None and not (folder / "config.json").is_file():
            raise UsageError(f"model.path: {folder} holds no model (no config.json) and no adapter")
        files = sorted(
            p
            for p in folder.iterdir()
            if p.suffix in (".json", ".safetensors", ".jinja", ".model", ".txt")
        )
        content = {"files": {p.name: file_digest(p) for p in files}}
        return (
            content
            if base is None
            else content | {"base": content_parts(other_model(*split_revision(base)))}
        )
    if config.kind == "wheel":
        more = {"more": [dataclasses.asdict(part) for part in config.more]} if config.more else {}
        parts = {
            "wheel": config.wheel,
            "sha256": config.sha256,
            "path": config.path,
            "conversion": CONVERSION,
        }
        return parts | more
    return {"hub": config.path, "revision": config.revision}


def adapter_base(model: str) -> str | None:
    """What a folder that holds a peft adapter, and no model, was made for: a folder, or a hub id (`id@revision`)."""
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
            f"{file} names no base model: write the folder or hub id of the one that the adapter was trained on as its "
            "base_model_name_or_path (of a run's own stage, out/model has the adapter merged)"
        )
    return f"{base}@{revision}" if revision and not Path(base).is_dir() else base


def tokenizer_source(model: str) -> str:
    """Where a model's tokenizer lies: an adapter may leave it to its base."""
    base = adapter_base(model)
    return model if base is None or (Path(model) / "tokenizer_config.json").is_file() else base


def cached(parts: Any, make: Callable[[Path], None]) -> str:
    """The cached folder of what `parts` decide, which `make` fills where it is not there yet."""
    folder = cache() / "models" / digest(parts)[:16]
    if wrong := broken_seal(folder):
        say(f"{wrong} is damaged; the cached model is made again", logging.WARNING)
        shutil.rmtree(folder)
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            make(Path(work) / "model")
            seal(Path(work) / "model")
            if not (folder / "config.json").is_file():  # another process may have been as quick
                shutil.rmtree(folder, ignore_errors=True)
                (Path(work) / "model").rename(folder)
    return str(folder)


def split_revision(model: str) -> tuple[str, str | None]:
    """A folder, or a hub id and the revision after its @."""
    name, _, revision = model.partition("@") if not Path(model).exists() else (model, "", "")
    return name, revision or None
