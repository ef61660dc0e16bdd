"""Self-Instruct's pure parts: what is shown, how a list is read, and why a text is left out."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.method.self_instruct import (
    MAX_WORDS,
    MIN_WORDS,
    REQUESTED,
    SeenInstructions,
    answer_fault,
    draw_examples,
    instruction_fault,
    list_request,
    read_list,
)
from cai.scoring.reference import rouge_l

SEEDS, BUILT = [f"seed {n}" for n in range(20)], [f"built {n}" for n in range(5)]


@pytest.mark.parametrize(("built", "own"), [(BUILT, 2), (BUILT[:1], 1), ([], 0)])
def test_seeds_stand_in_for_what_is_not_built_yet(built: list[str], own: int):
    drawn = draw_examples(SEEDS, built, 6, 2, random.Random(0))
    assert len(set(drawn)) == 8 and len(set(drawn) & set(BUILT)) == own
    assert (
        draw_examples(SEEDS, built, 6, 2, random.Random(0))
        == drawn
        != draw_examples(SEEDS, built, 6, 2, random.Random(1))
    )
    assert len(draw_examples(SEEDS[:3], built, 6, 2, random.Random(0))) == 3 + own


def test_the_request_numbers_on_from_what_it_shows():
    (message,) = list_request(["Name a river.", "Name a lake."])
    assert (
        "1. Name a river.\n2. Name a lake." in message.content
        and "numbered from 3" in message.content
    )
    assert f"{REQUESTED} more tasks" in message.content
    assert read_list(message.content) == [
        "Name a river.",
        message.content.split("2. ")[1],
    ]  # what the model sees reads as a list itself


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("9. Name a river.\n10. Name a lake.", ["Name a river.", "Name a lake."]),
        (
            "Sure! Here are 8 more:\n\n1) Name a river.\n\n2) Name a lake.\n",
            ["Name a river.", "Name a lake."],
        ),
        ("**9.** Name a river.\n**10. Name a lake.**", ["Name a river.", "Name a lake."]),
        ("Task 9: Name a river.\nTask 10: Name a lake.", ["Name a river.", "Name a lake."]),
        # a list inside an item, and years, are no items
        ("9. Sort these:\n1. b\n2. a\n10. Next", ["Sort these:\n1. b\n2. a", "Next"]),
        (
            "3. What happened in\n1815. And why?\n4. Next",
            ["What happened in\n1815. And why?", "Next"],
        ),
        ("9. Fix this:\n\n2.5 is a half.\n10. Next", ["Fix this:\n\n2.5 is a half.", "Next"]),
        ("- Name a river.\n- Name a lake.", []),
        ("", []),
        ("9.", []),
    ],
)
def test_a_list_is_read_by_its_numbers(text: str, items: list[str]):
    assert read_list(text) == items


@given(st.text(max_size=200))
def test_any_text_can_be_read(text: str):
    assert all(item in text for item in read_list(text))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Name a long river.", None),
        ("Name a river.", "short"),
        ("word " * MIN_WORDS, None),
        ("word " * MAX_WORDS, None),
        ("word " * (MAX_WORDS + 1), "long"),
        ("Describe the attached image in detail.", "not_text"),
        ("Draw a GRAPH of these numbers.", "not_text"),
        ("Explain what a paragraph is for.", None),  # "graph" as a part of a word
    ],
)
def test_an_instruction_that_is_no_use(text: str, fault: str | None):
    assert instruction_fault(text) == fault


@pytest.mark.parametrize(
    ("text", "reason", "fault"),
    [
        ("It is 4.", "stop", None),
        ("It is", "length", "cut_off"),
        (" \n", "stop", "empty"),
        ("", "too_long", "too_long"),
        ("and so on " * 20, "stop", "repetitive"),
        ("It is", "content_filter", "cut_off"),
    ],
)
def test_an_answer_that_is_no_use(text: str, reason: str, fault: str | None):
    assert answer_fault(text, reason) == fault


def test_a_copy_without_its_text_is_known_and_the_same_task_on_another_text_is_not():
    seen = SeenInstructions(
        ["Put this label into English.\n\nHet schip ligt al sinds gisteren in de haven."], 0.7
    )
    assert "Put this label into English!" in seen
    assert (
        "Put this label into English.\n\nBitte beachten Sie die neuen Zeiten der Kasse." not in seen
    )


WORDS = st.lists(st.sampled_from("abc"), min_size=1, max_size=12).map(" ".join)


@given(st.lists(WORDS, max_size=6), WORDS, st.sampled_from([0.3, 0.5, 0.7, 1.0]))
def test_an_instruction_is_known_where_one_is_as_near_as_rouge_l_says(
    texts: list[str], text: str, most: float
):
    assert (text in SeenInstructions(texts, most)) == any(
        rouge_l(text, one) >= most for one in texts
    )
    grown = SeenInstructions([], most)
    for one in texts:
        grown.add(one)
    assert (text in grown) == (text in SeenInstructions(texts, most))
