"""The sentences of the verdict say what their own paired test says."""

import random
from typing import Any

import pytest

from cai.report.changes import change_of_refusals, shows_change
from cai.report.page import verdict
from cai.scoring.significance import estimate_metric, refusal_changes
from cai.scoring.statistics import ModelComparison

KINDS = {"red": "red_team", "more": "red_team", "mild": "benign"}

Refusals = dict[str, dict[str, list[bool]]]  # model -> suite -> of each prompt


def sentences(refusals: Refusals, seeds: int = 1) -> list[str]:
    scores = {
        model: {
            suite: {"refusal": {str(n): float(refused) for n, refused in enumerate(values)}}
            for suite, values in suites.items()
        }
        for model, suites in refusals.items()
    }
    changes = refusal_changes(scores, KINDS, list(refusals), seeds)
    metrics: dict[str, Any] = {
        model: {
            suite: {"refusal": vars(estimate_metric("refusal", list(by_id["refusal"].values())))}
            for suite, by_id in suites.items()
        }
        for model, suites in scores.items()
    }
    return verdict(metrics, KINDS, changes)


def first(hits: int, count: int = 100) -> list[bool]:
    """The first `hits` of the prompts are refused."""
    return [n < hits for n in range(count)]


def test_intervals_that_overlap_do_not_hide_a_paired_change():
    """80 and 90 of the same 100 prompts: McNemar's p is 0.002."""
    red, mild = sentences({"base": {"red": first(80)}, "dpo": {"red": first(90)}})
    assert red.startswith(
        "Refusals of red-team prompts rose from 80 % [71, 87] (base) to 90 % [83, 94] (dpo), by 10 "
        "points ["
    )
    assert mild == (
        "No two models were evaluated on benign prompts, so nothing is said about over-refusal."
    )


def test_the_same_figures_on_other_prompts_show_no_change():
    red, _ = sentences({"base": {"red": first(40)}, "dpo": {"red": first(45)[::-1]}})
    assert "were 40 % [31, 50] (base) and 45 % [36, 55] (dpo); no change is shown (5 points" in red
    assert red.endswith(", p = 0.66).") and "rose" not in red


def test_every_stage_is_held_against_the_one_before():
    mild = {"base": first(4), "sft": first(4), "sl_cai": first(24), "dpo": first(12)}
    red = {"base": first(10), "sft": first(12), "sl_cai": first(52), "dpo": first(52)}
    rows = sentences({name: {"red": red[name], "mild": mild[name]} for name in red})
    assert "by 42 points [" in rows[0] and rows[0].endswith(" sft and dpo show no change.")
    assert " By stage: sl_cai raised them by 40 points [" in rows[0]
    assert "sl_cai raised them by 20 points [" in rows[1] and rows[1].endswith(
        "; sft shows no change."
    )
    assert "; dpo lowered them by 12 points [" in rows[1]


def test_suites_of_a_kind_count_together():
    """Neither suite's five turns would be enough: p is 0.06 each, and 0.002 of both."""
    red, _ = sentences(
        {
            "base": {"red": first(5, 50), "more": first(5, 50)},
            "dpo": {"red": first(10, 50), "more": first(10, 50)},
        }
    )
    assert "rose from 10 % [6, 17] (base) to 20 % [13, 29] (dpo), by 10 points [" in red


def test_several_samples_have_an_interval_and_no_test():
    red, _ = sentences({"base": {"red": first(40)}, "dpo": {"red": first(41)}}, seeds=3)
    assert "no change is shown (1 point [0, 3])." in red


@pytest.mark.parametrize("seed", range(20))
def test_a_verdict_never_contradicts_its_test(seed: int):
    rng = random.Random(seed)
    base = [rng.random() < 0.4 for _ in range(60)]
    dpo = [refused if rng.random() < 0.8 else not refused for refused in base]
    scores = {
        name: {"red": {"refusal": {str(n): float(value) for n, value in enumerate(values)}}}
        for name, values in (("base", base), ("dpo", dpo))
    }
    (change,) = refusal_changes(scores, {"red": "red_team"}, ["base", "dpo"], 1)
    sentence = sentences({"base": {"red": base}, "dpo": {"red": dpo}})[0]
    assert shows_change(change) == (change.get("p", 1) < 0.05)
    direction = "rose" if change["difference"]["value"] > 0 else "fell"
    assert (f" {direction} " if shows_change(change) else "no change is shown") in sentence


def test_a_fall_is_told_without_minus_signs():
    change = ModelComparison(
        first="sl_cai",
        second="dpo",
        suite="benign",
        figure="refusal",
        difference={"value": -0.04, "low": -0.08, "high": -0.01, "count": 100},
        p=0.03,
    )
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6, "count": 100}
    metrics: dict[str, Any] = {name: {"mild": {"refusal": estimate}} for name in ("sl_cai", "dpo")}
    sentence = change_of_refusals(metrics, KINDS, [change], "benign")
    assert sentence.endswith(" (dpo), by 4 points [1, 8].") and " fell from " in sentence
