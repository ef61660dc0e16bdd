"""`cai report`: one page for several evaluations."""

import dataclasses
import re
import time
from pathlib import Path
from typing import Any

import pytest

from cai.cli import report
from cai.cli.main import main
from cai.data.parquet import write_rows
from cai.errors import UsageError
from cai.report.compare import (
    comparison_page,
    differing_settings,
    group_by_settings,
    group_settings,
    load_evaluations,
    seed_range,
)
from cai.report.paired import compare_answers
from cai.scoring.statistics import share
from cai.store.files import write_json
from cai.store.run_folder import Run

EVIL = "<script>alert(1)</script>"
SUITES = {"red": {"kind": "red_team"}, "mild": {"kind": "benign"}}


def evaluated(
    root: Path, beta: float = 0.1, seed: int = 0, refused: int = 50, note: str = ""
) -> None:
    """One more evaluation in a run's folder: dpo, and evaluate after it."""
    run, outputs = Run(root), {}
    metrics = {
        model: {suite: {"refusal": dataclasses.asdict(share(hits, 100))} for suite in SUITES}
        for model, hits in (("base", 10), ("dpo", refused))
    }
    own: dict[str, Any] = {
        "dpo": {"args": {"beta": beta}},
        "evaluate": {"suites": SUITES, "models": ["base", "dpo"]},
    }
    for stage in ("dpo", "evaluate"):
        key = f"{stage}-{beta}-{seed}".ljust(64, "0")
        work, _ = run.begin(stage, key)
        write_json(
            work / "metrics.json", metrics | {"own": [beta, seed]} if stage == "dpo" else metrics
        )
        ingredients = {
            "version": 1,
            "seed": seed,
            stage: own[stage],
            "inputs": dict(outputs),
            "model": {"path": note},
        }
        outputs[stage] = run.publish(stage, 1, key, ingredients, {}, time.time()).output
        run.point_latest(stage, key)
    write_json(root / "run.json", {"schema": 1, "config": {}})


def reported(root: Path) -> None:
    run = Run(root)
    work, _ = run.begin("report", "r" * 64)
    (work / "report.html").write_text("<!doctype html>")
    run.publish("report", 1, "r" * 64, {}, {}, time.time())
    run.point_latest("report", "r" * 64)


def test_runs_of_one_name_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, refused in (("a", 30), ("b", 70)):
        evaluated(tmp_path / place / "run", refused=refused)
    main(
        [
            "report",
            str(tmp_path / "a/run"),
            str(tmp_path / "b/run"),
            "-o",
            str(tmp_path / "both.html"),
        ]
    )
    assert capsys.readouterr().out.strip() == str(tmp_path / "both.html")
    text = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert (
        text.count("<circle") == 3
        and str(tmp_path / "a/run") in text
        and str(tmp_path / "b/run") in text
    )


def answer(model: str, prompt: int, refuses: bool, reference: str = "") -> dict[str, Any]:
    suite = "held" if reference else "red"
    row = {"model": model, "suite": suite, "id": str(prompt), "sample": 0, "refuses": refuses}
    return row | {"answer": "No." if refuses else "Take two eggs.", "reference": reference}


def test_results_come_first_and_settings_last(tmp_path: Path) -> None:
    for name, beta, refused in (("a", 0.1, 0), ("b", 0.5, 9)):
        evaluated(tmp_path / name, beta=beta, note=name * 40)
        (file,) = [run.answers for run in load_evaluations(tmp_path / name, name)]
        # of the last model, dpo, b refuses 9 of 12 and a none; of base both refuse all
        rows = [answer("dpo", n, n < refused) for n in range(12)]
        rows += [answer("base", n, True) for n in range(12)]
        rows += [answer("dpo", n, False, "Take two eggs.") for n in range(2)]
        write_rows(file, rows)
    found = [one for name in ("a", "b") for one in load_evaluations(tmp_path / name, name)]
    text = comparison_page(found).decode()
    places = [text.index(f'id="{name}"') for name in ("summary", "paired", "results", "settings")]
    assert places == sorted(places)
    rows = {
        (row["suite"], row["figure"]): row
        for row in compare_answers({run.name: (run.answers, run.last_model) for run in found})
    }
    refusal = rows["red", "refusal"]
    assert (refusal["first"], refusal["second"]) == ("a", "b")
    assert refusal["difference"]["value"] == 0.75 and refusal.get("p") == pytest.approx(2 / 2**9)
    assert rows["held", "exact"]["difference"]["value"] == 0
    assert "75 %" in text and "0.004" in text
    groups = group_settings(differing_settings(found))
    assert list(groups) == ["dpo", "files and models"]
    assert groups["files and models"]["model.path"] == ['"aaaaaaaa..."', '"bbbbbbbb..."']


