"""How well do the rules, and the classifier, agree with people on what a refusal is?

    .venv/bin/python benchmarks/refusal.py

Takes the labelled answers of the PyRIT wheel. The classifier is cross-validated: each answer is
judged by one that was fitted without its prompt and without its answer. docs/evaluation.md says
what follows from the table.
"""

from cai.method.refusal import redirects, refuses
from cai.scoring.classifier import against_people, agreement
from cai.scoring.statistics import Estimate

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


if __name__ == "__main__":
    main()
