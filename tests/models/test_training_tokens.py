"""Which tokens of a dialogue are trained, and what a model continues, with many chat templates."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from cai.config.compose import compose
from cai.messages import Message, as_dicts, assistant, user
from cai.models.chat_template import CHATML, INST, render
from cai.models.convert import locate
from cai.models.load import load_tokenizer
from cai.models.loss_mask import EarlierTurnsDiffer, training_tokens

TALK = (user("Why?"), assistant("Because."), user("Why?!"), assistant("Go away."))

SMOLLM2 = (  # as its tokenizer has it
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, "
    "trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}{{ eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (  # ends turns with a token that is not the end of the sequence
    "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
)
TURN = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
TURN_MARKED = (
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
)
OTHER = "{% if message['role'] == 'assistant' %}%s{% else %}%s{% endif %}"
LLAMA3_TURN = "{{ m.content | trim }}{{ eos_token }}"
LLAMA3_MARKED = (
    "{% if m.role == 'assistant' %}{% generation %}" + LLAMA3_TURN + "{% endgeneration %}"
    "{% else %}" + LLAMA3_TURN + "{% endif %}"
)
INST_TURN = "{{ ' ' + message['content'] + eos_token }}"
# each template, what it writes for an answer, and the same with markers around answer and end
MARKED = {
    "chatml": (CHATML, TURN, OTHER.replace("%s", TURN_MARKED, 1).replace("%s", TURN)),
    "smollm2": (SMOLLM2, TURN, OTHER.replace("%s", TURN_MARKED, 1).replace("%s", TURN)),
    "inst": (INST, INST_TURN, "{% generation %}" + INST_TURN + "{% endgeneration %}"),
    "llama3": (LLAMA3, LLAMA3_TURN, LLAMA3_MARKED),
}
FORGETFUL = (  # shows only the last turn's thoughts, as some templates of reasoning models do
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}(thinks){% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def trained(tokenizer: Any, messages: Any) -> list[str]:
    """The trained stretches as text; checks that every label is its own token."""
    ids, labels = training_tokens(tokenizer, messages)
    assert len(ids) == len(labels) and all(
        label in (-100, token) for token, label in zip(ids, labels, strict=True)
    )
    text = tokenizer.apply_chat_template(as_dicts(messages), tokenize=False)
    assert tokenizer.decode(ids) == text
    stretches: list[list[int]] = [[]]
    for label in labels:
        stretches[-1].append(label) if label != -100 else stretches.append([])
    return [tokenizer.decode(stretch) for stretch in stretches if stretch]


DIALOGUES = {
    "one turn": TALK[:2],
    "two turns": TALK,
    "a system message": (Message("system", "Be brief."), *TALK),
    "answers that repeat each other and their question": (
        user("No."),
        assistant("No."),
        user("No."),
        assistant("No."),
    ),
    "spaces, lines and other scripts": (
        user(" a\n\nb "),
        assistant("  c\n\nd — 你好 😀\n"),
        user("?"),
        assistant("\n!"),
    ),
    "text that looks like a marker": (
        user("[/INST] assistant"),
        assistant("[INST] user\n"),
        user("?"),
        assistant("x"),
    ),
}


def check_mask(tokenizer: Any, name: str, dialogue: Any):
    """The mask is transformers' own, which needs {% generation %} in the template."""
    template, turn, with_markers = MARKED[name]
    assert template.count(turn) == 1
    tokenizer.chat_template = template.replace(turn, with_markers)
    encoded = tokenizer.apply_chat_template(
        as_dicts(dialogue), return_dict=True, return_assistant_tokens_mask=True
    )
    wanted = [
        t if inside else -100
        for t, inside in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    ]
    assert len(wanted) > wanted.count(-100) > 0
    assert training_tokens(tokenizer, dialogue) == (encoded["input_ids"], wanted)
    tokenizer.chat_template = template  # and the same without the markers
    assert training_tokens(tokenizer, dialogue) == (encoded["input_ids"], wanted)
    assert [label for label in wanted if label != -100].count(tokenizer.eos_token_id) == len(
        dialogue
    ) // 2


@pytest.mark.parametrize("dialogue", DIALOGUES.values(), ids=DIALOGUES)
@pytest.mark.parametrize("name", MARKED)
def test_the_mask_is_that_of_generation_markers_token_by_token(
    tokenizer: Any, name: str, dialogue: Any
):
    check_mask(tokenizer, name, dialogue)


def test_an_end_of_turn_that_is_not_the_end_of_the_sequence_is_trained(tokenizer: Any):
    tokenizer.chat_template = GEMMA
    tokenizer.add_special_tokens({"extra_special_tokens": ["<end_of_turn>"]})
    assert trained(tokenizer, TALK) == ["Because.<end_of_turn>", "Go away.<end_of_turn>"]


@pytest.mark.parametrize(
    ("template", "before"),
    [(None, ""), (INST, " "), (LLAMA3, "")],
    ids=["chatml", "inst", "llama3"],
)
def test_exactly_the_answers_and_their_ends_are_trained(
    tokenizer: Any, template: str | None, before: str
):
    tokenizer.chat_template = template or tokenizer.chat_template
    assert trained(tokenizer, TALK) == [
        f"{before}Because.<|im_end|>",
        f"{before}Go away.<|im_end|>",
    ]
    assert trained(tokenizer, TALK[:3]) == [f"{before}Because.<|im_end|>"]
    assert trained(tokenizer, TALK[:1]) == []
    unlearnt = (TALK[0], Message("assistant", TALK[1].content, trained=False), *TALK[2:])
    assert trained(tokenizer, unlearnt) == [f"{before}Go away.<|im_end|>"]


def test_the_masks_token_by_token(tokenizer: Any):
    ids, labels = training_tokens(tokenizer, (user("Hi"), assistant("A B")))
    shown = list(
        zip(tokenizer.convert_ids_to_tokens(ids), [label != -100 for label in labels], strict=True)
    )
    end = [(token, wanted) for token, wanted in shown if wanted or token == "<|im_end|>"]
    assert end == [("<|im_end|>", False), ("A", True), ("ĠB", True), ("<|im_end|>", True)]
    assert shown[-1] == ("Ċ", False)


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Any):
    tokenizer.chat_template = FORGETFUL
    with pytest.raises(EarlierTurnsDiffer, match="renders earlier turns differently"):
        training_tokens(tokenizer, TALK)


def test_render_asks_for_an_answer_or_goes_on_with_one(tokenizer: Any):
    assert (
        render(tokenizer, TALK[:1]) == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (
        render(tokenizer, TALK[:2])
        == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nBecause."
    )


@pytest.mark.slow
def test_the_mask_with_the_real_tokenizer():
    """SmolLM2's own tokenizer and template.

    It merges white space over the border of an answer that begins with it.
    """
    tokenizer = load_tokenizer(locate(compose(["experiment=quickstart"]).model))
    assert tokenizer.chat_template == SMOLLM2
    for name, (dialogue_name, dialogue) in itertools.product(MARKED, DIALOGUES.items()):
        if dialogue_name != "spaces, lines and other scripts":
            check_mask(tokenizer, name, dialogue)
