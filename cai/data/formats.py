"""Turns rows of the common layouts into dialogues and prompts."""

import json
import logging
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any, TypeVar

from cai.config.schema import DataConfig, Prompts
from cai.data.sources import rows_of, shown
from cai.digest import seed_of
from cai.errors import CaiError
from cai.messages import Dialogue, Message, Prompt, assistant, from_dicts, user
from cai.observe.log import say

T = TypeVar("T")

SHAREGPT = {"human": "user", "gpt": "assistant"}

TAGS = ("id", "task", "format", "domain", "category")

SHOWN = 3  # rows that do not fit


@dataclass
class Skipped:
    """Rows that did not fit: how many, and of the first of each data set, file, line and reason."""

    count: int = 0
    first: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Loaded:
    """Dialogues with their tags, and the rows that did not fit."""

    dialogues: list[tuple[Dialogue, dict[str, Any]]]
    skipped: Skipped


def column(row: Mapping[str, Any], path: str) -> Any:
    """`row["a"]["b"][0]` for the path `a.b.0`, unless a column is called that. Raises LookupError or TypeError."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if not isinstance(value, dict | list):
            raise KeyError(path)
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


def _turns(turns: Any, config: DataConfig, keys: tuple[str, str] = ("role", "content")) -> Dialogue:
    role, content = (
        config.fields.get(ours, key) for ours, key in zip(("role", "content"), keys, strict=True)
    )
    names = (SHAREGPT if keys[0] == "from" else {}) | config.roles
    found = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise ValueError(f"a message needs a role and a text, found {type(turn).__name__}")
        said = column(turn, role)
        found.append(turn | {"role": names.get(said, said), "content": column(turn, content)})
    return from_dicts(found)


def _messages(row: dict[str, Any], config: DataConfig) -> Dialogue:
    return _turns(row["messages"], config)


def _sharegpt(row: dict[str, Any], config: DataConfig) -> Dialogue:
    return _turns(row["conversations"], config, ("from", "value"))


def _alpaca(row: dict[str, Any], config: DataConfig) -> Dialogue:
    request = _text(row["instruction"])
    if row.get("input"):
        request = f"{request}\n\n{_text(row['input'])}"
    return (user(request), assistant(_text(row["output"])))


def _completion(row: dict[str, Any], config: DataConfig) -> Dialogue:
    answer = row["completion"] if "completion" in row else row["response"]
    asked = (
        _turns(row["prompt"], config)
        if isinstance(row["prompt"], list)
        else (user(_text(row["prompt"])),)
    )
    return (
        *asked,
        *(_turns(answer, config) if isinstance(answer, list) else (assistant(_text(answer)),)),
    )


def _demonstration(row: dict[str, Any], config: DataConfig) -> Dialogue:
    """What people wrote to show the task, as for InstructGPT (Ouyang et al. 2022) and Dolly."""
    if "demonstration" in row:
        return _completion({"prompt": row["prompt"], "completion": row["demonstration"]}, config)
    return _alpaca(
        {"instruction": row["instruction"], "input": row.get("context"), "output": row["response"]},
        config,
    )


def _prompt(row: dict[str, Any], config: DataConfig) -> Dialogue:
    value = row["prompt"] if "prompt" in row else row["text"]
    return _turns(value, config) if isinstance(value, list) else (user(_text(value)),)


def _preference(row: dict[str, Any], config: DataConfig) -> Dialogue:
    """The conversation with the chosen answer: an answer after a prompt, or a whole conversation, or Anthropic's text
    of turns that begin with "Human:" and "Assistant:"."""
    answer = row["chosen"]
    if isinstance(answer, str):
        if "prompt" in row:
            return (*_prompt(row, config), assistant(answer))
        names = {"Human": "user", "Assistant": "assistant"}
        parts = re.split(
            r"(?:^|\n\n)(Human|Assistant):", answer
        )  # text before the first turn, then name, text, ...
        return tuple(
            Message(names[name], text.strip())
            for name, text in zip(parts[1::2], parts[2::2], strict=True)
        )
    turns, asked = _turns(answer, config), _prompt(row, config) if "prompt" in row else ()
    return turns if turns[: len(asked)] == asked else (*asked, *turns)


def _scored(row: dict[str, Any], config: DataConfig) -> Dialogue:
    return (*_prompt(row, config), assistant(_text(row["answer"])))


FORMATS: dict[
    str, Callable[[dict[str, Any], DataConfig], Dialogue]
] = {  # in the order in which `auto` tries them
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "completion": _completion,
    "demonstration": _demonstration,
    "preference": _preference,
    "scored": _scored,
    "prompt": _prompt,
}

COLUMNS = {
    "messages": [{"messages"}],
    "sharegpt": [{"conversations"}],
    "alpaca": [{"instruction", "output"}],
    "completion": [{"prompt", "completion"}, {"prompt", "response"}],
    "demonstration": [{"prompt", "demonstration"}, {"instruction", "response"}],
    "preference": [{"chosen", "rejected"}],
    "scored": [{"prompt", "answer", "score"}, {"prompt", "answer", "harm"}],
    "prompt": [{"prompt"}, {"text"}],
}


def dialogue_of(row: dict[str, Any], config: DataConfig, seed: int = 0) -> Dialogue:
    """One row as a dialogue; `seed` draws its template. Raises ValueError, LookupError, TypeError: it does not fit."""
    row = row | {
        o: column(row, theirs)
        for o, theirs in config.fields.items()
        if o not in ("role", "content")
    }
    for name, words in config.values.items():
        row[name] = words.get(shown(row[name]), row[name])
    kind = config.format
    if config.templates:
        drawn = config.templates[
            seed_of(seed, json.dumps(row, sort_keys=True, default=str)) % len(config.templates)
        ]
        row = row | {
            "prompt": _filled(drawn.prompt, row),
            "completion": _filled(drawn.completion, row),
        }
        kind = "completion"
    if kind == "auto":
        kind = next(
            (k for k, sets in COLUMNS.items() if any(columns <= row.keys() for columns in sets)), ""
        )
    if kind not in FORMATS:
        raise ValueError(
            f"no known layout has the columns {', '.join(row)}; set 'format' and 'fields'"
        )
    dialogue = FORMATS[kind](row, config)
    if row.get("system") and dialogue and dialogue[0].role != "system":
        dialogue = (Message("system", _text(row["system"])), *dialogue)
    if not dialogue or not all(message.content.strip() for message in dialogue):
        raise ValueError("an empty message")
    if next((m.role for m in dialogue if m.role != "system"), "") != "user":
        raise ValueError("a conversation begins with the user's turn")
    return dialogue


def _filled(template: str, row: dict[str, Any]) -> str:
    """The template with `{column}` replaced; a list becomes one line for each item, as FLAN shows its options."""

    def value(match: re.Match[str]) -> str:
        found = column(row, match[1])
        return (
            "\n".join(f"- {shown(item)}" for item in found)
            if isinstance(found, list)
            else shown(found)
        )

    return re.sub(r"\{(\w[\w.]*)\}", value, template)


def read_dialogues(
    name: str, config: DataConfig, seed: int, skipped: Skipped
) -> Iterator[tuple[Dialogue, dict[str, Any]]]:
    """The rows of one set that fit, one at a time; the others are counted in `skipped`, and said on stderr at the end.

    Raises CaiError where not one row fits, and where the set is `strict` and one does not.
    """
    fitted, unfit = 0, Skipped()
    for where, row in rows_of(name, config):
        try:
            dialogue = dialogue_of(row, config, seed)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            reason = f"no column {error}" if isinstance(error, KeyError) else str(error)
            if config.strict:
                raise CaiError(
                    f"{where}: {reason}; mend the row, or set data.{name}.strict=false"
                ) from None
            unfit.count += 1
            unfit.first += [f"{where}: {reason}"] if unfit.count <= SHOWN else []
            continue
        fitted += 1
        yield dialogue, {key: row[key] for key in TAGS if key in row} | {"source": name}
    if not fitted:
        first = (
            f"not one row fits; the first: {unfit.first[0]}"
            if unfit.first
            else "no row is there; see its 'where'"
        )
        raise CaiError(f"data.{name}: {first}")
    skipped.count += unfit.count
    skipped.first += unfit.first
    if unfit.count:
        lines = "\n  ".join(unfit.first)
        say(
            f"data.{name}: left out {unfit.count} rows that do not fit, first\n  {lines}",
            logging.WARNING,
        )


def load_dialogues(names: Sequence[str], sets: Mapping[str, DataConfig], seed: int = 0) -> Loaded:
    """All rows of the named sets, in order. Raises CaiError where not one row fits."""
    skipped = Skipped()
    return Loaded(
        [pair for name in names for pair in read_dialogues(name, sets[name], seed, skipped)],
        skipped,
    )


def load_prompts(chosen: Prompts, sets: Mapping[str, DataConfig], seed: int) -> list[Prompt]:
    """The named sets' prompts without doubles, shuffled by `seed`, then the rows that `chosen` picks.

    A dialogue that ends in an answer becomes a prompt by leaving that answer out; every earlier turn stays.
    """
    unique: dict[str, Prompt] = {}
    for dialogue, tags in load_dialogues(chosen.data, sets, seed).dialogues:
        turns = dialogue[:-1] if dialogue[-1].role == "assistant" else dialogue
        if turns and turns[-1].role == "user":
            prompt = Prompt.of(turns, tags["source"])
            unique.setdefault(prompt.id, prompt)
    return _picked(unique, chosen, seed)


def load_demonstrations(
    chosen: Prompts, sets: Mapping[str, DataConfig], seed: int
) -> list[tuple[Prompt, str]]:
    """(prompt, answer) of the dialogues that end in an answer, without doubles, drawn and picked as by load_prompts."""
    unique: dict[str, tuple[Prompt, str]] = {}
    for dialogue, tags in load_dialogues(chosen.data, sets, seed).dialogues:
        if len(dialogue) > 1 and dialogue[-1].role == "assistant":
            prompt = Prompt.of(dialogue[:-1], tags["source"])
            unique.setdefault(prompt.id, (prompt, dialogue[-1].content))
    return _picked(unique, chosen, seed)


def _picked(unique: Mapping[str, T], chosen: Prompts, seed: int) -> list[T]:
    """What stands under a prompt's id, shuffled by `seed`, then the rows that `chosen` picks."""
    drawn = sorted(unique, key=lambda name: seed_of(seed, name))
    return [unique[name] for name in drawn[chosen.offset :][: chosen.limit]]


