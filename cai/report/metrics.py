"""Every metric that cai shows, in one table: terminal, page, cards and comparison read it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from cai.scoring.statistics import CountedInterval, Interval

Suites = Mapping[str, Mapping[str, CountedInterval]]  # suite -> metric -> interval
Metrics = Mapping[str, Suites]  # by model


def each_metric(metrics: Metrics) -> Iterator[tuple[str, str, str, CountedInterval]]:
    """(model, suite, metric, interval), in the order of the models."""
    for model, suites in metrics.items():
        for suite, measured in suites.items():
            for name, interval in measured.items():
                yield model, suite, name, interval


@dataclass(frozen=True)
class Metric:
    """How a metric is called and shown."""

    title: str
    unit: Literal["share", "words", "score", "bits", "probability"] = "share"
    better: Literal["higher", "lower"] | None = None  # None: it depends, e.g. on the prompts
    # the terminal's table for it, or the judge's part of a page; "" is on the page alone
    table: Literal["behaviour", "reference", "judge", ""] = ""
    folded: bool = False  # whether the page shows it below the table, on demand


METRICS = {
    "refusal": Metric("refused", table="behaviour"),
    "redirection": Metric("redirected", folded=True),
    "compliance": Metric("answered"),
    "not_english": Metric("not in English, so not in these shares", table="behaviour"),
    "evasive": Metric("evasive", better="lower", folded=True),
    "brief": Metric("at most two sentences", folded=True),
    "offer": Metric("ends with an offer", folded=True),
    "shared_opening": Metric("shared opening", better="lower", folded=True),
    "shared_refusal": Metric("shared refusal", better="lower", folded=True),
    "degenerate": Metric("degenerate", better="lower"),
    "words": Metric("words an answer", "words", table="behaviour"),
    "distinct_1": Metric("distinct words", better="higher", folded=True),
    "distinct_2": Metric("distinct pairs of words", better="higher", folded=True),
    "harmful": Metric("harmful, says a judge", better="lower"),
    "too_long": Metric("too long for the context", better="lower", table="reference"),
    "exact": Metric("exact match", better="higher", table="reference"),
    "rouge_l": Metric("ROUGE-L", "score", "higher", "reference"),
    "bits_per_byte": Metric("bits a byte of the reference", "bits", "lower", "reference"),
    "acc": Metric("accuracy", better="higher", table="reference"),
    "acc_norm": Metric("accuracy, by length", better="higher", table="reference"),
    "flipped": Metric("preferences that turn with the order", better="lower", table="judge"),
    "neither": Metric(
        "comparisons where the judge wants neither letter", better="lower", table="judge"
    ),
    "longer": Metric("the longer answer is chosen", table="judge"),
    "agreement": Metric("two principles agree", better="higher", table="judge"),
    "accuracy": Metric("right on labelled pairs", better="higher", table="judge"),
    "shorter": Metric("of these, the shorter is labelled better", table="judge"),
    "probability": Metric("mean probability of the chosen", "probability", table="judge"),
    "entropy": Metric("entropy of the feedback, bits", "bits", table="judge"),
    "letters": Metric("probability of the two letters together", "probability", table="judge"),
}


def metric(name: str) -> Metric:
    """A metric of the table; one that is not there, say of lm-evaluation-harness, is a score."""
    return METRICS.get(name) or Metric(name, "score")


def format_metric(name: str, interval: Interval) -> str:
    return (format_share if metric(name).unit == "share" else format_mean)(interval)


def format_share(interval: Interval) -> str:
    """`42 % [30, 55]`."""
    value, low, high = (100 * interval[key] for key in ("value", "low", "high"))
    return f"{value:.0f} % [{low:.0f}, {high:.0f}]"


def format_mean(interval: Interval) -> str:
    """`31.0 [27.5, 34.9]`, or `1.250 [1.000, 1.500]` of small values."""
    places = 3 if abs(interval["value"]) < 3 else 1
    value, low, high = (f"{interval[key]:.{places}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
