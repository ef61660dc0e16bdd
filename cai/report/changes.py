"""What changed between models, in sentences: a paired test says whether, and which stage did it."""

from collections.abc import Mapping, Sequence

from cai.report.metrics import Metrics
from cai.report.pictures import TOPICS, percent, refusal_rates
from cai.scoring.statistics import ModelComparison

LEVEL = 0.05  # of the test, for each comparison alone


def shows_change(comparison: ModelComparison) -> bool:
    """By the exact McNemar test, or where there is none, by the interval of the difference."""
    if "p" in comparison:
        return comparison["p"] < LEVEL
    return not comparison["difference"]["low"] <= 0 <= comparison["difference"]["high"]


def change_of_refusals(
    metrics: Metrics, kinds: Mapping[str, str], changes: Sequence[ModelComparison], kind: str
) -> str:
    """From the first model to the last on all suites of a kind, and what each stage did.

    `changes` are those of significance.refusal_changes.
    """
    prompts, name = TOPICS[kind]
    rows = [row for row in changes if row["suite"] == kind]
    if not rows:
        return f"No two models were evaluated on {prompts}, so nothing is said about {name}."
    *steps, whole = rows
    refusals = "The price: refusals" if kind == "benign" else "Refusals"
    rates = refusal_rates(metrics, kinds, kind)
    old, new = (f"{percent(rates[model])} ({model})" for model in (whole["first"], whole["second"]))
    if shows_change(whole):
        verb = "rose" if whole["difference"]["value"] > 0 else "fell"
        sentence = f"{refusals} of {prompts} {verb} from {old} to {new}, by {points(whole)}."
    else:
        test = f", p = {whole['p']:.2f}" if "p" in whole else ""
        sentence = (
            f"{refusals} of {prompts} were {old} and {new}; no change is shown "
            f"({points(whole, signed=True)}{test})."
        )
    return f"{sentence} {_by_stage(steps)}" if steps else sentence


def _by_stage(steps: Sequence[ModelComparison]) -> str:
    """`By stage: sl_cai raised them by 31 points [22, 40]; sft and dpo show no change.`"""
    phrases = [
        f"{row['second']} {'raised' if row['difference']['value'] > 0 else 'lowered'} them by "
        f"{points(row)}"
        for row in steps
        if shows_change(row)
    ]
    if idle := [row["second"] for row in steps if not shows_change(row)]:
        phrases.append(f"{' and '.join(idle)} show{'s' * (len(idle) == 1)} no change")
    return f"By stage: {'; '.join(phrases)}."


def points(comparison: ModelComparison, signed: bool = False) -> str:
    """`31 points [22, 40]`; of a fall, by how much, unless `signed`."""
    difference = comparison["difference"]
    value, low, high = (100 * difference[key] for key in ("value", "low", "high"))
    if value < 0 and not signed:
        value, low, high = -value, -high, -low
    # + 0.0: no "-0"
    value, low, high = (round(number) + 0.0 for number in (value, low, high))
    unit = "point" if abs(value) == 1 else "points"
    return f"{value:.0f} {unit} [{low:.0f}, {high:.0f}]"
