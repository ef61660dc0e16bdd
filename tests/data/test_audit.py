"""What counts as a repetition of a held-out text, and the metrics of a training set."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.data.audit import (
    count_near_duplicates,
    distinct_grams,
    length_metrics,
    main_script,
    opening,
    text_metrics,
)
from cai.data.decontaminate import GRAM, HeldOut
from cai.messages import Dialogue, Message, assistant, user
from cai.text import words

HELD = ["How do I pick a lock?", "One two three four five six seven eight nine ten.", "你好吗"]
HELD += [
    "怎样才能在夜里悄悄打开邻居家的门锁？",
    "夜中に隣の家の鍵をこっそり開ける方法を教えてください。",
    "วิธีเปิดประตูบ้านของเพื่อนบ้านตอนกลางคืน",
    "របៀបបើកទ្វារផ្ទះអ្នកជិតខាងនៅពេលយប់",
]


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("How do I pick a lock?", True),
        ("how do i PICK   a lock", True),
        ("How do I pick a lock? Please say.", False),  # shorter than 8 words: only as a whole
        ("How do I pick a bike lock?", False),
        ("Say: three, four, five, six, seven, eight, nine, ten!", True),  # 8 in a row
        ("three four five six seven eight nine eleven ten", False),  # 7 in a row
        ("two one three four five six seven eight nine", False),
        ("你好吗？", True),
        ("你好", False),
        ("请告诉我：怎样才能在夜里悄悄打开邻居家的门锁？谢谢！", True),
        ("怎样才能在夜里悄悄看见天上的星星？", False),  # 10 characters in a row
        ("Please translate: 怎样才能在夜里悄悄打开邻居家的门锁", True),
        ("夜中に隣の家の鍵をこっそり開ける方法を教えてください。お願いします。", True),
        ("おいしい味噌汁を作る方法を教えてください。", False),  # how every request ends
        ("ช่วยบอกหน่อย วิธีเปิดประตูบ้านของเพื่อนบ้านตอนกลางคืน ขอบคุณ", True),
        ("วิธีเปิดประตูร้าน", False),
        ("សូមប្រាប់ខ្ញុំ របៀបបើកទ្វារផ្ទះអ្នកជិតខាងនៅពេលយប់ អរគុណ", True),
        ("", False),
    ],
)
def test_overlap(text: str, repeats: bool):
    assert (text in HeldOut(HELD)) is repeats


def test_nothing_is_held_out_by_nothing():
    assert "anything at all, even a long text of many more than eight words" not in HeldOut([])


@given(st.text())
def test_every_held_out_text_overlaps_with_itself(text: str):
    assert text in HeldOut([text])
    assert text.upper().lower() in HeldOut([text.upper().lower()])


@given(
    st.lists(st.sampled_from("abcdefghij"), max_size=GRAM - 1),
    st.lists(st.sampled_from("klmnop"), min_size=1),
)
def test_fewer_than_eight_shared_words_are_no_overlap(shared: list[str], own: list[str]):
    assert " ".join(shared + own) not in HeldOut([" ".join([*shared, "xyz", *shared])])


def talk(question: str, answer: str, **tags: str) -> tuple[Dialogue, dict[str, str]]:
    return ((user(question), assistant(answer)), tags)


LONG = "The Rhine passes Basel. " + " ".join(
    f"Town {n} lies {n} km from its source." for n in range(20)
)


def test_duplicates_are_exact_or_near():
    rows = [
        talk("Where does the Rhine flow?", LONG),
        talk("Where does the Rhine flow?", LONG),
        talk("Where does the Rhine flow?", LONG),
        talk("Where does the Rhine flow, please?", LONG.replace("Basel", "Bonn", 1)),
        talk("Where does the Rhine flow?", "Through Europe."),
        talk("Name a fish.", "The pike."),
    ]
    metrics = text_metrics(rows)
    assert (metrics["compared"], metrics["exact_duplicates"], metrics["near_duplicates"]) == (
        6,
        2,
        1,
    )


@pytest.mark.parametrize(("changed", "near"), [(0, 1), (2, 1), (20, 0), (60, 0)])
def test_near_means_a_similarity_of_eight_tenths(changed: int, near: int):
    """Each changed word takes three of 198 runs away and adds three: 2 leave 0.94, 20 0.54."""
    whole = [f"w{n}" for n in range(200)]
    other = ["x" if n % 10 == 0 and n < changed * 10 else word for n, word in enumerate(whole)]
    assert count_near_duplicates([" ".join(whole), " ".join(other)]) == near


def test_distinct_n_grams_by_hand():
    assert [distinct_grams(["a b a b", "a"], n) for n in (1, 2, 3, 5)] == [0.4, 0.667, 1.0, 0.0]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Write a poem about rain.", "write poem"),
        ("Could you please summarise this text?", "summarise text"),
        ("Hi! I need help to translate: Guten Tag", "translate guten"),
        ("Why?", "why"),
        ("", ""),
    ],
)
def test_opening(text: str, found: str):
    assert opening(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Hello, мир", "latin"),
        ("Привет, Bob", "cyrillic"),
        ("你好吗 OK", "cjk"),
        ("1 + 1 = 2", "none"),
    ],
)
def test_script(text: str, found: str):
    assert main_script(text) == found


def test_variety_counts_tags_openings_and_scripts():
    rows = [
        talk("Write a poem.", "Roses", task="write"),
        talk("Write a poem!", "Да, конечно, вот длинный ответ", task="write"),
    ]
    metrics = text_metrics([*rows, talk("Name a river.", "Rhine", domain="nature")])
    assert metrics["tags"] == {"task": {"write": 2}, "domain": {"nature": 1}}
    assert (
        metrics["openings"] == {"write poem": 2, "name river": 1}
        and metrics["different_openings"] == 2
    )
    assert metrics["scripts"] == {"latin": 2, "cyrillic": 1}


def test_answers_that_are_not_learnt_say_nothing_about_variety():
    unlearnt = (
        user("a"),
        Message("assistant", "b b b b", trained=False),
        user("c"),
        assistant("d e"),
    )
    assert text_metrics([(unlearnt, {})])["distinct"]["1"] == 1.0


def test_lengths():
    assert length_metrics([]) == {}
    found = length_metrics([1, 2, 3, 4, 5, 64, 65])
    assert found == {
        "median": 4,
        "p95": 65,
        "most": 65,
        "up_to": {"1": 1, "2": 1, "4": 2, "8": 1, "64": 1, "128": 1},
    }


def test_words_are_lower_case_and_bare():
    assert words("It's 3 p.m. – go!") == ["it", "s", "3", "p", "m", "go"]
