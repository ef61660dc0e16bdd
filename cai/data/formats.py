"""Turns rows of the common layouts into dialogues and prompts."""

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

from cai.config import DataConfig, Prompts
from cai.data.sources import rows_of
from cai.dialogue import Dialogue, Message, Prompt, assistant, from_dicts, user
from cai.digest import seed_of
from cai.errors import CaiError

SHAREGPT = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Loaded:
    """Dialogues with their tags, and where rows that did not fit stood, with the reason."""

    dialogues: list[tuple[Dialogue, dict[str, Any]]]
    skipped: list[str]


def _messages(row: dict[str, Any]) -> Dialogue:
    return from_dicts(row["messages"])


def _sharegpt(row: dict[str, Any]) -> Dialogue:
    return tuple(Message(SHAREGPT[turn["from"]], _text(turn["value"])) for turn in row["conversations"])


def _alpaca(row: dict[str, Any]) -> Dialogue:
    request = _text(row["instruction"])
    if row.get("input"):
        request = f"{request}\n\n{_text(row['input'])}"
    return (user(request), assistant(_text(row["output"])))


def _completion(row: dict[str, Any]) -> Dialogue:
    answer = row["completion"] if "completion" in row else row["response"]
    if isinstance(row["prompt"], list):
        return (*from_dicts(row["prompt"]), *(from_dicts(answer) if isinstance(answer, list) else (assistant(answer),)))
    return (user(_text(row["prompt"])), assistant(_text(answer)))


def _prompt(row: dict[str, Any]) -> Dialogue:
    value = row["prompt"] if "prompt" in row else row["text"]
    return from_dicts(value) if isinstance(value, list) else (user(_text(value)),)


def _preference(row: dict[str, Any]) -> Dialogue:
    """The conversation with the chosen answer: an answer after a prompt, or a whole conversation, or Anthropic's text
    of turns that begin with "Human:" and "Assistant:"."""
    answer = row["chosen"]
    if isinstance(answer, str):
        if "prompt" in row:
            return (*_prompt(row), assistant(answer))
        names = {"Human": "user", "Assistant": "assistant"}
        parts = re.split(r"(?:^|\n\n)(Human|Assistant):", answer)  # text before the first turn, then name, text, ...
        return tuple(Message(names[name], text.strip()) for name, text in zip(parts[1::2], parts[2::2], strict=True))
    turns, asked = from_dicts(answer), _prompt(row) if "prompt" in row else ()
    return turns if turns[: len(asked)] == asked else (*asked, *turns)


def _scored(row: dict[str, Any]) -> Dialogue:
    return (*_prompt(row), assistant(_text(row["answer"])))


FORMATS: dict[str, Callable[[dict[str, Any]], Dialogue]] = {  # in the order in which `auto` tries their columns
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "completion": _completion,
    "preference": _preference,
    "scored": _scored,
    "prompt": _prompt,
}
COLUMNS = {
    "messages": [{"messages"}],
    "sharegpt": [{"conversations"}],
    "alpaca": [{"instruction", "output"}],
    "completion": [{"prompt", "completion"}, {"prompt", "response"}],
    "preference": [{"chosen", "rejected"}],
    "scored": [{"prompt", "answer", "score"}, {"prompt", "answer", "harm"}],
    "prompt": [{"prompt"}, {"text"}],
}


def dialogue_of(row: dict[str, Any], config: DataConfig) -> Dialogue:
    """One row as a dialogue. Raises ValueError, KeyError or TypeError where it does not fit."""
    row = row | {ours: row[theirs] for ours, theirs in config.fields.items()}
    kind = config.format
    if kind == "auto":
        kind = next((k for k, sets in COLUMNS.items() if any(columns <= row.keys() for columns in sets)), "")
    if kind not in FORMATS:
        raise ValueError(f"no known layout has the columns {', '.join(row)}; set 'format' and 'fields'")
    dialogue = FORMATS[kind](row)
    if not dialogue or not all(message.content.strip() for message in dialogue):
        raise ValueError("an empty message")
    if next((m.role for m in dialogue if m.role != "system"), "") != "user":
        raise ValueError("a conversation begins with the user's turn")
    return dialogue


