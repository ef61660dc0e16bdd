"""Messages, dialogues and prompts: what everything else passes around."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cai.digest import digest

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str
    # whether training learns this answer; no request and no prompt id depends on it
    trained: bool = True


Dialogue = tuple[Message, ...]


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str) -> Message:
    return Message("assistant", text)


def with_system(dialogue: Dialogue, text: str | None) -> Dialogue:
    """The dialogue behind a system message, unless it has one of its own or there is no text."""
    if text is None or dialogue[0].role == "system":
        return dialogue
    return (Message("system", text), *dialogue)


def under_system(dialogue: Dialogue, text: str) -> Dialogue:
    """The dialogue under a system message, which stands before the dialogue's own if it has one."""
    if dialogue[0].role == "system":
        return (Message("system", f"{text}\n\n{dialogue[0].content}"), *dialogue[1:])
    return (Message("system", text), *dialogue)


def as_dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    """The list of {"role", "content"} that chat templates and data sets use."""
    return [{"role": message.role, "content": message.content} for message in messages]


def from_dicts(rows: Sequence[Mapping[str, object]]) -> Dialogue:
    """The inverse of `as_dicts`.

    Raises ValueError on an unknown role and a content that is not text.
    """
    return tuple(_from_dict(row) for row in rows)


def _from_dict(row: Mapping[str, object]) -> Message:
    role, content = row.get("role"), row.get("content")
    if role not in ROLES or not isinstance(content, str):
        expected = f"a role of {', '.join(ROLES)} and a text"
        raise ValueError(f"a message needs {expected}: {str(row)[:120]}")
    return Message(str(role), content)


@dataclass(frozen=True)
class Prompt:
    """A conversation that waits for the assistant's answer.

    `id` is the hash of its messages as they stand in the data: a set's `system` is not in it.
    """

    id: str
    messages: Dialogue
    source: str  # the data set's name
    principle: str | None = None  # the id of the principle that it is about, where its row has one

    @classmethod
    def of(cls, messages: Sequence[Message], source: str, principle: str | None = None) -> "Prompt":
        return cls(digest(as_dicts(messages))[:16], tuple(messages), source, principle)

    def under(self, system: str | None) -> "Prompt":
        """The prompt behind a system message; it keeps its id, so that no split moves."""
        return replace(self, messages=with_system(self.messages, system))

    @property
    def text(self) -> str:
        """The last human turn."""
        return self.messages[-1].content
