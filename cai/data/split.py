"""Which rows are held out of training, to validate on: whole prompts, with all their rows."""

from collections.abc import Sequence

from cai.messages import Dialogue
from cai.text import words


def opening_turn(dialogue: Dialogue) -> str:
    """What the rows of one prompt have in common: the words of the first human turn."""
    first = next((message.content for message in dialogue if message.role == "user"), "")
    return " ".join(words(first)) or first


def validation_first(prompts: Sequence[str], share: float) -> tuple[list[int], int]:
    """An order of the rows with those that are held out first, and how many these are.

    `prompts` has one for each row; both parts keep their order. All rows of the earliest prompts
    are held out that `share` of the rows has room for. Where it has room for none, the prompt with
    the fewest rows is held out, unless it is the only one.
    """
    rows_of: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows_of.setdefault(prompt, []).append(row)
    room = int(len(prompts) * share)
    held_out: list[int] = []
    for rows in rows_of.values():
        if len(held_out) + len(rows) <= room:
            held_out += rows
    if room and not held_out and len(rows_of) > 1:
        held_out = min(rows_of.values(), key=len)
    chosen = set(held_out)
    rest = [row for row in range(len(prompts)) if row not in chosen]
    return sorted(chosen) + rest, len(chosen)
