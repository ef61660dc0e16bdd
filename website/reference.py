"""The pages of settings: one for each section of the configuration, one for all experiments."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from website.prose import as_markdown, first_sentence, inline
from website.settings import (
    CONF,
    NOTHING,
    Section,
    Setting,
    comments_of,
    data_settings,
    files_of,
    section_settings,
    sections,
    top_settings,
)
from website.takes import takes

QUOTE = '"'

INDEX = """# Settings

Each is set on the command line, `cai experiment=quickstart dpo.args.beta=0.3`, or in a file of your
own. A file of a group is taken by its name: `dpo=full`. Later words win over earlier ones, and over
the files of `conf/`.

`cai plan` with the same words says what would run, and names every key or value that is wrong.

| section | files in | |
| --- | --- | --- |
"""


def pages() -> dict[str, str]:
    """Markdown by path below conf/."""
    made = {f"{each.name}.md": _section_page(each) for each in sections()}
    made["data.md"] = _data_page()
    made["experiment.md"] = _experiments_page()
    rows = [(each.name, f"conf/{each.group}", _in_short(each)) for each in sections()]
    rows += [
        ("data", "conf/data", "Data sets: where their rows are, and how they are read."),
        ("experiment", "conf/experiment", "Recipes: settings of all sections together."),
    ]
    table = [f"| [{name}]({name}.md) | `{group}` | {text} |" for name, group, text in rows]
    index = [INDEX + "\n".join(table), "## Of the whole run", *_settings(top_settings(), 3)]
    return {"index.md": "\n\n".join(index) + "\n"} | made


def _first_sentence(path: Path) -> str:
    return inline(first_sentence(" ".join(comments_of(path).description)))


def _in_short(section: Section) -> str:
    """What is taken unless told otherwise, and what there is in its place."""
    others = [f"`{path.stem}`" for path in files_of(section.group) if path != section.path]
    text = _first_sentence(section.path)
    return f"{text} Or {', '.join(others)}." if others else text


def _section_page(section: Section) -> str:
    files = files_of(section.group)
    lines = [f"# {section.name}"]
    if len(files) == 1:
        lines.append(as_markdown(comments_of(section.path).description))
    else:
        lines.append(f"What a file of `conf/{section.group}` sets. One of them is taken:")
        lines.append("\n".join(_choice(section, path) for path in files))
    lines += _settings(section_settings(section), 2)
    lines.append("## Files")
    for path in files:
        lines += _file(path, 3, described=len(files) == 1)
    return "\n\n".join(lines) + "\n"


def _choice(section: Section, path: Path) -> str:
    """`sft@sl_cai=revisions` (the default): what the file is."""
    same = section.group == section.name
    word = section.group if same else f"{section.group}@{section.name}"
    default = " (the default)" if path == section.path else ""
    return f"- [`{word}={path.stem}`](#{path.stem}){default}: {_first_sentence(path)}"


def _data_page() -> str:
    lines = [
        "# data",
        "A data set is a file in `conf/data` ([how to add one](../docs/datasets.md)).",
    ]
    lines += _settings(data_settings(), 2)
    lines.append("## Sets")
    for path in files_of("data"):
        lines += _file(path, 3)
    return "\n\n".join(lines) + "\n"


def _experiments_page() -> str:
    lines = [
        "# experiment",
        "`cai experiment=NAME` takes one of these recipes; words behind it change it.",
    ]
    for path in files_of("experiment"):
        lines += _file(path, 2)
    return "\n\n".join(lines) + "\n"


def _file(path: Path, level: int, described: bool = False) -> Iterator[str]:
    """A file under its name; its description too, unless the page has begun with it."""
    name = path.relative_to(CONF).as_posix()
    yield f"{'#' * level} `{path.stem}` {{#{path.stem}}}"
    if not described:
        yield as_markdown(comments_of(path).description)
    text = "\n".join(f"    {line}".rstrip() for line in path.read_text("utf-8").splitlines())
    yield f'??? note "conf/{name}"\n\n    ```yaml\n{text}\n    ```'


def _settings(settings: Sequence[Setting], level: int) -> Iterator[str]:
    """Those that have a meaning of their own, each under its key; the others in a table before."""
    if plain := [each for each in settings if not _has_meaning(each)]:
        yield _table([part for each in plain for part in each.all() if _is_value(part)])
    for setting in settings:
        if _has_meaning(setting):
            yield from _explained(setting, level)


def _has_meaning(setting: Setting) -> bool:
    return any(each.meaning or each.others for each in setting.all())


def _is_value(setting: Setting) -> bool:
    return not setting.children


def _explained(setting: Setting, level: int) -> Iterator[str]:
    yield f"{'#' * min(level, 6)} `{setting.key}` {{#{setting.key}}}"
    facts = _facts(setting)
    if facts:
        yield ". ".join(facts) + ".\n{.facts}"
    if setting.meaning:
        yield setting.meaning
    for file, meaning in setting.others.items():
        yield f"With `{file}`: {meaning}"
    yield from _settings(setting.children, level + 1)


def _facts(setting: Setting) -> list[str]:
    facts = []
    if setting.page:
        facts.append(f"As [{setting.page}]({setting.page}.md)")
    elif setting.kind is not None and not setting.children:
        words = takes(setting.kind)
        facts.append(words[:1].upper() + words[1:])
    if not setting.children:
        facts.append(f"Default: {_shown(setting.default)}")
    if setting.is_runtime:
        facts.append("No stage runs again when it changes")
    return facts


def _table(settings: Sequence[Setting]) -> str:
    rows = ["| setting | takes | default |", "| --- | --- | --- |"]
    for each in settings:
        kind = f"as [{each.page}]({each.page}.md)" if each.page else ""
        kind = kind or ("" if each.kind is None else takes(each.kind))
        rows.append(f"| `{each.key}` | {kind} | {_shown(each.default)} |")
    return "\n".join(rows)


def _shown(value: object) -> str:
    """A default as it is typed on the command line."""
    if value is NOTHING or value == "???":
        return "none, so it has to be set"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"`{text.replace(QUOTE, '')}`"
