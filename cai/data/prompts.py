"""Picks dialogues, prompts, demonstrations and preferences from the named data sets."""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TypeVar

from cai.config.schema import DataConfig, Prompts
from cai.data.columns import TAGS, map_columns, refuse_unknown_fields
from cai.data.formats import UNFIT, read_mapped
from cai.data.mixture import mix
from cai.data.parquet import Row
from cai.data.sources import read_source
from cai.data.turns import kind_of
from cai.data.unfit import UnfitRows, leave_out
from cai.data.unread import unread
from cai.data.verdicts import VERDICTS, preferred_pairs, read_verdicts
from cai.digest import seed_of
from cai.errors import CaiError
from cai.messages import Dialogue, Message, Prompt
from cai.observe.log import say

T = TypeVar("T")

# What is evaluated doesn't move with the run's seed: suites, their examples and labelled pairs that
# a judge is measured on. So `offset` and `limit` are fixed splits, and seeds can be compared.
SPLIT_SEED = 0

EXAMPLE_POOL = 1000  # rows that examples are drawn from

TaggedDialogue = tuple[Dialogue, Row]  # the tags: columns of the row, `source`, `place`


@dataclass(frozen=True)
class Loaded:
    """Dialogues with their tags, and the rows that did not fit."""

    dialogues: list[TaggedDialogue]
    unfit: UnfitRows


def read_dialogues(
    name: str, config: DataConfig, seed: int, unfit: UnfitRows
) -> Iterator[TaggedDialogue]:
    """The rows of one set that fit, one at a time; adds the others to `unfit` at the end.

    Raises CaiError where not one row fits, and where the set is `strict` and one does not.
    """
    fitting, unfit_here, ignored = 0, UnfitRows(), Counter[str]()
    refuse_unknown_fields(name, config)
    for place, raw_row in read_source(name, config):
        try:
            row = map_columns(raw_row, config)
            dialogue = read_mapped(row, config, seed)
        except UNFIT as error:
            leave_out(place, error, unfit_here, name if config.strict else None)
            continue
        fitting += 1
        ignored.update(unread(row, dialogue, config))
        tags = {tag: row[tag] for tag in TAGS if tag in row}
        yield dialogue, tags | {"source": name, "place": place}
    if not fitting:
        reason = "no row is there" + ("; see its 'where'" if config.where else "")
        if unfit_here.examples:
            reason = f"not one row fits; the first: {unfit_here.examples[0]}"
        raise CaiError(f"data.{name}: {reason}")
    unfit.add_all(name, unfit_here, ignored)


def load_dialogues(names: Sequence[str], sets: Mapping[str, DataConfig], seed: int = 0) -> Loaded:
    """All rows of the named sets, in order. Raises CaiError as read_dialogues does."""
    loaded = Loaded([], UnfitRows())
    for name in names:
        loaded.dialogues.extend(read_dialogues(name, sets[name], seed, loaded.unfit))
    return loaded


def sample_dialogues(
    names: Sequence[str],
    sets: Mapping[str, DataConfig],
    seed: int,
    keep: Callable[[Dialogue], bool],
) -> list[Dialogue]:
    """At most EXAMPLE_POOL rows of the named sets that `keep` takes, drawn by the seed."""

    def usable(name: str) -> Iterator[Dialogue]:
        for dialogue, _ in read_dialogues(name, sets[name], seed, UnfitRows()):
            if keep(dialogue):
                yield dialogue

    mixed, _ = mix({name: usable(name) for name in names}, seed, EXAMPLE_POOL)
    return [dialogue for rows in mixed.values() for dialogue in rows]


def load_prompts(selection: Prompts, sets: Mapping[str, DataConfig], seed: int) -> list[Prompt]:
    """The named sets' prompts without duplicates, shuffled by `seed`, then those selected.

    A dialogue that ends in an answer becomes a prompt without that answer; other turns stay.
    """
    return [prompt for prompt, _ in load_tagged_prompts(selection, sets, seed)]


def load_tagged_prompts(
    selection: Prompts, sets: Mapping[str, DataConfig], seed: int
) -> list[tuple[Prompt, list[Row]]]:
    """The prompts of load_prompts, each with the tags of all rows that hold it."""
    prompts: dict[str, tuple[Prompt, list[Row]]] = {}
    for dialogue, tags in load_dialogues(selection.data, sets, seed).dialogues:
        turns = dialogue[:-1] if dialogue[-1].role == "assistant" else dialogue
        if turns and turns[-1].role == "user":
            prompt = Prompt.of(turns, tags["source"], principle_of(tags))
            prompt = prompt.under(sets[prompt.source].system)
            prompts.setdefault(prompt.id, (prompt, []))[1].append(tags)
    return _select(prompts, selection, seed)


def principle_of(tags: Row) -> str | None:
    """The id of the principle that a row is about, where it has a column `principle`."""
    principle = tags.get("principle")
    return principle if isinstance(principle, str) else None