def load_preferences(
    chosen: Prompts, sets: Mapping[str, DataConfig], seed: int
) -> list[tuple[Prompt, str, str]]:
    """(prompt, better answer, worse answer) of every labelled pair, shuffled by `seed`, then those that `chosen` picks.

    Of rows in the layout `scored` (with a column `score`, or `harm`, where less is better), each prompt's best answer
    is set against its worst. Raises CaiError where a set holds no pair.
    """
    pairs = [pair for name in chosen.data for pair in _labelled(name, sets[name])]
    pairs.sort(key=lambda pair: seed_of(seed, pair[0].id, *pair[1:]))
    return pairs[chosen.offset :][: chosen.limit]


def _labelled(name: str, config: DataConfig) -> list[tuple[Prompt, str, str]]:
    groups: dict[
        Any, list[tuple[float, str]]
    ] = {}  # the graded answers to one conversation, of one row or of many
    skipped = []
    for where, row in rows_of(name, config):
        try:
            row = row | {ours: row[theirs] for ours, theirs in config.fields.items()}
            graded = (
                [(1.0, row), (0.0, row | {"chosen": row["rejected"]})]
                if "chosen" in row
                else [(_grade(row), row)]
            )
            layout = replace(
                config, format="preference" if "chosen" in row else "scored", fields={}
            )
            for grade, one in graded:
                *turns, answer = dialogue_of(one, layout)
                if answer.role != "assistant":
                    raise ValueError("a labelled conversation must end in an answer")
                groups.setdefault((where if "chosen" in row else "", *turns), []).append(
                    (grade, answer.content)
                )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            skipped.append(
                f"{where}: no column {error}"
                if isinstance(error, KeyError)
                else f"{where}: {error}"
            )
    pairs = []
    for (_, *turns), answers in groups.items():
        (best, better), (worst, worse) = (
            max(answers, key=itemgetter(0)),
            min(answers, key=itemgetter(0)),
        )
        if best > worst and better != worse:
            pairs.append((Prompt.of(turns, name), better, worse))
    if not pairs:
        raise CaiError(
            f"data.{name}: not one labelled pair{f'; the first row: {skipped[0]}' if skipped else ''}"
        )
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
