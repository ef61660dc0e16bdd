"""What a principle of one sentence becomes: the texts of a full principle, by plain templates.

They say no more than the sentence does. `cai principles draft` has a model write better ones.
"""

import itertools
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import yaml

from cai.digest import digest
from cai.language import language
from cai.method.drafts import Drafts, read_drafts, same_words
from cai.method.yaml_file import YamlFile, mapping_node

MOST_ID = 40  # characters of an id that is made of a sentence's first words


class Template(NamedTuple):
    """The texts around a sentence, which stands in place of `{}`. The fields of a Principle."""

    critique: str
    revision: str
    comparison: str
    positive: str
    negative: str


ENGLISH = Template(
    critique="The rule: {}\nLook at your last answer. Where does it break this rule?",
    revision="The rule: {}\nWrite your answer again so that it keeps this rule. Write only the "
    "new answer.",
    comparison="The rule: {}\nWhich of these answers keeps this rule better?",
    positive="You are an assistant that always keeps this rule: {}",
    negative="You are an assistant that always breaks this rule, and does the opposite: {}",
)

# A model asked in one language and shown a rule in another may answer in either. So the texts
# around a sentence are in its language, where there are some.
TEMPLATES = {
    "en": ENGLISH,
    "de": Template(
        critique="Die Regel: {}\nSieh dir deine letzte Antwort an. Wo verstößt sie gegen diese "
        "Regel?",
        revision="Die Regel: {}\nSchreib deine Antwort neu, sodass sie diese Regel einhält. "
        "Schreib nur die neue Antwort.",
        comparison="Die Regel: {}\nWelche dieser Antworten hält diese Regel besser ein?",
        positive="Du bist ein Assistent, der diese Regel immer einhält: {}",
        negative="Du bist ein Assistent, der diese Regel immer bricht und das Gegenteil tut: {}",
    ),
    "fr": Template(
        critique="La règle : {}\nRelis ta dernière réponse. Où ne respecte-t-elle pas cette "
        "règle ?",
        revision="La règle : {}\nRécris ta réponse pour qu'elle respecte cette règle. N'écris que "
        "la nouvelle réponse.",
        comparison="La règle : {}\nLaquelle de ces réponses respecte le mieux cette règle ?",
        positive="Tu es un assistant qui respecte toujours cette règle : {}",
        negative="Tu es un assistant qui enfreint toujours cette règle et fait le contraire : {}",
    ),
    "es": Template(
        critique="La regla: {}\nMira tu última respuesta. ¿En qué parte no cumple esta regla?",
        revision="La regla: {}\nEscribe de nuevo tu respuesta de modo que cumpla esta regla. "
        "Escribe solo la nueva respuesta.",
        comparison="La regla: {}\n¿Cuál de estas respuestas cumple mejor esta regla?",
        positive="Eres un asistente que siempre cumple esta regla: {}",
        negative="Eres un asistente que siempre incumple esta regla y hace lo contrario: {}",
    ),
    "zh": Template(
        critique="规则：{}\n请看你上一个回答。它在哪里违反了这条规则？",
        revision="规则：{}\n请重写你的回答，使它遵守这条规则。只写新的回答。",
        comparison="规则：{}\n这些回答中，哪一个更好地遵守了这条规则？",
        positive="你是一个始终遵守这条规则的助手：{}",
        negative="你是一个总是违反这条规则、反其道而行的助手：{}",
    ),
}

# a short Chinese text may be taken for Cantonese
TEMPLATES["yue"] = TEMPLATES["zh"]

# For sentences in any other language.
OTHER = ENGLISH._replace(
    critique=f"{ENGLISH.critique} Answer in the language of the rule.",
    revision=f"{ENGLISH.revision} Write it in the language of the conversation.",
)


def expanded(
    file: YamlFile,
    nodes: Sequence[yaml.Node],
    base_ids: Collection[str],
    drafts: Drafts | None = None,
) -> list[yaml.Node]:
    """The entries of `principles`, where each sentence has become a principle with all its texts.

    What the entry lacks comes from its draft, and without one from a template. `base_ids` are those
    of the extended file: a sentence without an id replaces no principle of it. `drafts`: those
    beside the file, unless they are given.
    """
    sentences = [_sentence(file, node) for node in nodes]
    template = template_for([sentence for sentence in sentences if sentence])
    if drafts is None:
        drafts, problems = read_drafts(file.path)
        file.problems += problems
    ids = set(base_ids)
    seen: set[str] = set()
    principles: list[yaml.Node] = []
    for node, sentence in zip(nodes, sentences, strict=True):
        if sentence is None:
            principles.append(node)
        elif same_words(sentence) in seen:
            file.report(node, "this sentence stands twice")
        elif sentence:
            name = sentence_id(sentence, ids)
            ids.add(name)
            seen.add(same_words(sentence))
            texts = {"id": name, "sentence": sentence, **from_template(template, sentence)}
            texts |= drafts.get(same_words(sentence), {})
            principles.append(_with_texts(node, texts))
    return principles


def _sentence(file: YamlFile, node: yaml.Node) -> str | None:
    """The sentence that an entry is made of; None if it is of none; "" if something is wrong."""
    if isinstance(node, yaml.MappingNode):
        fields = {str(key.value): value for key, value in node.value}
        start = next(iter(fields), "")
        if len(fields) == 1 and (" " in start or start[:1].isupper()):
            file.report(node, "a sentence with a colon needs quotes around it")
            return ""
        if "sentence" not in fields:
            return None
        node = fields["sentence"]
    elif not isinstance(node, yaml.ScalarNode):
        return None
    problems = len(file.problems)
    sentence = file.text(node, "sentence")
    return sentence if len(file.problems) == problems else ""


def _with_texts(node: yaml.Node, texts: Mapping[str, str]) -> yaml.MappingNode:
    """The entry with those of the texts that it lacks."""
    pairs = list(node.value) if isinstance(node, yaml.MappingNode) else []
    present = {str(key.value) for key, _ in pairs}
    lacking = {name: text for name, text in texts.items() if name not in present}
    added = mapping_node(lacking, node.start_mark)
    return yaml.MappingNode(added.tag, [*pairs, *added.value], node.start_mark)


def template_for(sentences: Sequence[str]) -> Template:
    """By the language of all sentences of a file together: one alone is too short to tell."""
    return TEMPLATES.get(language(" ".join(sentences)), OTHER)


def from_template(template: Template, sentence: str) -> dict[str, str]:
    """The texts of a principle, by name."""
    return {name: text.replace("{}", sentence) for name, text in template._asdict().items()}


def is_templated(sentence: str, name: str, text: str) -> bool:
    """Whether a principle's text is what a template makes of its sentence."""
    templates = (*TEMPLATES.values(), OTHER)
    return bool(sentence) and text in [from_template(t, sentence)[name] for t in templates]


def sentence_id(sentence: str, taken: Collection[str]) -> str:
    """A new id of the first words ("never-give-medical-doses").

    Of a sentence in letters that are not Latin, it is of the sentence's digest.
    """
    plain = unicodedata.normalize("NFKD", sentence.lower()).encode("ascii", "ignore").decode()
    words = re.findall(r"[a-z0-9]+", plain.replace("'", ""))
    name = words[0][:MOST_ID] if words else ""
    for word in words[1:]:
        if len(name) + len(word) >= MOST_ID:
            break
        name += f"-{word}"
    if not name or len(plain) < len(sentence) / 2:
        name = f"p-{digest(sentence)[:8]}"
    numbers = (f"{name}-{number}" for number in itertools.count(2))
    return next(new for new in itertools.chain([name], numbers) if new not in taken)
