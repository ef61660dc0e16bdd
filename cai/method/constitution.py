"""Principles, exemplars and the constitution: loads and validates principles/*.yaml.

Every problem of a file is reported at once, each with file, line and column. Texts are sent to the model as they stand.
"""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from cai.digest import digest
from cai.errors import UsageError, nearest
from cai.messages import Dialogue, as_dicts, from_dicts
from cai.paths import resolve_file

LARGEST = 1 << 20  # bytes; a principle file is text that a person edits

SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")

KEYS = ("name", "description", "extends", "only", "without", "principles", "exemplars")

PRINCIPLE_KEYS = ("id", "critique", "revision", "comparison", "weight", "tags")

EXEMPLAR_KEYS = ("principle", "dialogue", "critique", "revision")


@dataclass(frozen=True)
class Principle:
    """One rule: the critique and the revision request come from the same principle, and so does the comparison."""

    id: str
    critique: str
    revision: str
    comparison: str
    weight: float = 1.0
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exemplar:
    """A worked example of one principle, shown before critique and revision only."""

    principle: Principle
    dialogue: Dialogue
    critique: str
    revision: str


@dataclass(frozen=True)
class Constitution:
    name: str
    principles: tuple[Principle, ...]
    exemplars: tuple[Exemplar, ...]

    def draw(self, rng: random.Random) -> Principle:
        """One principle, with replacement, by weight (section 3.1: drawn anew for every round)."""
        return rng.choices(self.principles, [p.weight for p in self.principles])[0]

    def sample_exemplars(self, rng: random.Random, count: int) -> tuple[Exemplar, ...]:
        """`count` different exemplars, or all where there are fewer."""
        return tuple(rng.sample(self.exemplars, min(count, len(self.exemplars))))

    def revising(self) -> dict[str, Any]:
        """Digests of what critique and revision read, by principle: a stage key's part."""
        principles = {
            p.id: digest([p.critique, p.revision, p.weight])[:16] for p in self.principles
        }
        shown = [
            [
                e.principle.critique,
                e.principle.revision,
                as_dicts(e.dialogue),
                e.critique,
                e.revision,
            ]
            for e in self.exemplars
        ]
        return {"principles": principles, "exemplars": [digest(one)[:16] for one in shown]}

    def comparing(self) -> dict[str, Any]:
        """Digests of what comparisons read, by principle: a stage key's part."""
        return {
            "principles": {p.id: digest([p.comparison, p.weight])[:16] for p in self.principles}
        }

    @classmethod
    def load(cls, name: str) -> "Constitution":
        """By path, or by name among ./principles and the shipped. Raises UsageError with every problem of the file."""
        return _Reader(resolve_file(name, "principles", ".yaml")).read()


