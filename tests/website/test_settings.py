"""The reference of settings: every key is there, with the default that a run has and a meaning."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from cai.config.compose import compose
from cai.config.kinds import choices_of, kind_at
from cai.config.types import OfLibrary, lookup, marks
from website.prose import as_markdown
from website.reference import pages
from website.settings import (
    NAME,
    NOTHING,
    Setting,
    data_settings,
    section_settings,
    sections,
    top_settings,
)
from website.takes import takes


def every_setting() -> Iterator[Setting]:
    for setting in [*top_settings(), *data_settings()]:
        yield from setting.all()
    for section in sections():
        for setting in section_settings(section):
            yield from setting.all()


def keys_of(value: Any, key: str = "", kind: Any = None) -> Iterator[str]:
    """Of the values of a configuration; NAME in place of a data set's or a suite's name."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            below = f"{key}.{field.name}".lstrip(".")
            yield from keys_of(getattr(value, field.name), below, field.type)
    elif isinstance(value, dict) and any(map(dataclasses.is_dataclass, value.values())):
        for part in value.values():
            yield from keys_of(part, f"{key}.{NAME}")
    elif isinstance(value, dict) and value and marks(kind, OfLibrary):
        yield from (f"{key}.{name}" for name in value)
    else:
        yield key


def test_each_key_of_the_configuration_stands_in_the_reference():
    text = "\n".join(pages().values())
    keys = set(keys_of(compose(["name=all"])))
    assert len(keys) > 250 and {"sl_cai.args.learning_rate", "data.NAME.path"} <= keys
    assert [key for key in sorted(keys) if f"`{key}`" not in text] == []


def test_the_defaults_are_those_of_a_run():
    config = compose(["name=run"])
    compared = 0
    for setting in every_setting():
        if NAME in setting.key or setting.default is NOTHING or setting.children:
            continue
        section, *below = setting.key.split(".")
        value = config
        for name in (section, *below):
            if value is None:  # the section that it is in is null
                break
            value = lookup(value, name)
        else:
            compared += 1
            if not dataclasses.is_dataclass(value):
                assert setting.default == value, setting.key
    assert compared > 200


def test_each_setting_has_a_meaning():
    """Of its own, or of what it is a part of: a comment above it in conf/, below the file's own."""

    def without(setting: Setting) -> Iterator[str]:
        if not setting.meaning and not setting.others:
            if not setting.children:
                yield setting.key
            for child in setting.children:
                yield from without(child)

    roots = [*top_settings(), *data_settings()]
    roots += [setting for section in sections() for setting in section_settings(section)]
    assert [key for setting in roots for key in without(setting)] == []


@pytest.mark.parametrize(
    ("comment", "choices", "markdown"),
    [
        (["Rounds of critique. null: all."], [], "Rounds of critique. `null`: all."),
        (
            ["How it is drawn. cycle: in turn. all: each", "principle."],
            ["cycle", "all"],
            "How it is drawn.\n\n- `cycle`: in turn.\n- `all`: each principle.",
        ),
        # of the choices of another setting, or of one alone, nothing is made
        (["mixed: the share of pairs."], ["mixed"], "mixed: the share of pairs."),
        (
            ["Prompts. E.g.", "  prompts:", "    data: [seed]", "null: none."],
            [],
            "Prompts. E.g.\n\n```yaml\nprompts:\n  data: [seed]\n```\n\n`null`: none.",
        ),
        (
            ["contrast: by a judge. A score is", "  log p(a | b).", "mixed: both."],
            ["contrast", "mixed"],
            "- `contrast`: by a judge. A score is log p(a \\| b).\n- `mixed`: both.",
        ),
        (
            ["See docs/gpu.md and cai/paths.py: +model@label.model=x, in outputs/<name>, 2 * 3."],
            [],
            "See [docs/gpu.md](../docs/gpu.md) and `cai/paths.py`: `+model@label.model=x`, in "
            "`outputs/<name>`, 2 \\* 3.",
        ),
        (["A <name> of `max_length` in a_b."], [], "A `<name>` of `max_length` in `a_b`."),
    ],
)
def test_a_comment_is_markdown(comment: list[str], choices: list[str], markdown: str):
    assert as_markdown(comment, choices) == markdown


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("seed", "whole number between 0 and 4294967295"),
        ("sft.validation", "number between 0 and 0.9"),
        ("dpo.guards.falling", "whole number at least 1, or `null`"),
        ("evaluate.wins", "list of lists of text"),
        ("report_to", "list of `tensorboard`, `wandb`, `trackio`"),
        ("sft.peft", "arguments of `peft.LoraConfig`, or `null`"),
        ("dpo.args", "arguments of `trl.DPOConfig`"),
        ("data.NAME.templates", "list of mappings of `prompt`, `completion`"),
    ],
)
def test_a_type_in_words(key: str, words: str):
    assert takes(kind_at(key)) == words


def test_entries_of_a_list_are_explained():
    page = pages()["revise.md"]
    explained = [name for name in choices_of(kind_at("revise.gates")) if f"- `{name}`: " in page]
    assert explained == choices_of(kind_at("revise.gates"))
