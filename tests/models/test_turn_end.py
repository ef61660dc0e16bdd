"""What is trained last is what stops generation, under the templates that packages ship."""

import asyncio
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from cai.config.schema import EngineConfig, ModelConfig, Sampling
from cai.engines.base import Request, RequestFailed, encode_request
from cai.engines.transformers import TransformersEngine
from cai.errors import UsageError
from cai.messages import Message, as_dicts, assistant, user
from cai.models.chat_template import (
    CHATML,
    INST,
    TemplateRefusal,
    adopt_turn_end,
    apply_template,
    find_turn_end,
    give_template,
    render,
    set_arguments,
    stop_ids,
    turn_end_ids,
)
from cai.models.convert import locate
from cai.models.load import load_tokenizer, save_model
from cai.models.loss_mask import token_rows
from cai.training.pair_tokens import pair_tokens, tokenize_pairs
from cai.training.tokens import tokenize_dialogues

TALK = (user("Why?"), assistant("Because."), user("Why?!"), assistant("Go away."))
SYSTEM = Message("system", "Be brief.")
BUNDLED = sorted(
    file.name
    for file in (resources.files("trl") / "chat_templates").iterdir()
    if file.name.endswith(".jinja")
)
SPECIAL = re.compile(r"<[|｜]?[^<>\s]+>|\[[A-Za-z_]+\]")  # markers, of DeepSeek's and GLM's too
VISION = ("idefics3", "smolvlm", "llava_next")  # texts are parts of a list there
GEMMA = (resources.files("trl") / "chat_templates/gemma.jinja").read_text(encoding="utf-8")
LLAMA3 = (resources.files("trl") / "chat_templates/llama3.jinja").read_text(encoding="utf-8")
KINDS = {  # template, special tokens, end of sequence of a base model, end of a turn
    "qwen": (CHATML, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_end|>"),
    "gemma": (GEMMA, ["<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"], "<end_of_turn>"),
    "llama3": (
        LLAMA3,
        [
            "<|end_of_text|>",
            "<|begin_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ],
        "<|eot_id|>",
    ),
    "mistral": (INST, ["</s>", "<s>"], "</s>"),
}


def bundled(name: str) -> str:
    return (resources.files("trl") / "chat_templates" / name).read_text(encoding="utf-8")


def make_tokenizer(special: list[str], template: str | None, bos: bool = False) -> Any:
    """Byte-level. The first special token ends the sequence, the second begins it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({letter: place for place, letter in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(special)
    if bos:
        raw.post_processor = processors.TemplateProcessing(
            single=f"{special[1]} $A", special_tokens=[(special[1], raw.token_to_id(special[1]))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=special[0], bos_token=special[min(1, len(special) - 1)]
    )
    tokenizer.chat_template = template
    return tokenizer


def tokenizer_for(template: str) -> Any:
    """One that has the markers that the template writes, and another end of sequence."""
    bare = make_tokenizer(["<EOS>", "<BOS>"], template)
    text = apply_template(bare, TALK) + apply_template(bare, TALK[:1], add_generation_prompt=True)
    markers = [marker for marker in dict.fromkeys(SPECIAL.findall(text)) if "EOS" not in marker]
    return make_tokenizer(["<EOS>", "<BOS>", *markers], template)


def check_ends(tokenizer: Any, talk: Any) -> list[str]:
    """Each answer's end is trained, and stops generation; no other trained token does.

    Returns the trained stretches."""
    stops = stop_ids(tokenizer, None)
    stretches: list[str] = []
    for ids, labels in token_rows(tokenizer, talk):
        trained: list[int] = []
        for token_id, label in zip(ids, labels, strict=True):
            assert label in (-100, token_id)
            if label != -100:
                trained.append(label)
            if label in stops:
                stretches.append(tokenizer.decode(trained))
                assert not set(trained[:-2]) & set(stops)
                trained = []
        assert not trained, "a stretch ends without a stop"
    assert len(stretches) == sum(message.role == "assistant" for message in talk)
    return stretches


@pytest.mark.parametrize(
    "name", [name for name in BUNDLED if not name.startswith(VISION)], ids=lambda name: name[:-6]
)
def test_what_is_trained_last_stops_generation_under_every_bundled_template(name: str):
    tokenizer = tokenizer_for(bundled(name))
    ends = [tokenizer.convert_ids_to_tokens(turn_end_ids(tokenizer))[0]]
    for talk in (TALK[:2], TALK):
        before = check_ends(tokenizer, talk)
        assert all(stretch.endswith(ends[0]) for stretch in before)
        assert all(
            answer.content in stretch for answer, stretch in zip(talk[1::2], before, strict=True)
        )
        texts = [render(tokenizer, talk[: place + 1]) for place in (0, 1)]
        adopt_turn_end(tokenizer, name)
        assert check_ends(tokenizer, talk) == before
        assert [render(tokenizer, talk[: place + 1]) for place in (0, 1)] == texts


@pytest.mark.parametrize(
    "name", [name for name in BUNDLED if not name.startswith(VISION)], ids=lambda name: name[:-6]
)
def test_a_pairs_answers_end_as_sfts_do_under_every_bundled_template(name: str):
    """An answer that ran into its limit has no end of turn. Behind an end stands nothing."""
    tokenizer = tokenizer_for(bundled(name))
    stop = turn_end_ids(tokenizer)[0]
    pair = {
        "prompt": as_dicts(TALK[:1]),
        "chosen": as_dicts([TALK[1]]),
        "rejected": as_dicts([TALK[3]]),
        "rejected_ended": False,
    }
    prompt, chosen, rejected = pair_tokens(tokenizer, pair)
    for answer, whole in ((chosen, TALK[1]), (rejected, TALK[3])):
        ((ids, labels),) = token_rows(tokenizer, (TALK[0], whole))
        trained = [label for label in labels if label != -100]
        assert trained[-1] == stop
        if answer is rejected:
            trained.pop()
        # the pair may begin a token or two earlier, where both rows are still the same
        assert answer[-len(trained) :] == trained
        assert ids[: len(prompt) + len(answer)] == prompt + answer


def test_a_pair_that_the_template_refuses_is_left_out(tiny_model: Path):
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.chat_template = GEMMA
    answers = {"chosen": as_dicts([TALK[1]]), "rejected": as_dicts([TALK[3]])}
    prompts = [(TALK[0],), (user("Hi"), user("Hi?")), (user("long " * 100),)]
    rows = Dataset.from_list([{"prompt": as_dicts(turns)} | answers for turns in prompts])
    fitting, refused = tokenize_pairs(tokenizer, rows, 64, cut_end=True)
    assert len(fitting) == 1 and fitting["length"][:] <= [64]
    assert refused.count == 1 and "must alternate" in refused.examples[0]
    assert len(tokenize_pairs(tokenizer, rows, 64, cut_end=False)[0]) == 2


@pytest.mark.parametrize("name", [name for name in BUNDLED if name.startswith(VISION)])
def test_a_template_that_leaves_out_texts_is_named(name: str):
    tokenizer = make_tokenizer(["<EOS>", "<BOS>"], bundled(name))
    with pytest.raises(UsageError, match=r"theirs: the chat template (leaves out|can't be)"):
        adopt_turn_end(tokenizer, "theirs")


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_of_a_turn_is_found_adopted_and_published(kind: str, tmp_path: Path):
    template, special, end = KINDS[kind]
    tokenizer = make_tokenizer(special, template)
    tokenizer.save_pretrained(tmp_path / "base")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    end_id = tokenizer.convert_tokens_to_ids(end)
    loaded = load_tokenizer(str(tmp_path / "base"))
    assert (loaded.eos_token, loaded.pad_token) == (end, special[0])
    assert check_ends(loaded, TALK)[0].endswith(f"Because.{end}")
    engine = TransformersEngine(EngineConfig(device="cpu"), str(tmp_path / "base"))
    assert set(engine._decoder.stop_ids) == {end_id, tokenizer.eos_token_id}

    save_model(engine.model, loaded, tmp_path / "published")
    published = GenerationConfig.from_pretrained(tmp_path / "published").eos_token_id
    ids = published if isinstance(published, list) else [published]
    assert set(ids) == {end_id, tokenizer.eos_token_id}
    assert AutoTokenizer.from_pretrained(tmp_path / "published").eos_token == end


@pytest.fixture
def qwen_like(tiny_model: Path, tmp_path: Path) -> Path:
    """A model with a ChatML template whose own end of sequence is another token."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.eos_token = "<|pad|>"
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.config.eos_token_id = model.generation_config.eos_token_id = 0
    model.save_pretrained(tmp_path / "qwen")
    tokenizer.save_pretrained(tmp_path / "qwen")
    return tmp_path / "qwen"


@pytest.mark.parametrize("template", [None, "chatml"])
def test_a_base_models_answers_end_at_the_templates_end(
    qwen_like: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str | None
):
    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "cache"))
    model = ModelConfig(name="q", kind="path", path=str(qwen_like), template=template)
    folder = locate(model)
    engine = TransformersEngine(EngineConfig(device="cpu"), folder)
    with_end: Any = engine.model.get_output_embeddings()
    import torch

    with torch.no_grad():  # after any token, the end of a turn is the likeliest
        engine.model.model.norm.weight.fill_(0)
        with_end.weight.fill_(0)
    bias = torch.zeros(engine.model.config.vocab_size)
    bias[2] = 1.0
    with_end.register_forward_hook(lambda module, inputs, output: output + bias)
    greedy = Sampling(temperature=0, max_new_tokens=8)
    reply = asyncio.run(engine.complete(Request((user("Hi"),), greedy)))
    assert (reply.finish_reason, reply.new_tokens) == ("stop", 1)
    if template:  # vLLM and llama.cpp read the file
        written = json.loads((Path(folder) / "generation_config.json").read_text())
        assert 2 in written["eos_token_id"]


