"""Stages in words: from today's summaries."""

import dataclasses
from typing import Any

from cai.report.old_summaries import stage_view
from cai.report.page import notices, stage_warnings
from cai.scoring.statistics import share
from cai.store.run_folder import Manifest
from tests.report.test_page import JUDGED, KINDS, metrics


def label(summary: dict[str, Any], settings: dict[str, Any]) -> Manifest:
    return manifest("label", summary, {"label": settings})


def manifest(stage: str, summary: dict[str, Any], ingredients: dict[str, Any]) -> Manifest:
    return Manifest(stage, 1, "0" * 64, ingredients, "1" * 64, {}, summary, 0.0, 1.0)


def page_notices(labelled: Manifest, measured: dict[str, Any], critic: str | None) -> list[str]:
    revised = manifest("revise", {}, {"revise": {"model": critic and {"name": critic}}})
    views = [stage_view(stage, "Tiny-1M") for stage in (labelled, revised)]
    notes = [note for view in views for note in view.notes]
    return [*stage_warnings(views), *notes, *notices(measured, KINDS)]


def test_notices_say_who_judged_and_how_steadily() -> None:
    few = metrics((1, 2), (1, 2), count=4)
    few["dpo"]["red"]["degenerate"] = dataclasses.asdict(share(2, 4))
    for name, hits in (("base", 0), ("dpo", 2)):
        few[name]["held"] = {"bits_per_byte": {}, "refusal": dataclasses.asdict(share(hits, 10))}
    labelled = label({"pairs": 8, "judged": 10, "judge": JUDGED}, {"judge": "sft", "model": None})
    texts = page_notices(labelled, few, "Large-7B")
    assert texts[0] == JUDGED["doubts"][0]  # loudest first
    assert "The model judged itself" in texts[1]
    assert "came from sft" in texts[1] and "Tiny-1M" in texts[1]
    assert texts[2] == (
        "50 % [24, 76] of the judge's preferences turned when the two answers were swapped "
        "(position bias)."
    )
    assert texts[3:] == [
        "Critiques and revisions came from another model, Large-7B.",
        "With 4 prompts of a kind, this run tests the machinery and measures little.",
        "Answers of dpo that are empty or go round in circles: 50 % [15, 85] of red.",
        "dpo declines ordinary instructions: 20 % [6, 51] of held.",
    ]


def test_position_bias_is_said_once() -> None:
    judge = {
        "flipped": dataclasses.asdict(share(9, 10)),
        "doubts": ["The judge goes by position."],
    }
    labelled = label({"pairs": 8, "judged": 10, "judge": judge}, {"judge": "sft"})
    texts = page_notices(labelled, metrics((1, 2), (1, 2)), None)
    assert texts[0] == "The judge goes by position." and len(texts) == 2


def test_another_judge_and_none_are_called_what_they_are() -> None:
    summary = {"pairs": 8, "judged": 10, "judge": JUDGED | {"doubts": []}}
    labelled = label(summary, {"judge": "sft", "model": {"name": "Large-7B"}})
    enough = metrics((1, 2), (1, 2))
    texts = page_notices(labelled, enough, None)
    assert texts[0] == "The preferences came from another model, Large-7B, not from people."
    unjudged = label({"pairs": 8}, {"judge": "sft", "kind": "revision"})
    assert page_notices(unjudged, enough, None) == [
        "No judge was asked: every revision is preferred to the first answer."
    ]


def test_peoples_labels_are_told_from_the_judges() -> None:
    text = "Of the 9 preference pairs, people have labelled 4 (label.human)."
    assert text in stage_view(label({"pairs": 9, "human": 4}, {})).notes
    assert not any("people" in note for note in stage_view(label({"pairs": 9}, {})).notes)


def test_a_judge_without_labelled_pairs_says_so() -> None:
    judge = {"flipped": JUDGED["flipped"], "doubts": []}
    lines = dict(stage_view(label({"pairs": 8, "judge": judge}, {"judge": "sft"})).lines)
    assert lines["judge"] == "sft"
    assert lines["preferences that turn with the order"] == "50 % [24, 76]"
    assert lines["calibration"].startswith("Its accuracy is not known")


def test_counts_of_nothing_are_left_out_and_numbers_without_a_name_are_shown() -> None:
    summary = {"steps": 2, "dropped": 0, "rewards/accuracies": 0.0, "new number": 7}
    view = stage_view(manifest("dpo", summary | {"signs": ["It fell."]}, {}))
    assert view.lines == (("steps", "2"), ("reward accuracy", "0"), ("new number", "7"))
    assert (view.counts, view.warnings) == ("2 steps", ("It fell.",))
