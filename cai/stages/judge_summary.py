"""Who gave `label` its feedback, and how far that can be relied on: a part of its summary."""

from dataclasses import dataclass

from cai.digest import JsonObject
from cai.report.metrics import format_mean, format_share
from cai.report.stage_view import Table
from cai.stages.summary import number

JUDGE_SHARES = {
    "flipped": "preferences that turn with the order",
    "neither": "comparisons where the judge wants neither letter",
    "longer": "the longer answer is chosen",
    "agreement": "two principles agree",
    "accuracy": "right on labelled pairs",
    "shorter": "of these, the shorter is labelled better",
}
JUDGE_MEANS = {
    "probability": "mean probability of the chosen",
    "entropy": "entropy of the feedback, bits",
    "letters": "probability of the two letters together",
}


@dataclass(frozen=True)
class Judge:
    """Who gave the feedback, and how far it can be relied on (cai/scoring/judge.py)."""

    name: str
    is_other_model: bool  # whether it is none of the run's own
    metrics: JsonObject  # name -> estimate; bins and calibration_error where labels are known
    warnings: list[str]
    labelled: list[str]  # the data sets that its accuracy was measured on
    tau: float | None = None  # nats, of a contrast: the log-ratio that makes a pair 73 % sure

    def lines(self) -> list[tuple[str, str]]:
        shares = [(name, title, format_share) for name, title in JUDGE_SHARES.items()]
        means = [(name, title, format_mean) for name, title in JUDGE_MEANS.items()]
        lines = [
            (title, write(self.metrics[name]))
            for name, title, write in (*shares, *means)
            if name in self.metrics
        ]
        return lines + ([("tau, nats", number(self.tau))] if self.tau else [])

    def tables(self) -> list[Table]:
        if "bins" not in self.metrics:
            return []
        distance = round(100 * self.metrics["calibration_error"])
        title = (
            f"calibration on labelled pairs ({', '.join(self.labelled)}): certainty and accuracy "
            f"lie {distance} points apart"
        )
        rows = tuple(_calibration_cells(certainty) for certainty in self.metrics["bins"])
        tables = [Table(title, ("probability", "mean", "right", "pairs"), rows)]
        by_principle = tuple(
            (name, format_share(right), str(right["count"]))
            for name, right in self.metrics.get("principles", {}).items()
        )
        if by_principle:
            title = f"the judge and people ({', '.join(self.labelled)}), by principle"
            tables.append(Table(title, ("principle", "agree", "pairs"), by_principle))
        return tables


def _calibration_cells(certainty: JsonObject) -> tuple[str, ...]:
    right = certainty["right"]
    return (
        f"{certainty['low']} to {certainty['high']}",
        f"{certainty['probability']:.2f}",
        format_share(right),
        str(right["count"]),
    )