def test_turns_that_a_template_ends_with_nothing_end_with_the_next_turns_marker():
    tokenizer = tokenizer_for(bundled("glm4moe.jinja"))
    end = find_turn_end(tokenizer)
    assert (end.tail, end.text, end.is_written) == ("", "<|user|>", False)
    adopt_turn_end(tokenizer, "glm")
    assert tokenizer.eos_token == "<EOS>"
    bare = make_tokenizer(
        ["<EOS>", "<BOS>"], "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    )
    assert check_ends(bare, TALK) == ["Because.<EOS>", "Go away.<EOS>"]


@pytest.mark.parametrize("name", ["qwen3.jinja", "gptoss.jinja"])
def test_each_answer_is_a_row_of_its_own_where_earlier_turns_are_rewritten(name: str):
    tokenizer = tokenizer_for(bundled(name))
    rows = token_rows(tokenizer, TALK)
    assert len(rows) == 2
    for (ids, _), place in zip(rows, (1, 3), strict=True):  # as the model sees it when it answers
        prompt = tokenizer(render(tokenizer, TALK[:place]), add_special_tokens=False)["input_ids"]
        assert ids[: len(prompt)] == prompt
    unlearnt = (TALK[0], Message("assistant", "Because.", trained=False), *TALK[2:])
    (row,) = token_rows(tokenizer, unlearnt)
    assert row == rows[1]
    dataset, counts = tokenize_dialogues(tokenizer, [TALK, TALK[:2]], 512)
    assert (len(dataset), counts["split"], counts["refused"]) == (3, 1, 0)


def test_a_refused_dialogue_is_left_out_with_the_templates_words():
    tokenizer = make_tokenizer(KINDS["gemma"][1], GEMMA)
    twice = (user("Hi"), user("Hi?"), assistant("Hello."))
    with pytest.raises(TemplateRefusal, match="must alternate"):
        token_rows(tokenizer, twice)
    dataset, counts = tokenize_dialogues(tokenizer, [TALK, twice], 512, ["a.jsonl:1", "a.jsonl:2"])
    assert len(dataset) == 1 and counts["refused"] == 1
    (first,) = counts["refused_first"]
    assert first.startswith("a.jsonl:2: the chat template refuses it: Conversation roles must")


def test_a_system_text_begins_the_first_human_turn_where_the_template_knows_none(capsys: Any):
    tokenizer = make_tokenizer(KINDS["gemma"][1], GEMMA)
    joined = (user("Be brief.\n\nWhy?"), *TALK[1:])
    assert token_rows(tokenizer, (SYSTEM, *TALK)) == token_rows(tokenizer, joined)
    assert render(tokenizer, (SYSTEM, *TALK[:1])) == render(tokenizer, joined[:1])


@pytest.mark.parametrize("adds_bos", [True, False])
def test_the_default_template_begins_as_the_tokenizer_does(adds_bos: bool):
    tokenizer = make_tokenizer(["<eos>", "<bos>"], None, bos=adds_bos)
    give_template(tokenizer, CHATML, "base")
    assert apply_template(tokenizer, TALK).startswith("<bos><|im_start|>" if adds_bos else "<|im_")


@pytest.mark.parametrize("kind", KINDS)
def test_a_reference_is_scored_as_it_is_trained(kind: str):
    template, special, end = KINDS[kind]
    tokenizer = make_tokenizer(special, template)
    request = Request(TALK[:3], continuations=("Go away.",))
    prompt_ids, (answer_ids,) = encode_request(tokenizer, request)
    ((ids, labels),) = token_rows(tokenizer, TALK)
    end_id = tokenizer.convert_tokens_to_ids(end)
    last_answer = labels[len(prompt_ids) : len(prompt_ids) + len(answer_ids) + 1]
    assert prompt_ids + answer_ids == ids[: len(prompt_ids) + len(answer_ids)]
    assert last_answer == [*answer_ids, end_id]


def test_a_request_that_the_template_refuses_fails_alone():
    tokenizer = make_tokenizer(KINDS["gemma"][1], GEMMA)
    with pytest.raises(RequestFailed, match="the chat template refuses it: Conversation roles"):
        encode_request(tokenizer, Request((user("Hi"), user("Hi?"))))


def test_a_templates_arguments_hold_wherever_it_is_used():
    tokenizer = tokenizer_for(bundled("qwen3_5_think.jinja"))
    assert render(tokenizer, TALK[:1]).endswith("<think>\n")
    set_arguments(tokenizer, {"enable_thinking": False})
    assert render(tokenizer, TALK[:1]).endswith("<think>\n\n</think>\n\n")
    assert check_ends(tokenizer, TALK[:2]) == ["Because.<|im_end|>"]
