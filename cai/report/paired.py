"""How the last models of several evaluations differ on the prompts that all of them answered.

Imports scipy, which takes a second.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cai.data.parquet import read_rows
from cai.scoring.answers import Scores, exact_match, rouge_l
from cai.scoring.significance import ModelComparison, compare_models
from cai.scoring.statistics import by_prompt
from cai.scoring.style import ends_with_offer, is_brief
from cai.text import word_count

Row = Mapping[str, Any]  # of answers.parquet

BEHAVIOUR: dict[str, Callable[[Row], float | None]] = {
    "refusal": lambda row: row["refuses"],
    "words": lambda row: word_count(row["answer"]),
    "brief": lambda row: None if row["refuses"] is None else is_brief(row["answer"]),
    "offer": lambda row: None if row["refuses"] is None else ends_with_offer(row["answer"]),
}

REFERENCE: dict[str, Callable[[Row], float | None]] = {
    "refusal": BEHAVIOUR["refusal"],
    "words": BEHAVIOUR["words"],
    "exact": lambda row: float(exact_match(row["answer"], row["reference"])),
    "rouge_l": lambda row: rouge_l(row["answer"], row["reference"]),
}


def compare_answers(files: Mapping[str, tuple[Path, str]]) -> list[ModelComparison]:
    """Every later evaluation less the first. `files`: its name -> answers.parquet and the model.

    An evaluation whose answers are not there is left out.
    """
    scores = {
        name: _scores([row for row in read_rows(file) if row["model"] == model])
        for name, (file, model) in files.items()
        if file.is_file()
    }
    comparisons: list[ModelComparison] = []
    first, *others = scores or [""]
    for other in others:
        suites = [suite for suite in scores[first] if suite in scores[other]]
        pair = {name: {suite: scores[name][suite] for suite in suites} for name in (first, other)}
        comparisons += compare_models(pair, seeds=_samples(pair))
    return comparisons


def _scores(rows: Sequence[Row]) -> dict[str, Scores]:
    """Suite -> metric -> prompt id -> the mean over its answers."""
    scores: dict[str, Scores] = {}
    for suite in dict.fromkeys(row["suite"] for row in rows):
        answers = [row for row in rows if row["suite"] == suite]
        metrics = REFERENCE if any(row["reference"] for row in answers) else BEHAVIOUR
        scores[suite] = {
            name: by_prompt((row["id"], value) for row, value in _values(answers, measure))
            for name, measure in metrics.items()
        }
    return scores


def _values(
    answers: Sequence[Row], measure: Callable[[Row], float | None]
) -> list[tuple[Row, float]]:
    """Without the answers that have no value: refusals of those that are not in English."""
    measured = [(row, measure(row)) for row in answers]
    return [(row, value) for row, value in measured if value is not None]


def _samples(scores: Mapping[str, Mapping[str, Scores]]) -> int:
    """1 where each prompt has one answer, as McNemar's test needs it; else 2."""
    shares = [
        value
        for suites in scores.values()
        for metrics in suites.values()
        for value in metrics["refusal"].values()
    ]
    return 1 if all(value in (0, 1) for value in shares) else 2