def load_demonstrations(
    selection: Prompts, sets: Mapping[str, DataConfig], seed: int
) -> list[tuple[Prompt, str]]:
    """(prompt, answer) of the dialogues that end in an answer, selected as by load_prompts."""
    demonstrations: dict[str, tuple[Prompt, str]] = {}
    for dialogue, tags in load_dialogues(selection.data, sets, seed).dialogues:
        last = dialogue[-1]
        if len(dialogue) > 1 and last.role == "assistant" and last.trained:
            prompt = Prompt.of(dialogue[:-1], tags["source"])
            prompt = prompt.under(sets[prompt.source].system)
            demonstrations.setdefault(prompt.id, (prompt, last.content))
    return _select(demonstrations, selection, seed)


def _select(by_prompt_id: Mapping[str, T], selection: Prompts, seed: int) -> list[T]:
    """The values in an order that `seed` and each prompt id decide, from `offset` to `limit`."""
    ids = sorted(by_prompt_id, key=lambda prompt_id: seed_of(seed, prompt_id))
    return [by_prompt_id[prompt_id] for prompt_id in ids[selection.offset :][: selection.limit]]


def load_preferences(
    selection: Prompts,
    sets: Mapping[str, DataConfig],
    seed: int,
    unfit: UnfitRows | None = None,
) -> list[tuple[Prompt, str, str]]:
    """(prompt, better answer, worse answer) of labelled pairs, shuffled by `seed`, then selected.

    In the layout `scored` (a column `score`, or `harm`, where less is better) each prompt's best
    answer is set against its worst. Adds the rows that hold none to `unfit`. Raises CaiError where
    a set holds no pair.
    """
    pairs = []
    for name in selection.data:
        pairs += _labelled_pairs(name, sets[name], UnfitRows() if unfit is None else unfit)
    pairs.sort(key=lambda pair: seed_of(seed, pair[0].id, *pair[1:]))
    return pairs[selection.offset :][: selection.limit]


def _labelled_pairs(
    name: str, config: DataConfig, unfit: UnfitRows
) -> list[tuple[Prompt, str, str]]:
    """Of each conversation, the best answer against the worst, unless they are equally good."""
    if config.format == VERDICTS:
        return preferred_pairs(name, read_verdicts(name, config, unfit))
    answers: dict[tuple[str, tuple[Message, ...]], list[tuple[float, str]]] = defaultdict(list)
    unfit_here, ignored = UnfitRows(), Counter[str]()
    refuse_unknown_fields(name, config)
    for place, raw_row in read_source(name, config):
        try:
            row = map_columns(raw_row, config)
            graded = _graded_dialogues(row, config)
        except UNFIT as error:
            leave_out(place, error, unfit_here, name if config.strict else None)
            continue
        ignored.update(unread(row, graded[0][1], config))
        # A preference is complete in its row; scored answers to one prompt stand in many rows.
        row_id = place if len(graded) > 1 else ""
        for grade, dialogue in graded:
            answers[row_id, dialogue[:-1]].append((grade, dialogue[-1].content))
    pairs = []
    for (_, turns), graded_answers in answers.items():
        best_grade, best = max(graded_answers, key=itemgetter(0))
        worst_grade, worst = min(graded_answers, key=itemgetter(0))
        if best_grade > worst_grade and best != worst:
            pairs.append((Prompt.of(turns, name).under(config.system), best, worst))
    unfit.add_all(name, unfit_here, ignored)
    if not pairs:
        reason = "no prompt has two answers of different grades"
        if unfit_here.examples:
            reason = f"the first row: {unfit_here.examples[0]}"
        raise CaiError(f"data.{name}: not one labelled pair; {reason}")
    if lone := len(answers) - len(pairs):
        say(f"data.{name}: {lone} prompts have no two answers of different grades, so no pair")
    return pairs


def _graded_dialogues(row: Row, config: DataConfig) -> list[tuple[float, Dialogue]]:
    """The dialogues with the chosen and the rejected answer, or the one whose answer is scored."""
    if row.get("chosen") is not None:
        layout = replace(config, format="preference")
        swapped = row | {"chosen": row["rejected"], "rejected": row["chosen"]}
        graded = [(1.0, read_mapped(row, layout)), (0.0, read_mapped(swapped, layout))]
    else:
        graded = [(_grade(row), read_mapped(row, replace(config, format="scored")))]
    if any(dialogue[-1].role != "assistant" for _, dialogue in graded):
        raise ValueError("a labelled conversation must end in an answer")
    better, worse = graded[0][1], graded[-1][1]
    if better[:-1] != worse[:-1]:
        raise ValueError("the chosen and the rejected answer follow different conversations")
    if len(graded) > 1 and better[-1].content == worse[-1].content:
        raise ValueError("the chosen and the rejected answer are the same")
    return graded


def _grade(row: Row) -> float:
    column = next((name for name in ("score", "harm") if name in row), None)
    if column is None:
        raise ValueError("no columns chosen and rejected, and no score or harm")
    try:
        grade = float(row[column])
    except (ValueError, TypeError, OverflowError):
        grade = math.nan
    if not math.isfinite(grade):
        raise ValueError(f"{column}: expected a number, found {kind_of(row[column])}")
    return grade if column == "score" else -grade


def shuffled(rows: Sequence[T], seed: int) -> list[T]:
    """A copy in an order that depends on `seed` alone."""
    return random.Random(seed_of(seed, "shuffle")).sample(rows, len(rows))  # noqa: S311 - no secret
