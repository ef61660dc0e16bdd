"""The texts that a model sees, turn by turn."""

from typing import Any

import pytest

from cai.messages import Message, Prompt, as_dicts, assistant, from_dicts, user
from cai.method.principle import Exemplar, Principle
from cai.method.requests import (
    comparison_request,
    critique_request,
    direct_request,
    revision_request,
    thought_request,
)

PRINCIPLE = Principle("kind", "Was it kind?", "Make it kind.", "Which is kinder?")
OTHER = Principle("short", "Was it short?", "Make it short.", "Which is shorter?")
EXAMPLE = Exemplar(OTHER, (user("Hi."), assistant("Good day to you.")), "It was long.", "Hi.")
TALK = (user("Why?"), assistant("Because."), user("Why?!"), assistant("Go away."))
SHOWN = ["Hi.", "Good day to you.", "Was it short?", "It was long.", "Make it short.", "Hi."]
TURNS = ["Why?", "Because.", "Why?!", "Go away."]


def contents(messages: Any) -> list[str]:
    roles = [message.role for message in messages]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"] * (
        len(roles) % 2
    )  # turns alternate
    return [message.content for message in messages]


def test_a_critique_request_shows_exemplars_then_the_talk_then_the_request():
    assert contents(critique_request(TALK, PRINCIPLE, [EXAMPLE])) == [
        *SHOWN,
        *TURNS,
        "Was it kind?",
    ]
    assert contents(critique_request(TALK, PRINCIPLE, [])) == [*TURNS, "Was it kind?"]


def test_a_revision_request_goes_on_from_the_critique():
    asked = revision_request(TALK, "It was rude.", PRINCIPLE, [EXAMPLE, EXAMPLE])
    assert contents(asked) == [
        *SHOWN,
        *SHOWN,
        *TURNS,
        "Was it kind?",
        "It was rude.",
        "Make it kind.",
    ]


def test_a_direct_request_holds_no_critique():
    assert contents(direct_request(TALK, PRINCIPLE, [EXAMPLE])) == [
        *SHOWN[:2],
        *SHOWN[4:],
        *TURNS,
        "Make it kind.",
    ]


def test_the_form_text_is_one_human_turn():
    (turn,) = revision_request(TALK[:2], "It was rude.", PRINCIPLE, [], form="text")
    assert turn == user(
        "Human: Why?\n\nAssistant: Because.\n\nHuman: Was it kind?\n\n"
        "Assistant: It was rude.\n\nMake it kind."
    )


def test_a_comparison_ends_before_the_letter():
    asked = comparison_request(
        (Message("system", "Be brief."), *TALK[:3]), "Once.", "Twice.", PRINCIPLE
    )
    assert asked[1] == assistant("The answer is:")
    assert asked[0] == user(
        "Here is a conversation between a human and an assistant.\n\n"
        "System: Be brief.\n\nHuman: Why?\n\nAssistant: Because.\n\nHuman: Why?!\n\n"
        "Which is kinder?\n\n"
        "Options:\n(A) Once.\n\n(B) Twice.\n\nReply with the letter of one option, A or B."
    )


def test_a_chain_of_thought_stands_before_the_letter():
    shown = (TALK[:3], "Once.", "Twice.", PRINCIPLE)
    asked, begun = thought_request(*shown)
    assert (
        "(A) Once.\n\n(B) Twice.\n\nWeigh both options" in asked.content
        and begun.role == "assistant"
    )
    after = comparison_request(*shown, "A is kinder.")
    assert after == (asked, assistant("Let's think step by step: A is kinder.\n\nThe answer is:"))


def test_dicts_there_and_back():
    assert from_dicts(as_dicts(TALK)) == TALK
    with pytest.raises(ValueError, match="a message needs a role"):
        from_dicts([{"role": "human", "content": "Hi"}])
    with pytest.raises(ValueError, match="and a text"):
        from_dicts([{"role": "user", "content": None}])


def test_a_prompts_id_moves_with_its_messages_alone():
    one = Prompt.of(TALK[:3], "here")
    assert one.id == Prompt.of(TALK[:3], "there").id != Prompt.of(TALK[:1], "here").id
    assert one.text == "Why?!"


def test_a_system_message_stands_before_the_exemplars():
    system = Message("system", "Be brief.")
    for request in (
        critique_request((system, *TALK), PRINCIPLE, [EXAMPLE]),
        revision_request((system, *TALK), "Hm.", PRINCIPLE, [EXAMPLE]),
        direct_request((system, *TALK), PRINCIPLE, [EXAMPLE]),
    ):
        assert request[0] == system
        assert [message.role for message in request[1:]].count("system") == 0
        assert contents(request[1:])[0] == "Hi."
