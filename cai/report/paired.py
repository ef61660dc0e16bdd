"""How the last models of several evaluations differ on the prompts that all of them answered.

Imports scipy, which takes a second.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cai.data.parquet import Row, read_rows
from cai.messages import Prompt
from cai.scoring.answers import Answer, Scores, answer_scores
from cai.scoring.reference import exact_match, rouge_l
from cai.scoring.significance import ModelComparison, compare_models
from cai.scoring.statistics import by_prompt

BEHAVIOUR = ("refusal", "words", "brief", "offer")  # of answer_scores
REFERENCE: dict[str, Callable[[str, str], float]] = {"exact": exact_match, "rouge_l": rouge_l}


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
    first, *later = scores or [""]
    for second in later:
        suites = [suite for suite in scores[first] if suite in scores[second]]
        pair = {name: {suite: scores[name][suite] for suite in suites} for name in (first, second)}
        comparisons += compare_models(pair, seeds=_samples(pair))
    return comparisons


def _scores(rows: Sequence[Row]) -> dict[str, Scores]:
    """Suite -> metric -> prompt id -> the mean over its answers."""
    scores: dict[str, Scores] = {}
    for suite in dict.fromkeys(row["suite"] for row in rows):
        answers = [row for row in rows if row["suite"] == suite]
        measured = answer_scores([(_answer(row), row["refuses"]) for row in answers])
        names = BEHAVIOUR
        if any(row["reference"] for row in answers):
            names = ("refusal", "words", *REFERENCE)
            for name, measure in REFERENCE.items():
                measured[name] = by_prompt(
                    (row["id"], float(measure(row["answer"], row["reference"]))) for row in answers
                )
        scores[suite] = {name: measured.get(name, {}) for name in names}
    return scores


def _answer(row: Row) -> Answer:
    prompt = Prompt(row["id"], (), row["suite"])  # scores read its id alone
    return Answer(row["model"], row["suite"], prompt, row["answer"], row["sample"])


def _samples(scores: Mapping[str, Mapping[str, Scores]]) -> int:
    """1 where each prompt has one answer, as McNemar's test needs it; else 2."""
    shares = [
        value
        for suites in scores.values()
        for metrics in suites.values()
        for value in metrics["refusal"].values()
    ]
    return 1 if all(value in (0, 1) for value in shares) else 2
