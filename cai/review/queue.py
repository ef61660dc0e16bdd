"""What a person is asked about: a run's revisions, and its pairs without who wrote what."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter

from cai.data.parquet import read_rows
from cai.data.verdicts import Kind, subject_of
from cai.digest import JsonObject, seed_of
from cai.errors import CaiError
from cai.method.constitution import Constitution
from cai.report.page import prompt_text
from cai.report.word_diff import word_diff
from cai.review.records import SHAPES, RecordKind, sources
from cai.review.tables import Row, Source, Table
from cai.store.run_folder import Run

TABLES: dict[Kind, RecordKind] = {"revision": "revisions", "pair": "pairs"}


@dataclass(frozen=True)
class Item:
    """A revision, or two answers, that a person judges."""

    subject: str  # a digest of its texts
    stage: str
    principles: tuple[str, ...]
    row: int  # its row's number in the table
    step: int = 0  # of a revision: its round, from 0


class Queue:
    """The items of one kind, in an order by a hash of their texts, the same for every person.

    So any part of it is a sample of the whole. `texts`: what principles ask for, by their ids.
    """

    def __init__(self, kind: Kind, table: Table, items: list[Item], texts: Mapping[str, str]):
        self.kind: Kind = kind
        self.table = table
        # of the same texts, the first
        different = {item.subject: item for item in reversed(items)}
        self.items = sorted(different.values(), key=attrgetter("subject"))
        self.principles = sorted({name for item in self.items for name in item.principles})
        self._texts = texts

    def select(self, principle: str) -> list[Item]:
        """The items under one principle, or all of them where it is the empty string."""
        return [item for item in self.items if not principle or principle in item.principles]

    def card(self, item: Item) -> JsonObject:
        """What the page shows of an item: nothing says which model or stage wrote it."""
        row = self.table.row(item.row)
        texts = self._judged_texts(row, item)
        if self.kind == "revision":
            texts |= {"marks": word_diff(texts["answer"], texts["revision"])}
        return {
            "kind": self.kind,
            "subject": item.subject,
            "prompt": prompt_text(row["prompt"]),
            "principles": [
                {"id": name, "text": self._texts.get(name, "")} for name in item.principles
            ],
            **texts,
        }

    def line(self, item: Item) -> JsonObject:
        """What the file of verdicts says of an item: enough without the run."""
        row = self.table.row(item.row)
        return {
            "kind": self.kind,
            "id": row["id"],
            "stage": item.stage,
            "principle": ", ".join(item.principles),
            "prompt": row["prompt"],
            **self._judged_texts(row, item),
        }

    def _judged_texts(self, row: Row, item: Item) -> JsonObject:
        if self.kind == "pair":
            # a hash says which of the two is A: not which is preferred
            reverse = bool(seed_of("sides", item.subject) & 1)
            a, b = sorted(_answers(row), reverse=reverse)
            return {"a": a, "b": b}
        step = row["steps"][item.step]
        passed = [
            earlier["revision"] for earlier in row["steps"][: item.step] if not earlier["gates"]
        ]
        answer = passed[-1] if passed else row["answer"]
        return {"answer": answer, "critique": step["critique"], "revision": step["revision"]}


def load_queues(run: Run) -> dict[Kind, Queue]:
    """The revisions that sl_cai may train on, and the pairs that were not labelled by people.

    Kinds of which there is nothing yet are left out. Raises CaiError on damaged files.
    """
    settings = _settings(run)
    queues: dict[Kind, Queue] = {}
    for kind, record_kind in TABLES.items():
        if files := sources(run, record_kind):
            table = Table(files, SHAPES[record_kind].columns)
            if kind == "revision":
                items = list(_revision_items(table, _trained_rounds(files[0], settings)))
            else:
                items = list(_pair_items(table))
            if not items:
                continue
            queues[kind] = Queue(kind, table, items, _principle_texts(run, settings, kind))
    return queues


def _revision_items(table: Table, trained: set[tuple[str, int]]) -> Iterator[Item]:
    for number, row in enumerate(table.rows()):
        for place, step in enumerate(row["steps"]):
            if (row["id"], place + 1) in trained:
                subject = subject_of("revision", row["id"], (step["revision"],))
                yield Item(subject, row["stage"], (step["principle"],), number, place)


def _pair_items(table: Table) -> Iterator[Item]:
    for number, row in enumerate(table.rows()):
        if row.get("kind") != "human":
            principles = tuple(row.get("principles") or ())
            subject = subject_of("pair", row["id"], _answers(row))
            yield Item(subject, row["stage"], principles, number)


def _answers(row: Row) -> tuple[str, str]:
    return row["chosen"][-1]["content"], row["rejected"][-1]["content"]


def _trained_rounds(revisions: Source, settings: JsonObject) -> set[tuple[str, int]]:
    """(prompt id, round) of the revisions that sl_cai takes: of the last rounds, or of all."""
    last_alone = settings.get("sl_cai", {}).get("revisions") == "last"
    rows = read_rows(revisions.file.with_name("training.parquet"))
    return {(row["id"], row["round"]) for row in rows if row["last"] or not last_alone}


def _settings(run: Run) -> JsonObject:
    """The run's configuration as it stands: that of an earlier version need not be valid now."""
    try:
        settings = json.loads((run.root / "run.json").read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _principle_texts(run: Run, settings: JsonObject, kind: Kind) -> dict[str, str]:
    """What principles ask for, where their file is still as the run has read it."""
    manifest = run.latest("revise" if kind == "revision" else "label")
    try:
        law = Constitution.load(settings.get("constitution", ""))
    except CaiError:  # edited or moved since
        return {}
    digests = law.revision_digests() if kind == "revision" else law.comparison_digests()
    read = manifest.ingredients.get("constitution", {}) if manifest else {}
    return {
        principle.id: principle.critique if kind == "revision" else principle.comparison
        for principle in law.principles
        if digests["principles"].get(principle.id) == read.get("principles", {}).get(principle.id)
    }