@dataclass
class _Reader:
    path: Path
    above: tuple[Path, ...] = ()  # the files that extend this one
    problems: list[str] = field(default_factory=list)

    def read(self) -> Constitution:
        root = self._parse()
        top = self._mapping(root, KEYS, "a principle file")
        inherited = self._inherited(top.get("extends"))
        principles = {p.id: p for p in inherited.principles} if inherited else {}
        exemplars = list(inherited.exemplars) if inherited else []
        own: dict[str, Principle] = {}
        for node in self._sequence(top.get("principles"), "principles"):
            self._principle(node, own)
        principles |= own
        exemplars = [replace(one, principle=principles[one.principle.id]) for one in exemplars]
        for node in self._sequence(top.get("exemplars"), "exemplars"):
            self._exemplar(node, principles, exemplars)
        kept = self._selected(top, principles)
        if not kept and not self.problems:
            self._problem(root, "no principle is left; a constitution needs at least one")
        if kept and not any(p.weight for p in kept.values()):
            self._problem(root, "every weight is 0, so no principle can be drawn")
        name = self._text(top["name"], "name") if "name" in top else self.path.stem
        if self.problems:
            raise UsageError("\n".join(self.problems))
        shown = tuple(e for e in exemplars if e.principle.id in kept)
        return Constitution(name, tuple(kept.values()), shown)

    def _problem(self, node: Any, text: str) -> None:
        mark = node.start_mark if isinstance(node, yaml.Node) else node
        self.problems.append(f"{self.path}:{mark.line + 1}:{mark.column + 1}: {text}")

    def _parse(self) -> yaml.Node:
        try:
            if self.path.stat().st_size > LARGEST:
                raise UsageError(
                    f"{self.path}: larger than {LARGEST >> 20} MiB; a principle file is text that a person edits"
                )
            text = self.path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{self.path}: not UTF-8 at byte {error.start}; save it as UTF-8"
            ) from None
        except OSError as error:
            raise UsageError(f"{self.path}: {error.strerror}") from None
        try:
            for event in yaml.parse(text, Loader=yaml.SafeLoader):
                if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                    raise UsageError(
                        self._at(
                            event.start_mark, "anchors and aliases (& and *) are not allowed here"
                        )
                    )
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            raise UsageError(
                self._at(error.problem_mark or error.context_mark, error.problem or "not YAML")
            ) from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise UsageError(
                f"{self.path}:{line}: character U+{ord(text[error.position]):04X} is not allowed"
            ) from None
        except RecursionError:
            raise UsageError(f"{self.path}:1:1: nested too deeply") from None
        except (ValueError, OverflowError) as error:  # e.g. an escape beyond Unicode
            raise UsageError(f"{self.path}: not YAML: {str(error)[:200]}") from None
        if root is None:
            raise UsageError(
                f"{self.path}:1:1: the file is empty; a constitution needs at least one principle"
            )
        return root

    def _at(self, mark: Any, text: str) -> str:
        hint = "; indent with spaces, not tabs" if r"'\t'" in text else ""
        return (
            f"{self.path}:{mark.line + 1}:{mark.column + 1}: {text}{hint}"
            if mark
            else f"{self.path}: {text}"
        )

    def _mapping(self, node: Any, keys: Sequence[str], what: str) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            self._problem(node, f"{what} is a mapping with the keys {', '.join(keys)}")
            return {}
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = str(key.value)
            if name not in keys:
                self._problem(key, f"unknown key '{name}' in {what}{nearest(name, list(keys))}")
            elif name in found:
                self._problem(key, f"the key '{name}' stands twice in {what}")
            else:
                found[name] = value
        return found

    def _sequence(self, node: yaml.Node | None, what: str) -> list[yaml.Node]:
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode):
            self._problem(node, f"'{what}' is a list")
            return []
        return node.value

    def _text(self, node: yaml.Node, what: str) -> str:
        if (
            not isinstance(node, yaml.ScalarNode)
            or node.tag == "tag:yaml.org,2002:null"
            or not node.value.strip()
        ):
            self._problem(node, f"'{what}' is empty; write a text")
            return ""
        if brace := re.search(r"\{\w*\}", node.value):
            self._problem(
                node,
                f"'{what}' has the placeholder {brace[0]}, which does not exist: texts are sent as they stand",
            )
        return node.value.strip()

    def _texts(self, node: yaml.Node | None, what: str) -> list[tuple[str, yaml.Node]]:
        return [(self._text(item, what), item) for item in self._sequence(node, what)]

    def _principle(self, node: yaml.Node, own: dict[str, Principle]) -> None:
        keys = self._mapping(node, PRINCIPLE_KEYS, "a principle")
        if not keys:
            return
        texts = {}
        for name in ("id", "critique", "revision", "comparison"):
            if name in keys:
                texts[name] = self._text(keys[name], name)
            else:
                self._problem(node, f"this principle has no '{name}'")
        weight = self._weight(keys.get("weight"))
        tags = tuple(tag for tag, _ in self._texts(keys.get("tags"), "tags"))
        if "id" not in keys or not texts["id"]:
            return
        if not SLUG.fullmatch(texts["id"]):
            self._problem(
                keys["id"], f"id '{texts['id']}': use lower case letters, digits and hyphens"
            )
        if texts["id"] in own:
            self._problem(keys["id"], f"the id '{texts['id']}' stands twice")
        own[texts["id"]] = Principle(
            weight=weight, tags=tags, **({"critique": "", "revision": "", "comparison": ""} | texts)
        )

    def _weight(self, node: yaml.Node | None) -> float:
        if node is None:
            return 1.0
        try:
            weight = float(node.value) if isinstance(node, yaml.ScalarNode) else math.nan
        except ValueError:
            weight = math.nan
        if not 0 <= weight <= 1e6:
            self._problem(node, "'weight' is a number from 0 to 1000000")
            return 1.0
        return weight

    def _exemplar(
        self, node: yaml.Node, principles: dict[str, Principle], into: list[Exemplar]
    ) -> None:
        keys = self._mapping(node, EXEMPLAR_KEYS, "an exemplar")
        if not keys:
            return
        for name in EXEMPLAR_KEYS:
            if name not in keys:
                self._problem(node, f"this exemplar has no '{name}'")
        texts = {
            name: self._text(keys[name], name)
            for name in ("principle", "critique", "revision")
            if name in keys
        }
        dialogue = self._dialogue(keys["dialogue"]) if "dialogue" in keys else ()
        shown = texts.get("principle", "")
        if shown and shown not in principles:
            self._problem(
                keys["principle"],
                f"exemplar of an unknown principle '{shown}'{nearest(shown, list(principles))}",
            )
        elif len(keys) == len(EXEMPLAR_KEYS) and shown:
            into.append(Exemplar(principles[shown], dialogue, texts["critique"], texts["revision"]))

    def _dialogue(self, node: yaml.Node) -> Dialogue:
        rows = []
        for item in self._sequence(node, "dialogue"):
            turn = self._mapping(item, ("role", "content"), "a turn")
            rows.append({name: self._text(value, name) for name, value in turn.items()})
        try:
            dialogue = from_dicts(rows)
        except ValueError as error:
            self._problem(node, str(error))
            return ()
        roles = [message.role for message in dialogue if message.role != "system"]
        if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
            self._problem(
                node,
                "a dialogue alternates user and assistant, and ends with the assistant's answer",
            )
        return dialogue

    def _inherited(self, node: yaml.Node | None) -> Constitution | None:
        if node is None or not (name := self._text(node, "extends")):
            return None
        beside = self.path.parent / name
        try:
            path = beside if beside.is_file() else resolve_file(name, "principles", ".yaml")
        except (UsageError, OSError, ValueError) as error:
            self._problem(node, f"extends: {error}")
            return None
        if path.resolve() in (self.path.resolve(), *self.above):
            self._problem(node, f"'{name}' extends itself")
            return None
        return _Reader(path, (*self.above, self.path.resolve())).read()

    def _selected(
        self, top: dict[str, yaml.Node], principles: dict[str, Principle]
    ) -> dict[str, Principle]:
        chosen = dict(principles)
        for key in ("only", "without"):
            wanted = self._texts(top.get(key), key)
            names = {name for name, _ in wanted}
            known = {name for p in principles.values() for name in (p.id, *p.tags)}
            for name, node in wanted:
                if name and name not in known:
                    self._problem(
                        node,
                        f"'{key}' names '{name}', which is no id and no tag{nearest(name, sorted(known))}",
                    )
            if key in top:
                matched = {p.id for p in principles.values() if names & {p.id, *p.tags}}
                chosen = {i: p for i, p in chosen.items() if (i in matched) == (key == "only")}
        return chosen
