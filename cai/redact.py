"""Takes keys and tokens out of whatever is shown or written: messages, run.json, manifests, the report.

And what steers a terminal out of what is shown there.
"""

import os
import re
from typing import Any

from cai.digest import plain

HIDDEN = "[secret]"

NAMED = re.compile(
    r"key|token|secret|passw|credential", re.IGNORECASE
)  # environment variables that may hold one

SHORTEST = 8  # characters: a shorter value is no secret, and would be found in any text

FORMS = re.compile(
    r"\b[spr]k-[A-Za-z0-9_-]{16,}|\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bAKIA[0-9A-Z]{16}\b"
    r"|(?<=Bearer )[^\s\"']{8,}|(?<=://)[^\s/:@\"']*:[^\s/@\"']+(?=@)"
)

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def redact(text: str) -> str:
    """`text` without the values of secret environment variables, and without what has a known key's form."""
    return _without(_secrets(), text)


def safe(text: str) -> str:
    """Others' text for a terminal: no escape sequences, direction marks, lone surrogates; line breaks and tabs stay."""
    return CONTROL.sub("�", text)


def printable(text: str) -> str:
    """A message for a terminal: it may quote a principle file, a data row or a server."""
    return safe(redact(text))


def redacted(value: Any) -> Any:
    """The same for every string, and every key, in JSON-like data."""
    return _without(_secrets(), plain(value))


def _secrets() -> list[str]:
    """What secret environment variables hold, the longest first: one may begin with another."""
    values = {value.strip() for name, value in os.environ.items() if NAMED.search(name)}
    return sorted(
        (v for v in values if len(v) >= SHORTEST and not v.startswith("/")), key=len, reverse=True
    )


def _without(secrets: list[str], value: Any) -> Any:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, HIDDEN)
        return FORMS.sub(HIDDEN, value)
    if isinstance(value, dict):
        return {_without(secrets, key): _without(secrets, item) for key, item in value.items()}
    return [_without(secrets, item) for item in value] if isinstance(value, list) else value
