"""What a person is asked about: what sl_cai trains on, and pairs that are blind."""

import json
from pathlib import Path
from typing import Any

import pytest

from cai.data.parquet import RowWriter, write_rows
from cai.data.verdicts import as_verdict
from cai.method.constitution import Constitution
from cai.review.queue import load_queues
from cai.stages.revision_rows import REVISIONS
from cai.store.files import write_json
from cai.store.run_folder import Run

LAW = """
principles:
  - id: calm
    critique: Is it calm?
    revision: Be calm.
    comparison: Calmer?
"""


def turns(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def step(text: str, *gates: str) -> dict[str, Any]:
    row = {"principle": "calm", "critique": f"Of {text}", "revision": text}
    return row | {"gates": list(gates), "seeds": [1, 2], "tokens": 3}


def publish(run: Run, stage: str, files: dict[str, Any], parts: dict[str, Any]) -> None:
    key = f"{stage:0<64}"
    work, _ = run.begin(stage, key)
    for name, rows in files.items():
        if name == "revisions":
            with RowWriter(work / "revisions.parquet", REVISIONS) as writer:
                for row in rows:
                    writer.write(row)
        else:
            write_rows(work / f"{name}.parquet", rows)
    run.publish(stage, 1, key, parts, {}, 0.0)


def made(
    root: Path, count: int = 40, rounds: str = "all", pair_kinds: tuple[str, ...] = ("feedback",)
) -> Run:
    """A run of `count` prompts: of each a good, a gated and a good revision, and pairs."""
    root.mkdir(exist_ok=True)
    (root / "law.yaml").write_text(LAW)
    run = Run(root / "outputs" / "mine")
    settings = {"constitution": str(root / "law.yaml"), "sl_cai": {"revisions": rounds}}
    prompts = [turns("user", f"Prompt {number}?") for number in range(count)]
    revisions = [
        {"id": f"{number}", "source": "mine", "prompt": prompt, "answer": f"Answer {number}"}
        | {"steps": [step(f"First {number}"), step("Gated", "echo"), step(f"Last {number}")]}
        for number, prompt in enumerate(prompts)
    ]
    training = [
        {"id": row["id"], "round": place, "last": place == 3}
        for row in revisions
        for place in (1, 3)
    ]
    pairs = [
        {"id": f"{number}", "kind": kind, "prompt": prompt, "principles": ["calm"]}
        | {"chosen": turns("assistant", f"{kind} good {number}")}
        | {"rejected": turns("assistant", f"{kind} bad {number}"), "probability": 0.9}
        for kind in pair_kinds
        for number, prompt in enumerate(prompts)
    ]
    law = Constitution.load(settings["constitution"])
    parts = {"constitution": law.revision_digests()}
    publish(run, "revise", {"revisions": revisions, "training": training}, parts)
    publish(run, "label", {"pairs": pairs}, {"constitution": law.comparison_digests()})
    write_json(run.root / "run.json", {"schema": 1, "config": settings})
    return run


def test_revisions_are_those_that_are_trained_on(tmp_path: Path):
    queue = load_queues(made(tmp_path / "all"))["revision"]
    assert len(queue.items) == 80
    cards = [queue.card(item) for item in queue.items]
    assert not any(card["revision"] == "Gated" for card in cards)
    last = next(card for card in cards if card["revision"] == "Last 7")
    # what failed its gates was not revised further
    assert (last["answer"], last["critique"]) == ("First 7", "Of Last 7")
    assert last["principles"] == [{"id": "calm", "text": "Is it calm?"}]
    only_last = load_queues(made(tmp_path / "last", rounds="last"))["revision"]
    assert {only_last.card(item)["revision"][:4] for item in only_last.items} == {"Last"}


def test_pairs_are_blind(tmp_path: Path):
    queue = load_queues(made(tmp_path, 200))["pair"]
    cards = [queue.card(item) for item in queue.items]
    first = sum("good" in card["a"] for card in cards)
    assert 70 < first < 130  # which of the two is A says nothing
    assert set(cards[0]) == {"kind", "subject", "prompt", "principles", "a", "b"}
    numbers = [int(card["prompt"][7:-1]) for card in cards]
    assert numbers != sorted(numbers)
    again = load_queues(Run(tmp_path / "outputs" / "mine"))["pair"]
    assert [again.card(item) for item in again.items] == cards  # the same for every reviewer


def test_what_people_have_labelled_and_the_same_texts_are_not_asked_again(tmp_path: Path):
    queues = load_queues(made(tmp_path, 5, pair_kinds=("feedback", "human", "feedback")))
    assert len(queues["pair"].items) == 5


def test_a_line_is_a_verdict_that_needs_no_run(tmp_path: Path):
    for queue in load_queues(made(tmp_path, 3)).values():
        for item in queue.items:
            choice = "good" if queue.kind == "revision" else "tie"
            line = json.loads(json.dumps(queue.line(item) | {"verdict": choice, "reviewer": "ann"}))
            assert as_verdict(line).subject == item.subject
            assert line["prompt"][0]["content"].startswith("Prompt")
            assert line["principle"] == "calm"


def test_a_principle_that_was_edited_since_shows_no_text(tmp_path: Path):
    run = made(tmp_path, 3)
    (tmp_path / "law.yaml").write_text(LAW.replace("Is it calm", "Is it loud"))
    queues = load_queues(run)
    texts = {
        kind: queue.card(queue.items[0])["principles"][0]["text"] for kind, queue in queues.items()
    }
    assert texts == {"revision": "", "pair": "Calmer?"}


@pytest.mark.parametrize("damage", ["{", '{"config": 3}', "{}"])
def test_settings_that_can_not_be_read_leave_the_texts_away(tmp_path: Path, damage: str):
    run = made(tmp_path, 3)
    (run.root / "run.json").write_text(damage)
    queue = load_queues(run)["revision"]
    assert len(queue.items) == 6 and queue.card(queue.items[0])["principles"][0]["text"] == ""


def test_a_run_that_has_not_come_to_label_has_revisions_alone(tmp_path: Path):
    run = made(tmp_path, 3)
    (run.root / "latest" / "label").unlink()
    assert list(load_queues(run)) == ["revision"]
