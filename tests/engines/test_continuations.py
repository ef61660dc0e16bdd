"""The tokens of a continuation are those that it has behind the prompt, however they are split."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cai.config.schema import EngineConfig
from cai.engines.base import Completion, Request, encode_request
from cai.engines.transformers import TransformersEngine
from cai.messages import assistant, user
from cai.method.judgement import letter_probability, option_probability
from cai.method.requests import OPTIONS
from cai.models.chat_template import CHATML, INST, render

COMPARED = (user("Which is better?"), assistant("The answer is:"))


def llama2_tokenizer() -> Any:
    """As of Llama 2 and Mistral: a space is put before every text, and is a character of words."""
    letters = [chr(code) for code in range(33, 127)]
    pieces = ["<unk>", "<s>", "</s>", "\n", "\u2581", *letters, "\u2581A", "\u2581B"]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    merges = [("\u2581", "A"), ("\u2581", "B")]
    raw = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    raw.decoder = decoders.Replace("\u2581", " ")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = INST
    return tokenizer


def test_a_letter_has_the_token_that_it_has_behind_the_prompt():
    tokenizer = llama2_tokenizer()
    alone = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in OPTIONS]
    assert [len(ids) for ids in alone] == [2, 2]  # with a space of their own before
    prompt_ids, option_ids = encode_request(tokenizer, Request(COMPARED, continuations=OPTIONS))
    tokens = [tokenizer.convert_ids_to_tokens(ids) for ids in option_ids]
    assert tokens == [["\u2581A"], ["\u2581B"]]
    assert tokenizer.decode(prompt_ids).endswith("The answer is:")


@pytest.fixture(scope="module")
def splitting_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a tokenizer that splits everything into bytes."""
    folder = tmp_path_factory.mktemp("splitting") / "model"
    shutil.copytree(tiny_model, folder)
    vocabulary = AutoTokenizer.from_pretrained(tiny_model).get_vocab()
    kept = {token: place for token, place in vocabulary.items() if len(token) == 1 or place < 3}
    raw = Tokenizer(models.BPE(kept, []))
    raw.add_special_tokens(["<|pad|>", "<|im_start|>", "<|im_end|>"])
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<|pad|>", bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return folder


def scored(model: Path) -> tuple[TransformersEngine, Completion]:
    engine = TransformersEngine(EngineConfig(device="cpu"), str(model))
    request = Request(COMPARED, continuations=OPTIONS)
    return engine, asyncio.run(engine.complete(request))


def test_split_letters_have_the_probability_of_the_whole_continuation(splitting_model: Path):
    """By the chain rule: of the space, and then of the letter behind it."""
    engine, completion = scored(splitting_model)
    text = render(engine.tokenizer, COMPARED)
    space, a, b = engine.tokenizer(" AB", add_special_tokens=False)["input_ids"]
    ids = engine.tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logprobs = engine.model(torch.tensor([[*ids, space]])).logits.log_softmax(-1)[0, -2:]
    expected = [float(logprobs[0, space] + logprobs[1, letter]) for letter in (a, b)]
    assert completion.logprobs == pytest.approx(expected, abs=1e-4)
    behind_the_space = option_probability(float(logprobs[1, a]), float(logprobs[1, b]))
    assert option_probability(*completion.logprobs) == pytest.approx(behind_the_space, abs=1e-4)
    both = float(logprobs[0, space].exp() * logprobs[1, [a, b]].exp().sum())
    assert letter_probability([completion.logprobs]) == pytest.approx(both, abs=1e-6)
