"""GGUF files, Modelfiles and joined adapters, read back by other libraries.

llama.cpp's own converter writes the same tensors, bit for bit (docs/publishing.md)."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from cai.errors import CaiError, UsageError
from cai.messages import assistant, user
from cai.models.chat_template import CHATML, INST, apply_template
from cai.models.exported import write_exported
from cai.models.gguf_file import _split_name, write_gguf
from cai.models.joined_adapter import join_adapters
from cai.models.ollama import turn_texts, write_turns

MODULES = ["q_proj", "v_proj", "down_proj"]


def changed(folder: Path, target: Path, file: str, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of a model's folder with another JSON file."""
    shutil.copytree(folder, target)
    values = json.loads((target / file).read_text())
    change(values)
    (target / file).write_text(json.dumps(values))
    return target


def greedy(model: Any, tokenizer: Any, text: str) -> list[int]:
    dialogue = [{"role": "user", "content": text}]
    ids = tokenizer.apply_chat_template(
        dialogue, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    return model.generate(**ids, do_sample=False, max_new_tokens=24)[0].tolist()


def test_a_gguf_file_answers_as_the_model_does_in_float16(tiny_model: Path, tmp_path: Path):
    write_gguf(tiny_model, tmp_path / "tiny.gguf", "tiny")
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="tiny.gguf", dtype=torch.float32
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    weights = model.state_dict()
    for name, tensor in read.state_dict().items():
        rounded = weights[name] if tensor.ndim == 1 else weights[name].half().float()
        assert torch.equal(tensor, rounded), name
    model = model.half().float()
    own = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    for text in ("Name a river.", "Wie geht es dir?  123 años\n\n", "名前は？"):
        assert greedy(read, tokenizer, text) == greedy(model, own, text)


def test_a_gguf_file_says_what_ends_a_turn(tiny_model: Path, tmp_path: Path):
    write_gguf(tiny_model, tmp_path / "tiny.gguf", "tiny")
    fields = gguf.GGUFReader(tmp_path / "tiny.gguf").fields
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    said = {name: field.contents() for name, field in fields.items()}
    assert said["tokenizer.chat_template"] == tokenizer.chat_template
    assert said["tokenizer.ggml.eot_token_id"] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert said["tokenizer.ggml.pre"] == "gpt-2" and said["tokenizer.ggml.add_bos_token"] is False
    kinds = said["tokenizer.ggml.token_type"]
    assert kinds[tokenizer.convert_tokens_to_ids("<|im_end|>")] == gguf.TokenType.CONTROL


def test_models_that_only_llama_cpp_converts_are_refused(tiny_model: Path, tmp_path: Path):
    scaled = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0}
    scaled |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 128}
    changes: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
        ("config.json", lambda c: c.update(model_type="qwen2"), "its architecture is qwen2"),
        ("config.json", lambda c: c.update(rope_parameters=scaled), "positions are scaled"),
        ("tokenizer.json", lambda t: t.update(normalizer={"type": "NFC"}), "changes texts before"),
        (
            "tokenizer.json",
            lambda t: t["pre_tokenizer"].update(use_regex=False),
            "no name for how its tokenizer splits",
        ),
    ]
    for number, (file, change, message) in enumerate(changes):
        folder = changed(tiny_model, tmp_path / str(number), file, change)
        with pytest.raises(UsageError, match=f"{message}.*; write it with --to safetensors-16"):
            write_gguf(folder, tmp_path / "no.gguf", "no")
    assert not (tmp_path / "no.gguf").exists()


def test_a_weight_that_float16_can_not_hold_is_an_error(tiny_model: Path, tmp_path: Path):
    model = LlamaForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        model.get_parameter("model.layers.0.mlp.up_proj.weight")[0, 0] = 1e6
    folder = Path(shutil.copytree(tiny_model, tmp_path / "large"))
    model.save_pretrained(folder)
    with pytest.raises(CaiError, match=r"up_proj\.weight has weights that float16 has no room for"):
        write_gguf(folder, tmp_path / "no.gguf", "no")


def test_how_a_tokenizer_splits_texts_has_llama_cpps_name():
    digits = {"type": "Digits", "individual_digits": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    steps = {"type": "Sequence", "pretokenizers": [digits, byte_level]}
    assert _split_name({"pre_tokenizer": steps}) == "smollm"
    assert _split_name({"pre_tokenizer": byte_level}) == "gpt-2"
    assert _split_name({"pre_tokenizer": byte_level | {"add_prefix_space": True}}) is None
    assert _split_name({"pre_tokenizer": None}) is None


def test_a_modelfile_writes_turns_as_the_chat_template_does(tiny_model: Path, tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = (
        "{% if messages[0]['role'] != 'system' %}"
        "<|im_start|>system\nDefault.<|im_end|>\n{% endif %}" + CHATML
    )
    texts = turn_texts(tokenizer)
    assert texts is not None and texts.opening == "<|im_start|>system\nDefault.<|im_end|>\n"
    talk = (user("Who?"), assistant("I."), user("Why?"))
    assert write_turns(texts, talk) == apply_template(tokenizer, talk, add_generation_prompt=True)
    tokenizer.chat_template = INST  # a system message stands inside the human's turn
    assert turn_texts(tokenizer) is None

    write_exported("ollama", tiny_model, tmp_path / "out", "tiny", "Be calm.")
    lines = (tmp_path / "out" / "Modelfile").read_text()
    assert lines.startswith('FROM ./tiny-f16.gguf\nTEMPLATE """{{ range $i, $m := .Messages }}')
    assert 'PARAMETER stop "<|im_end|>"\n' in lines and 'SYSTEM """Be calm."""\n' in lines


def random_adapter(base: Path, folder: Path, modules: list[str], **settings: Any) -> Path:
    model = LlamaForCausalLM.from_pretrained(base)
    config = LoraConfig(target_modules=modules, task_type="CAUSAL_LM", **settings)
    tuned = get_peft_model(model, config)
    for name, weight in tuned.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight, std=0.05)
    tuned.save_pretrained(str(folder))
    merged: Any = tuned.merge_and_unload()
    merged.save_pretrained(folder / "merged")
    return folder


def test_one_adapter_is_the_sum_of_those_that_stages_have_trained(tiny_model: Path, tmp_path: Path):
    first = random_adapter(tiny_model, tmp_path / "first", MODULES, r=4, lora_alpha=8)
    second = random_adapter(
        first / "merged", tmp_path / "second", ["q_proj", "o_proj"], r=2, use_rslora=True
    )
    join_adapters([first, second], tmp_path / "joined", "OWNER/NAME", "abc")
    base = LlamaForCausalLM.from_pretrained(tiny_model)
    merged: Any = PeftModel.from_pretrained(base, str(tmp_path / "joined")).merge_and_unload()
    expected = LlamaForCausalLM.from_pretrained(second / "merged").state_dict()
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-5)
    config = json.loads((tmp_path / "joined" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("OWNER/NAME", "abc")
    assert config["r"] == 6 and config["target_modules"] == sorted([*MODULES, "o_proj"])

    dora = random_adapter(tiny_model, tmp_path / "dora", ["q_proj"], use_dora=True)
    with pytest.raises(UsageError, match=r"more than plain LoRA \(use_dora\)"):
        join_adapters([dora], tmp_path / "no", None, None)