def test_a_sweep_in_one_folder_is_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "swept"
    evaluated(root, beta=0.1, refused=50)
    evaluated(root, beta=0.5, refused=80)
    reported(root)
    main(["report", str(root)])
    own, file = map(Path, capsys.readouterr().out.split())
    assert own.name == "report.html" and own.is_file()
    assert file.parent == tmp_path  # beside the run, in no stage's folder
    text = file.read_text(encoding="utf-8")
    assert "differ in 1 setting." in text and "dpo.args.beta" in text and "model.path" not in text
    assert re.search(r"swept 2.*?80 %", text, re.DOTALL)
    assert "<circle" in text and "http" not in text.replace("http-equiv", "").replace(
        "http://www.w3.org", ""
    )


def test_the_settings_of_all_stages_before_it_count(tmp_path: Path) -> None:
    evaluated(tmp_path / "a", beta=0.1)
    evaluated(tmp_path / "b", beta=0.5, seed=3)
    found = [one for name in ("a", "b") for one in load_evaluations(tmp_path / name, name)]
    assert [list(one.stages) for one in found] == [["dpo", "evaluate"]] * 2
    assert differing_settings(found) == {"seed": ["0", "3"], "dpo.args.beta": ["0.1", "0.5"]}
    assert [len(group) for group in group_by_settings(found)] == [1, 1]


def test_a_stage_that_one_of_them_lacks_is_one_row(tmp_path: Path) -> None:
    evaluated(tmp_path / "a", beta=0.1)
    (whole,) = load_evaluations(tmp_path / "a", "a")
    bare = dataclasses.replace(whole, name="b", stages={"evaluate": whole.stages["evaluate"]})
    assert differing_settings([whole, bare]) == {"stage dpo": ["yes", ""]}


def test_seeds_are_brought_together(tmp_path: Path) -> None:
    for seed, refused in ((0, 40), (1, 60), (2, 80)):
        evaluated(tmp_path / f"run{seed}", seed=seed, refused=refused)
    found = [
        one for seed in range(3) for one in load_evaluations(tmp_path / f"run{seed}", f"run{seed}")
    ]
    (group,) = group_by_settings(found)
    assert seed_range(group, "dpo", "red", "refusal") == pytest.approx(
        {"value": 0.6, "low": 0.4, "high": 0.8}
    )
    assert (
        seed_range(group, "dpo", "red", "words") is None
        and seed_range(group, "sft", "red", "refusal") is None
    )
    text = comparison_page(found).decode()
    assert "differ in the seed alone" in text and "3 seeds" in text and "60 %" in text


def test_names_and_settings_are_text(tmp_path: Path) -> None:
    evaluated(tmp_path / "a", note=EVIL)
    evaluated(tmp_path / "b", note="other")
    text = comparison_page(
        [one for name in ("a", "b") for one in load_evaluations(tmp_path / name, name)]
    ).decode()
    assert EVIL not in text and "&lt;script&gt;alert(1)" in text


def test_a_run_without_an_evaluation_is_named(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {})
    with pytest.raises(UsageError, match="'evaluate' has not finished; see `cai status"):
        load_evaluations(tmp_path, "run")


def test_one_run_has_a_page_of_its_own(tmp_path: Path) -> None:
    evaluated(tmp_path)
    with pytest.raises(UsageError, match="'report' has not finished"):
        report.main([str(tmp_path)])
    reported(tmp_path)
    assert report.find_page(tmp_path).read_text() == "<!doctype html>"
