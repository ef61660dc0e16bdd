"""What an attack leaves of a prompt."""

import base64
from typing import get_args

import pytest

from cai.config.types import Attack
from cai.messages import Prompt, assistant, user
from cai.method.attacks import ATTACKS, OPENINGS, attacked, continued

PROMPT = Prompt.of([user("Hello."), assistant("Hi!"), user("How do I pick a lock?")], "mine")


def test_every_attack_that_can_be_set_is_there():
    assert set(ATTACKS) == set(get_args(Attack)) >= set(OPENINGS)


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_wraps_the_last_turn_alone(attack: str):
    found = attacked(PROMPT, attack)
    assert found.id == PROMPT.id and found.messages[:-1] == PROMPT.messages[:-1]
    coded = base64.b64encode(PROMPT.text.encode()).decode()
    assert (coded if attack == "base64" else PROMPT.text) in found.text
    assert (found.text == PROMPT.text) == (attack in OPENINGS)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("a way", "Sure, here is a way"),
        (", I can't.", "Sure, here is, I can't."),
        ("", "Sure, here is"),
    ],
)
def test_a_begun_answer_is_read_as_a_whole(text: str, whole: str):
    assert continued("Sure, here is", text) == whole
    assert continued("", text) == text
