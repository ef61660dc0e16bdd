"""A row's turns as a dialogue: their roles, parts and flags, and a prompt joined to its answer."""

import json
import re
from typing import Any

from cai.config.schema import DataConfig
from cai.data.parquet import Row
from cai.messages import ROLES, Dialogue, Message, assistant, user

# what data sets call the flag of a turn that says whether training learns it: OpenAI, axolotl,
# ms-swift and others
TRAINED_FLAGS = ("weight", "train", "trainable", "training", "loss", "loss_mask")

CALLS = ("tool_calls", "function_call")
TOOL_ROLES = ("tool", "function", "function_call", "observation")

# columns, fields of turns and types of their parts
MEDIA = ("image", "images", "image_url", "video", "videos", "audio", "audios", "attachments")

# of ShareGPT
ROLE_NAMES = {"human": "user", "gpt": "assistant"}

HH_ROLES = {"Human": "user", "Assistant": "assistant"}  # of Anthropic's helpful-harmless set


def is_empty(value: object) -> bool:
    """Whether a column holds nothing; 0 and false are something."""
    return value is None or (isinstance(value, str) and not value.strip()) or value in ([], {})


def read_path(row: Row, path: str) -> Any:
    """`row["a"]["b"][0]` for the path `a.b.0`, unless a column is called that.

    Raises KeyError with the path.
    """
    if path in row:
        return row[path]
    value: Any = row
    try:
        for part in path.split("."):
            value = value[int(part) if isinstance(value, list) else part]
    except (LookupError, ValueError, TypeError):
        raise KeyError(path) from None
    return value


def read_turns(turns: object, config: DataConfig) -> Dialogue:
    """A list of turns. Raises ValueError or KeyError where one is no text with a role."""
    if not isinstance(turns, list):
        raise ValueError(f"expected a list of turns, found {kind_of(turns)}")
    return tuple(_read_turn(turn, config) for turn in turns)


def _read_turn(turn: object, config: DataConfig) -> Message:
    if not isinstance(turn, dict):
        raise ValueError(f"a message needs a role and a text, found {kind_of(turn)}")
    is_sharegpt = "from" in turn and "role" not in turn
    role_key, content_key = ("from", "value") if is_sharegpt else ("role", "content")
    role = read_path(turn, config.fields.get("role", role_key))
    if isinstance(role, str):
        role = config.roles.get(role) or ROLE_NAMES.get(role.lower(), role.lower())
    if role in TOOL_ROLES or any(turn.get(field) for field in CALLS):
        raise ValueError("a call of tools, which cai does not train")
    if role == "developer":
        raise ValueError("a role 'developer'; set roles: {developer: system} for this data set")
    if role not in ROLES:
        name = str(role)[:40]
        expected = f"one of {', '.join(ROLES)}"
        raise ValueError(
            f"a role '{name}', not {expected}; see roles, e.g. roles: {{{name}: user}}"
        )
    refuse_media(turn, "field")
    content = join_parts(read_path(turn, config.fields.get("content", content_key)))
    if not isinstance(content, str):
        raise ValueError(f"a message needs a text, found {kind_of(content)}")
    return Message(role, content, trained=role != "assistant" or _is_trained(turn))


def kind_of(value: object) -> str:
    """What a value is, as people who write data call it."""
    kinds = {str: "a text", dict: "an object", list: "a list", type(None): "nothing (null)"}
    return kinds.get(type(value), f"{type(value).__name__} {str(value)[:40]}")


def _is_trained(turn: Row) -> bool:
    """What the turn's flags say, and true without one.

    Raises ValueError on a flag that is not 0 or 1, and where two contradict each other.
    """
    flags = {name: turn[name] for name in TRAINED_FLAGS if turn.get(name) is not None}
    for name, value in flags.items():
        if value not in (0, 1):
            raise ValueError(f"a message's {name} is 0 or 1, not {str(value)[:40]}")
    if len({bool(value) for value in flags.values()}) > 1:
        names = ", ".join(f"{name}: {json.dumps(value)}" for name, value in flags.items())
        raise ValueError(f"a message's flags contradict each other ({names})")
    return all(flags.values())


