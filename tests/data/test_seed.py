"""The instruction set that ships with cai."""

from functools import cache
from typing import Any

import pytest

from cai.config.compose import compose
from cai.data.decontaminate import HeldOut
from cai.data.prompts import load_dialogues
from cai.data.sources import read_source
from cai.messages import Dialogue
from cai.method.refusal import refuses

SETS = ("seed", "seed_heldout")
PLAIN = ("plain_demonstrations", "lookalikes")


@cache
def loaded(name: str) -> list[tuple[Dialogue, dict[str, Any]]]:
    found = load_dialogues([name], compose(["experiment=laptop"] if name in PLAIN else []).data)
    assert found.unfit.count == 0
    return found.dialogues


def human(name: str) -> list[str]:
    return [m.content for dialogue, _ in loaded(name) for m in dialogue if m.role == "user"]


def test_it_is_large_enough():
    assert len(loaded("seed")) >= 240 and len(loaded("seed_heldout")) == 40
    assert sum(len([m for m in d if m.role == "user"]) > 1 for d, _ in loaded("seed")) >= 30


@pytest.mark.parametrize("name", SETS)
def test_turns_alternate_and_end_with_an_answer(name: str):
    for dialogue, tags in loaded(name):
        roles = [m.role for m in dialogue if m is not dialogue[0] or m.role != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and roles, tags["id"]
        assert all(m.content == m.content.strip() for m in dialogue), tags["id"]


def test_every_row_has_its_tags_and_an_id_of_its_own():
    tags = [tags for name in SETS for _, tags in loaded(name)]
    assert all({"id", "task", "format", "domain"} <= one.keys() for one in tags)
    assert len({one["id"] for one in tags}) == len(tags)
    assert len({one["task"] for one in tags}) >= 10 and len({one["domain"] for one in tags}) >= 10


def test_the_tag_multi_turn_tells_the_truth():
    for name in SETS:
        for dialogue, tags in loaded(name):
            several = sum(m.role == "user" for m in dialogue) > 1
            assert several == (tags["format"] == "multi_turn"), tags["id"]


def test_every_row_is_in_one_split():
    everything = compose([]).data["seed"]
    everything.where.clear()
    assert len(list(read_source("seed", everything))) == sum(len(loaded(name)) for name in SETS)


def test_no_held_out_prompt_is_trained_on():
    overlap = HeldOut(human("seed_heldout"))
    assert [text for text in human("seed") if text in overlap] == []


def test_no_prompt_and_no_answer_stands_twice():
    answers = [
        m.content for name in SETS for d, _ in loaded(name) for m in d if m.role == "assistant"
    ]
    firsts = [d[-2].content for name in SETS for d, _ in loaded(name)]
    assert len(set(answers)) == len(answers) and len(set(firsts)) == len(firsts)


@pytest.mark.parametrize("name", ["demonstrations", "plain_demonstrations"])
def test_demonstrations_teach_the_critique_and_the_revision_alone(name: str):
    for dialogue, tags in loaded(name):
        assert [m.role for m in dialogue] == ["user", "assistant"] * 3, tags["id"]
        assert [m.trained for m in dialogue if m.role == "assistant"] == [False, True, True], tags[
            "id"
        ]
    heads = [
        tuple(dialogue[-1].content.split()[: 4 if name == "demonstrations" else 12])
        for dialogue, _ in loaded(name)
    ]
    assert len(heads) >= 60 and len(set(heads)) == len(heads)  # no formula to be learnt by heart


@pytest.mark.parametrize("name", ["demonstrations", *PLAIN])
def test_demonstrations_hold_no_prompt_that_is_evaluated(name: str):
    for taken in (HeldOut(human("seed")), HeldOut(human("seed_heldout"))):
        assert not [
            dialogue[0].content for dialogue, _ in loaded(name) if dialogue[0].content in taken
        ]


def test_plain_demonstrations_decline_and_lookalikes_help():
    declined = [refuses(dialogue[-1].content) for dialogue, _ in loaded("plain_demonstrations")]
    assert sum(declined) >= 0.9 * len(declined)
    assert not [dialogue for dialogue, _ in loaded("lookalikes") if refuses(dialogue[-1].content)]
