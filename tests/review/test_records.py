"""All records, page by page: what fits a search and filters is what plain Python finds."""

import json
from pathlib import Path
from typing import Any

import pytest

from cai.data.parquet import RowWriter, write_rows
from cai.report.page import prompt_text
from cai.review.records import PAGE, RecordKind, Records, sources
from cai.review.tables import Source
from cai.stages.revision_rows import REVISIONS
from cai.store.run_folder import Run
from tests.report.test_page import metrics
from tests.stages.test_report import finished_run

STREETS = ("Rhine", "Danube", "ÉLBE", "elbe 100%")


def turns(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def revision(number: int) -> dict[str, Any]:
    steps = [
        {
            "principle": f"p{(number + place) % 3}",
            "critique": f"Critique {number}.{place}",
            "revision": STREETS[(number + place) % 4],
            "gates": ["echo"] if (number + place) % 5 == 0 else [],
            "seeds": [1, 2],
            "tokens": 3,
        }
        for place in range(number % 3)
    ]
    row = {"id": f"{number}", "source": "mine", "prompt": turns(f"Prompt {number}?")}
    return row | {"answer": f"Answer {number}", "steps": steps, "final": ""}


@pytest.fixture
def revisions(tmp_path: Path) -> tuple[Records, list[dict[str, Any]]]:
    """In two files, of several row groups."""
    rows = [revision(number) for number in range(5000)]
    for name, part in (("one", rows[:4200]), ("two", rows[4200:])):
        with RowWriter(tmp_path / f"{name}.parquet", REVISIONS) as writer:
            for row in part:
                writer.write(row)
    files = [Source("revise", tmp_path / f"{name}.parquet") for name in ("one", "two")]
    return Records("revisions", files), rows


@pytest.mark.parametrize(
    "query", ["", "rhine", "élbe", "100%", "prompt 4321?", "critique 7.1", "user"]
)
@pytest.mark.parametrize("filters", [{}, {"principle": "p2"}, {"gate": "echo", "principle": "p1"}])
def test_search_and_filters_find_what_fits(
    revisions: tuple[Records, list[dict[str, Any]]], query: str, filters: dict[str, str]
):
    records, rows = revisions

    def fits(row: dict[str, Any]) -> bool:
        prompt = row["prompt"][0]["content"]
        texts = json.dumps([prompt, row["answer"], row["steps"]], ensure_ascii=False)
        principles = [step["principle"] for step in row["steps"]]
        gates = [gate for step in row["steps"] for gate in step["gates"]]
        return (
            query in texts.lower()
            and filters.get("principle", "p0") in [*principles, "p0"]
            and filters.get("gate", "echo") in (gates if "gate" in filters else ["echo"])
        )

    expected = [row for row in rows if fits(row)]
    total, page = records.page(query, filters, 25)
    assert total == len(expected) and records.count == 5000
    assert [row["id"] for row in page] == [row["id"] for row in expected[25 : 25 + PAGE]]
    assert [row["prompt"] for row in page] == [
        prompt_text(row["prompt"]) for row in expected[25 : 25 + PAGE]
    ]


def test_the_filters_are_the_values_that_there_are(revisions: tuple[Records, Any]):
    assert revisions[0].facets == {"principle": ["p0", "p1", "p2"], "gate": ["echo"]}


def test_the_answers_to_a_prompt_are_one_record(tmp_path: Path):
    rows = [
        {"suite": suite, "model": model, "id": f"{number}", "sample": sample}
        | {"prompt": turns(f"Prompt {number}?"), "answer": f"{model} {number}.{sample}"}
        | {"refuses": False, "reference": None}
        for model in ("base", "dpo")
        for suite in ("red", "mild")
        for number in range(30)
        for sample in range(2)
    ]
    write_rows(tmp_path / "answers.parquet", rows)
    records = Records("answers", [Source("evaluate", tmp_path / "answers.parquet")])
    assert records.count == 60
    total, page = records.page("dpo 7.1", {"suite": "mild"}, 0)
    assert total == 1 and page[0]["id"] == "7"
    # of which every answer is shown
    assert [(name, answer["text"]) for name, answer in page[0]["answers"].items()] == [
        ("base", "base 7.0"),
        ("base, answer 2", "base 7.1"),
        ("dpo", "dpo 7.0"),
        ("dpo, answer 2", "dpo 7.1"),
    ]


@pytest.mark.parametrize("kind", ["revisions", "pairs", "answers"])
def test_a_run_of_an_earlier_version_is_read(tmp_path: Path, kind: RecordKind):
    """Its rows lack columns, such as an answer's sample."""
    context = finished_run(tmp_path, ["One?", "Two?"], metrics((1, 2), (3, 4)))
    records = Records(kind, sources(Run(context.root), kind))
    total, page = records.page("two?", {}, 0)
    assert (total, len(page)) == (2 if kind == "answers" else 1, total)


def test_every_round_of_label_is_read_in_order(tmp_path: Path):
    run = Run(tmp_path)
    for number, stage in enumerate(["label", "label10", "label2"]):
        work, _ = run.begin(stage, f"{number}" * 64)
        row = {"id": stage, "prompt": turns("?"), "chosen": turns("A"), "rejected": turns("B")}
        write_rows(work / "pairs.parquet", [row])
        run.publish(stage, 1, f"{number}" * 64, {}, {}, 0.0)
    run.begin("label3", "9" * 64)  # is still going
    files = sources(run, "pairs")
    assert [file.stage for file in files] == ["label", "label2", "label10"]
    records = Records("pairs", files)
    assert records.facets["stage"] == ["label", "label10", "label2"]
    assert records.page("", {"stage": "label10"}, 0)[1][0]["id"] == "label10"


def test_without_rows_there_is_an_empty_page(tmp_path: Path):
    with RowWriter(tmp_path / "none.parquet", REVISIONS):
        pass
    records = Records("revisions", [Source("revise", tmp_path / "none.parquet")])
    assert records.page("x", {"gate": "echo"}, 0) == (0, [])
    assert records.count == 0 and records.facets == {"principle": [], "gate": []}
