"""What the page of a run says, and that its records can be embedded safely."""

import dataclasses
import json
from typing import Any

import pytest

from cai.report import page as page_
from cai.scoring.significance import bootstrap_mean
from cai.scoring.statistics import share

EVIL = "<script>alert(1)</script>"


HOSTILE = [
    EVIL,
    "</script><img src=x onerror=alert(2)>",
    "<!-- <script> & &lt;b&gt; ]]> {{ 7 * 7 }} {% endraw %}",
    "\u202eright to left\u202c \u200f\u2028\u2029 \x1b[31m",
    "lone \udcff surrogate \ud83d",
    "x" * 100_000,
]


KINDS = {"red": "red_team", "mild": "benign", "loss": "instructions"}


JUDGED = {
    "flipped": dataclasses.asdict(share(5, 10)),
    "accuracy": dataclasses.asdict(share(11, 20)),
    "bins": [
        {"low": 0.5, "high": 0.6, "probability": 0.55, "right": dataclasses.asdict(share(11, 20))}
    ],
    "calibration_error": 0.04,
    "labelled": [EVIL],
    "doubts": [f"The judge is no better than chance on {EVIL}."],
}


def figures(hits: int, count: int) -> dict[str, Any]:
    return {
        "refusal": dataclasses.asdict(share(hits, count)),
        "degenerate": dataclasses.asdict(share(0, count)),
    }


def metrics(red: tuple[int, int], mild: tuple[int, int], count: int = 100) -> dict[str, Any]:
    """Of base and dpo: how many of `count` red-team and benign prompts they refuse."""
    few = {
        "exact": dataclasses.asdict(share(1, 3)),
        "rouge_l": dataclasses.asdict(bootstrap_mean([0.25, 0.5])),
    }
    return {
        model: {"red": figures(red[i], count), "mild": figures(mild[i], count)}
        | {"loss": {"bits_per_byte": dataclasses.asdict(bootstrap_mean([1.0, 1.5]))}}
        | {"loss, 2 shots": ({"too_long": dataclasses.asdict(share(1, 4))} if i else {}) | few}
        for i, model in enumerate(("base", "dpo"))
    }


@pytest.mark.parametrize("text", [*HOSTILE, "\ud800", "\u2028\u2029"])
def test_embedded_is_ascii_without_markup_and_parses_back(text: str) -> None:
    safe = page_.embedded({"text": text})
    assert safe.isascii()
    assert not set(safe) & set("<>&")
    assert json.loads(safe) == {"text": text}


def test_records_are_limited_and_every_suite_gets_a_share() -> None:
    prompt = [{"role": "user", "content": "Hello"}]
    rows = [
        {"model": model, "suite": suite, "id": f"{number}", "prompt": prompt, "answer": model}
        | {"reference": "", "refuses": False}
        for model in ("base", "dpo")
        for suite in ("red", "mild")
        for number in range(10)
    ]
    kept, totals = page_.records([], [], rows, 4)
    assert [row["suite"] for row in kept["answers"]] == ["red", "red", "mild", "mild"]
    assert set(kept["answers"][0]["answers"]) == {"base", "dpo"}
    assert totals == {"revisions": 0, "pairs": 0, "answers": 20}


def test_several_turns_keep_their_roles() -> None:
    turns = [{"role": "user", "content": "One"}, {"role": "assistant", "content": "Two"}]
    assert page_.prompt_text(turns) == "User: One\n\nAssistant: Two"


def test_costs_have_names_speeds_and_a_total() -> None:
    row = {
        "stage": "label",
        "model": "d1",
        "completions": 2,
        "prompt_tokens": 10,
        "new_tokens": 30,
        "seconds": 2.0,
    }
    rows = page_.cost_rows(
        [row, row | {"model": "d2" * 32, "new_tokens": 0, "seconds": 0.0}], {"d1": "sl_cai"}
    )
    assert [one["model"] for one in rows] == ["sl_cai", "(d2d2d2d2)", ""]
    assert [one["speed"] for one in rows] == [15.0, 0, 15.0]
    assert rows[-1]["completions"] == 4
    assert page_.cost_rows([], {}) == []


@pytest.mark.parametrize(("seconds", "text"), [(5.04, "5.0 s"), (90, "1.5 min"), (7200, "2.0 h")])
def test_duration(seconds: float, text: str) -> None:
    assert page_.duration(seconds) == text


def test_a_revision_carries_the_marks_of_its_words() -> None:
    prompt = [{"role": "user", "content": "Hello"}]
    steps = [
        {
            "principle": "kind",
            "critique": "",
            "revision": "Go away, please, sir.",
            "gates": ["echo"],
        },
        {"principle": "kind", "critique": "", "revision": "Come in, please.", "gates": []},
        {"principle": "kind", "critique": "", "revision": "Come in, please.", "gates": []},
    ]
    row = {"id": "1", "prompt": prompt, "answer": "Go away, please.", "steps": steps}
    carried, _ = page_.records([row], [], [], 1)
    first, second, third = (step["marks"] for step in carried["revisions"][0]["steps"])
    assert first == [("same", "Go away, "), ("removed", "please."), ("added", "please, sir.")]
    # against the first answer again: the round before failed a gate
    assert second == [("removed", "Go away, "), ("added", "Come in, "), ("same", "please.")]
    assert third is None
