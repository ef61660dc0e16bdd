"""What `revise` counts of its revisions: in all, by principle and by round."""

from collections import Counter, defaultdict
from dataclasses import dataclass

from cai.language import ENGLISH, language
from cai.method.critique import TOO_LONG, CritiqueStep, Revision
from cai.method.refusal import refuses
from cai.text import word_count


@dataclass(frozen=True)
class Revised:
    """What became of the revisions of a principle, or of a round."""

    drawn: int
    changed: int
    refused: int
    passed: int
    gates: dict[str, int]  # gate -> revisions that failed it
    words_before: float  # means
    words_after: float

    def cells(self, name: str) -> tuple[str, ...]:
        gates = sorted(self.gates.items(), key=lambda gate: -gate[1])
        failures = ", ".join(f"{gate} {count}" for gate, count in gates)
        counts = (self.drawn, self.changed, self.refused, self.passed)
        return (name, *map(str, counts), failures, f"{self.words_before}", f"{self.words_after}")


class Tally:
    """Counts of the revisions. A round whose request fits no context is in none but `too_long`."""

    def __init__(self) -> None:
        self.rows = self.kept = 0  # rows to train on; prompts with a revision that passed
        self.too_long = self.rounds_too_long = 0  # prompts, and rounds of other prompts
        self.languages: Counter[str] = Counter()  # of revisions that are not in English
        self.all: Counter[str] = Counter()
        self.principles: dict[str, Counter[str]] = defaultdict(Counter)
        self.rounds: dict[str, Counter[str]] = defaultdict(Counter)

    def add(self, revision: Revision) -> None:
        before = revision.answer
        self.kept += bool(revision.final)
        self.too_long += revision.too_long
        for round, step in enumerate(revision.steps, 1):
            if TOO_LONG in step.gates:
                self.rounds_too_long += 1
                continue
            counts = step_counts(before, step)
            for tally in (self.all, self.principles[step.principle_id], self.rounds[str(round)]):
                tally.update(counts)
            if (code := language(step.revision)) != ENGLISH:
                self.languages[code] += 1
            before = before if step.gates else step.revision


def step_counts(before: str, step: CritiqueStep) -> dict[str, int]:
    return {
        "drawn": 1,
        "changed": before != step.revision,
        "refused": refuses(step.revision),
        "passed": not step.gates,
        "words_before": word_count(before),
        "words_after": word_count(step.revision),
    } | {f"gate {gate}": 1 for gate in step.gates}


def failed_gates(counts: Counter[str]) -> dict[str, int]:
    names = sorted(name for name in counts if name.startswith("gate "))
    return {name.removeprefix("gate "): counts[name] for name in names}


def revised(counts: Counter[str]) -> Revised:
    return Revised(
        drawn=counts["drawn"],
        changed=int(counts["changed"]),
        refused=int(counts["refused"]),
        passed=int(counts["passed"]),
        gates=failed_gates(counts),
        words_before=round(counts["words_before"] / counts["drawn"], 1),
        words_after=round(counts["words_after"] / counts["drawn"], 1),
    )
