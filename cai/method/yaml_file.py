"""A YAML file that a person edits. Every problem is collected with its file, line and column."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from cai.errors import UsageError, nearest
from cai.text import well_formed

MAX_BYTES = 1 << 20

NULL = "tag:yaml.org,2002:null"
TEXT = "tag:yaml.org,2002:str"

PLACEHOLDER = re.compile(r"\{\w*\}")

KINDS: dict[type[yaml.Node], str] = {yaml.SequenceNode: "a list", yaml.MappingNode: "a mapping"}


class _Loader(yaml.SafeLoader):
    """Without anchors and aliases: a few of them can stand for any amount of text.

    And without tags: what they say of a value would be lost.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        problem = ""
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            problem = "anchors and aliases (& and *) are not allowed here"
        elif (tag := getattr(event, "tag", None)) not in (None, "!", TEXT):
            tag = str(tag).replace("tag:yaml.org,2002:", "!!")
            problem = f"tags ({tag}) are not allowed here; write the value as plain text"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)


class YamlFile:
    """Reads values from YAML nodes. Collects what is wrong with them in `problems`."""

    def __init__(self, path: Path):
        self.path = path
        self.problems: list[str] = []

    def report(self, place: yaml.Node | yaml.Mark, problem: str) -> None:
        self.problems.append(self._at(place, problem))

    def source(self) -> str:
        """The file's text. Raises UsageError where it can't be read."""
        try:
            if self.path.stat().st_size > MAX_BYTES:
                limit = f"larger than {MAX_BYTES >> 20} MiB"
                raise UsageError(
                    f"{self.path}: {limit}; a principle file is text that a person edits"
                )
            return self.path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{self.path}: not UTF-8 at byte {error.start}; save it as UTF-8"
            ) from None
        except OSError as error:
            raise UsageError(f"{self.path}: {error.strerror}") from None

    def root(self) -> yaml.Node | None:
        """The whole file; None where it is empty. Raises UsageError where it is not YAML."""
        text = self.source()
        try:
            return yaml.compose(text, Loader=_Loader)
        except yaml.MarkedYAMLError as error:
            problem = error.problem or "not YAML"
            hint = "; indent with spaces, not tabs" if r"'\t'" in problem else ""
            mark = error.problem_mark or error.context_mark
            message = self._at(mark, problem + hint) if mark else f"{self.path}: {problem}"
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            character = f"U+{ord(text[error.position]):04X}"
            message = f"{self.path}:{line}: character {character} is not allowed"
        except RecursionError:
            message = f"{self.path}:1:1: nested too deeply"
        except (ValueError, OverflowError) as error:  # e.g. an escape beyond Unicode
            message = f"{self.path}: not YAML: {str(error)[:200]}"
        raise UsageError(message)

    def _at(self, place: yaml.Node | yaml.Mark, problem: str) -> str:
        mark = place.start_mark if isinstance(place, yaml.Node) else place
        return f"{self.path}:{mark.line + 1}:{mark.column + 1}: {problem}"

    def mapping(
        self, node: yaml.Node, kind: str, keys: Sequence[str], required: Sequence[str] = ()
    ) -> dict[str, yaml.Node]:
        """The fields of a mapping by key; {} for anything else. `kind` is e.g. "a principle"."""
        if not isinstance(node, yaml.MappingNode):
            self.report(node, f"{kind} is a mapping with the keys {', '.join(keys)}")
            return {}
        fields: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.report(key, f"a key of {kind} is a text, not {KINDS[type(key)]}")
                continue
            name = well_formed(key.value)
            if name not in keys:
                self.report(key, f"unknown key '{name}' in {kind}{nearest(name, keys)}")
            elif name in fields:
                self.report(key, f"the key '{name}' stands twice in {kind}")
            else:
                fields[name] = value
        for name in required:
            if (fields or not node.value) and name not in fields:
                self.report(node, f"this {kind.split()[-1]} has no '{name}'")
        return fields

    def entries(self, node: yaml.Node | None, name: str) -> list[yaml.Node]:
        """The entries of the list under the key `name`; [] where there is none."""
        if node is not None and not isinstance(node, yaml.SequenceNode):
            self.report(node, f"'{name}' is a list")
        return node.value if isinstance(node, yaml.SequenceNode) else []

    def text(self, node: yaml.Node | None, name: str) -> str:
        """The text under the key `name`, stripped; "" where there is none."""
        if node is None:
            return ""
        if not isinstance(node, yaml.ScalarNode):
            self.report(node, f"'{name}' is {KINDS[type(node)]}; write one text, in quotes")
            return ""
        text = node.value if node.tag != NULL else ""
        if not text.strip():
            self.report(node, f"'{name}' is empty; write a text")
        if well_formed(text) != text:
            problem = "half a surrogate pair; write the character itself"
            self.report(node, f"'{name}' holds {problem}")
            return ""
        if placeholder := PLACEHOLDER.search(text):
            problem = "which does not exist: texts are sent as they stand"
            self.report(node, f"'{name}' has the placeholder {placeholder[0]}, {problem}")
        return text.strip()


def mapping_node(fields: Mapping[str, str | Sequence[str]], mark: yaml.Mark) -> yaml.MappingNode:
    """A mapping of texts, and of lists of texts, as if it stood at `mark` of a file."""

    def text_node(text: str) -> yaml.ScalarNode:
        return yaml.ScalarNode(TEXT, text, mark)

    pairs: list[tuple[yaml.Node, yaml.Node]] = []
    for name, value in fields.items():
        node = (
            text_node(value)
            if isinstance(value, str)
            else yaml.SequenceNode("tag:yaml.org,2002:seq", [*map(text_node, value)], mark)
        )
        pairs.append((text_node(name), node))
    return yaml.MappingNode("tag:yaml.org,2002:map", pairs, mark)
