"""Principles of sentences that stand in no file."""

from collections.abc import Iterable
from pathlib import Path

import yaml

from cai.errors import UsageError
from cai.method.sentences import expanded
from cai.method.yaml_file import TEXT, YamlFile


class _SentenceList(YamlFile):
    """Names a place by its number in the list."""

    def _at(self, place: yaml.Node | yaml.Mark, problem: str) -> str:
        mark = place.start_mark if isinstance(place, yaml.Node) else place
        return f"sentences[{mark.line}]: {problem}"


def principle_texts(sentences: Iterable[str]) -> list[dict[str, str]]:
    """The fields of each sentence's Principle. Raises UsageError with every problem."""
    if isinstance(sentences, str):
        raise UsageError("sentences: give a list; of one sentence, [sentence]")
    file, nodes = _SentenceList(Path()), []
    for place, sentence in enumerate(sentences):
        mark = yaml.Mark("sentences", 0, place, 0, None, 0)
        if isinstance(sentence, str):
            nodes.append(yaml.ScalarNode(TEXT, sentence, mark))
        else:
            file.report(mark, f"a {type(sentence).__name__} is no text")
    principles = expanded(file, nodes, (), drafts={})
    if file.problems:
        raise UsageError("\n".join(file.problems))
    if not principles:
        raise UsageError("sentences: a constitution needs at least one principle")
    return [{key.value: value.value for key, value in node.value} for node in principles]
