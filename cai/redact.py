"""Takes keys and tokens out of whatever is shown or written: messages, run.json, manifests, the report."""

import os
import re
from collections.abc import Mapping
from typing import Any

from cai.digest import plain

HIDDEN = "[secret]"
NAMED = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)  # environment variables that may hold one
SHORTEST = 8  # characters: a shorter value is no secret, and would be found in any text
FORMS = re.compile(
    r"\b[spr]k-[A-Za-z0-9_-]{16,}|\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bAKIA[0-9A-Z]{16}\b"
    r"|(?<=Bearer )[^\s\"']{8,}|(?<=://)[^\s/:@\"']*:[^\s/@\"']+(?=@)"
)


def redact(text: str) -> str:
    """`text` without the values of secret environment variables, and without what has a known key's form."""
    values = (value.strip() for name, value in os.environ.items() if NAMED.search(name))
    for value in sorted({v for v in values if len(v) >= SHORTEST and not v.startswith("/")}, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return FORMS.sub(HIDDEN, text)


def redacted(value: Any) -> Any:
    """The same for every string, and every key, in JSON-like data."""
    value = plain(value)
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact(key): redacted(item) for key, item in value.items()}
    return [redacted(item) for item in value] if isinstance(value, list) else value
