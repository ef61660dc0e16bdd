"""The table of metrics, and how a metric is written."""

from cai.report.metrics import METRICS, format_metric, metric
from cai.scoring.significance import MEANS
from cai.scoring.statistics import Interval


def test_shares_are_in_percent_and_means_have_places():
    half: Interval = {"value": 0.5, "low": 0.25, "high": 0.75}
    assert format_metric("refusal", half) == "50 % [25, 75]"
    assert format_metric("bits_per_byte", half) == "0.500 [0.250, 0.750]"
    assert format_metric("words", {"value": 31.0, "low": 27.5, "high": 34.9}) == "31.0 [27.5, 34.9]"
    assert format_metric("bleu", half) == "0.500 [0.250, 0.750]" and metric("bleu").title == "bleu"


def test_the_units_are_those_of_the_intervals():
    """What is averaged has a bootstrap interval; what is counted is a share with Wilson's."""
    of_answers = {name for name, row in METRICS.items() if row.table != "judge"}
    assert {name for name in of_answers if METRICS[name].unit != "share"} == {*MEANS}
