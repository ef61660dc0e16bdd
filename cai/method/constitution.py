"""The constitution, and how it is read from principles/*.yaml.

Texts are sent to the model as they stand in the file. Those of a principle that is a sentence alone
are made in sentences.py.
"""

import math
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import yaml

from cai.digest import digest
from cai.errors import UsageError, nearest
from cai.messages import Dialogue, Prompt, as_dicts, from_dicts
from cai.method.principle import Exemplar, Principle
from cai.method.prose_file import PROSE, prose_root
from cai.method.sentence_list import principle_texts
from cai.method.sentences import expanded
from cai.method.yaml_file import YamlFile
from cai.paths import resolve_file

FILE_KEYS = ("name", "description", "extends", "only", "without", "principles", "exemplars")

PRINCIPLE_TEXTS = ("id", "critique", "revision", "comparison")

CONTRAST_TEXTS = ("positive", "negative")  # a principle has both or neither

PRINCIPLE_KEYS = ("sentence", *PRINCIPLE_TEXTS, *CONTRAST_TEXTS, "weight", "tags")

EXEMPLAR_KEYS = ("principle", "dialogue", "critique", "revision")

MAX_WEIGHT = 1_000_000

SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


class RevisionDigests(TypedDict):
    principles: dict[str, str]  # by id
    exemplars: list[str]


@dataclass(frozen=True)
class Constitution:
    """What a principle file says."""

    name: str
    principles: tuple[Principle, ...]
    exemplars: tuple[Exemplar, ...]

    def draw(self, rng: random.Random) -> Principle:
        """One principle by weight, with replacement (section 3.1: a new draw in every round)."""
        return rng.choices(self.principles, [p.weight for p in self.principles])[0]

    def about(self, prompt: Prompt) -> list[Principle]:
        """The principle that the prompt's row names, where it can be drawn; else []."""
        return [p for p in self.principles if p.id == prompt.principle and p.weight]

    def sample_exemplars(self, rng: random.Random, count: int) -> tuple[Exemplar, ...]:
        """`count` different exemplars, or all where there are fewer."""
        return tuple(rng.sample(self.exemplars, min(count, len(self.exemplars))))

    def as_system_prompt(self) -> str:
        """All principles that can be drawn, for a model that is to follow them without training."""
        questions = [f"- {p.comparison}" for p in self.principles if p.weight]
        return (
            "You are a helpful assistant. Of all answers that you could give, give the one that is "
            "best by these questions:\n" + "\n".join(questions)
        )

    def revision_digests(self) -> RevisionDigests:
        """Digests of what critique and revision read: part of a stage's key."""
        principles = {
            p.id: _short_digest(p.critique, p.revision, p.weight) for p in self.principles
        }
        exemplars = []
        for e in self.exemplars:
            requests = (e.principle.critique, e.principle.revision)
            texts = (as_dicts(e.dialogue), e.critique, e.revision)
            exemplars.append(_short_digest(*requests, *texts))
        return {"principles": principles, "exemplars": exemplars}

    def comparison_digests(self) -> dict[str, dict[str, str]]:
        """Digests of what comparisons read: part of a stage's key."""
        return {
            "principles": {p.id: _short_digest(p.comparison, p.weight) for p in self.principles}
        }

    def probe_digests(self) -> dict[str, dict[str, str]]:
        """Digests of what probes are written from: part of a stage's key."""
        return {
            "principles": {p.id: _short_digest(p.statement) for p in self.principles if p.weight}
        }

    def adherence_digests(self) -> dict[str, dict[str, str]]:
        """Digests of what says which prompts a principle is about, and whether it is kept."""
        return {
            "adherence": {
                p.id: _short_digest(
                    p.adherence_rule, p.tags, p.critique, p.revision, p.comparison, p.weight > 0
                )
                for p in self.principles
            }
        }

    def contrast_digests(self) -> dict[str, str]:
        """Digests of what contrasts read: part of a stage's key."""
        return {p.id: _short_digest(p.positive, p.negative, p.weight) for p in self.contrasting()}

    def contrasting(self) -> tuple[Principle, ...]:
        """The principles that can be drawn and have a positive and a negative text."""
        return tuple(p for p in self.principles if p.positive and p.weight)

    @classmethod
    def load(cls, name: str | Path) -> "Constitution":
        """By path, or by name among ./principles and the shipped files.

        Raises UsageError with every problem of the file.
        """
        return _Reader(find_file(str(name))).read()

    @classmethod
    def of(cls, sentences: Iterable[str], name: str = "sentences") -> "Constitution":
        """Of sentences, as a file that holds them alone. Raises UsageError with every problem."""
        fields = principle_texts(sentences)
        principles = [Principle(**texts, weight=1.0, tags=(), file=None) for texts in fields]
        return cls(name, tuple(principles), ())


