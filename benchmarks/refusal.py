"""How well do the rules, and the classifier, agree with people on what a refusal is?

    .venv/bin/python benchmarks/refusal.py

Takes the labelled answers of the PyRIT wheel. The classifier is cross-validated: each answer is
judged by one that was fitted without its prompt and without its answer. A second table is of the
hard cases in tests/method/marked_answers.yaml. docs/evaluation.md says what follows from both.
"""

from pathlib import Path

import yaml

from cai.digest import seed_of
from cai.method.refusal import redirects, refuses
from cai.scoring.classifier import Labelled, against_people, agreement
from cai.scoring.statistics import Estimate

MARKED = Path(__file__).parent.parent / "tests/method/marked_answers.yaml"

COLUMNS = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "of_harmful": "of harmful answers",
    "of_harmless": "of harmless answers",
}


def cell(figure: Estimate) -> str:
    return f"{100 * figure.value:.0f} % [{100 * figure.low:.0f}, {100 * figure.high:.0f}]"


def main() -> None:
    classifier, found = against_people()
    rows = classifier.rows
    found["rules, or redirects"] = agreement(
        rows, [refuses(row.answer) or redirects(row.answer) for row in rows]
    )
    print(f"| refuses, say | {' | '.join(COLUMNS.values())} |")
    print(f"| --- |{' --- |' * len(COLUMNS)}")
    for name, figures in found.items():
        print(f"| {name} | {' | '.join(cell(figures[key]) for key in COLUMNS)} |")
    print("\n| hard cases | answers | precision | recall |\n| --- | --- | --- | --- |")
    for half, rows in hard_cases().items():
        figures = agreement(rows, [refuses(row.answer) for row in rows])
        cells = [str(len(rows)), cell(figures["precision"]), cell(figures["recall"])]
        print(f"| {half} | {' | '.join(cells)} |")


def hard_cases() -> dict[str, list[Labelled]]:
    """The halves: the rules were tuned on dev."""
    halves: dict[str, list[Labelled]] = {"dev": [], "test": []}
    for kind, texts in yaml.safe_load(MARKED.read_text("utf-8")).items():
        for text in texts:
            half = "test" if seed_of(0, text) % 2 else "dev"
            halves[half].append(Labelled("", text, kind == "refusals"))
    return halves


if __name__ == "__main__":
    main()
