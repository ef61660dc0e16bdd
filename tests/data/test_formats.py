"""The common layouts, as dialogues and as prompts."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from cai.config.compose import from_json as build
from cai.config.schema import DataConfig, Prompts, TaskTemplate
from cai.data import formats
from cai.data.columns import map_columns
from cai.data.formats import read_mapped, to_dialogue
from cai.data.prompts import (
    UnfitRows,
    load_demonstrations,
    load_dialogues,
    load_preferences,
    load_prompts,
    shuffled,
)
from cai.data.unread import unread
from cai.errors import CaiError
from cai.messages import Message, Prompt, assistant, user
from tests.configs import smoke

SAID = (user("Hi"), assistant("Hello"))
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
SHARED = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
SUM = (user("Sum\n\n1 2"), assistant("3"))
LAYOUTS = [
    ("messages", {"messages": TURNS}, SAID),
    ("messages", {"messages": SHARED}, SAID),
    ("sharegpt", {"conversations": SHARED}, SAID),
    ("sharegpt", {"conversations": TURNS}, SAID),
    ("alpaca", {"instruction": "Hi", "input": "", "output": "Hello"}, SAID),
    ("alpaca", {"instruction": "Sum", "input": "1 2", "output": "3"}, SUM),
    ("alpaca", {"instruction": "Sum", "input": "1 2", "response": "3"}, SUM),
    ("alpaca", {"instruction": "Sum", "context": "1 2", "output": "3"}, SUM),
    ("alpaca", {"Instruction": "Sum", "Input": "1 2", "Output ": "3"}, SUM),
    ("completion", {"prompt": "Sum", "context": "1 2", "completion": "3"}, SUM),
    ("completion", {"prompt": "Sum\n\n1 2", "input": "1 2", "completion": "3"}, SUM),
    ("completion", {"question": "Sum", "context": "1 2", "answer": "3"}, SUM),
    ("completion", {"prompt": "Hi", " completion": "Hello"}, SAID),
    ("completion", {"messages": None, "prompt": "Hi", "output": "Hello"}, SAID),
    ("completion", {"prompt": "\n\nHuman: Hi\n\nAssistant:", "completion": "Hello"}, SAID),
    ("prompt", {"prompt": "Human: Hi\r\n\r\nAssistant: Hello\r\n"}, SAID),
    ("completion", {"prompt": "Hi", "completion": "Hello"}, SAID),
    ("completion", {"prompt": "Hi", "response": "Hello"}, SAID),
    ("completion", {"prompt": TURNS[:1], "completion": TURNS[1:]}, SAID),
    ("completion", {"prompt": TURNS[:1], "completion": "Hello"}, SAID),
    ("demonstration", {"prompt": "Hi", "demonstration": "Hello"}, SAID),
    ("demonstration", {"prompt": TURNS[:1], "demonstration": "Hello"}, SAID),
    ("demonstration", {"instruction": "Hi", "context": "", "response": "Hello"}, SAID),
    (
        "demonstration",
        {"instruction": "Sum", "context": "1 2", "response": "3"},
        SUM,
    ),
    ("preference", {"prompt": "Hi", "chosen": "Hello", "rejected": "No"}, SAID),
    ("preference", {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": TURNS[:1]}, SAID),
    (
        "preference",
        {"prompt": "Hi", "chosen": TURNS, "rejected": TURNS},
        SAID,
    ),  # UltraFeedback: the turns once more
    ("preference", {"chosen": TURNS, "rejected": TURNS}, SAID),
    ("preference", {"question": "Hi", "chosen": "Hello", "rejected": "No"}, SAID),
    (
        "preference",
        {"instruction": "Sum", "input": "1 2", "chosen": "3", "rejected": "4"},
        SUM,
    ),
    (
        "preference",
        {"conversations": SHARED[:1], "chosen": SHARED[1], "rejected": SHARED[1]},
        SAID,
    ),  # LLaMA-Factory's
    (
        "preference",
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": ""},
        SAID,
    ),  # Anthropic's HH
    (
        "preference",
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: He said: Human:"
            "\n\nHuman: So?\n\nAssistant: Yes.",
            "rejected": "",
        },
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
def test_a_layout_is_read_by_name_and_recognised(
    kind: str, row: dict[str, Any], expected: tuple[Message, ...]
):
    for name in (kind, "auto"):
        assert to_dialogue(row, DataConfig(kind="file", path="", format=name)) == expected  # pyright: ignore[reportArgumentType]


def test_every_layout_has_its_example():
    assert {kind for kind, _, _ in LAYOUTS} == set(formats.LAYOUTS)


def test_fields_rename_columns():
    config = DataConfig(kind="file", path="", fields={"prompt": "question", "completion": "answer"})
    assert to_dialogue({"question": "Hi", "answer": "Hello", "id": 1}, config) == SAID


LATER = {"2026-11-30": "Hello"}
MAPPINGS = [
    (
        {"fields": {"prompt": "q.text", "completion": "answers.0.body"}},
        {"q": {"text": "Hi"}, "answers": [{"body": "Hello"}]},
    ),
    (
        {"fields": {"prompt": "q.text", "completion": "a"}},
        {"q.text": "Hi", "a": "Hello"},
    ),  # a column with a dot
    (
        {
            "fields": {"messages": "log", "role": "by.name", "content": "said"},
            "roles": {"Me": "user", "Bot": "assistant"},
        },
        {"log": [{"by": {"name": "Me"}, "said": "Hi"}, {"by": {"name": "Bot"}, "said": "Hello"}]},
    ),
    (
        {"roles": {"bing": "assistant"}},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "bing", "value": "Hello"}]},
    ),
    ({"values": {"completion": {"1": "Hello", "0": "Bye"}}}, {"prompt": "Hi", "completion": 1}),
    ({"templates": [{"prompt": "{x}", "completion": "{y.0}"}]}, {"x": "Hi", "y": ["Hello"]}),
    (
        {"templates": [{"prompt": "Hi", "completion": "{at}"}], "values": {"at": LATER}},
        {"at": datetime.date(2026, 11, 30)},
    ),
]


@pytest.mark.parametrize(("mapping", "row"), MAPPINGS)
def test_a_mapping_in_yaml_reads_a_layout_of_ones_own(mapping: dict[str, Any], row: dict[str, Any]):
    assert to_dialogue(row, build(DataConfig, {"kind": "file", "path": "", **mapping})) == SAID


def test_a_system_column_stands_before_the_talk():
    row = {"system": "Be brief.", "prompt": "Hi", "completion": "Hello"}
    assert to_dialogue(row, DataConfig(kind="file", path="")) == (
        Message("system", "Be brief."),
        *SAID,
    )


def test_a_field_that_nothing_reads_is_refused(tmp_path: Path):
    sets = data(tmp_path, [{"prompt": "Hi", "said": "x"}], fields={"sistem": "said"})
    for load in (load_prompts, load_preferences):
        with pytest.raises(CaiError, match=r"data\.mine\.fields: no layout reads 'sistem'.*system"):
            load(Prompts(["mine"]), sets, 0)


RIDDLES = [
    TaskTemplate("{question}\nOptions:\n{choices}", "{label}"),
    TaskTemplate("Which of {choices.0} and {choices.1}? {question}", "{label}"),
    TaskTemplate("Q: {question}", 'It is {"the": "answer"} {label}.'),
]


def test_a_tasks_rows_are_written_with_templates_that_the_seed_draws(tmp_path: Path):
    rows = [
        {"question": f"Is {n} even?", "choices": ["no", "yes"], "label": n % 2} for n in range(60)
    ]
    sets = data(tmp_path, rows, templates=RIDDLES, values={"label": {"0": "yes", "1": "no"}})
    one, again, other = (
        [d for d, _ in load_dialogues(["mine"], sets, seed).dialogues] for seed in (1, 1, 2)
    )
    assert one == again != other
    first = {
        (user("Is 0 even?\nOptions:\n- no\n- yes"), assistant("yes")),
        (user("Which of no and yes? Is 0 even?"), assistant("yes")),
        (user("Q: Is 0 even?"), assistant('It is {"the": "answer"} yes.')),
    }
    assert {load_dialogues(["mine"], sets, seed).dialogues[0][0] for seed in range(12)} == first
    used = [
        sum(text.startswith(start) for text in (d[0].content for d in one))
        for start in ("Is", "Which", "Q:")
    ]
    assert sum(used) == 60 and min(used) > 8


def test_a_template_names_a_column_that_is_not_there(tmp_path: Path):
    for name in ("foo", "my foo", "bar.0"):
        sets = data(tmp_path, [{"bar": 1, "b": 2}], templates=[TaskTemplate(f"{{{name}}}", "{b}")])
        with pytest.raises(CaiError, match=rf"mine\.jsonl:1: no column '{name}'.*has bar, b"):
            load_dialogues(["mine"], sets)


def test_a_template_has_any_column_and_no_null(tmp_path: Path):
    templates = [TaskTemplate('{my col}? {"a": 1} {a, b}', "{n}")]
    rows = [{"my col": "Hi", "n": 0}, {"my col": None, "n": 1}, {"my col": ["a", None], "n": 1}]
    loaded = load_dialogues(["mine"], data(tmp_path, rows, templates=templates))
    assert [d for d, _ in loaded.dialogues] == [(user('Hi? {"a": 1} {a, b}'), assistant("0"))]
    reason = "the column 'my col', which the template names, holds null"
    assert [line.split(": ", 1)[1] for line in loaded.unfit.examples] == [reason] * 2


def test_the_first_three_rows_that_do_not_fit_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    sets = data(tmp_path, [{"prompt": ""}] * 2 + [{"prompt": "Hi"}] + [{"prompt": ""}] * 5)
    unfit = load_dialogues(["mine"], sets).unfit
    assert unfit.count == 7
    assert [line.split(":")[-2] for line in unfit.examples] == ["1", "2", "4"]
    said = capsys.readouterr().err
    assert said.startswith("data.mine: left out 7 rows that do not fit") and all(
        line in said for line in unfit.examples
    )


def test_a_strict_set_refuses_the_first_row_that_does_not_fit(tmp_path: Path):
    sets = data(tmp_path, [{"prompt": "Hi"}, {"prompt": " "}], strict=True)
    with pytest.raises(
        CaiError,
        match=r"mine\.jsonl:2: an empty message; mend the row, or set data\.mine\.strict=false",
    ):
        load_dialogues(["mine"], sets)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"foo": 1, "bar": 2},
            "no known layout has the columns foo, bar; set 'format' and 'fields'",
        ),
        ({"prompt": " "}, "an empty message"),
        ({"prompt": 3}, "expected a text, found int"),
        ({"messages": []}, "an empty message"),
        (
            {"messages": [{"role": "narrator", "content": "Hi"}]},
            "a role 'narrator', not one of system, user, assistant; see roles",
        ),
        ({"messages": [{"role": "user", "content": None}]}, "needs a text, found nothing (null)"),
        ({"messages": [{"role": "user", "content": {"text": 1}}]}, "a text, found an object"),
        ({"messages": "Hi"}, "expected a list of turns, found a text"),
        ({"messages": ["Hi"]}, "a message needs a role and a text, found a text"),
        ({"messages": [{"role": [1], "content": "Hi"}]}, "a role '[1]', not one of"),
        ({"conversations": [{"from": "human"}]}, "no column 'value'"),
        ({"conversations": None}, "no known layout has the columns (all are empty)"),
        ({"instruction": "Hi", "input": 0, "output": "Hm"}, "input: expected a text, found int 0"),
        ({"prompt": "Hi", "completion": "Hm", "system": 5}, "system: expected a text, found int 5"),
        ({"prompt": "Hi", "completion": "Hm", "label": False}, "label is false"),
        ({"messages": TURNS, "kto_tag": "False"}, "kto_tag is false"),
        ({"prompt": "Hi", "response": "Hm", "is_safe": False}, "is_safe is false"),
        ({"text": "Hello", "role": "assistant"}, "a text of the role assistant, which is no"),
        ({"chosen": "Hello", "rejected": "No"}, "a chosen answer without a prompt: no column"),
    ],
)
def test_a_row_that_does_not_fit_is_counted_with_its_place(
    tmp_path: Path, row: dict[str, Any], reason: str
):
    loaded = load_dialogues(["mine"], data(tmp_path, [{"prompt": "Hi"}, row]))
    assert [dialogue for dialogue, _ in loaded.dialogues] == [SAID[:1]]
    (skipped,) = loaded.unfit.examples
    assert skipped.startswith(f"{tmp_path}/mine.jsonl:2: ") and reason in skipped


def test_a_set_where_nothing_fits_is_an_error(tmp_path: Path):
    with pytest.raises(
        CaiError, match=r"data\.mine: not one row fits; the first: .*mine\.jsonl:1: no known layout"
    ):
        load_dialogues(["mine"], data(tmp_path, [{"foo": 1}, {"foo": 2}]))


def test_sets_are_read_in_the_order_of_their_names_and_keep_their_tags(tmp_path: Path):
    sets = data(tmp_path, [{"prompt": "a", "id": 7, "domain": "law", "junk": 1}], "one") | data(
        tmp_path, [{"prompt": "b"}], "two"
    )
    loaded = load_dialogues(["two", "one"], sets)
    assert [tags for _, tags in loaded.dialogues] == [
        {"source": "two", "place": f"{tmp_path}/two.jsonl:1"},
        {"id": 7, "domain": "law", "source": "one", "place": f"{tmp_path}/one.jsonl:1"},
    ]


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


def labelled(
    folder: Path, rows: list[Any], limit: int | None = None, **more: Any
) -> list[tuple[str, str, str]]:
    found = load_preferences(Prompts(["mine"], limit), data(folder, rows, **more), 0)
    return [(prompt.text, better, worse) for prompt, better, worse in found]


def test_preferences_are_two_answers_to_one_conversation(tmp_path: Path):
    other = [*TURNS[:1], {"role": "assistant", "content": "No"}]
    rows = [
        {"prompt": "Hi", "chosen": "Hello", "rejected": "No", "messages": TURNS},
        {"chosen": TURNS, "rejected": other},
        {"question": "Hi", "chosen": "Hello", "rejected": "Hello"},  # no pair
        {
            "chosen": TURNS,
            "rejected": [{"role": "user", "content": "Ho"}, TURNS[1]],
        },  # two conversations
        {"chosen": TURNS[:1], "rejected": other[:1]},  # no answers
        {"prompt": "Hi", "chosen": "Hello"},
    ]
    assert labelled(tmp_path, rows) == [("Hi", "Hello", "No")] * 2
    with pytest.raises(
        CaiError, match=r"data\.mine: not one labelled pair; the first row: .*:1: a labelled conv"
    ):
        labelled(tmp_path, rows[4:])


def test_labelled_rows_without_a_pair_are_counted_with_their_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = [{"role": "user", "content": "Ho"}, TURNS[1]]
    rows = [
        {
            "prompt": "Hi",
            "chosen": "Hello",
            "rejected": "No",
            "context": "Ha",
            "system": "Be kind.",
        },
        {"chosen": TURNS, "rejected": other},
        {"prompt": "Hi", "chosen": "No", "rejected": "No"},
        {"prompt": "Hi"},
    ]
    assert labelled(tmp_path, rows) == [("Hi\n\nHa", "Hello", "No")]
    said = capsys.readouterr().err
    assert "left out 3 rows that do not fit" in said
    assert "jsonl:2: the chosen and the rejected answer follow different conversations" in said
    assert "jsonl:3: the chosen and the rejected answer are the same" in said
    assert "jsonl:4: no columns chosen and rejected, and no score or harm" in said
    unfit = UnfitRows()
    load_preferences(Prompts(["mine"]), data(tmp_path, rows), 0, unfit)
    assert unfit.count == 3
    with pytest.raises(
        CaiError, match=r"jsonl:2: .*; mend the row, or set data\.mine\.strict=false"
    ):
        labelled(tmp_path, rows, strict=True)


@pytest.mark.parametrize("grade", [10**400, "1e999", "many", [1], "nan", None])
def test_a_grade_that_is_no_number_is_a_row_left_out(
    grade: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = [{"prompt": "Hi", "answer": str(n), "score": n} for n in (1, 2)]
    rows.append({"prompt": "Hi", "answer": "3", "score": grade})
    rows.append({"prompt": "Alone", "answer": "4", "score": 1})
    assert labelled(tmp_path, rows) == [("Hi", "2", "1")]
    said = capsys.readouterr().err
    assert "jsonl:3: score: expected a number, found" in said
    assert "1 prompts have no two answers of different grades" in said


@pytest.mark.parametrize("column", ["score", "harm"])
def test_of_scored_answers_the_best_is_set_against_the_worst(tmp_path: Path, column: str):
    grades = {"Mild": 0.25, "Bad": "0.75", "Fine": 0, "Odd": "nan", "None": None}
    rows = [{"request": "Hi", "said": text, "people": grade} for text, grade in grades.items()]
    rows += [
        {"request": f"Same {n}", "said": str(n), "people": 1} for n in (1, 1, 2)
    ]  # nothing to choose
    found = labelled(
        tmp_path, rows, fields={"prompt": "request", "answer": "said", column: "people"}
    )
    assert found == [("Hi", "Fine", "Bad") if column == "harm" else ("Hi", "Bad", "Fine")]


def test_labelled_pairs_are_shuffled_by_the_seed_and_limited(tmp_path: Path):
    rows = [{"prompt": str(n), "chosen": "Yes", "rejected": "No"} for n in range(20)]
    found, fewer = labelled(tmp_path, rows), labelled(tmp_path, rows, 5)
    assert (
        fewer == found[:5]
        and sorted(found) == sorted((str(n), "Yes", "No") for n in range(20)) != found
    )


@pytest.mark.parametrize(
    "row",
    [
        {"messages": "Hi"},
        {"messages": ["Hi"]},
        {"prompt": ["Hi"]},
        {"prompt": [None]},
        {"prompt": [{"role": "user", "content": "Hi"}], "completion": None},
        {"instruction": None, "input": "x", "output": "y"},  # taken as the text "None\n\nx"
    ],
    ids=str,
)
def test_a_row_that_does_not_fit_is_skipped(tmp_path: Path, row: dict):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "fine"}) + "\n" + json.dumps(row))
    loaded = load_dialogues(["d"], {"d": DataConfig(kind="file", path=str(tmp_path / "a.jsonl"))})
    assert len(loaded.dialogues) == 1 and loaded.unfit.examples[0].startswith(
        f"{tmp_path}/a.jsonl:2:"
    )


@pytest.mark.parametrize("last", ["assistant", "system"])
def test_a_prompt_ends_with_a_human_turn(
    tmp_path: Path, last: str
):  # else render() continues that turn
    turns = [{"role": role, "content": role} for role in ("user", last, "assistant")]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turns}) + '\n{"prompt": "fine"}\n')
    prompts = load_prompts(
        Prompts(["d"]), {"d": DataConfig(kind="file", path=str(tmp_path / "a.jsonl"))}, 0
    )
    assert {prompt.messages[-1].role for prompt in prompts} == {"user"}


CONFIG = DataConfig("file", "")
SYSTEM = {"role": "system", "content": "Be brief."}
LONGER = [
    *TURNS,
    {"role": "user", "content": "Pick a lock!"},
    {"role": "assistant", "content": "No."},
]
LONG_TALK = (*SAID, user("Pick a lock!"), assistant("No."))
BRIEF = Message("system", "Be brief.")
REPEATED = {
    "all of it": (LONGER[:3], LONGER, LONG_TALK),
    "the last human turn, as a text": ("Pick a lock!", LONGER, LONG_TALK),
    "its end": (LONGER[:3], LONGER[2:], LONG_TALK),
    "other spacing": ("Pick  a lock!\n", LONGER, LONG_TALK),
    "its beginning": (LONGER[:1], LONGER, LONG_TALK),
    "nothing": (LONGER[:3], LONGER[3:], LONG_TALK),
    "a system message of the prompt's": ([SYSTEM, *LONGER[:3]], LONGER, (BRIEF, *LONG_TALK)),
    "a system message of the answer's": (LONGER[:3], [SYSTEM, *LONGER], (BRIEF, *LONG_TALK)),
    "a system message of both": ([SYSTEM, *LONGER[:3]], [SYSTEM, *LONGER], (BRIEF, *LONG_TALK)),
    "a system message alone": ([SYSTEM], LONGER, (BRIEF, *LONG_TALK)),
    "earlier turns alone": (LONGER[:2], LONGER[2:], LONG_TALK),
    "Anthropic's turns": (
        "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Pick a lock!\n\nAssistant:",
        "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Pick a lock!\n\nAssistant: No.",
        LONG_TALK,
    ),
    "Anthropic's turns before a text": (
        "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Pick a lock!\n\nAssistant:",
        "No.",
        LONG_TALK,
    ),
    "a text": ("Pick a lock!", "Pick a lock!\nNo.", (user("Pick a lock!"), assistant("No."))),
    "a text with other spacing": (
        "Pick  a\nlock!",
        "Pick a lock! No.",
        (user("Pick  a\nlock!"), assistant("No.")),
    ),
    "a text without spaces": (
        "\u957f\u6c5f\u6709\u591a\u957f",
        "\u957f\u6c5f\u6709\u591a\u957fNo.",
        (user("\u957f\u6c5f\u6709\u591a\u957f"), assistant("No.")),
    ),
}


@pytest.mark.parametrize("case", REPEATED)
def test_a_prompt_that_chosen_repeats_is_not_doubled(case: str, tmp_path: Path):
    """In preferences, and where a completion is a list of turns; also when a pair is labelled."""
    prompt, chosen, expected = REPEATED[case]
    rejected = json.loads(json.dumps(chosen).replace("No.", "Yes."))
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    assert to_dialogue(row, CONFIG) == expected
    (pair,) = load_preferences(Prompts(["mine"]), data(tmp_path, [row]), 0)
    assert (pair[0].messages, pair[1], pair[2]) == (expected[:-1], "No.", "Yes.")
    if isinstance(chosen, list):
        assert to_dialogue({"prompt": prompt, "completion": chosen}, CONFIG) == expected


def test_an_answer_alone_that_repeats_its_question_is_left_as_it_is():
    row = {"prompt": "Who are you?", "chosen": "Who are you? I'm cai.", "rejected": "Nobody."}
    assert to_dialogue(row, CONFIG)[-1] == assistant("Who are you? I'm cai.")
    row = {"prompt": "Tell me how", "chosen": "Tell me however", "rejected": "Tell me howling"}
    assert to_dialogue(row, CONFIG)[-1] == assistant("Tell me however")  # no word is cut


UNJOINED = [
    ([SYSTEM, *TURNS[:1]], [{"role": "system", "content": "Be long."}, *TURNS], "different system"),
    ("Ho", TURNS, "a human turn that the prompt does not hold"),
]


@pytest.mark.parametrize(("prompt", "chosen", "reason"), UNJOINED)
def test_a_prompt_and_an_answer_that_do_not_join_are_left_out(
    prompt: Any, chosen: Any, reason: str
):
    with pytest.raises(ValueError, match=reason):
        to_dialogue({"prompt": prompt, "chosen": chosen, "rejected": chosen}, CONFIG)


@pytest.mark.parametrize("flag", ["weight", "train", "trainable", "training", "loss", "loss_mask"])
@pytest.mark.parametrize("value", [0, False, 1, True, None])
def test_an_answer_that_is_marked_is_not_trained(flag: str, value: Any, tmp_path: Path):
    row = {"messages": [TURNS[0] | {flag: 0}, TURNS[1] | {flag: value}]}
    question, answer = to_dialogue(row, CONFIG)
    assert (question.trained, answer.trained) == (True, value is None or bool(value))
    assert Prompt.of((question, answer), "x").id == Prompt.of(SAID, "x").id
    demonstrations = load_demonstrations(Prompts(["mine"]), data(tmp_path, [row]), 0)
    assert len(demonstrations) == answer.trained


def test_a_history_and_parts_of_a_message_are_read():
    row = {"instruction": "Pick a lock!", "output": "No.", "history": [["Hi", "Hello"]]}
    assert to_dialogue(row, CONFIG) == LONG_TALK
    assert to_dialogue(row | {"system": "Be brief."}, CONFIG) == (BRIEF, *LONG_TALK)
    assert to_dialogue(row | {"history": TURNS}, CONFIG) == LONG_TALK
    assert to_dialogue(row | {"history": []}, CONFIG) == LONG_TALK[2:]
    parts = [{"type": "text", "text": "Pick"}, {"type": "text", "text": "a lock!"}]
    turns = [{"role": "user", "content": parts}, TURNS[1]]
    assert to_dialogue({"messages": turns}, CONFIG)[0] == user("Pick\na lock!")


CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
PICTURE = {"type": "image", "image": "a.png", "text": ""}
REFUSED = [
    ({"messages": [TURNS[0], CALL]}, "a call of tools"),
    ({"messages": [TURNS[0], {"role": "tool", "content": "7"}, TURNS[1]]}, "a call of tools"),
    ({"conversations": [*SHARED, {"from": "observation", "value": "7"}]}, "a call of tools"),
    ({"messages": [{"role": "developer", "content": "x"}, *TURNS]}, "developer: system"),
    ({"messages": [TURNS[0] | {"content": [{"type": "image_url"}]}, TURNS[1]]}, "no text: image_"),
    ({"messages": TURNS, "images": ["a.png"]}, "the column images: the row is not text alone"),
    ({"messages": [TURNS[0] | {"images": [1]}, TURNS[1]]}, "the field images: the row is not"),
    ({"messages": [TURNS[0] | {"content": [PICTURE]}, TURNS[1]]}, "that is no text: image"),
    ({"messages": [TURNS[0], TURNS[1] | {"train": True, "loss_mask": 0}]}, "train: true, loss_m"),
    ({"messages": [TURNS[0], TURNS[1] | {"weight": 0, "trainable": 1}]}, "weight: 0, trainable"),
    ({"instruction": "Hi", "output": "Ho", "history": "Hm"}, "a history that is no list"),
    ({"instruction": "Hi", "output": "Ho", "history": [["Hm"]]}, "a list of pairs"),
    ({"messages": [TURNS[0], TURNS[1] | {"loss_mask": 0.5}]}, "loss_mask is 0 or 1, not 0.5"),
]


@pytest.mark.parametrize(("row", "reason"), REFUSED)
def test_what_changes_a_rows_meaning_and_is_not_read_has_its_reason(row: Any, reason: str):
    with pytest.raises(ValueError, match=reason):
        to_dialogue(row, CONFIG)


def test_a_developers_turn_may_be_the_systems():
    turns = [{"role": "developer", "content": "Be brief."}, *TURNS]
    config = DataConfig("file", "", roles={"developer": "system"})
    assert to_dialogue({"messages": turns}, config) == (BRIEF, *SAID)


def test_fields_that_are_not_read_are_named_once_for_a_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    thought = [TURNS[0], TURNS[1] | {"reasoning_content": "Hm."}]
    rows = [{"messages": thought}] * 2 + [{"messages": TURNS, "tools": [{"name": "f"}]}]
    loaded = load_dialogues(["mine"], data(tmp_path, [*rows, {"messages": TURNS, "tools": None}]))
    assert loaded.unfit.ignored == {"mine: reasoning_content": 2, "mine: tools": 1}
    said = "data.mine: not read, so what they mean is lost: reasoning_content (in 2 rows), tools"
    assert capsys.readouterr().err.count(said) == 1 and len(loaded.dialogues) == 4


BESIDE = [
    ({"system": "Be kind.", "messages": [SYSTEM, *TURNS]}, ["system"]),
    ({"system": " Be\nbrief.", "messages": [SYSTEM, *TURNS]}, []),
    ({"system_prompt": "Be brief.", "messages": TURNS}, []),
    ({"prompt": "Hi", "messages": TURNS}, []),
    ({"prompt": "Ho", "messages": TURNS}, ["prompt"]),
    ({"messages": TURNS, "context": "Elsewhere"}, ["context"]),
    ({"prompt": TURNS[:1], "input": "Ha", "completion": "Hello"}, ["input"]),
    ({"prompt": "Hi", "completion": "Hello", "answer": "Other"}, ["answer"]),
    ({"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": "Hello", "rejected": ""}, []),
    ({"chosen": TURNS, "rejected": TURNS, "messages": TURNS, "prompt": "Hi"}, []),
    ({"messages": TURNS, "tools": [], "context": None, "system": " "}, []),
]


@pytest.mark.parametrize(("row", "names"), BESIDE)
def test_texts_beside_the_layouts_own_that_say_something_else_are_named(
    row: dict[str, Any], names: list[str]
):
    mapped = map_columns(row, CONFIG)
    assert unread(mapped, read_mapped(mapped, CONFIG), CONFIG) == names


def test_labelled_pairs_that_do_not_fit_are_said_and_turns_mapped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    turns = [{"by": "Me", "said": "Hi"}, {"by": "Bot", "said": "Hello"}]
    worse = [turns[0], {"by": "Bot", "said": "No"}]
    mapping = {"role": "by", "content": "said", "chosen": "pair.good", "rejected": "pair.bad"}
    rows = [{"pair": {"good": turns, "bad": worse}}, {"pair": {"good": turns}}]
    roles = {"Me": "user", "Bot": "assistant"}
    assert labelled(tmp_path, rows, fields=mapping, roles=roles) == [("Hi", "Hello", "No")]
    assert "data.mine: left out 1 rows that do not fit" in capsys.readouterr().err


def test_a_sets_system_message_stands_before_its_prompts_and_is_in_no_id(tmp_path: Path):
    rows = [
        {"prompt": "One?", "chosen": "Yes.", "rejected": "No."},
        {"prompt": "Two?", "chosen": "Yes.", "rejected": "No.", "system": "Be brief."},
    ]
    plain, behind = data(tmp_path, rows), data(tmp_path, rows, system="Be kind.")
    mine = Prompts(["mine"])
    for load in (load_prompts, load_demonstrations, load_preferences):
        bare = [row[0] if isinstance(row, tuple) else row for row in load(mine, plain, 0)]
        found = [row[0] if isinstance(row, tuple) else row for row in load(mine, behind, 0)]
        assert [prompt.id for prompt in found] == [prompt.id for prompt in bare]
        systems = {prompt.text: prompt.messages[0].content for prompt in found}
        assert systems == {"One?": "Be kind.", "Two?": "Be brief."}


def test_the_runs_system_prompt_is_that_of_every_set_without_its_own():
    config = smoke("system_prompt=Be kind.", "+data.seed.system=Be brief.")
    systems = {name: dataset.system for name, dataset in config.data.items()}
    assert systems.pop("seed") == "Be brief." and set(systems.values()) == {"Be kind."}


def test_alpacas_mark_of_no_input_is_no_text():
    row = {"instruction": "Say hi.", "input": "<noinput>", "output": "Hi"}
    assert to_dialogue(row, DataConfig("file", "")) == (user("Say hi."), assistant("Hi"))


@pytest.mark.parametrize(
    "text",
    [
        "### Human: Hi### Assistant: Hello",
        "Below is an instruction.\n\n### Instruction:\nHi\n\n### Response:\nHello",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>",
        "<s>[INST] Hi [/INST] Hello</s>",
        "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello",
    ],
)
def test_a_conversation_with_a_templates_marks_is_no_prompt(text: str):
    with pytest.raises(ValueError, match=r"a conversation with '.*' in its text"):
        to_dialogue({"text": text}, DataConfig("file", ""))
    assert to_dialogue({"text": "What is ### in Markdown?"}, DataConfig("file", ""))


def test_replies_that_are_not_read_are_named():
    replies = [{"role": "assistant", "text": "Hello", "replies": []}]
    row = {"prompt": {"role": "prompter", "text": "Hi", "replies": replies}}
    config = DataConfig("file", "", roles={"prompter": "user"}, fields={"content": "text"})
    assert unread(row, to_dialogue(row, config), config) == ["replies"]
