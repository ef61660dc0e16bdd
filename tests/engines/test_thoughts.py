"""Thoughts, by whatever markers a model writes them, are no part of its answers."""

from typing import Any

import pytest

from cai.engines.thoughts import MARKERS, answer_of, marks_thoughts, without_thoughts
from cai.messages import user
from cai.models.chat_template import render
from tests.models.test_turn_end import bundled, make_tokenizer, tokenizer_for


@pytest.mark.parametrize(("begin", "end"), MARKERS)
def test_thoughts_are_no_part_of_an_answer(begin: str, end: str):
    talk = f"{begin}\nI can't help.\n{end}\n\nPlease do."
    assert without_thoughts(talk, "stop") == ("Please do.", "stop")
    assert without_thoughts(f"I can't help.\n{end}\n\nPlease do.", "stop") == ("Please do.", "stop")
    assert without_thoughts(f"Hm {end} Yes.", "stop", f"... {begin}\n") == ("Yes.", "stop")
    assert without_thoughts(f"{begin}\nI can't", "stop") == ("", "length")
    assert without_thoughts("I can't", "stop", f"... {begin}\n") == ("", "length")
    assert without_thoughts("I can't", "stop", "... user") == ("I can't", "stop")
    about = f"Write {begin}x{end} so."
    assert without_thoughts(about, "stop") == (about, "stop")


def test_gpt_oss_answers_with_or_without_a_thought():
    thought = "<|channel|>analysis<|message|>I can't.<|end|><|start|>assistant"
    for before in ("", thought):
        text = f"{before}<|channel|>final<|message|>Please do."
        assert without_thoughts(text, "stop") == ("Please do.", "stop")


def ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_markers_that_are_special_tokens_are_seen():
    """Decoding leaves them out, and the thought would stand at the answer's beginning."""
    tokenizer = make_tokenizer(["</s>", "<s>", "[THINK]", "[/THINK]"], None)
    assert marks_thoughts(tokenizer) and not marks_thoughts(make_tokenizer(["</s>", "<s>"], None))
    reply = ids(tokenizer, "[THINK]I can't.[/THINK]Please do.</s>")
    raw = tokenizer.decode(reply, skip_special_tokens=False)
    assert answer_of(tokenizer, raw, "stop", "") == ("Please do.", "stop")


def test_a_thought_that_a_generation_prompt_begins_is_seen_in_the_prompt():
    tokenizer = tokenizer_for(bundled("qwen3_5_think.jinja"))
    prompt = render(tokenizer, (user("Hi"),))
    assert without_thoughts("I can't.</think>Hello.", "stop", prompt) == ("Hello.", "stop")
    assert without_thoughts("I can't", "stop", prompt) == ("", "length")
