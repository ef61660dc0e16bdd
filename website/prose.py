"""Comments as Markdown: paragraphs, choices as a list, examples as code."""

import html
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from cai.config.schema import Config

ROOT = Path(__file__).resolve().parents[1]

SECTIONS = "|".join(Config.__dataclass_fields__)

# What is typed, in a sentence: settings and overrides, files of the code, places in a run.
TYPED = re.compile(
    rf"""(
    (?<![\w.])(?:[+~]?\w+@)?(?:{SECTIONS})\.[\w.]*\w(?:=\S*[\w\]}}])?
    | (?<!\S)[+~]?\w+=[^\s.,;)]+
    | <\w+>
    | (?<![\w/])(?:cai|conf|benchmarks|outputs)/[\w/.<>-]*[\w>]
    | (?<![\w/.=@-])[a-z][a-z0-9]*_\w+(?![\w/.]*\w[/.])
    )""",
    re.VERBOSE,
)
PAGE = re.compile(r"\bdocs/[\w-]+\.md")
WORD = re.compile(r"(?<![\w.])(null|true|false)(?=:)")
CODE = re.compile(r"(`[^`]+`)")


def as_markdown(lines: Sequence[str], choices: Collection[str] = ()) -> str:
    """`choices`: the values whose meaning the comment may give, as `value: meaning`."""
    blocks: list[str] = []
    text: list[str] = []
    code: list[str] = []
    for line in [*lines, ""]:
        # an example is indented; so is what goes on from a choice
        if line.startswith("  ") and not _begins_choice(text, choices):
            code.append(line.removeprefix("  "))
            continue
        if code:
            blocks += [*_paragraphs(text, choices), "\n".join(["```yaml", *code, "```"])]
            text, code = [], []
        text.append(line.strip())
    return "\n\n".join([*blocks, *_paragraphs(text, choices)])


def _begins_choice(text: Sequence[str], choices: Collection[str]) -> bool:
    return any(line.split(":")[0] in choices for line in text)


def _paragraphs(text: Sequence[str], choices: Collection[str]) -> list[str]:
    """A paragraph, or where two choices or more are explained, a list of these below it."""
    joined = " ".join(text).strip()
    names = "|".join(sorted(map(re.escape, choices), key=len, reverse=True))
    parts = re.split(rf"(?:^|(?<=[.:;] ))({names}): ", joined) if names else [joined]
    if len(parts) < 5:
        return [inline(joined)] if joined else []
    items = [
        f"- `{name}`: {inline(meaning.strip())}"
        for name, meaning in zip(parts[1::2], parts[2::2], strict=True)
    ]
    first = [inline(parts[0].strip())] if parts[0].strip() else []
    return [*first, "\n".join(items)]


def first_sentence(text: str) -> str:
    """What announces a list or an example ends in a full stop here."""
    sentence = re.split(r"(?<=[.:?!])(?<!al\.) (?=[A-Z0-9`*])", text)[0]
    return re.sub(":$", ".", sentence)


def inline(text: str) -> str:
    """Plain text as Markdown. What is typed becomes code, and pages of docs/ become links."""
    parts = CODE.split(text)
    for place in range(0, len(parts), 2):
        marked = CODE.split(WORD.sub(r"`\1`", TYPED.sub(r"`\1`", parts[place])))
        marked[::2] = [PAGE.sub(_link, _escaped(part)) for part in marked[::2]]
        parts[place] = "".join(marked)
    return "".join(parts)


def _escaped(text: str) -> str:
    return re.sub(r"([*_|])", r"\\\1", html.escape(text, quote=False))


def _link(match: re.Match[str]) -> str:
    page = match[0].replace("\\", "")
    return f"[{page}](../{page})" if (ROOT / page).is_file() else match[0]
