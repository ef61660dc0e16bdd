"""The revise stage on the tiny model: rows, schema, and what an edited principle asks again."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cai.config.schema import DataConfig, Helpful, Prompts, ReviseConfig, SftConfig
from cai.data.parquet import read_rows
from cai.engines.ledger import Ledger
from cai.stages import revise
from cai.stages.base import Context, Input
from cai.stages.training_rows import training_rows
from tests.configs import smoke

COUNT, ROUNDS = 12, 4
RULES = {
    "name": "law",
    "principles": [
        {
            "id": f"p{n}",
            "critique": f"Critique {n}.",
            "revision": f"Revise {n}.",
            "comparison": f"Compare {n}.",
        }
        for n in range(4)
    ],
}


@pytest.fixture
def context(tmp_path: Path, tiny_model: Path, make_context: Callable[..., Context]) -> Context:
    rows: list[dict[str, Any]] = [{"prompt": f"Tell me about river {n}."} for n in range(COUNT - 1)]
    talk = [("user", "Hello."), ("assistant", "Hello!"), ("user", "Name a lake.")]
    rows.append({"prompt": [{"role": role, "content": text} for role, text in talk]})
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "law.yaml").write_text(yaml.safe_dump(RULES))
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "model").symlink_to(tiny_model)
    return make_context(
        "revise",
        data={"mine": DataConfig("file", str(tmp_path / "prompts.jsonl"))},
        constitution=str(tmp_path / "law.yaml"),
        inputs={"sft": Input(str(tmp_path / "sft"), "tiny")},
    )


def settings(**changes: Any) -> ReviseConfig:
    base = smoke().revise
    return dataclasses.replace(base, prompts=Prompts(["mine"]), rounds=ROUNDS, gates=[], **changes)


def run(
    context: Context, name: str, config: ReviseConfig
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    work = context.root / name
    work.mkdir()
    summary = dataclasses.asdict(revise.run(config, work, context))
    return summary, read_rows(work / "revisions.parquet")


def asked(context: Context) -> int:
    ledger = Ledger(context.root / "ledger.sqlite")
    total = sum(int(str(row["completions"])) for row in ledger.cost())
    ledger.close()
    return total


def test_the_whole_chain_is_on_the_row(context: Context):
    summary, rows = run(context, "one", settings())
    assert summary["prompts"] == COUNT == len(rows)
    live = [
        row for row in rows if row["answer"]
    ]  # a random model sometimes says nothing, and then nothing is revised
    assert len(live) > COUNT / 2 and not any(row["steps"] for row in rows if not row["answer"])
    for row in live:
        assert len(row["steps"]) == ROUNDS
        assert set(row["steps"][0]) == {
            "principle",
            "critique",
            "revision",
            "gates",
            "seeds",
            "tokens",
        }
        assert len({seed for step in row["steps"] for seed in step["seeds"]}) == 2 * ROUNDS
        assert all(step["tokens"] > 0 for step in row["steps"])
    assert max(len(row["prompt"]) for row in rows) == 3  # the conversation keeps its turns
    assert asked(context) == COUNT + len(live) * 2 * ROUNDS
    assert sum(tally["drawn"] for tally in summary["principles"].values()) == len(live) * ROUNDS
    training = read_rows(context.root / "one" / "training.parquet")
    assert len(training) == len(live) * ROUNDS and sum(row["last"] for row in training) == len(live)


def test_a_row_that_names_a_principle_is_revised_by_it(context: Context):
    lines = [{"prompt": f"Name river {n}.", "principle": f"p{n % 5}"} for n in range(10)]
    file = Path(context.data["mine"].path)
    file.write_text("\n".join(map(json.dumps, [*lines, {"prompt": "Name a lake."}])))
    config = dataclasses.replace(settings(), rounds=1)
    _, rows = run(context, "about", config)
    named = {row["prompt"][0]["content"]: row["about"] for row in rows}
    assert named == {line["prompt"]: line["principle"] for line in lines} | {"Name a lake.": None}
    known = [row for row in rows if row["steps"] and row["about"] not in (None, "p4")]
    assert len(known) > 3  # there is no p4
    assert all(row["steps"][0]["principle"] == row["about"] for row in known)


def test_an_edited_principle_asks_again_only_what_contains_it(context: Context):
    """A round is asked again if it drew the edited principle, or if the answer that it starts from
    has changed."""
    _, before = run(context, "before", settings())
    rules = json.loads(json.dumps(RULES))
    rules["principles"][2]["critique"] += " Be frank."
    (context.root / "law.yaml").write_text(yaml.safe_dump(rules))
    known = asked(context)
    _, after = run(context, "after", settings())
    expected = 0
    for old, new in zip(before, after, strict=True):
        was, now = old["answer"], new["answer"]
        assert was == now
        for one, other in zip(old["steps"], new["steps"], strict=True):
            fresh = one["principle"] == "p2" or was != now
            assert fresh or one == other
            expected += 2 * fresh
            was, now = one["revision"], other["revision"]
    assert asked(context) - known == expected > 0
    assert any(
        all(step["principle"] != "p2" for step in row["steps"]) for row in before if row["steps"]
    )


def test_gated_rows_are_kept_with_their_reasons_and_left_out_of_training(context: Context):
    strict = dataclasses.replace(settings(), gates=["cut_off"], rounds=2)
    summary, rows = run(context, "gated", strict)
    cut = sum(step["gates"] == ["cut_off"] for row in rows for step in row["steps"])
    assert len(rows) == COUNT and summary["gates"].get("cut_off", 0) == cut > 0
    drawn = sum(len(row["steps"]) for row in rows)
    assert len(read_rows(context.root / "gated" / "training.parquet")) == drawn - cut
    dropped = dataclasses.replace(strict, when_gated="drop")
    run(context, "dropped", dropped)
    ids = {row["id"] for row in read_rows(context.root / "dropped" / "training.parquet")}
    assert ids == {row["id"] for row in rows if row["steps"] and not row["steps"][-1]["gates"]}


def test_helpful_answers_are_sampled_and_mixed_in_at_a_ratio(context: Context):
    (context.root / "questions.jsonl").write_text(
        "\n".join(json.dumps({"prompt": f"Sum {n}?"}) for n in range(20))
    )
    context.data["questions"] = DataConfig("file", str(context.root / "questions.jsonl"))  # pyright: ignore[reportIndexIssue]
    config = dataclasses.replace(
        settings(helpful=Helpful(Prompts(["questions"]), samples=2)), rounds=1
    )
    summary, rows = run(context, "one", config)
    sampled = read_rows(context.root / "one" / "helpful.parquet")
    assert (
        summary["helpful"] == len(sampled)
        and summary["helpful"] + summary["helpful_left_out"] == 40
    )
    assert (
        asked(context) == COUNT + 2 * sum(bool(row["answer"]) for row in rows) + 40
    )  # each of its own seed
    assert all(row["messages"][0]["content"].startswith("Sum ") for row in sampled)
    inputs = {"revise": Input(str(context.root / "one"), "digest")}
    after = dataclasses.replace(context, stage="sl_cai", inputs=inputs)
    tuned = SftConfig("base", [], revisions="last", helpful="sampled", helpful_ratio=0.5)
    revised = sum(row["last"] for row in read_rows(context.root / "one" / "training.parquet"))
    dialogues, counts = training_rows(tuned, after)
    helpful = min(round(revised / 2), len(sampled))
    assert counts["revisions"] == revised and counts["sources"] == {"sampled": helpful} and helpful
    assert len(dialogues) == revised + helpful
