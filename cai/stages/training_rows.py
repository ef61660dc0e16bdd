"""What `sft` and `sl_cai` are trained on, and the audit of it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

from cai.config.names import BUILT
from cai.config.schema import SftConfig
from cai.config.types import Dedupe
from cai.data.duplicates import duplicate_finder
from cai.data.mixture import mix
from cai.data.parquet import read_rows
from cai.data.prompts import TaggedDialogue, UnfitRows, read_dialogues
from cai.data.verdicts import RevisionVerdicts
from cai.digest import JsonObject
from cai.errors import CaiError
from cai.messages import Dialogue, from_dicts, with_system
from cai.stages.base import Context
from cai.stages.revision_rows import last_answer_only, training_dialogues


@dataclass(frozen=True)
class Audit:
    """What is trained on, and what is left out and why. `cai audit` shows just this."""

    read: int  # rows
    skipped: int  # rows that do not fit
    skipped_first: list[str]  # the first of them: file, line and reason
    no_answer: int
    overlapping: int  # rows that repeat an evaluation prompt
    overlaps: dict[str, int]  # evaluation set -> such rows
    not_drawn: int
    instructions: int
    sources: dict[str, int]  # data set -> rows drawn
    revisions: int | None
    rows: int  # drawn in all
    truncated: int
    lost_end_of_turn: int
    dropped: int  # rows that keep no trained token
    trained_tokens: int
    lengths: JsonObject  # tokens a row: median, p95, most, up_to
    texts: JsonObject  # duplicates, variety and scripts (cai/data/audit.py)
    duplicates: int = 0  # rows left out since they repeat an earlier one (sft.dedupe)
    # "set: field" -> rows that hold something there that is not read
    ignored: dict[str, int] = field(default_factory=dict)
    held_out: int = 0  # rows that the held-out loss is measured on: the first, of whole prompts
    refused: int = 0  # rows that the chat template refuses
    # the first of them: file, line and the template's words
    refused_first: list[str] = field(default_factory=list)
    split: int = 0  # rows whose answers are trained one by one: the template rewrites earlier turns
    called_bad: int = 0  # revisions left out since a person called them bad
    edited: int = 0  # revisions in whose place a person's text is trained on
    verdicts_unused: int = 0  # verdicts on revisions that are not this run's

    def refuse_losses(self, config: SftConfig, stage: str) -> None:
        """Raises CaiError where no token would be trained, or too many rows are lost."""
        if not self.trained_tokens:
            refused = ""
            if self.refused:
                first = _first(self.refused_first)
                refused = f", of which the chat template refuses {self.refused}{first}"
            raise CaiError(
                f"{stage}: no trained token is left in {self.rows} rows{refused}; "
                f"raise {stage}.max_length (now {config.max_length}) or add data"
            )
        unfit = self.skipped + self.no_answer + self.overlapping
        lost = 1 - (1 - unfit / self.read) * (1 - (self.dropped + self.refused) / self.rows)
        if lost > config.max_lost:
            raise CaiError(
                f"{stage}: {lost:.0%} of the rows are lost, and {stage}.max_lost is "
                f"{config.max_lost:g}: of {self.read} read, {self.skipped} do not fit, "
                f"{self.no_answer} have no answer and {self.overlapping} repeat an evaluation "
                f"prompt; of {self.rows} drawn, {self.dropped} keep no trained token and the "
                f"chat template refuses {self.refused}{_first(self.refused_first)}. Mend the "
                f"data (see `cai audit`), raise {stage}.max_length, or raise {stage}.max_lost"
            )

    def lines(self) -> list[tuple[str, str]]:
        return [(name, text) for name, text in (*self._row_lines(), *self._text_lines()) if text]

    def _row_lines(self) -> list[tuple[str, str]]:
        left_out = {
            "unfit": self.skipped,
            "without an answer": self.no_answer,
            "in an evaluation set": self.overlapping,
            "duplicates": self.duplicates,
            "called bad by people": self.called_bad,
            "not drawn": self.not_drawn,
        }
        cut = {
            "rows cut": self.truncated,
            "ends of turn lost": self.lost_end_of_turn,
            "without a trained token": self.dropped,
            "refused by the chat template": self.refused,
            "split into one row an answer": self.split,
        }
        return [
            ("rows read", f"{self.read}"),
            ("left out", _tally(left_out)),
            ("first unfit", "\n".join(self.skipped_first)),
            ("fields not read", _tally(self.ignored)),
            ("by evaluation set", _tally(self.overlaps)),
            ("rows drawn", self._sources()),
            ("revisions edited by people", f"{self.edited or ''}"),
            ("verdicts on other revisions", f"{self.verdicts_unused or ''}"),
            *self._length_lines(),
            ("cut to max_length", _tally(cut)),
            ("first refused", "\n".join(self.refused_first)),
            ("tokens trained", f"{self.trained_tokens}"),
        ]

    def _sources(self) -> str:
        """What the drawn rows are from, each with its share of them."""
        if not self.rows:
            return "0"
        counts = dict(self.sources)
        if self.revisions is not None:
            counts["revisions"] = self.revisions
        shares = [f"{name} {count} ({count / self.rows:.0%})" for name, count in counts.items()]
        return ", ".join(shares) or "0"

    def _length_lines(self) -> list[tuple[str, str]]:
        if not self.lengths:
            return []
        lengths = self.lengths
        spread = f"median {lengths['median']}, 95 % ≤ {lengths['p95']}, most {lengths['most']}"
        bins = {f"≤{edge}:": count for edge, count in lengths["up_to"].items()}
        return [("tokens a row", spread), ("", _tally(bins))]

    def _text_lines(self) -> list[tuple[str, str]]:
        texts = self.texts
        distinct = ", ".join(f"{n}: {share:.0%}" for n, share in texts["distinct"].items())
        openings = f"{texts['different_openings']} different: {_tally(texts['openings'])}"
        exact, near = texts["exact_duplicates"], texts["near_duplicates"]
        compared = texts["compared"]
        return [
            ("duplicates", f"{exact} exact, {near} near (MinHash)"),
            ("distinct n-grams", distinct),
            *((tag, _tally(counts)) for tag, counts in texts["tags"].items()),
            ("openings", openings),
            ("scripts", _tally(texts["scripts"])),
            ("texts compared", f"{compared} of {self.rows}" if compared < self.rows else ""),
        ]


def _first(places: list[str]) -> str:
    return f" (first: {places[0]})" if places else ""


def _tally(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def training_rows(config: SftConfig, context: Context) -> tuple[list[TaggedDialogue], JsonObject]:
    """The dialogues that are trained on, with their tags, and the audit's counts of them.

    What an evaluation suite holds is left out. Data sets are read once, row by row: only what is
    drawn is in memory.
    """
    revisions: list[TaggedDialogue] = []
    verdicts = RevisionVerdicts.load(context.verdicts, context.data)
    if config.revisions != "none":
        file = context.output("revise") / "training.parquet"
        revisions = training_dialogues(file, config.revisions, verdicts)
    usable = UsableRows(context, config.dedupe)
    revisions = [row for row in revisions if not usable.is_duplicate(row[0])]
    mixed, sizes = _mix_helpful(config, context.seed, usable, len(revisions))
    row_counts = {name: len(rows) for name, rows in mixed.items()}
    counts = usable.counts() | {
        "read": usable.lost + verdicts.left_out + sum(sizes.values()) + len(revisions),
        "not_drawn": sum(sizes.values()) - sum(row_counts.values()),
        "instructions": sum(row_counts.values()),
        "sources": row_counts,
        "revisions": None if config.revisions == "none" else len(revisions),
        "called_bad": verdicts.left_out,
        "edited": verdicts.edited,
        "verdicts_unused": verdicts.unused,
    }
    return [*chain.from_iterable(mixed.values()), *revisions], counts


def _mix_helpful(
    config: SftConfig, seed: int, usable: "UsableRows", revisions: int
) -> tuple[dict[str, list[TaggedDialogue]], dict[str, int]]:
    """Helpful rows by data set, as many as go with so many revisions; and each set's size."""
    if config.helpful == "sampled":
        sources = {"sampled": usable(usable.written("revise", "helpful.parquet", "sampled"))}
    else:
        sources = {name: usable(usable.of_set(name)) for name in config.data}
    limits = [config.limit]
    if config.helpful_ratio is not None:
        limits.append(round(revisions * config.helpful_ratio))
    limit = min((limit for limit in limits if limit is not None), default=None)
    weights, temperature = config.weights, config.mixing_temperature
    return mix(sources, seed, limit, weights, temperature, config.mixing_cap)


