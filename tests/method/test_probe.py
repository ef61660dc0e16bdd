"""Requests for probes, lists of them as models write them, and what is left out."""

import random

import pytest

from cai.method.principle import Principle
from cai.method.probe import (
    KINDS,
    REQUESTED,
    part_to_evaluate,
    probe_request,
    prompt_fault,
    read_prompts,
    seen_prompts,
)
from cai.method.probe_texts import ENGLISH, TEXTS, texts_for

DOSES = Principle("doses", "C", "R", "Which gives no dose?", sentence="Never give {} doses.")
QUESTION = Principle("harm", "C", "R", "Which of these answers does less harm?")


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_shows_other_rules_before_its_own(kind: str):
    messages = probe_request(DOSES, kind, ENGLISH, [], random.Random(0))  # type: ignore[arg-type]
    *examples, order = messages
    assert [message.role for message in messages] == ["user", "assistant"] * 3 + ["user"]
    assert "A rule for an assistant: Never give {} doses.\n\nWrite 4 messages" in order.content
    asked = {"red_team": "that tempt", "benign": "without breaking"}[kind]
    assert all(asked in message.content for message in messages[::2])
    shown = [read_prompts(message.content) for message in examples[1::2]]
    prompts = [example.red_team + example.benign for example in ENGLISH.examples]
    assert all(len(one) == REQUESTED for one in shown)
    assert {text for one in shown for text in one} < {text for one in prompts for text in one}


def test_what_is_there_already_is_shown_in_the_order_alone():
    messages = probe_request(QUESTION, "benign", ENGLISH, ["Is it safe?"], random.Random(0))
    assert "\n- Is it safe?\nWrite different ones. Number" in messages[-1].content
    assert (
        "A rule for an assistant. Give the answer that is better by this question: Which"
        in messages[-1].content
    )
    assert not any("Is it safe?" in message.content for message in messages[:-1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1. How much?\n2. For a child?", ["How much?", "For a child?"]),
        ("Here they are:\n- How much?\n* For a child?", ["How much?", "For a child?"]),
        ('1. "How much?"\n2. “For a child?”', ["How much?", "For a child?"]),
        ("1. **A plea**: Please, how much?\n2. User: A child?", ["Please, how much?", "A child?"]),
        ("1. I **really** need it.", ["I **really** need it."]),
        ("3) How much?\n\nLet me know if you want more.", ["How much?"]),
        ("I can't help with that.", []),
        ("", []),
    ],
)
def test_lists_are_read_as_models_write_them(text: str, expected: list[str]):
    assert read_prompts(text) == expected


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("How much ibuprofen may a child take?", None),
        ("How much?", "short"),
        ("so " * 101, "long"),
        ("How much [medicine] may I take?", "placeholder"),
        ("I can't help with writing such messages.", "refusal"),
        ("take it and take it and " * 6, "repetitive"),
        ("孩子可以吃多少布洛芬？", "language"),
    ],
)
def test_what_is_no_prompt_is_left_out_with_its_reason(text: str, fault: str | None):
    assert prompt_fault(text, DOSES) == fault


def test_examples_and_the_principle_are_no_prompts():
    seen = seen_prompts(DOSES, "benign", ENGLISH, 0.7)
    assert "Never give doses!" in seen
    assert all(text in seen for example in ENGLISH.examples for text in example.benign)
    assert "How much ibuprofen may a child take?" not in seen


def test_both_parts_get_prompts_and_no_prompt_is_in_both():
    ids = [f"{number:016x}" for number in range(20)]
    part = part_to_evaluate(ids, 0.3)
    assert len(part) == 6 and part < set(ids) and part == part_to_evaluate(ids[::-1], 0.3)
    # a further prompt moves at most one of the others
    assert len(part & part_to_evaluate([*ids, "f" * 16], 0.3)) >= 5
    sizes = {n: len(part_to_evaluate(ids[:n], 0.3)) for n in (0, 1, 2, 3)}
    assert sizes == {0: 0, 1: 0, 2: 1, 3: 1}
    assert len(part_to_evaluate(ids[:2], 0.9)) == 1 and part_to_evaluate(ids, 0.0) == set()


@pytest.mark.parametrize("code", sorted(TEXTS))
def test_texts_are_whole_and_in_their_language(code: str):
    texts = TEXTS[code]
    assert all("{}" in text for text in texts[:5])
    for example in texts.examples:
        assert len(example.red_team) == len(example.benign) == REQUESTED
    prompts = [text for example in texts.examples for text in example.red_team + example.benign]
    assert texts_for(prompts) is texts
    rules = [Principle("p", "C", "R", "Q", sentence=example.rule) for example in texts.examples]
    faults = [prompt_fault(text, rules[0]) for text in prompts]
    assert faults == [None] * len(prompts)


def test_other_languages_are_asked_for_in_english():
    texts = texts_for(["Nunca prometas nada.", "Ei koskaan lupaa toimituspäivää asiakkaalle."] * 2)
    polish = texts_for(["Nigdy nie podawaj dawek leków; powiedz, kogo zapytać o dawkę."])
    assert "Write them in the language of the rule." in polish.number
    assert texts.examples in (ENGLISH.examples, TEXTS["es"].examples)
