"""Takes keys and tokens out of whatever is shown or written: messages, manifests, the report.

`safe` also takes out what could steer a terminal.
"""

import os
import re
from typing import Any

from cai.digest import plain

HIDDEN = "[secret]"

# environment variables that may hold a secret
SECRET_NAME = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)

MIN_LENGTH = 8  # characters: a shorter value is no secret, and would be found in any text

SECRET_FORM = re.compile(
    r"\b[spr]k-[A-Za-z0-9_-]{16,}|\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}"
    r"|\bAKIA[0-9A-Z]{16}\b|(?<=Bearer )[^\s\"']{8,}|(?<=://)[^\s/:@\"']*:[^\s/@\"']+(?=@)"
)

# escape sequences, direction marks, lone surrogates; line breaks and tabs stay
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def redact(text: str) -> str:
    """`text` without values of secret environment variables, and without known forms of keys."""
    return _hide_in_text(_environment_secrets(), text)


def redacted(value: object) -> Any:
    """The same for every string, and every key, in JSON-like data."""
    return _hide(_environment_secrets(), plain(value))


def safe(text: str) -> str:
    """Text from elsewhere for a terminal, without control characters."""
    return CONTROL.sub("�", text)


def printable(text: str) -> str:
    """A message for a terminal: it may quote a principle file, a data row or a server."""
    return safe(redact(text))


def _environment_secrets() -> list[str]:
    """The values of secret environment variables, the longest first: one may begin with another."""
    values = {value.strip() for name, value in os.environ.items() if SECRET_NAME.search(name)}
    # a value that begins with a slash is a path to a secret
    secrets = [v for v in values if len(v) >= MIN_LENGTH and not v.startswith("/")]
    return sorted(secrets, key=len, reverse=True)


def _hide_in_text(secrets: list[str], text: str) -> str:
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return SECRET_FORM.sub(HIDDEN, text)


def _hide(secrets: list[str], value: object) -> object:
    if isinstance(value, str):
        return _hide_in_text(secrets, value)
    if isinstance(value, dict):
        return {_hide(secrets, key): _hide(secrets, entry) for key, entry in value.items()}
    return [_hide(secrets, entry) for entry in value] if isinstance(value, list) else value