def load_dialogues(names: Sequence[str], sets: Mapping[str, DataConfig]) -> Loaded:
    """All rows of the named sets, in order. Raises CaiError where not one row fits."""
    loaded = Loaded([], [])
    for name in names:
        before = len(loaded.dialogues)
        for where, row in rows_of(name, sets[name]):
            try:
                tags = {key: row[key] for key in ("id", "task", "format", "domain", "category") if key in row}
                loaded.dialogues.append((dialogue_of(row, sets[name]), tags | {"source": name}))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                reason = f"no column {error}" if isinstance(error, KeyError) else str(error)
                loaded.skipped.append(f"{where}: {reason}")
        if len(loaded.dialogues) == before:
            first = f"; the first: {loaded.skipped[0]}" if loaded.skipped else ""
            raise CaiError(f"data.{name}: not one row fits{first}")
    return loaded


def load_prompts(chosen: Prompts, sets: Mapping[str, DataConfig], seed: int) -> list[Prompt]:
    """The named sets' prompts without doubles, shuffled by `seed`, then the rows that `chosen` picks.

    A dialogue that ends in an answer becomes a prompt by leaving that answer out; every earlier turn stays.
    """
    unique: dict[str, Prompt] = {}
    for dialogue, tags in load_dialogues(chosen.data, sets).dialogues:
        turns = dialogue[:-1] if dialogue[-1].role == "assistant" else dialogue
        if turns and turns[-1].role == "user":
            prompt = Prompt.of(turns, tags["source"])
            unique.setdefault(prompt.id, prompt)
    prompts = sorted(unique.values(), key=lambda prompt: seed_of(seed, prompt.id))
    return prompts[chosen.offset :][: chosen.limit]


def load_preferences(chosen: Prompts, sets: Mapping[str, DataConfig], seed: int) -> list[tuple[Prompt, str, str]]:
    """(prompt, better answer, worse answer) of every labelled pair, shuffled by `seed`, then those that `chosen` picks.

    Of rows in the layout `scored` (with a column `score`, or `harm`, where less is better), each prompt's best answer
    is set against its worst. Raises CaiError where a set holds no pair.
    """
    pairs = [pair for name in chosen.data for pair in _labelled(name, sets[name])]
    pairs.sort(key=lambda pair: seed_of(seed, pair[0].id, *pair[1:]))
    return pairs[chosen.offset :][: chosen.limit]


def _labelled(name: str, config: DataConfig) -> list[tuple[Prompt, str, str]]:
    groups: dict[Any, list[tuple[float, str]]] = {}  # the graded answers to one conversation, of one row or of many
    skipped = []
    for where, row in rows_of(name, config):
        try:
            row = row | {ours: row[theirs] for ours, theirs in config.fields.items()}
            graded = [(1.0, row), (0.0, row | {"chosen": row["rejected"]})] if "chosen" in row else [(_grade(row), row)]
            layout = replace(config, format="preference" if "chosen" in row else "scored", fields={})
            for grade, one in graded:
                *turns, answer = dialogue_of(one, layout)
                if answer.role != "assistant":
                    raise ValueError("a labelled conversation must end in an answer")
                groups.setdefault((where if "chosen" in row else "", *turns), []).append((grade, answer.content))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            skipped.append(f"{where}: no column {error}" if isinstance(error, KeyError) else f"{where}: {error}")
    pairs = []
    for (_, *turns), answers in groups.items():
        (best, better), (worst, worse) = max(answers, key=itemgetter(0)), min(answers, key=itemgetter(0))
        if best > worst and better != worse:
            pairs.append((Prompt.of(turns, name), better, worse))
    if not pairs:
        raise CaiError(f"data.{name}: not one labelled pair{f'; the first row: {skipped[0]}' if skipped else ''}")
    return pairs


def _grade(row: dict[str, Any]) -> float:
    grade = float(row["score"]) if "score" in row else -float(row["harm"])
    if not math.isfinite(grade):
        raise ValueError(f"{grade} is no grade")
    return grade


def shuffled(rows: list[Any], seed: int) -> list[Any]:
    """A copy in an order that depends on `seed` alone."""
    return random.Random(seed_of(seed, "shuffle")).sample(rows, len(rows))  # noqa: S311 - an order, not a secret


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a text, found {type(value).__name__}")
    return value
