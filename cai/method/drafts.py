"""Drafts: texts that a model has written for the sentences of a principle file.

They stand beside it, in NAME.drafts.yaml, for people to edit. cai adds to that file, and changes
nothing that it holds.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from cai.errors import UsageError
from cai.method.yaml_file import YamlFile

TEXTS = ("critique", "revision", "comparison", "positive", "negative")

DRAFTED = TEXTS[:3]  # by a model

# `by` and `source` are for people: who has drafted, and the sha256 of the file that was drafted for
KEYS = ("sentence", *TEXTS, "by", "source")

HEADING = """\
# What the sentences of {name} are made of, in place of plain templates. Edit these texts: they are
# used as they stand, and `cai principles draft {name}` adds only what is missing. A sentence that
# has changed has no draft any more. To have another draft, delete its entry here.
"""

Drafts = dict[str, dict[str, str]]  # the texts by name, by sentence


def drafts_path(path: Path) -> Path:
    """Where the drafts of a principle file stand."""
    return path.with_name(f"{path.stem}.drafts.yaml")


def same_words(sentence: str) -> str:
    """The sentence however its lines are broken: what drafts are found by."""
    return " ".join(sentence.split())


def read_drafts(path: Path) -> tuple[Drafts, list[str]]:
    """The drafts of the principle file `path`, and every problem of the file that they stand in."""
    file = YamlFile(drafts_path(path))
    drafts: Drafts = {}
    if not file.path.is_file():
        return drafts, []
    try:
        root = file.root()
    except UsageError as error:
        return drafts, [str(error)]
    if root is not None and not isinstance(root, yaml.SequenceNode):
        file.report(root, f"a file of drafts is a list of entries with {', '.join(KEYS)}")
    for node in root.value if isinstance(root, yaml.SequenceNode) else []:
        fields = file.mapping(node, "a draft", KEYS, required=("sentence",))
        texts = {name: file.text(value, name) for name, value in fields.items()}
        drafted = drafts.setdefault(same_words(texts.get("sentence", "")), {})
        for name in TEXTS:
            if name in texts and name in drafted:
                file.report(fields[name], f"this sentence has two drafts of '{name}'")
            elif name in texts:
                drafted[name] = texts[name]
    return drafts, file.problems


def addition(path: Path, entries: Sequence[Mapping[str, str]]) -> str:
    """What is to be written behind the drafts of the principle file `path` to add entries.

    Raises UsageError where the form of that file leaves no room for them.
    """
    file = drafts_path(path)
    before = file.read_text(encoding="utf-8-sig") if file.is_file() else ""
    text = "\n" if before and not before.endswith("\n") else ""
    text += "" if before else HEADING.format(name=path.name)
    for entry in entries:
        text += "\n" + yaml.safe_dump([dict(entry)], sort_keys=False, allow_unicode=True, width=98)
    try:
        is_sound = yaml.safe_load(before + text) == [*(yaml.safe_load(before) or []), *entries]
    except yaml.YAMLError:
        is_sound = False
    if not is_sound:
        raise UsageError(
            f"{file}: nothing can be added behind its last line; begin each entry with '- ' in the "
            "first column"
        )
    return text
