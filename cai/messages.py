"""Messages, dialogues and prompts: what everything else passes around."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cai.digest import digest

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    role: str
    content: str
    trained: bool = (
        True  # whether training learns an assistant's turn; requests and prompts know nothing of it
    )


Dialogue = tuple[Message, ...]


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str) -> Message:
    return Message("assistant", text)


def as_dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    """The list of {"role", "content"} that chat templates and data sets use."""
    return [{"role": message.role, "content": message.content} for message in messages]


def from_dicts(rows: Sequence[dict[str, Any]]) -> Dialogue:
    """The inverse of `as_dicts`; `weight: 0` marks an assistant's turn that is not to be learnt, as in OpenAI's layout.

    Raises ValueError on an unknown role, a content that is not text, or another weight than 0 and 1.
    """
    for row in rows:
        if (
            not isinstance(row, dict)
            or row.get("role") not in ROLES
            or not isinstance(row.get("content"), str)
        ):
            raise ValueError(
                f"a message needs a role of {', '.join(ROLES)} and a text: {str(row)[:120]}"
            )
        if row.get("weight") not in (None, 0, 1):
            raise ValueError(f"a message's weight is 0 or 1, not {str(row['weight'])[:40]}")
    return tuple(Message(row["role"], row["content"], row.get("weight") != 0) for row in rows)


@dataclass(frozen=True)
class Prompt:
    """A conversation that waits for the assistant's answer. `id` is the hash of the messages, so it moves with them."""

    id: str
    messages: Dialogue
    source: str

    @classmethod
    def of(cls, messages: Sequence[Message], source: str) -> "Prompt":
        return cls(digest(as_dicts(messages))[:16], tuple(messages), source)

    @property
    def text(self) -> str:
        """The last human turn."""
        return self.messages[-1].content
