"""The common layouts, as dialogues and as prompts."""

import json
from pathlib import Path
from typing import Any

import pytest

from cai.config import DataConfig, Prompts
from cai.data.formats import FORMATS, dialogue_of, load_dialogues, load_prompts, shuffled
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
