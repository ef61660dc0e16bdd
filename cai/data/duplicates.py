"""Which rows say what an earlier row says, exactly or nearly."""

from collections.abc import Callable
from typing import Literal

from cai.digest import digest
from cai.messages import Dialogue, as_dicts


def dialogue_text(dialogue: Dialogue) -> str:
    return "\n".join(f"{message.role}: {message.content}" for message in dialogue)


def duplicate_finder(kind: Literal["exact", "near", "none"]) -> Callable[[Dialogue], bool]:
    """A function that says of each dialogue whether it repeats one that it was asked about before.

    Of exact duplicates only digests are in memory.
    """
    if kind == "none":
        return lambda dialogue: False
    seen: set[str] = set()

    def repeats_exactly(dialogue: Dialogue) -> bool:
        key = digest(as_dicts(dialogue))
        if key in seen:
            return True
        seen.add(key)
        return False

    if kind == "exact":
        return repeats_exactly
    # datasketch brings scipy, and whatever reads STAGE from a stage must start at once
    from cai.data.near_duplicates import NearDuplicates

    near = NearDuplicates()
    return lambda dialogue: repeats_exactly(dialogue) or near.repeats(dialogue_text(dialogue))
