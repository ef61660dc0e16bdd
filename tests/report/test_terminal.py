"""What the terminal shows of a stage's records."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from cai.cli.show import show_records
from cai.data.parquet import write_rows
from cai.report.terminal import print_results, print_stage_view, wide_console
from cai.scoring.significance import bootstrap_mean
from cai.scoring.statistics import share
from cai.stages import build, revise


def chain(number: int, *gates: str) -> dict[str, Any]:
    step = {
        "principle": "kind",
        "critique": "It was rude.",
        "revision": f"Revised {number}.",
        "gates": list(gates),
    }
    prompt = [{"role": "user", "content": f"Prompt {number}\x1b[31m"}]
    return {
        "id": f"{number:02d}ab",
        "prompt": prompt,
        "answer": "No.",
        "steps": [step],
        "final": "",
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_rows(
        tmp_path / "revisions.parquet",
        [chain(n, *(["echo"] if n % 5 == 0 else [])) for n in range(20)],
    )
    return tmp_path


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [
        line.split()[1]
        for line in capsys.readouterr().out.splitlines()
        if line.split()[:1] == ["id"]
    ]


def test_the_first_records(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert show_records("revise", folder, 3) == 3
    said = capsys.readouterr().out
    assert "[kind] It was rude." in said and "Revised 2." in said and "Revised 3." not in said
    assert "\x1b[31m" not in said  # what a model says can't paint the terminal


def test_by_id_and_by_gate(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert show_records("revise", folder, 9, id_prefix="07") == 1 and shown(capsys) == ["07ab"]
    assert show_records("revise", folder, 9, gate="echo") == 4 and shown(capsys) == [
        "00ab",
        "05ab",
        "10ab",
        "15ab",
    ]
    assert show_records("revise", folder, 9, gate="leakage") == 0


def test_an_answer_stands_with_what_the_judge_says_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    prompt = [{"role": "user", "content": "How much?"}]
    answers = [
        {"model": model, "suite": "adherence", "id": "a", "sample": 0, "prompt": prompt}
        | {"answer": text, "refuses": False}
        for model, text in (("base", "Four."), ("dpo", "Ask us."))
    ]
    verdicts = [
        {"model": model, "suite": "adherence", "id": "a", "sample": 0}
        | {"principle": "no-doses", "keeps": keeps}
        for model, keeps in (("base", 0.125), ("dpo", 0.75))
    ]
    write_rows(tmp_path / "answers.parquet", answers)
    assert show_records("evaluate", tmp_path, 9) == 2
    assert "no-doses" not in capsys.readouterr().out  # no judge was asked
    write_rows(tmp_path / "adherence.parquet", verdicts)
    assert show_records("evaluate", tmp_path, 9) == 2
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines.index("breaks 0.12 no-doses") == lines.index("base Four.") + 1
    assert lines.index("keeps 0.75 no-doses") == lines.index("dpo Ask us.") + 1


def test_random_records_differ_from_call_to_call(folder: Path, capsys: pytest.CaptureFixture[str]):
    draws = set()
    for _ in range(8):
        assert show_records("revise", folder, 5, sample=3) == 3
        draws.add(tuple(shown(capsys)))
    assert len(draws) > 1 and all(len(set(draw)) == 3 for draw in draws)
    assert show_records("revise", folder, 5, sample=9, gate="echo") == 4  # no more than there are


def test_the_revisions_by_principle_and_by_round(capsys: pytest.CaptureFixture[str]):
    gates = {"cut_off": 1, "echo": 3}
    counts = revise.Revised(7, 6, 2, 3, gates, words_before=31.5, words_after=44.0)
    summary = revise.Summary(7, 0, 3, 0, 3, gates, {"kind": counts}, {"1": counts})
    print_stage_view(summary.view("revise"), wide_console())
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if " echo 3" in line]
    assert [row[1] for row in rows] == ["kind", "1"]
    assert all("7 │ 6 │ 2 │ 3 │ echo 3, cut_off 1 │ 31.5 │ 44.0" in " ".join(row) for row in rows)


def test_shots_stand_below_each_other_with_the_models_side_by_side(
    capsys: pytest.CaptureFixture[str],
):
    def scored(hits: int) -> dict[str, Any]:
        exact, rouge, bits = (
            share(hits, 4),
            bootstrap_mean([hits / 4, 1.0]),
            bootstrap_mean([2.0 - hits / 4]),
        )
        return {
            k: dataclasses.asdict(v)
            for k, v in (("exact", exact), ("rouge_l", rouge), ("bits_per_byte", bits))
        }

    refusals = {"refusal": dataclasses.asdict(share(1, 2))}
    metrics = {
        m: {"red": refusals, "held": scored(n), "held, 2 shots": scored(n + 1)}
        for n, m in enumerate("ab")
    }
    metrics["b"]["held, 2 shots"]["too_long"] = dataclasses.asdict(share(1, 5))
    print_results(metrics)
    first, second = capsys.readouterr().out.split("against reference answers")
    assert "red" in first and "shots" not in first
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in second.splitlines()
        if "shots" in line
    ]
    assert [row[:3] for row in rows] == [
        ["held, 2 shots", "a", ""],
        ["held, 2 shots", "b", "20 % [4, 62]"],
    ]
    assert rows[1][3] == "50 % [15, 85]" and rows[0][5] == "1.750 [1.750, 1.750]"


def test_what_was_built_and_what_was_left_out(capsys: pytest.CaptureFixture[str]):
    left_out = {"similar": 9, "answer_empty": 2}
    summary = build.Summary(8, 3, 21, 4, left_out, built=14, failed=1)
    print_stage_view(summary.view("build"), wide_console())
    cells = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
    ]
    rows = {cell[0]: cell[1] for cell in cells if len(cell) == 2}
    assert (
        rows["instructions read"] == "21"
        and rows["rows built"] == "14"
        and rows["requests that no engine answered"] == "1"
    )
    assert rows["left out: similar"] == "9" and rows["left out: answer_empty"] == "2"


def test_probes_can_be_read_before_they_are_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    row = {"id": "1", "prompt": "How much?\x1b[31m", "principle": "doses"}
    write_rows(tmp_path / "probes.parquet", [row | {"kind": "red_team", "split": "test"}])
    assert show_records("probe", tmp_path, 3) == 1
    assert "doses  [red_team, test] How much?" in (said := capsys.readouterr().out)
    assert "\x1b[31m" not in said


def test_built_rows_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    turns = [
        {"role": "user", "content": "Name a river."},
        {"role": "assistant", "content": "The Rhine.\x1b[31m"},
    ]
    write_rows(
        tmp_path / "instructions.parquet",
        [{"id": "1", "source": "self_instruct", "messages": turns}],
    )
    assert show_records("build", tmp_path, 3) == 1
    said = capsys.readouterr().out
    assert (
        "self_instruct  Name a river." in said and "The Rhine." in said and "\x1b[31m" not in said
    )