class UsableRows:
    """Lets the rows pass that may be trained on, and counts the others."""

    def __init__(self, context: Context, dedupe: Dedupe):
        self.context = context
        self.skipped = UnfitRows()
        self.no_answer = self.overlapping = self.duplicates = 0
        self._repeats = duplicate_finder(dedupe)
        self.overlaps = dict.fromkeys(context.held_out, 0)

    def __call__(self, rows: Iterable[TaggedDialogue]) -> Iterator[TaggedDialogue]:
        for dialogue, tags in rows:
            requests = [message.content for message in dialogue if message.role == "user"]
            holding = [
                name
                for name, overlap in self.context.overlaps.items()
                if any(text in overlap for text in requests)
            ]
            for name in holding:
                self.overlaps[name] += 1
            if holding:
                self.overlapping += 1
            elif dialogue[-1].role != "assistant":
                self.no_answer += 1
            elif not self.is_duplicate(dialogue):
                yield dialogue, tags

    @property
    def lost(self) -> int:
        """Rows that did not pass."""
        return self.skipped.count + self.no_answer + self.overlapping + self.duplicates

    def counts(self) -> JsonObject:
        """For the audit."""
        return {
            "skipped": self.skipped.count,
            "skipped_first": self.skipped.examples,
            "ignored": self.skipped.ignored,
            "no_answer": self.no_answer,
            "overlapping": self.overlapping,
            "overlaps": self.overlaps,
            "duplicates": self.duplicates,
        }

    def is_duplicate(self, dialogue: Dialogue) -> bool:
        """Whether it repeats a row that was asked about before, of any set; counts it."""
        repeats = self._repeats(dialogue)
        self.duplicates += repeats
        return repeats

    def written(self, stage: str, file: str, source: str) -> Iterator[TaggedDialogue]:
        """Rows that another stage has written."""
        for row in read_rows(self.context.output(stage) / file):
            tags = {"source": source} | ({"answer": row["answer"]} if "answer" in row else {})
            yield last_answer_only(from_dicts(row["messages"])), tags

    def of_set(self, name: str) -> Iterable[TaggedDialogue]:
        if name == BUILT:
            return self.written("build", "instructions.parquet", BUILT)
        data = self.context.data[name]
        rows = read_dialogues(name, data, self.context.seed, self.skipped)
        return ((with_system(dialogue, data.system), tags) for dialogue, tags in rows)
