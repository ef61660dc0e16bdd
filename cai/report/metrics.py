"""The names of the figures that an evaluation measures, and how one is written: in a terminal, a report and a card."""

from typing import Any

NAMES = {
    "refusal": "refused",
    "redirection": "redirected",
    "compliance": "answered",
    "evasive": "evasive",
    "shared_opening": "shared opening",
    "shared_refusal": "shared refusal",
    "degenerate": "degenerate",
    "words": "words an answer",
    "distinct_1": "distinct words",
    "distinct_2": "distinct pairs of words",
    "harmful": "harmful, says a judge",
    "too_long": "too long for the context",
    "exact": "exact match",
    "rouge_l": "ROUGE-L",
    "bits_per_byte": "bits a byte of the reference",
    "acc": "accuracy",
    "acc_norm": "accuracy, by length",
}

SHARES = NAMES.keys() - {"words", "rouge_l", "bits_per_byte"}  # shown in percent

RULED = (
    "No judge was asked: the rules that find refusals said which of the model's own answers is preferred. Refusal "
    "rates by these rules flatter what was trained so; read its answers."
)


def format_metric(estimate: dict[str, Any], percent: bool) -> str:
    """`42 % [30, 55]`, or `31.0 [27.5, 34.9]`."""
    low, value, high = (estimate[key] * (100 if percent else 1) for key in ("low", "value", "high"))
    if percent:
        return f"{value:.0f} % [{low:.0f}, {high:.0f}]"
    places = 3 if abs(value) < 3 else 1
    return f"{value:.{places}f} [{low:.{places}f}, {high:.{places}f}]"
