"""A row's turns as a dialogue: their roles, parts and flags, and a prompt joined to its answer."""

from collections.abc import Iterable, Mapping
from typing import Any

from cai.config.schema import DataConfig
from cai.data.parquet import Row
from cai.messages import Dialogue, Message, assistant, from_dicts, user

# what data sets call the flag of a turn that says whether training learns it: OpenAI, axolotl,
# ms-swift and others
TRAINED_FLAGS = ("weight", "train", "trainable", "training", "loss", "loss_mask")

CALLS = ("tool_calls", "function_call")

# columns and fields of turns that change what a row means, and that no layout reads
UNREAD_COLUMNS = ("tools", "functions", "reasoning_content", "train_mask", "loss_mask", "weights")
UNREAD_FIELDS = ("reasoning_content", "reasoning", "thinking")

MEDIA = ("image", "images", "video", "videos", "audio", "audios")


def read_path(row: Row, path: str) -> Any:
    """`row["a"]["b"][0]` for the path `a.b.0`, unless a column is called that. May raise UNFIT."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if not isinstance(value, dict | list):
            raise KeyError(path)
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


def read_turns(
    turns: Iterable[object],
    config: DataConfig,
    role_key: str = "role",
    content_key: str = "content",
    role_names: Mapping[str, str] | None = None,
) -> Dialogue:
    """Raises ValueError or LookupError where a turn can't be read as a text with a role."""
    role_path = config.fields.get("role", role_key)
    content_path = config.fields.get("content", content_key)
    roles = dict(role_names or {}) | config.roles
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise ValueError(f"a message needs a role and a text, found {type(turn).__name__}")
        role = read_path(turn, role_path)
        role = roles.get(role, role)
        if role in ("tool", "function") or any(turn.get(field) for field in CALLS):
            raise ValueError("a call of tools, which cai does not train")
        if role == "developer":
            raise ValueError("a role 'developer'; set roles: {developer: system} for this data set")
        content = join_parts(read_path(turn, content_path))
        trained = _trained(turn)
        messages.append(
            {"role": role, "content": content, "weight": trained if role == "assistant" else None}
        )
    return from_dicts(messages)


def _trained(turn: Row) -> int | None:
    """1 or 0 as the turn's flag says; None without one. Raises ValueError on another value."""
    for name in TRAINED_FLAGS:
        value = turn.get(name)
        if value is None:
            continue
        if value not in (0, 1):
            raise ValueError(f"a message's {name} is 0 or 1, not {str(value)[:40]}")
        return int(value)
    return None


def join_parts(content: object) -> object:
    """The texts of a list of parts, as OpenAI's layout has it, in lines of their own.

    Raises ValueError where a part is no text.
    """
    if not isinstance(content, list) or not content:
        return content
    texts: list[str] = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise ValueError(f"a part of a message that is no text: {str(kind)[:40]}")
        texts.append(text)
    return "\n".join(texts)


def read_history(history: object, config: DataConfig) -> Dialogue:
    """Earlier turns: pairs of a request and its answer, or messages. Raises ValueError."""
    if not history:
        return ()
    if not isinstance(history, list):
        raise ValueError(f"a history that is no list but {type(history).__name__}")
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


def refuse_media(row: Row) -> None:
    """Raises ValueError where a row's meaning lies in what is no text."""
    for column in MEDIA:
        if row.get(column):
            raise ValueError(
                f"the column {column}: the row is not text alone; drop the column if the text is"
            )


def unread_fields(row: Row) -> list[str]:
    """Columns and fields of turns that change what the row means and are not read."""
    names = [name for name in UNREAD_COLUMNS if row.get(name)]
    for column in ("messages", "conversations", "prompt", "chosen", "completion"):
        turns = row.get(column)
        for turn in turns if isinstance(turns, list) else ():
            if isinstance(turn, dict):
                names += [name for name in UNREAD_FIELDS if turn.get(name)]
    return list(dict.fromkeys(names))


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
