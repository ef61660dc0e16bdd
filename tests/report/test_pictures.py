"""The report's pictures: where models, curves and bars stand."""

from typing import Any

import pytest

from cai.data.audit import length_metrics
from cai.report import pictures
from cai.scoring.statistics import share
from tests.report.test_page import KINDS, figures, metrics


def test_suites_of_a_kind_are_counted_together() -> None:
    measured = {"base": {"red": figures(1, 10), "other": figures(5, 30)}}
    rates = pictures.refusal_rates(
        measured, {"red": "red_team", "other": "red_team", "mild": "benign"}, "red_team"
    )
    assert rates == {"base": share(6, 40)}


def test_picture_puts_models_where_their_figures_are() -> None:
    view = pictures.picture(metrics((0, 50), (0, 100)), KINDS)
    assert view is not None
    left, top, right, bottom = view.axes
    base, dpo = view.points
    assert (base.x, base.y) == (right, bottom)  # answers all, refuses none
    assert (dpo.x, dpo.y) == (left, (top + bottom) / 2)
    assert dpo.down[0] < dpo.y < dpo.down[1]
    assert view.moves == [(base, dpo)]


def test_points_that_coincide_share_a_label() -> None:
    view = pictures.picture(metrics((3, 3), (1, 1)), KINDS)
    assert view is not None
    assert [label.text for label in view.labels] == ["base, dpo"]
    assert view.moves == []


@pytest.mark.parametrize("refused", [(0, 4), (4, 0)])
def test_names_stand_as_their_points_do(refused: tuple[int, int]) -> None:
    """Two points in the lower right corner, where there is little room."""
    view = pictures.picture(metrics(refused, (0, 0)), KINDS)
    assert view is not None
    y = {label.text: label.y for label in view.labels}
    upper, lower = ("dpo", "base") if refused[1] else ("base", "dpo")
    assert y[upper] < y[lower]


def test_curves_leave_out_what_is_not_a_number() -> None:
    entries = [
        {"loss": 4.0, "step": 1},
        {"loss": float("nan"), "step": 2},
        {"loss": 2.0, "step": 3},
        {"step": 3},
    ]
    (plot,) = pictures.curves(entries)
    assert plot.title == "loss"
    assert plot.lines == [[(0.0, 0.0), (260.0, 120.0)], []]
    assert (plot.low, plot.high) == ("2", "4")
    assert pictures.curves([{"train_loss": 1.0}]) == []
    long = pictures.curves([{"loss": 1 / step, "step": step} for step in range(1, 5000)])
    assert len(long[0].lines[0]) <= 300


def test_bars_are_as_high_as_their_counts_and_missing_lengths_have_none() -> None:
    view = pictures.bars(length_metrics([3, 4, 4, 7, 30])["up_to"])
    assert [(bar.edge, bar.count, bar.height) for bar in view.bars] == [
        (4, 3, 120.0),
        (8, 1, 40.0),
        (16, 0, 0.0),
        (32, 1, 40.0),
    ]
    assert [bar.x for bar in view.bars] == [0, 65, 130, 195] and (
        view.step,
        view.high,
    ) == (65, 3)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234567, "1\u202f234\u202f567"), (2.0, "2"), (0.123456, "0.1235"), ("as is", "as is")],
)
def test_number(value: Any, text: str) -> None:
    assert pictures.number(value) == text
