"""The common layouts, as dialogues and as prompts."""

import json
from pathlib import Path
from typing import Any

import pytest

from cai.config import DataConfig, Prompts
from cai.data.formats import FORMATS, dialogue_of, load_dialogues, load_preferences, load_prompts, shuffled
from cai.dialogue import Message, assistant, user
from cai.errors import CaiError

SAID = (user("Hi"), assistant("Hello"))
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
LAYOUTS = [
    ("messages", {"messages": TURNS}, SAID),
    ("sharegpt", {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, SAID),
    ("alpaca", {"instruction": "Hi", "input": "", "output": "Hello"}, SAID),
    ("alpaca", {"instruction": "Sum", "input": "1 2", "output": "3"}, (user("Sum\n\n1 2"), assistant("3"))),
    ("completion", {"prompt": "Hi", "completion": "Hello"}, SAID),
    ("completion", {"prompt": "Hi", "response": "Hello"}, SAID),
    ("completion", {"prompt": TURNS[:1], "completion": TURNS[1:]}, SAID),
    ("completion", {"prompt": TURNS[:1], "completion": "Hello"}, SAID),
    ("preference", {"prompt": "Hi", "chosen": "Hello", "rejected": "No"}, SAID),
    ("preference", {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": TURNS[:1]}, SAID),
    ("preference", {"prompt": "Hi", "chosen": TURNS, "rejected": TURNS}, SAID),  # UltraFeedback: the turns once more
    ("preference", {"chosen": TURNS, "rejected": TURNS}, SAID),
    ("preference", {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": ""}, SAID),  # Anthropic's HH
    (
        "preference",
        {"chosen": "\n\nHuman: Hi\n\nAssistant: He said: Human:\n\nHuman: So?\n\nAssistant: Yes.", "rejected": ""},
        (user("Hi"), assistant("He said: Human:"), user("So?"), assistant("Yes.")),
    ),
    ("scored", {"prompt": "Hi", "answer": "Hello", "score": "0.5"}, SAID),
    ("scored", {"prompt": "Hi", "answer": "Hello", "harm": 1}, SAID),
    ("prompt", {"prompt": "Hi", "rejected": "?"}, SAID[:1]),
    ("prompt", {"prompt": TURNS[:1]}, SAID[:1]),
    ("prompt", {"text": "Hi"}, SAID[:1]),
]


def data(folder: Path, rows: list[Any], name: str = "mine", **more: Any) -> dict[str, DataConfig]:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: DataConfig(kind="file", path=str(folder / f"{name}.jsonl"), **more)}


@pytest.mark.parametrize(
    ("kind", "row", "expected"), LAYOUTS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_layout_is_read_by_name_and_recognised(kind: str, row: dict[str, Any], expected: tuple[Message, ...]):
    for name in (kind, "auto"):
        assert dialogue_of(row, DataConfig(kind="file", path="", format=name)) == expected


def test_every_layout_has_its_example():
    assert {kind for kind, _, _ in LAYOUTS} == set(FORMATS)


def test_fields_rename_columns():
    config = DataConfig(kind="file", path="", fields={"prompt": "question", "completion": "answer"})
    assert dialogue_of({"question": "Hi", "answer": "Hello", "id": 1}, config) == SAID


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"foo": 1, "bar": 2}, "no known layout has the columns foo, bar; set 'format' and 'fields'"),
        ({"prompt": " "}, "an empty message"),
        ({"prompt": 3}, "expected a text, found int"),
        ({"messages": []}, "an empty message"),
        ({"messages": [{"role": "human", "content": "Hi"}]}, "a message needs a role of system, user, assistant"),
        ({"messages": [{"role": "user", "content": None}]}, "a message needs a role"),
        ({"conversations": [{"from": "human"}]}, "no column 'value'"),
        ({"conversations": None}, "'NoneType'"),
    ],
)
def test_a_row_that_does_not_fit_is_counted_with_its_place(tmp_path: Path, row: dict[str, Any], reason: str):
    loaded = load_dialogues(["mine"], data(tmp_path, [{"prompt": "Hi"}, row]))
    assert [dialogue for dialogue, _ in loaded.dialogues] == [SAID[:1]]
    (skipped,) = loaded.skipped
    assert skipped.startswith(f"{tmp_path}/mine.jsonl:2: ") and reason in skipped


def test_a_set_where_nothing_fits_is_an_error(tmp_path: Path):
    with pytest.raises(CaiError, match=r"data\.mine: not one row fits; the first: .*mine\.jsonl:1: no known layout"):
        load_dialogues(["mine"], data(tmp_path, [{"foo": 1}, {"foo": 2}]))


def test_sets_are_read_in_the_order_of_their_names_and_keep_their_tags(tmp_path: Path):
    sets = data(tmp_path, [{"prompt": "a", "id": 7, "domain": "law", "junk": 1}], "one") | data(
        tmp_path, [{"prompt": "b"}], "two"
    )
    loaded = load_dialogues(["two", "one"], sets)
    assert [tags for _, tags in loaded.dialogues] == [{"source": "two"}, {"id": 7, "domain": "law", "source": "one"}]


def test_a_prompt_keeps_every_turn_but_the_last_answer(tmp_path: Path):
    talk = [{"role": "system", "content": "Be brief."}, *TURNS, {"role": "user", "content": "More"}]
    rows = [{"messages": [*talk, TURNS[1]]}, {"messages": talk}]  # the same prompt twice
    (prompt,) = load_prompts(Prompts(["mine"]), data(tmp_path, rows), seed=0)
    assert prompt.messages == (Message("system", "Be brief."), *SAID, user("More"))
    assert (prompt.text, prompt.source) == ("More", "mine")


def test_prompts_come_in_an_order_that_the_seed_alone_decides(tmp_path: Path):
    rows = [{"prompt": str(n)} for n in range(40)]

    def texts(rows: list[Any], seed: int, **more: Any) -> list[str]:
        sets = data(tmp_path, rows)
        return [prompt.text for prompt in load_prompts(Prompts(["mine"], **more), sets, seed)]

    whole = texts(rows, 0)
    assert sorted(whole, key=int) == [row["prompt"] for row in rows] != whole
    assert texts(rows[::-1], 0) == whole != texts(rows, 1)
    assert texts(rows, 0, limit=5) == whole[:5]
    assert texts(rows, 0, limit=5, offset=38) == whole[38:] and texts(rows, 0, offset=40) == []
    fewer = texts(rows[:-1], 0)
    assert fewer == [text for text in whole if text != "39"]  # a row less moves no other


def test_shuffled_is_a_copy_in_a_seeded_order():
    rows = list(range(30))
    assert sorted(shuffled(rows, 0)) == rows == list(range(30))
    assert shuffled(rows, 0) == shuffled(rows, 0) != shuffled(rows, 1)


def labelled(folder: Path, rows: list[Any], limit: int | None = None, **more: Any) -> list[tuple[str, str, str]]:
    found = load_preferences(Prompts(["mine"], limit), data(folder, rows, **more), 0)
    return [(prompt.text, better, worse) for prompt, better, worse in found]


def test_preferences_are_two_answers_to_one_conversation(tmp_path: Path):
    other = [*TURNS[:1], {"role": "assistant", "content": "No"}]
    rows = [
        {"prompt": "Hi", "chosen": "Hello", "rejected": "No", "messages": TURNS},
        {"chosen": TURNS, "rejected": other},
        {"question": "Hi", "chosen": "Hello", "rejected": "Hello"},  # no pair
        {"chosen": TURNS, "rejected": [{"role": "user", "content": "Ho"}, TURNS[1]]},  # two conversations
        {"chosen": TURNS[:1], "rejected": other[:1]},  # no answers
        {"prompt": "Hi", "chosen": "Hello"},
    ]
    assert labelled(tmp_path, rows) == [("Hi", "Hello", "No")] * 2
    with pytest.raises(CaiError, match=r"data\.mine: not one labelled pair; the first row: .*:1: a labelled conv"):
        labelled(tmp_path, rows[4:])


@pytest.mark.parametrize("column", ["score", "harm"])
def test_of_scored_answers_the_best_is_set_against_the_worst(tmp_path: Path, column: str):
    grades = {"Mild": 0.25, "Bad": "0.75", "Fine": 0, "Odd": "nan", "None": None}
    rows = [{"request": "Hi", "said": text, "people": grade} for text, grade in grades.items()]
    rows += [{"request": f"Same {n}", "said": str(n), "people": 1} for n in (1, 1, 2)]  # nothing to choose
    found = labelled(tmp_path, rows, fields={"prompt": "request", "answer": "said", column: "people"})
    assert found == [("Hi", "Fine", "Bad") if column == "harm" else ("Hi", "Bad", "Fine")]


def test_labelled_pairs_are_shuffled_by_the_seed_and_limited(tmp_path: Path):
    rows = [{"prompt": str(n), "chosen": "Yes", "rejected": "No"} for n in range(20)]
    found, fewer = labelled(tmp_path, rows), labelled(tmp_path, rows, 5)
    assert fewer == found[:5] and sorted(found) == sorted((str(n), "Yes", "No") for n in range(20)) != found
