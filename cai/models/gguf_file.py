"""Writes a model's folder as one GGUF file, which llama.cpp, Ollama and LM Studio read.

Of Llama's architecture, with a byte-level tokenizer. llama.cpp's own converter knows many more, and
it knows a tokenizer by the digest of what it makes of a text. Here it is known by its parts: what
the run has trained with is what the file says.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from cai.digest import JsonObject
from cai.errors import CaiError, UsageError
from cai.messages import user
from cai.models.chat_template import TemplateRefusal, apply_template, find_turn_end, stop_ids

BY_HAND = (
    "write it with --to safetensors-16 and convert that folder with llama.cpp's "
    "convert_hf_to_gguf.py"
)

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# How a tokenizer splits a text before it merges bytes, and what llama.cpp calls that.
SPLITS: dict[tuple[tuple[str, Any], ...], str] = {
    (("ByteLevel", True),): "gpt-2",
    (("Digits", True), ("ByteLevel", True)): "smollm",
    (("Split", LLAMA3), ("ByteLevel", False)): "llama-bpe",
}


def write_gguf(folder: Path, file: Path, name: str) -> None:
    """Writes `file` from a folder that `from_pretrained` loads: float16, and float32 where flat.

    `name` is the model's. Raises UsageError, which says what to do, of a model that this can't
    write, and CaiError where a weight is too large for float16.
    """
    config = AutoConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    check_model(config, folder)
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_sizes(writer, config)
    _add_tokenizer(writer, tokenizer, folder, config.vocab_size)
    names = _tensor_names(folder, config.num_hidden_layers)
    for tensor_name, tensor in _tensors(folder):
        _add_info(writer, names[tensor_name], tensor)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor_name, tensor in _tensors(folder):
            writer.write_tensor_data(_values(tensor_name, tensor, config))
    finally:
        writer.close()


def check_model(config: Any, folder: Path) -> None:
    """Raises UsageError where llama.cpp's own converter has to do it."""
    rope = (
        config.rope_parameters.get("rope_type", "default") if config.model_type == "llama" else ""
    )
    if config.model_type != "llama":
        problem = f"its architecture is {config.model_type}, and cai writes Llama's alone"
    elif rope != "default":
        problem = f"its positions are scaled ({rope})"
    else:
        problem = _tokenizer_problem(_tokenizer_json(folder))
    if problem:
        raise UsageError(f"this model can't be written as GGUF: {problem}; {BY_HAND}")


def _tokenizer_json(folder: Path) -> JsonObject:
    file = folder / "tokenizer.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _tokenizer_problem(parts: Mapping[str, Any]) -> str:
    """Why llama.cpp would not read a text as this tokenizer does; "" where it would."""
    model = parts.get("model", {})
    if model.get("type") != "BPE" or model.get("byte_fallback") or parts.get("normalizer"):
        return "its tokenizer merges no bytes (it is no byte-level BPE), or changes texts before"
    return "" if _split_name(parts) else "llama.cpp has no name for how its tokenizer splits texts"


def _split_name(parts: Mapping[str, Any]) -> str | None:
    first = parts.get("pre_tokenizer") or {}
    steps = first.get("pretokenizers", [first])
    signature: list[tuple[str, Any]] = []
    for step in steps:
        kind = step.get("type")
        if step.get("add_prefix_space") or step.get("behavior", "Isolated") != "Isolated":
            return None
        pattern = step.get("pattern", {}).get("Regex")
        settings = {
            "ByteLevel": step.get("use_regex", True),
            "Digits": step.get("individual_digits"),
        }
        signature.append((str(kind), settings.get(kind, pattern)))
    return SPLITS.get(tuple(signature))


def _add_sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(
    writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, folder: Path, size: int
) -> None:
    """The vocabulary, what ends a turn, and the chat template."""
    parts = _tokenizer_json(folder)
    words = {token_id: word for word, token_id in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    kinds = []
    for token_id in range(size):
        kind = gguf.TokenType.NORMAL if token_id in words else gguf.TokenType.UNUSED
        if token_id in added:
            special = added[token_id].special
            kind = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
        kinds.append(kind)
    merges = parts["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cast(str, _split_name(parts)))
    writer.add_token_list([words.get(token_id, f"[PAD{token_id}]") for token_id in range(size)])
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in merges])
    writer.add_eos_token_id(cast(int, tokenizer.eos_token_id))
    writer.add_eot_token_id(find_turn_end(tokenizer).token_id)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(cast(int, tokenizer.bos_token_id))
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(cast(int, tokenizer.unk_token_id))
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(cast(int, tokenizer.pad_token_id))
    writer.add_add_bos_token(adds_bos(tokenizer))
    writer.add_add_eos_token(False)
    writer.add_chat_template(cast(str, tokenizer.chat_template))


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether llama.cpp is to begin with a token of its own, as the tokenizer and training do."""
    ids = cast(list[int], tokenizer("A")["input_ids"])
    if tokenizer.bos_token_id is None or ids[0] != tokenizer.bos_token_id:
        return False
    with contextlib.suppress(TemplateRefusal):
        return apply_template(tokenizer, (user("A"),)).startswith(str(tokenizer.bos_token))
    return False


def stop_texts(folder: Path) -> list[str]:
    """The tokens that end an answer, as texts."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    generation = GenerationConfig.from_pretrained(folder)
    ids = stop_ids(tokenizer, cast("int | list[int] | None", generation.eos_token_id))
    return [cast(str, tokenizer.convert_ids_to_tokens(token_id)) for token_id in ids]


def _tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """One at a time, in one order."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in sorted(weights.keys()):
                yield name, weights.get_tensor(name)


def _tensor_names(folder: Path, layers: int) -> dict[str, str]:
    """The names of the tensors in a GGUF file, by those of transformers."""
    tensor_map = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    names = {
        name: tensor_map.get_name(name, try_suffixes=(".weight", ".bias"))
        for name, _ in _tensors(folder)
    }
    if unknown := [name for name, target in names.items() if target is None]:
        raise UsageError(
            f"this model can't be written as GGUF: Llama has no tensor {unknown[0]}; {BY_HAND}"
        )
    return cast(dict[str, str], names)


def _add_info(writer: gguf.GGUFWriter, name: str, tensor: torch.Tensor) -> None:
    dtype = np.dtype(np.float32 if tensor.ndim == 1 else np.float16)
    writer.add_tensor_info(name, tensor.shape, dtype, tensor.numel() * dtype.itemsize)


def _values(name: str, tensor: torch.Tensor, config: Any) -> np.ndarray[Any, Any]:
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for part, count in heads.items():
        if f".{part}." in name:
            # transformers turns the first half of a head against the second, llama.cpp neighbours
            halves = tensor.reshape(count, 2, tensor.shape[0] // count // 2, *tensor.shape[1:])
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
    values = tensor.to(torch.float32 if tensor.ndim == 1 else torch.float16).contiguous().numpy()
    if not np.isfinite(values).all():
        raise CaiError(f"{name} has weights that float16 has no room for; {BY_HAND}")
    return values
