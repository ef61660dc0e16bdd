"""Every setting, out of conf/ and the schema: key, type, default and meaning."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cai.config.kinds import choices_of, has_entries, kind_at, may_be, members
from cai.config.schema import Config, EngineConfig, ModelConfig
from cai.config.types import OfLibrary, is_runtime, marks
from website.comments import Comments, Keys, read_comments
from website.prose import ROOT, as_markdown

CONF = ROOT / "conf"
NAME = "NAME"  # stands for the names of a mapping's sections: data.NAME.path

# what stands on a page of its own, where it is part of another section
PAGES = {ModelConfig: "model", EngineConfig: "engine"}

# a setting without a value in the files, and without one in the schema
NOTHING = dataclasses.MISSING


@dataclass
class Setting:
    key: str
    kind: Any
    default: object
    meaning: str = ""
    others: dict[str, str] = field(default_factory=dict)  # file of the group -> its meaning there
    is_runtime: bool = False
    page: str = ""  # the section that has the same settings
    children: list["Setting"] = field(default_factory=list)

    def all(self) -> Iterator["Setting"]:
        yield self
        for child in self.children:
            yield from child.all()


@dataclass(frozen=True)
class Section:
    """A part of the configuration that a group of files fills: sl_cai, by the files of conf/sft."""

    name: str
    group: str
    file: str  # the one that is taken unless another is named

    @property
    def path(self) -> Path:
        return CONF / self.group / f"{self.file}.yaml"


@dataclass(frozen=True)
class Source:
    """A file's values and comments, over those of the files that it is based on."""

    values: Mapping[str, Any]
    files: tuple[Path, ...]  # itself first

    def meaning(self, keys: Keys) -> list[str]:
        return next((found for file in self.files if (found := _meaning(file, keys))), [])


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


@cache
def comments_of(path: Path) -> Comments:
    return read_comments(path)


def _meaning(file: Path, keys: Keys) -> list[str]:
    """Of a setting in a section of any name (NAME) the first that says something."""
    for other, meaning in comments_of(file).meanings.items():
        pairs = zip(keys, other, strict=False)
        if len(keys) == len(other) and all(key in (NAME, name) for key, name in pairs):
            return meaning
    return []


def source(path: Path) -> Source:
    values, files = load(path), [path]
    for base in values.pop("defaults", []):
        below = source(path.parent / f"{base}.yaml")
        values, files = _merged(below.values, values), [*files, *below.files]
    return Source(values, tuple(files))


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], value) if both else value
    return merged


@cache
def sections() -> list[Section]:
    """As conf/config.yaml lists them, in its order; without data sets and experiments."""
    found = []
    for entry in load(CONF / "config.yaml")["defaults"]:
        for group, file in entry.items() if isinstance(entry, dict) else ():
            if isinstance(file, str):
                group, _, name = group.partition("@")
                found.append(Section(name or group, group, file))
    return found


def files_of(group: str) -> list[Path]:
    return sorted((CONF / group).glob("*.yaml"))


def top_settings() -> list[Setting]:
    """Those of conf/config.yaml itself."""
    path = CONF / "config.yaml"
    own = {name: value for name, value in load(path).items() if name not in ("defaults", "hydra")}
    config = Source(own, (path,))
    of = {each.name: each for each in dataclasses.fields(Config)}
    return [_setting(of[name], (name,), value, config, {}) for name, value in own.items()]


def section_settings(section: Section) -> list[Setting]:
    mine = source(section.path)
    others = {
        f"{section.group}={path.stem}": path
        for path in files_of(section.group)
        if path not in mine.files
    }
    return _settings(kind_at(section.name), mine.values, (section.name,), mine, others)


def data_settings() -> list[Setting]:
    """Of a data set. The files of conf/data together say what each setting means."""
    files = sorted(files_of("data"), key=lambda path: -len(comments_of(path).meanings))
    return _settings(kind_at(f"data.{NAME}"), {}, ("data", NAME), Source({}, tuple(files)), {}, 2)


def _settings(
    kind: Any,
    values: Mapping[str, Any],
    above: Keys,
    origin: Source,
    others: Mapping[str, Path],
    depth: int = 1,
) -> list[Setting]:
    """Of a section; first those that the file sets, in its order. `depth`: names above the file."""
    of = {each.name: each for each in dataclasses.fields(kind)}
    names = [*(name for name in values if name in of), *(name for name in of if name not in values)]
    return [
        _setting(of[name], (*above, name), values.get(name, NOTHING), origin, others, depth)
        for name in names
    ]


def _setting(
    of: dataclasses.Field[Any],
    keys: Keys,
    value: object,
    origin: Source,
    others: Mapping[str, Path],
    depth: int = 0,
) -> Setting:
    kind, inside = of.type, keys[depth:]
    setting = Setting(".".join(keys), kind, _default(of) if value is NOTHING else value)
    setting.is_runtime = is_runtime(of)
    meaning = origin.meaning(inside)
    setting.meaning = _explained(meaning, kind, inside, origin.files)
    of_sections = {each.path for each in sections()}
    for name, path in others.items():
        # what another section has says something new only where this one's files say nothing
        other = [] if meaning and path in of_sections else _meaning(path, inside)
        if other and other != meaning:
            setting.others[name] = _explained(other, kind, inside, (path,))
    below = next((each for each in members(kind) if dataclasses.is_dataclass(each)), None)
    values = setting.default if isinstance(setting.default, Mapping) else {}
    if below in PAGES:
        setting.page = PAGES[below]
    elif below is not None:
        setting.children = _settings(below, values, keys, origin, others, depth)
    elif may_be(kind, dict) and has_entries(kind):
        entry = kind_at(NAME, kind)
        setting.children = _settings(entry, {}, (*keys, NAME), origin, others, depth)
    elif marks(kind, OfLibrary):
        setting.children = [
            _argument(name, part, keys, origin, depth) for name, part in values.items()
        ]
    return setting


def _argument(name: str, value: object, above: Keys, origin: Source, depth: int) -> Setting:
    keys = (*above, name)
    meaning = as_markdown(origin.meaning(keys[depth:]))
    return Setting(".".join(keys), None, value, meaning)


def _explained(meaning: Sequence[str], kind: Any, keys: Keys, files: Sequence[Path]) -> str:
    text = as_markdown(meaning, choices_of(kind))
    for file in files:
        if entries := comments_of(file).entries.get(keys):
            lines = [f"- `{name}`: {as_markdown(lines)}" for name, lines in entries.items()]
            return text + "\n\n" + "\n".join(lines)
    return text


def _default(of: dataclasses.Field[Any]) -> object:
    value: object = of.default if of.default_factory is NOTHING else of.default_factory()
    if value is not NOTHING and dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value
