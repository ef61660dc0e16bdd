"""Turns a row of one of the common layouts into a dialogue."""

import json
import re
from collections.abc import Callable
from typing import NamedTuple

from cai.config.schema import DataConfig, TaskTemplate
from cai.data.parquet import Row
from cai.data.sources import yaml_text
from cai.data.turns import join_prompt, read_history, read_path, read_turns, refuse_media
from cai.digest import seed_of
from cai.messages import Dialogue, Message, assistant, user
from cai.text import UNSPACED, words

SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}

HH_ROLES = {"Human": "user", "Assistant": "assistant"}  # of Anthropic's helpful-harmless set

# raised where a row does not fit
UNFIT = (ValueError, LookupError, TypeError, AttributeError, OverflowError)


def to_dialogue(row: Row, config: DataConfig, seed: int = 0) -> Dialogue:
    """One row as a dialogue; `seed` picks its template. Raises one of UNFIT."""
    row = map_columns(row, config)
    layout = config.format
    if config.templates:
        row |= _fill_templates(config.templates, row, seed)
        layout = "completion"
    elif layout == "auto":
        layout = _recognise(row)
    if layout not in LAYOUTS:
        raise ValueError(
            f"no known layout has the columns {', '.join(row)}; set 'format' and 'fields'"
        )
    refuse_media(row)
    dialogue = LAYOUTS[layout].read(row, config)
    if history := read_history(row.get("history"), config):
        dialogue = join_prompt(history, dialogue)
    if row.get("system") and dialogue and dialogue[0].role != "system":
        dialogue = (Message("system", _text(row["system"])), *dialogue)
    if not dialogue or not all(message.content.strip() for message in dialogue):
        raise ValueError("an empty message")
    if next((m.role for m in dialogue if m.role != "system"), "") != "user":
        raise ValueError("a conversation begins with the user's turn")
    return dialogue


def map_columns(row: Row, config: DataConfig) -> Row:
    """The row with our columns' names, and with our values for theirs."""
    row = row | {
        column: read_path(row, path)
        for column, path in config.fields.items()
        if column not in ("role", "content")  # those are of a turn
    }
    for column, replacements in config.values.items():
        row[column] = replacements.get(yaml_text(row[column]), row[column])
    return row


def _fill_templates(templates: list[TaskTemplate], row: Row, seed: int) -> Row:
    number = seed_of(seed, json.dumps(row, sort_keys=True, default=str)) % len(templates)
    template = templates[number]
    return {
        "prompt": _fill(template.prompt, row),
        "completion": _fill(template.completion, row),
    }


def _fill(template: str, row: Row) -> str:
    """Replaces each `{column}`. A list becomes a line for each entry, as FLAN shows its options."""

    def column_text(match: re.Match[str]) -> str:
        value = read_path(row, match[1])
        if isinstance(value, list):
            return "\n".join(f"- {yaml_text(entry)}" for entry in value)
        return yaml_text(value)

    return re.sub(r"\{(\w[\w.]*)\}", column_text, template)


def _recognise(row: Row) -> str:
    """The first layout whose columns the row has; "" for none."""
    for name, layout in LAYOUTS.items():
        if any(columns <= row.keys() for columns in layout.columns):
            return name
    return ""


def _messages(row: Row, config: DataConfig) -> Dialogue:
    return read_turns(row["messages"], config)


def _sharegpt(row: Row, config: DataConfig) -> Dialogue:
    return read_turns(row["conversations"], config, "from", "value", SHAREGPT_ROLES)


def _alpaca(row: Row, config: DataConfig) -> Dialogue:
    request = _text(row["instruction"])
    if row.get("input"):
        request = f"{request}\n\n{_text(row['input'])}"
    return (user(request), assistant(_text(row["output"])))


def _completion(row: Row, config: DataConfig) -> Dialogue:
    answer = row["completion"] if "completion" in row else row["response"]
    prompt = _text_or_turns(row["prompt"], user, config)
    return join_prompt(prompt, _text_or_turns(answer, assistant, config))


