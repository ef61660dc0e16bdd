"""Turns a row of one of the common layouts into a dialogue."""

import json
import re
from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

from cai.config.schema import DataConfig, TaskTemplate
from cai.data.columns import (
    ANSWERS,
    CONTEXTS,
    DESIRED_FLAGS,
    REQUESTS,
    map_columns,
    refuse_undesired,
)
from cai.data.files import UNREADABLE_ROW
from cai.data.parquet import Row
from cai.data.sources import yaml_text
from cai.data.turns import (
    is_empty,
    is_transcript,
    join_prompt,
    kind_of,
    read_history,
    read_path,
    read_turns,
    refuse_media,
    transcript_turns,
)
from cai.digest import seed_of
from cai.messages import Dialogue, Message, assistant, user
from cai.text import UNSPACED, words

# of a template: no JSON, and no list of words
PLACEHOLDER = re.compile(r"\{(\w[^{}\",\n]*)\}")

NO_INPUT = "<noinput>"  # of Alpaca's input, and of what was written after its manner

# how templates begin an answer: a text with one of these is a conversation, and no prompt
ANSWER_MARK = re.compile(
    r"### ?(?:Assistant|Response|Answer):|<\|im_start\|>assistant|<\|assistant\|>|\[/INST\]"
    r"|<start_of_turn>model|<\|start_header_id\|>assistant"
)

# raised where a row does not fit
UNFIT = (ValueError, LookupError, TypeError, AttributeError, OverflowError)


def to_dialogue(row: Row, config: DataConfig, seed: int = 0) -> Dialogue:
    """One row as a dialogue; `seed` picks its template. Raises one of UNFIT."""
    return read_mapped(map_columns(row, config), config, seed)


def read_mapped(row: Row, config: DataConfig, seed: int = 0) -> Dialogue:
    """As to_dialogue, of a row that map_columns has given."""
    if reason := row.get(UNREADABLE_ROW):
        raise ValueError(reason)
    layout = config.format
    if config.templates:
        row = _fill_templates(config.templates, row, seed)
        layout = "completion"
    elif layout == "auto":
        layout = _recognise(row)
    if layout not in LAYOUTS:
        columns = ", ".join(name for name in row if not is_empty(row[name])) or "(all are empty)"
        raise ValueError(f"no known layout has the columns {columns}; set 'format' and 'fields'")
    refuse_media(row)
    if layout not in ("preference", "scored", "prompt"):
        refuse_undesired(row)
    dialogue = LAYOUTS[layout].read(row, config)
    if history := read_history(row.get("history"), config):
        dialogue = join_prompt(history, dialogue)
    if not is_empty(row.get("system")) and dialogue and dialogue[0].role != "system":
        dialogue = (Message("system", _text(row, "system")), *dialogue)
    if not dialogue or not all(message.content.strip() for message in dialogue):
        raise ValueError("an empty message")
    if next((m.role for m in dialogue if m.role != "system"), "") != "user":
        raise ValueError("a conversation begins with the user's turn")
    return dialogue


def column_turns(row: Row, column: str, config: DataConfig) -> Dialogue:
    """The texts of one column, as turns. Raises one of UNFIT."""
    return _text_or_turns(row, column, user, config)


def _fill_templates(templates: list[TaskTemplate], row: Row, seed: int) -> Row:
    """The row with a prompt and a completion in place of what they are made of."""
    number = seed_of(seed, json.dumps(row, sort_keys=True, default=str)) % len(templates)
    template = templates[number]
    replaced = (*REQUESTS, *CONTEXTS, *ANSWERS, *DESIRED_FLAGS)
    untouched = {name: value for name, value in row.items() if name not in replaced}
    return untouched | {
        "prompt": _fill(template.prompt, row),
        "completion": _fill(template.completion, row),
    }


def _fill(template: str, row: Row) -> str:
    """Replaces each `{column}`. A list becomes a line for each entry, as FLAN shows its options.

    Raises ValueError where the row has no such column, or nothing in it.
    """

    def column_text(match: re.Match[str]) -> str:
        try:
            value = read_path(row, match[1])
        except KeyError:
            raise ValueError(
                f"no column '{match[1]}', which the template names; the row has {', '.join(row)}"
            ) from None
        entries = value if isinstance(value, list) else [value]
        if any(entry is None or isinstance(entry, bytes) for entry in entries):
            kind = "null" if None in entries else "bytes"
            raise ValueError(f"the column '{match[1]}', which the template names, holds {kind}")
        if isinstance(value, list):
            return "\n".join(f"- {yaml_text(entry)}" for entry in entries)
        return yaml_text(value)

    return PLACEHOLDER.sub(column_text, template)


def _recognise(row: Row) -> str:
    """The first layout whose columns the row has, not all of them null; "" for none."""
    for name, layout in LAYOUTS.items():
        for columns in layout.columns:
            if columns <= row.keys() and any(row[column] is not None for column in columns):
                return name
    return ""


def _first(row: Row, columns: Sequence[str]) -> str:
    """The first of these columns that the row has, not null if there is one. Raises ValueError."""
    there = [column for column in columns if column in row]
    if not there:
        raise ValueError(f"no column {' or '.join(columns)}")
    return next((column for column in there if row[column] is not None), there[0])