def find_file(name: str) -> Path:
    """A principle file by path or by name. Raises UsageError."""
    return resolve_file(name, "principles", (".yaml", *PROSE))


def _short_digest(*parts: object) -> str:
    return digest(parts)[:16]


class _Reader(YamlFile):
    """Reads a principle file and the files that it extends."""

    def __init__(self, path: Path, extended_by: tuple[Path, ...] = ()):
        super().__init__(path)
        self.extended_by = extended_by

    def read(self) -> Constitution:
        root = prose_root(self) if self.path.suffix.lower() in PROSE else self.root()
        if root is None:
            problem = "the file is empty; a constitution needs at least one principle"
            raise UsageError(f"{self.path}:1:1: {problem}")
        fields: dict[str, yaml.Node] = {"principles": root}
        if not isinstance(root, yaml.SequenceNode):
            fields = self.mapping(root, "a principle file", FILE_KEYS)
        base = self._base(fields.get("extends"))
        principles = {p.id: p for p in base.principles}
        entries = self.entries(fields.get("principles"), "principles")
        principles |= self._principles(expanded(self, entries, principles))
        # the exemplars of an extended file follow this file's version of their principle
        exemplars = [replace(e, principle=principles[e.principle.id]) for e in base.exemplars]
        exemplars += self._exemplars(fields.get("exemplars"), principles)
        selected = self._select(fields, principles)
        if not selected and not self.problems:
            self.report(root, "no principle is left; a constitution needs at least one")
        if selected and not any(p.weight for p in selected.values()):
            self.report(root, "every weight is 0, so no principle can be drawn")
        name = self.text(fields["name"], "name") if "name" in fields else self.path.stem
        if self.problems:
            raise UsageError("\n".join(self.problems))
        exemplars = [e for e in exemplars if e.principle.id in selected]
        return Constitution(name, tuple(selected.values()), tuple(exemplars))

    def _base(self, node: yaml.Node | None) -> Constitution:
        """The constitution of the extended file, or an empty one."""
        nothing = Constitution("", (), ())
        name = self.text(node, "extends")
        if node is None or not name:
            return nothing
        try:
            path = self.path.parent / name
            if not path.is_file():
                path = find_file(name)
        except (UsageError, OSError, ValueError) as error:
            self.report(node, f"extends: {error}")
            return nothing
        extended_by = (*self.extended_by, self.path.resolve())
        if path.resolve() in extended_by:
            self.report(node, f"'{name}' extends itself")
            return nothing
        return _Reader(path, extended_by).read()

    def _principles(self, nodes: Sequence[yaml.Node]) -> dict[str, Principle]:
        principles: dict[str, Principle] = {}
        for node in nodes:
            fields = self.mapping(node, "a principle", PRINCIPLE_KEYS, required=PRINCIPLE_TEXTS)
            texts = {name: self.text(fields.get(name), name) for name in PRINCIPLE_TEXTS}
            texts |= self._contrast(node, fields)
            texts["sentence"] = self.text(fields.get("sentence"), "sentence")
            weight = self._weight(fields.get("weight"))
            tags = [self.text(tag, "tags") for tag in self.entries(fields.get("tags"), "tags")]
            name = texts["id"]
            if not name:
                continue
            if not SLUG.fullmatch(name):
                hint = "use lower case letters, digits and hyphens"
                self.report(fields["id"], f"id '{name}': {hint}")
            if name in principles:
                self.report(fields["id"], f"the id '{name}' stands twice")
            principles[name] = Principle(**texts, weight=weight, tags=tuple(tags), file=self.path)
        return principles

    def _contrast(self, node: yaml.Node, fields: dict[str, yaml.Node]) -> dict[str, str]:
        present = [name for name in CONTRAST_TEXTS if name in fields]
        if len(present) == 1:
            self.report(
                node, f"a principle with '{present[0]}' needs both {' and '.join(CONTRAST_TEXTS)}"
            )
        return {name: self.text(fields[name], name) for name in present}

    def _weight(self, node: yaml.Node | None) -> float:
        if node is None:
            return 1.0
        try:
            weight = float(node.value) if isinstance(node, yaml.ScalarNode) else math.nan
        except ValueError:
            weight = math.nan
        if not 0 <= weight <= MAX_WEIGHT:
            self.report(node, f"'weight' is a number from 0 to {MAX_WEIGHT}")
        return weight

    def _exemplars(
        self, nodes: yaml.Node | None, principles: dict[str, Principle]
    ) -> list[Exemplar]:
        exemplars = []
        for node in self.entries(nodes, "exemplars"):
            fields = self.mapping(node, "an exemplar", EXEMPLAR_KEYS, required=EXEMPLAR_KEYS)
            name = self.text(fields.get("principle"), "principle")
            critique = self.text(fields.get("critique"), "critique")
            revision = self.text(fields.get("revision"), "revision")
            dialogue = self._dialogue(fields["dialogue"]) if "dialogue" in fields else ()
            if name in principles:
                exemplars.append(Exemplar(principles[name], dialogue, critique, revision))
            elif name:
                problem = f"exemplar of an unknown principle '{name}'"
                self.report(fields["principle"], problem + nearest(name, list(principles)))
        return exemplars

    def _dialogue(self, node: yaml.Node) -> Dialogue:
        turns = []
        for entry in self.entries(node, "dialogue"):
            fields = self.mapping(entry, "a turn", ("role", "content"))
            turns.append({name: self.text(value, name) for name, value in fields.items()})
        try:
            dialogue = from_dicts(turns)
        except ValueError as error:
            self.report(node, str(error))
            return ()
        roles = [message.role for message in dialogue]
        if "system" in roles:
            where = "it would stand in the middle of a request; write it into the user's first turn"
            self.report(node, f"an exemplar's dialogue has no system turn: {where}")
        elif not roles or roles != ["user", "assistant"] * (len(roles) // 2):
            form = "alternates user and assistant, and ends with the assistant's answer"
            self.report(node, f"a dialogue {form}")
        return dialogue

    def _select(
        self, fields: dict[str, yaml.Node], principles: dict[str, Principle]
    ) -> dict[str, Principle]:
        """What `only` and `without` leave of the principles; both name ids and tags."""
        labels = {name: {name, *principle.tags} for name, principle in principles.items()}
        known_labels = set().union(*labels.values())
        selected = principles
        for key in ("only", "without"):
            if key not in fields:
                continue
            named = set()
            for node in self.entries(fields[key], key):
                label = self.text(node, key)
                named.add(label)
                if label and label not in known_labels:
                    hint = nearest(label, sorted(known_labels))
                    problem = f"'{key}' names '{label}', which is no id and no tag{hint}"
                    self.report(node, problem)
            keep = key == "only"
            selected = {i: p for i, p in selected.items() if bool(labels[i] & named) == keep}
        return selected
