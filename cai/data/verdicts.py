"""What people said of revisions and of pairs of answers, as `cai review` writes it.

A file holds a line for each thing that a person did. The last line of a reviewer about a revision,
or about two answers, counts; `undone` takes back what stood before.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from cai.config.schema import DataConfig
from cai.data.files import UNREADABLE_ROW
from cai.data.parquet import Row
from cai.data.sources import read_source
from cai.data.unfit import UnfitRows, leave_out
from cai.digest import digest
from cai.errors import CaiError
from cai.messages import Dialogue, Prompt, from_dicts

VERDICTS = "verdicts"  # the format of such a data set

Kind = Literal["revision", "pair"]
CHOICES: dict[Kind, tuple[str, ...]] = {
    "revision": ("good", "bad", "edit"),
    "pair": ("a", "b", "tie"),
}
UNDONE = "undone"


@dataclass(frozen=True)
class Verdict:
    """What one person said of a revision, or of two answers to a prompt."""

    kind: Kind
    prompt_id: str
    prompt: Dialogue
    principle: str  # ids, separated by commas
    texts: tuple[str, ...]  # the revision, or the answers A and B as they were shown
    choice: str  # one of CHOICES, or UNDONE
    edited: str  # what the person wrote in place of the revision, else ""
    reviewer: str

    @property
    def subject(self) -> str:
        return subject_of(self.kind, self.prompt_id, self.texts)

    @property
    def preferred(self) -> str | None:
        """Of a pair: the answer that the person prefers; None where neither."""
        return {"a": self.texts[0], "b": self.texts[-1]}.get(self.choice)


def subject_of(kind: Kind, prompt_id: str, texts: Sequence[str]) -> str:
    """What is judged, by its content: a run that ends in the same texts has the same subjects."""
    return digest([kind, prompt_id, *sorted(texts)])[:16]


def as_verdict(row: Row) -> Verdict:
    """A line of the file. Raises ValueError, KeyError or TypeError where it is none."""
    if reason := row.get(UNREADABLE_ROW):
        raise ValueError(reason)
    kind, choice = row["kind"], row["verdict"]
    if kind not in get_args(Kind):
        raise ValueError(f"kind: expected {' or '.join(CHOICES)}, found {kind!r}")
    if choice not in (*CHOICES[kind], UNDONE):
        raise ValueError(f"verdict: expected {', '.join(CHOICES[kind])}, found {choice!r}")
    texts = (row["revision"],) if kind == "revision" else (row["a"], row["b"])
    edited = row.get("edited") or ""
    if not all(isinstance(text, str) for text in (*texts, edited, row["reviewer"], row["id"])):
        raise ValueError("expected texts")
    if choice == "edit" and not edited.strip():
        raise ValueError("edited: no text, and the verdict is edit")
    return Verdict(
        kind=kind,
        prompt_id=row["id"],
        prompt=from_dicts(row["prompt"]),
        principle=row.get("principle") or "",
        texts=texts,
        choice=choice,
        edited=edited,
        reviewer=row["reviewer"],
    )


def read_verdicts(name: str, config: DataConfig, unfit: UnfitRows) -> list[Verdict]:
    """Each reviewer's last word on each subject, without what was undone.

    Adds the lines that are no verdicts, such as one that a power cut has torn, to `unfit`.
    """
    last: dict[tuple[str, str], Verdict] = {}
    unfit_here = UnfitRows()
    for place, row in read_source(name, config):
        try:
            verdict = as_verdict(row)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            leave_out(place, error, unfit_here, name if config.strict else None)
            continue
        # a later word comes after those that others said before it
        last.pop((verdict.subject, verdict.reviewer), None)
        last[verdict.subject, verdict.reviewer] = verdict
    unfit.add_all(name, unfit_here, {})
    return [verdict for verdict in last.values() if verdict.choice != UNDONE]


def by_subject(verdicts: Iterable[Verdict], kind: Kind) -> dict[str, list[Verdict]]:
    """The verdicts of one kind, together with the other reviewers' on the same subject."""
    groups: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        if verdict.kind == kind:
            groups[verdict.subject].append(verdict)
    return groups


def preferred_pairs(name: str, verdicts: Iterable[Verdict]) -> list[tuple[Prompt, str, str]]:
    """(prompt, better answer, worse answer) where most reviewers prefer the same answer.

    Raises CaiError where there is no such pair.
    """
    pairs = []
    for group in by_subject(verdicts, "pair").values():
        votes = Counter(verdict.preferred for verdict in group)
        first, second = sorted(group[0].texts)
        if votes[first] != votes[second]:
            better, worse = (first, second) if votes[first] > votes[second] else (second, first)
            pairs.append((Prompt(group[0].prompt_id, group[0].prompt, name), better, worse))
    if not pairs:
        raise CaiError(
            f"data.{name}: nobody has preferred an answer to another yet; `cai review` asks"
        )
    return pairs


class RevisionVerdicts:
    """What people said of revisions, and on how many of a run's revisions it was used.

    Where reviewers differ, an edited text counts before bad, and bad before good.
    """

    def __init__(self, verdicts: Iterable[Verdict]):
        self.left_out = self.edited = 0
        self._words: dict[str, str | None] = {}  # subject -> the text to train on; None: left out
        self._used: set[str] = set()
        for subject, group in by_subject(verdicts, "revision").items():
            edits = [verdict.edited for verdict in group if verdict.choice == "edit"]
            bad = any(verdict.choice == "bad" for verdict in group)
            self._words[subject] = edits[-1] if edits else None if bad else group[0].texts[0]

    @classmethod
    def load(cls, names: Sequence[str], sets: Mapping[str, DataConfig]) -> "RevisionVerdicts":
        unfit = UnfitRows()
        return cls(verdict for name in names for verdict in read_verdicts(name, sets[name], unfit))

    @property
    def unused(self) -> int:
        """Verdicts on revisions that this run does not have."""
        return len(self._words) - len(self._used)

    def text_to_train_on(self, prompt_id: str, revision: str) -> str | None:
        """The revision, or what a person wrote in its place; None where it is left out."""
        subject = subject_of("revision", prompt_id, (revision,))
        if subject not in self._words:
            return revision
        self._used.add(subject)
        text = self._words[subject]
        self.left_out += text is None
        self.edited += text is not None and text != revision
        return text
