"""What changed between two texts, word by word: terminal and page mark it."""

import difflib
import re
from typing import Literal

Kind = Literal["same", "added", "removed"]

MOST_WORDS, MOST_CHARACTERS = 1000, 12_000  # marks in longer texts take too long to find and read

ALIKE = 0.3  # of difflib's ratio, in [0, 1]; marks between texts less alike only stand in the way


def word_diff(before: str, after: str) -> list[tuple[Kind, str]] | None:
    """The runs of words that both texts have, that are new and that are gone, in reading order.

    Every word has the space behind it. None where marks would not help.
    """
    old, new = re.findall(r"\S+\s*", before), re.findall(r"\S+\s*", after)
    most_characters = max(len(before), len(after))
    if before == after or max(len(old), len(new)) > MOST_WORDS or most_characters > MOST_CHARACTERS:
        return None
    matcher = difflib.SequenceMatcher(
        None, [word.rstrip() for word in old], [word.rstrip() for word in new], autojunk=False
    )
    if matcher.ratio() < ALIKE:
        return None
    marks: list[tuple[Kind, str]] = []
    for change, old_start, old_end, new_start, new_end in matcher.get_opcodes():
        if change in ("replace", "delete"):
            marks.append(("removed", "".join(old[old_start:old_end])))
        if change != "delete":
            kind = "same" if change == "equal" else "added"
            marks.append((kind, "".join(new[new_start:new_end])))
    return marks
