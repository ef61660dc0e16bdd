"""Lists, indented as Python-Markdown wants them: by four columns a level, whatever a page has."""

import re

ITEM = re.compile(r"( *)((?:[-*+]|\d+[.)]) +)\S")
FENCE = re.compile(r" *(```+|~~~+)")
STEP = 4


def widened(text: str) -> str:
    """Markdown as GitHub reads it, where an item's lines begin below its first letter."""
    lines: list[str] = []
    offsets: list[int] = []  # of the items that are open: where their text begins
    fence = ""
    for line in text.split("\n"):
        indentation = len(line) - len(line.lstrip(" "))
        if not fence and line.strip():
            is_lazy = (
                indentation == 0 and bool(lines and lines[-1].strip()) and not ITEM.match(line)
            )
            while offsets and indentation < offsets[-1] and not is_lazy:
                offsets.pop()
        shift = STEP * len(offsets) - (offsets[-1] if offsets else 0)
        lines.append(" " * shift + line if line.strip() else line)
        match = FENCE.match(line)
        if match and (not fence or match[1].startswith(fence)):
            fence = "" if fence else match[1]
        elif not fence and (item := ITEM.match(line)):
            offsets.append(len(item[1]) + len(item[2]))
    return "\n".join(lines)