def join_parts(content: object) -> object:
    """The texts of a list of parts, as OpenAI's layout has it, in lines of their own.

    Raises ValueError where a part is no text.
    """
    if not isinstance(content, list) or not content:
        return content
    texts: list[str] = []
    for part in content:
        fields = part if isinstance(part, dict) else {"text": part}
        kind, text = fields.get("type"), fields.get("text")
        if not isinstance(text, str) or kind not in (None, "text", "input_text", "output_text"):
            kind = kind_of(part) if kind is None else str(kind)[:40]
            raise ValueError(f"a part of a message that is no text: {kind}")
        refuse_media(fields, "field")
        texts.append(text)
    return "\n".join(texts)


def read_history(history: object, config: DataConfig) -> Dialogue:
    """Earlier turns: pairs of a request and its answer, or messages. Raises ValueError."""
    if is_empty(history):
        return ()
    if not isinstance(history, list):
        raise ValueError(f"a history that is no list but {kind_of(history)}")
    if isinstance(history[0], dict):
        return read_turns(history, config)
    messages: list[Message] = []
    for pair in history:
        if not (isinstance(pair, list) and len(pair) == 2):
            raise ValueError("a history is a list of pairs of a request and its answer")
        request, answer = pair
        if not (isinstance(request, str) and isinstance(answer, str)):
            raise ValueError("a history holds texts")
        messages += [user(request), assistant(answer)]
    return tuple(messages)


def is_transcript(text: object) -> bool:
    """Whether it is Anthropic's text of turns."""
    return isinstance(text, str) and bool(
        re.match(r"\s*Human:.*\n\r?\nAssistant:", text, re.DOTALL)
    )


def transcript_turns(text: str) -> Dialogue:
    """Turns that begin with "Human:" and "Assistant:", without an empty one at the end."""
    # text before the first turn, then role, content, role, content, ...
    _, *parts = re.split(r"(?:^|\r?\n\r?\n)(Human|Assistant):", text.lstrip())
    contents = zip(parts[::2], parts[1::2], strict=True)
    turns = tuple(Message(HH_ROLES[role], content.strip()) for role, content in contents)
    return turns[:-1] if turns[-1] == assistant("") else turns


def refuse_media(row: Row, place: str = "column") -> None:
    """Raises ValueError where a row's meaning lies in what is no text."""
    for name in MEDIA:
        if not is_empty(row.get(name)):
            raise ValueError(
                f"the {place} {name}: the row is not text alone; drop the {place} if the text is"
            )


def join_prompt(prompt: Dialogue, answer: Dialogue) -> Dialogue:
    """The prompt and its answer, where `answer` may begin with all or the end of the prompt, or be
    a conversation of which the prompt is the end.

    White space and a system message make no difference. Raises ValueError where the two do not
    join: a second system message, or a human turn after another.
    """
    system, turns = _without_system(prompt)
    answer_system, answer_turns = _without_system(answer)
    if system and answer_system and _plain(system) != _plain(answer_system):
        raise ValueError("the prompt and the answer have different system messages")
    start = system or answer_system
    plain, answer_plain = _plain(turns), _plain(answer_turns)
    # the answer's conversation, whose turns before the last hold the prompt at their end
    if plain and plain == answer_plain[:-1][-len(plain) :]:
        return (*start, *answer_turns)
    for shared in range(min(len(plain), len(answer_plain)), 0, -1):
        if plain[-shared:] == answer_plain[:shared]:
            return (*start, *turns[:-shared], *answer_turns)
    if turns and answer_turns and turns[-1].role == answer_turns[0].role == "user":
        raise ValueError("the answer begins with a human turn that the prompt does not hold")
    return (*start, *turns, *answer_turns)


def _without_system(dialogue: Dialogue) -> tuple[Dialogue, Dialogue]:
    start = int(bool(dialogue) and dialogue[0].role == "system")
    return dialogue[:start], dialogue[start:]


def _plain(dialogue: Dialogue) -> list[tuple[str, str]]:
    return [(message.role, " ".join(message.content.split())) for message in dialogue]