def _messages(row: Row, config: DataConfig) -> Dialogue:
    return read_turns(row["messages"], config)


def _sharegpt(row: Row, config: DataConfig) -> Dialogue:
    return read_turns(row["conversations"], config)


def _request(row: Row, config: DataConfig, columns: Sequence[str]) -> Dialogue:
    """The first of these columns, and below it the texts that the request is about."""
    column = _first(row, columns)
    turns = _text_or_turns(row, column, user, config)
    if not isinstance(row[column], str) or len(turns) != 1:
        return turns
    request = turns[0].content
    for name in CONTEXTS:
        if name == column or is_empty(row.get(name)) or row[name] == NO_INPUT:
            continue
        context = _text(row, name)
        # a prompt may have been made of it; an instruction may name it by chance
        if column == "instruction" or context.strip() not in request:
            request = f"{request}\n\n{context}"
    return (user(request),)


def _preference(row: Row, config: DataConfig) -> Dialogue:
    """The conversation with the chosen answer.

    `chosen` is an answer to `prompt`, or a whole conversation, or Anthropic's text of turns. It may
    begin with the prompt, or with its end.
    """
    turns = _preferences_prompt(row, config)
    chosen = row["chosen"]
    if not turns and isinstance(chosen, str) and not is_transcript(chosen):
        raise ValueError(f"a chosen answer without a prompt: no column {', '.join(REQUESTS)}")
    if len(turns) == 1 and isinstance(chosen, str) and not is_transcript(chosen):
        # An answer may repeat a question by itself; where both do, it is the layout.
        prompt = turns[0].content
        answers = [_behind_prompt(text, prompt) for text in (chosen, row.get("rejected"))]
        if len(words(prompt)) > 2 and answers[0] is not None and answers[1] is not None:
            row = row | {"chosen": answers[0]}
    return join_prompt(turns, _text_or_turns(row, "chosen", assistant, config))


def _preferences_prompt(row: Row, config: DataConfig) -> Dialogue:
    """What both answers follow; () where they hold it themselves."""
    for columns in (("prompt",), REQUESTS):
        if any(row.get(column) is not None for column in columns):
            return _request(row, config, columns)
    # LLaMA-Factory's: a conversation up to the answer, which is an object
    if isinstance(row["chosen"], dict):
        return read_turns(row[_first(row, ("conversations", "messages"))], config)
    return ()


def _behind_prompt(text: object, prompt: str) -> str | None:
    """What stands in `text` behind the prompt, whatever its spacing; None where that isn't there.

    A prompt that ends inside a word of `text` is not there.
    """
    words = r"\s+".join(map(re.escape, prompt.split()))
    match = re.match(rf"\s*{words}", text) if isinstance(text, str) else None
    if match is None:
        return None
    rest = match.string[match.end() :]
    around = (match[0][-1:], rest[:1])
    inside_word = all(character.isalnum() and not UNSPACED.match(character) for character in around)
    return None if inside_word else rest.strip()


def _prompt(row: Row, config: DataConfig) -> Dialogue:
    column = _first(row, ("prompt", "text", *REQUESTS))
    role = row.get("role", "user")
    if column == "text" and role not in ("user", "human", "prompter"):
        raise ValueError(f"a text of the role {role}, which is no prompt")
    text = row[column]
    if column == "text" and isinstance(text, str) and (mark := ANSWER_MARK.search(text)):
        raise ValueError(
            f"a conversation with '{mark[0]}' in its text, which is no prompt; write it as messages"
        )
    return _request(row, config, (column,))


def _text_or_turns(
    row: Row, column: str, message: Callable[[str], Message], config: DataConfig
) -> Dialogue:
    value = row[column]
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        return read_turns(value, config)
    text = _text(row, column)
    return transcript_turns(text) if is_transcript(text) else (message(text),)


def _text(row: Row, column: str) -> str:
    value = row[column]
    if not isinstance(value, str):
        raise ValueError(f"{column}: expected a text, found {kind_of(value)}")
    return value


class Layout(NamedTuple):
    read: Callable[[Row, DataConfig], Dialogue]
    columns: list[set[str]]  # a row that has all of one set has this layout


def _answered(requests: Sequence[str], answers: Sequence[str]) -> Layout:
    """A request and its answer, each in the first of these columns that a row has."""

    def read(row: Row, config: DataConfig) -> Dialogue:
        answer = _text_or_turns(row, _first(row, answers), assistant, config)
        return join_prompt(_request(row, config, requests), answer)

    return Layout(read, [{request, answer} for request, answer in product(requests, answers)])


LAYOUTS = {  # in the order in which `auto` tries them
    "preference": Layout(_preference, [{"chosen", "rejected"}]),
    "messages": Layout(_messages, [{"messages"}]),
    "sharegpt": Layout(_sharegpt, [{"conversations"}]),
    "alpaca": _answered(("instruction",), ("output", *ANSWERS)),
    "completion": _answered(("prompt", *REQUESTS), ANSWERS),
    # what people wrote to show a task, as for InstructGPT (Ouyang et al. 2022) and Dolly
    "demonstration": _answered(("prompt", *REQUESTS), ("demonstration", *ANSWERS)),
    "scored": _answered(("prompt", *REQUESTS), ("answer", *ANSWERS)),
    "prompt": Layout(_prompt, [{"prompt"}, {"text"}]),
}
