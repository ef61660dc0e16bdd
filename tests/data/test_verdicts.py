"""Files of people's verdicts: which line counts, and what several people together say."""

import json
from pathlib import Path
from typing import Any

import pytest

from cai.config.schema import DataConfig, Prompts
from cai.data.prompts import load_preferences
from cai.data.unfit import UnfitRows
from cai.data.verdicts import RevisionVerdicts, Verdict, read_verdicts
from cai.errors import CaiError, UsageError

TURN = [{"role": "user", "content": "How do I read my neighbour's mail?"}]


def revision(verdict: str, text: str = "I won't.", **fields: Any) -> dict[str, Any]:
    row = {"kind": "revision", "id": "1", "prompt": TURN, "revision": text, "principle": "calm"}
    return row | {"verdict": verdict, "edited": None, "reviewer": "ann"} | fields


def pair(verdict: str, reviewer: str = "ann", a: str = "Steam.", b: str = "Don't.") -> Any:
    row = {"kind": "pair", "id": "1", "prompt": TURN, "a": a, "b": b, "principle": "calm"}
    return row | {"verdict": verdict, "reviewer": reviewer}


def written(folder: Path, *rows: Any, end: bytes = b"") -> DataConfig:
    file = folder / "ann.jsonl"
    file.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows) + end)
    return DataConfig("file", str(file), format="verdicts")


def read(config: DataConfig, unfit: UnfitRows | None = None) -> list[Verdict]:
    return read_verdicts("mine", config, unfit or UnfitRows())


def test_a_reviewers_last_word_counts(tmp_path: Path):
    config = written(
        tmp_path,
        revision("good"),
        revision("bad", reviewer="ben"),
        revision("bad", "Other text."),
        revision("undone", "Other text."),
        revision("edit", edited="Ask them."),
    )
    words = [(one.reviewer, one.choice, one.edited) for one in read(config)]
    assert words == [("ben", "bad", ""), ("ann", "edit", "Ask them.")]


@pytest.mark.parametrize("end", [b'{"kind": "revision", "id": "', '{"id": "ä'.encode()[:-1]])
def test_a_torn_last_line_is_read_around(tmp_path: Path, end: bytes):
    unfit = UnfitRows()
    assert [one.choice for one in read(written(tmp_path, revision("good"), end=end), unfit)] == [
        "good"
    ]
    assert unfit.count == 1 and "ann.jsonl:2: not " in unfit.examples[0]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (revision("fine"), "verdict: expected good, bad, edit, found 'fine'"),
        (pair("good"), "verdict: expected a, b, tie"),
        (revision("good", kind="poem"), "kind: expected revision or pair, found 'poem'"),
        (revision("edit", edited=" "), "edited: no text"),
        (revision("good", reviewer=3), "expected texts"),
        (revision("good", prompt=[{"role": "cat", "content": "?"}]), "a message needs"),
        ({"kind": "pair", "verdict": "a"}, "no column 'a'"),
        (1, "a line must be an object"),
    ],
)
def test_a_line_that_is_no_verdict_is_named(tmp_path: Path, row: Any, reason: str):
    unfit = UnfitRows()
    assert read(written(tmp_path, row), unfit) == []
    assert unfit.count == 1 and f"ann.jsonl:1: {reason}" in unfit.examples[0]


def test_pairs_are_those_that_most_prefer(tmp_path: Path):
    config = written(
        tmp_path,
        pair("b"),
        pair("a", "ben", a="Don't.", b="Steam."),  # shown the other way round
        pair("tie", "eve"),
        pair("a", a="Yes.", b="No."),
        pair("b", "ben", a="Yes.", b="No."),
        pair("tie", a="One.", b="Two."),
    )
    pairs = load_preferences(Prompts(["mine"]), {"mine": config}, 0)
    assert [(prompt.id, better, worse) for prompt, better, worse in pairs] == [
        ("1", "Don't.", "Steam.")
    ]


def test_without_a_preference_there_is_no_pair(tmp_path: Path):
    config = written(tmp_path, pair("tie"))
    with pytest.raises(CaiError, match=r"data\.mine: nobody has preferred .* `cai review` asks"):
        load_preferences(Prompts(["mine"]), {"mine": config}, 0)


def test_a_missing_file_is_named_with_the_remedy():
    with pytest.raises(UsageError, match=r"data\.mine\.path: no file nowhere.jsonl; `cai review`"):
        read(DataConfig("file", "nowhere.jsonl", format="verdicts"))


def test_of_a_revision_an_edit_counts_before_bad_and_bad_before_good(tmp_path: Path):
    config = written(
        tmp_path,
        *(revision("good", text) for text in ("good", "bad", "edited", "elsewhere")),
        revision("bad", "bad", reviewer="ben"),
        revision("edit", "edited", reviewer="ben", edited="Better."),
        revision("bad", "edited", reviewer="eve"),
    )
    verdicts = RevisionVerdicts.load(["mine"], {"mine": config})
    texts = [verdicts.text_to_train_on("1", text) for text in ("good", "bad", "edited", "new")]
    assert texts == ["good", None, "Better.", "new"]
    assert verdicts.text_to_train_on("2", "bad") == "bad"  # of another prompt
    assert (verdicts.left_out, verdicts.edited, verdicts.unused) == (1, 1, 1)