def _demonstration(row: Row, config: DataConfig) -> Dialogue:
    """What people wrote to show a task, as for InstructGPT (Ouyang et al. 2022) and Dolly."""
    if "demonstration" in row:
        return _completion({"prompt": row["prompt"], "completion": row["demonstration"]}, config)
    return _alpaca(
        {"instruction": row["instruction"], "input": row.get("context"), "output": row["response"]},
        config,
    )


def _preference(row: Row, config: DataConfig) -> Dialogue:
    """The conversation with the chosen answer.

    `chosen` is an answer to `prompt`, or a whole conversation, or Anthropic's text of turns. It may
    begin with the prompt, or with its end.
    """
    chosen = row["chosen"]
    if "prompt" not in row:
        return _hh_turns(chosen) if isinstance(chosen, str) else read_turns(chosen, config)
    prompt = row["prompt"]
    if isinstance(prompt, str) and isinstance(chosen, str) and not _is_hh(chosen):
        # An answer may repeat a question by itself; where both do, it is the layout.
        answers = [_behind_prompt(text, prompt) for text in (chosen, row.get("rejected"))]
        if len(words(prompt)) > 2 and answers[0] is not None and answers[1] is not None:
            chosen = answers[0]
    turns = _hh_turns(prompt) if _is_hh(prompt) else _prompt(row, config)
    if turns and turns[-1] == assistant(""):  # "Assistant:" stands at the end of the prompt
        turns = turns[:-1]
    answer = _hh_turns(chosen) if _is_hh(chosen) else _text_or_turns(chosen, assistant, config)
    return join_prompt(turns, answer)


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
    inside_word = all(one.isalnum() and not UNSPACED.match(one) for one in around)
    return None if inside_word else rest.strip()


def _is_hh(text: object) -> bool:
    return isinstance(text, str) and bool(re.match(r"\s*Human:.*\n\nAssistant:", text, re.DOTALL))


def _hh_turns(text: str) -> Dialogue:
    """Turns that begin with "Human:" and "Assistant:"."""
    # text before the first turn, then role, content, role, content, ...
    _, *parts = re.split(r"(?:^|\n\n)(Human|Assistant):", text)
    turns = zip(parts[::2], parts[1::2], strict=True)
    return tuple(Message(HH_ROLES[role], content.strip()) for role, content in turns)


def _scored(row: Row, config: DataConfig) -> Dialogue:
    return (*_prompt(row, config), assistant(_text(row["answer"])))


def _prompt(row: Row, config: DataConfig) -> Dialogue:
    return _text_or_turns(row["prompt"] if "prompt" in row else row["text"], user, config)


def _text_or_turns(
    value: object, message: Callable[[str], Message], config: DataConfig
) -> Dialogue:
    return read_turns(value, config) if isinstance(value, list) else (message(_text(value)),)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a text, found {type(value).__name__}")
    return value


class Layout(NamedTuple):
    read: Callable[[Row, DataConfig], Dialogue]
    columns: list[set[str]]  # a row that has all of one set has this layout


LAYOUTS = {  # in the order in which `auto` tries them
    "messages": Layout(_messages, [{"messages"}]),
    "sharegpt": Layout(_sharegpt, [{"conversations"}]),
    "alpaca": Layout(_alpaca, [{"instruction", "output"}]),
    "completion": Layout(_completion, [{"prompt", "completion"}, {"prompt", "response"}]),
    "demonstration": Layout(
        _demonstration, [{"prompt", "demonstration"}, {"instruction", "response"}]
    ),
    "preference": Layout(_preference, [{"chosen", "rejected"}]),
    "scored": Layout(_scored, [{"prompt", "answer", "score"}, {"prompt", "answer", "harm"}]),
    "prompt": Layout(_prompt, [{"prompt"}, {"text"}]),
}
