"""The texts that a model sees, turn by turn, and which tokens are trained."""

from pathlib import Path
from typing import Any

import pytest

from cai.constitution import Exemplar, Principle
from cai.dialogue import (
    Message,
    Prompt,
    as_dicts,
    assistant,
    comparison_request,
    critique_request,
    direct_request,
    from_dicts,
    render,
    revision_request,
    thought_request,
    training_tokens,
    user,
)

RULE = Principle("kind", "Was it kind?", "Make it kind.", "Which is kinder?")
OTHER = Principle("short", "Was it short?", "Make it short.", "Which is shorter?")
EXAMPLE = Exemplar(OTHER, (user("Hi."), assistant("Good day to you.")), "It was long.", "Hi.")
TALK = (user("Why?"), assistant("Because."), user("Why?!"), assistant("Go away."))
SHOWN = ["Hi.", "Good day to you.", "Was it short?", "It was long.", "Make it short.", "Hi."]
TURNS = ["Why?", "Because.", "Why?!", "Go away."]


def contents(messages: Any) -> list[str]:
    roles = [message.role for message in messages]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"] * (len(roles) % 2)  # turns alternate
    return [message.content for message in messages]


def test_a_critique_request_shows_exemplars_then_the_talk_then_the_request():
    assert contents(critique_request(TALK, RULE, [EXAMPLE])) == [*SHOWN, *TURNS, "Was it kind?"]
    assert contents(critique_request(TALK, RULE, [])) == [*TURNS, "Was it kind?"]


def test_a_revision_request_goes_on_from_the_critique():
    asked = revision_request(TALK, "It was rude.", RULE, [EXAMPLE, EXAMPLE])
    assert contents(asked) == [*SHOWN, *SHOWN, *TURNS, "Was it kind?", "It was rude.", "Make it kind."]


def test_a_direct_request_holds_no_critique():
    assert contents(direct_request(TALK, RULE, [EXAMPLE])) == [*SHOWN[:2], *SHOWN[4:], *TURNS, "Make it kind."]


def test_the_form_text_is_one_human_turn():
    (turn,) = revision_request(TALK[:2], "It was rude.", RULE, [], form="text")
    assert turn == user(
        "Human: Why?\n\nAssistant: Because.\n\nHuman: Was it kind?\n\nAssistant: It was rude.\n\nMake it kind."
    )


def test_a_comparison_ends_before_the_letter():
    asked = comparison_request((Message("system", "Be brief."), *TALK[:3]), "Once.", "Twice.", RULE)
    assert asked[1] == assistant("The answer is:")
    assert asked[0] == user(
        "Here is a conversation between a human and an assistant.\n\n"
        "System: Be brief.\n\nHuman: Why?\n\nAssistant: Because.\n\nHuman: Why?!\n\nWhich is kinder?\n\n"
        "Options:\n(A) Once.\n\n(B) Twice.\n\nReply with the letter of one option, A or B."
    )


def test_a_chain_of_thought_stands_before_the_letter():
    shown = (TALK[:3], "Once.", "Twice.", RULE)
    asked, begun = thought_request(*shown)
    assert "(A) Once.\n\n(B) Twice.\n\nWeigh both options" in asked.content and begun.role == "assistant"
    after = comparison_request(*shown, "A is kinder.")
    assert after == (asked, assistant("Let's think step by step: A is kinder.\n\nThe answer is:"))


def test_dicts_there_and_back():
    assert from_dicts(as_dicts(TALK)) == TALK
    with pytest.raises(ValueError, match="a message needs a role"):
        from_dicts([{"role": "human", "content": "Hi"}])
    with pytest.raises(ValueError, match="and a text"):
        from_dicts([{"role": "user", "content": None}])
    with pytest.raises(ValueError, match="weight is 0 or 1"):
        from_dicts([{"role": "assistant", "content": "Hi", "weight": 0.5}])


def test_a_weight_of_0_marks_a_turn_and_changes_no_prompt():
    plain = as_dicts(TALK[:3])
    marked = from_dicts([row | {"weight": 0} if row["role"] == "assistant" else row for row in plain])
    assert [m.trained for m in marked] == [True, False, True]
    assert as_dicts(marked) == plain and Prompt.of(marked, "x").id == Prompt.of(TALK[:3], "x").id


def test_a_prompts_id_moves_with_its_messages_alone():
    one = Prompt.of(TALK[:3], "here")
    assert one.id == Prompt.of(TALK[:3], "there").id != Prompt.of(TALK[:1], "here").id
    assert one.text == "Why?!"


INST = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
FORGETFUL = (  # shows only the last turn's thoughts, as some templates of reasoning models do
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}(thinks){% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def trained(tokenizer: Any, messages: Any) -> list[str]:
    """The trained stretches as text; checks that every label is its own token."""
    ids, labels = training_tokens(tokenizer, messages)
    assert len(ids) == len(labels) and all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
    text = tokenizer.apply_chat_template(as_dicts(messages), tokenize=False)
    assert tokenizer.decode(ids) == text
    stretches: list[list[int]] = [[]]
    for label in labels:
        stretches[-1].append(label) if label != -100 else stretches.append([])
    return [tokenizer.decode(stretch) for stretch in stretches if stretch]


@pytest.mark.parametrize(
    ("template", "before"), [(None, ""), (INST, " "), (LLAMA3, "")], ids=["chatml", "inst", "llama3"]
)
def test_exactly_the_answers_and_their_ends_are_trained(tokenizer: Any, template: str | None, before: str):
    tokenizer.chat_template = template or tokenizer.chat_template
    assert trained(tokenizer, TALK) == [f"{before}Because.<|im_end|>", f"{before}Go away.<|im_end|>"]
    assert trained(tokenizer, TALK[:3]) == [f"{before}Because.<|im_end|>"]
    assert trained(tokenizer, TALK[:1]) == []
    unlearnt = (TALK[0], Message("assistant", TALK[1].content, trained=False), *TALK[2:])
    assert trained(tokenizer, unlearnt) == [f"{before}Go away.<|im_end|>"]


def test_the_masks_token_by_token(tokenizer: Any):
    ids, labels = training_tokens(tokenizer, (user("Hi"), assistant("A B")))
    shown = list(zip(tokenizer.convert_ids_to_tokens(ids), [label != -100 for label in labels], strict=True))
    end = [(token, wanted) for token, wanted in shown if wanted or token == "<|im_end|>"]
    assert end == [("<|im_end|>", False), ("A", True), ("ĠB", True), ("<|im_end|>", True)]
    assert shown[-1] == ("Ċ", False)


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Any):
    tokenizer.chat_template = FORGETFUL
    with pytest.raises(ValueError, match="renders earlier turns differently"):
        training_tokens(tokenizer, TALK)


def test_render_asks_for_an_answer_or_goes_on_with_one(tokenizer: Any):
    assert render(tokenizer, TALK[:1]) == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert render(tokenizer, TALK[:2]) == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nBecause."
