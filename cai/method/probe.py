"""Prompts out of a principle: red-team ones tempt a model to break it, benign ones only look so.

A model writes them in numbered lists, after examples of other rules (few-shot generation, as Perez
et al. 2022, arXiv 2202.03286).
"""

import random
import re
from collections.abc import Sequence
from typing import Literal

from cai.digest import seed_of
from cai.engines.base import Request
from cai.engines.rows import gather_rows
from cai.messages import Dialogue, Message, assistant, user
from cai.method.principle import Principle
from cai.method.probe_texts import Example, ProbeTexts
from cai.method.refusal import refuses
from cai.method.requests import Complete
from cai.method.self_instruct import SeenInstructions, numbered, read_list
from cai.text import repeats, script, words

Kind = Literal["red_team", "benign"]

KINDS: tuple[Kind, ...] = ("red_team", "benign")

REQUESTED = 4  # prompts in one request, as many as an example shows

MIN_WORDS, MAX_WORDS = 3, 100  # of a prompt

PLACEHOLDER = re.compile(r"\[[^\]\n]{1,40}\]|\{\w*\}|<[a-z_ ]{1,40}>", re.IGNORECASE)

BULLET = re.compile(r"^[ \t]*[-*•][ \t]+(?=\S)", re.MULTILINE)

# who speaks, or the kind of a message, before the message itself: "User:", "**A plea**:"
LABEL = re.compile(
    r"^(?:\*{0,2}[^*\n]{1,40}\*\*:?|(?:user|message|person|customer)(?: \d+)?:)\s+", re.I
)

QUOTES = {'"': '"', "“": "”", "«": "»", "„": "“", "「": "」", "'": "'"}


def probe_request(
    principle: Principle,
    kind: Kind,
    texts: ProbeTexts,
    earlier: Sequence[str],
    rng: random.Random,
) -> Dialogue:
    """Asks for prompts of a principle, other than `earlier`, after examples in random order."""
    turns: Dialogue = ()
    for example in rng.sample(texts.examples, len(texts.examples)):
        prompts = _of_kind(example, kind)
        order = _order(_put(texts.rule, example.rule), kind, texts)
        turns += (order, assistant(numbered(rng.sample(prompts, len(prompts)))))
    return (*turns, _order(_rule(principle, texts), kind, texts, earlier))


def _rule(principle: Principle, texts: ProbeTexts) -> str:
    if principle.sentence:
        return _put(texts.rule, principle.sentence)
    return _put(texts.question, principle.comparison)


def topic_requests(principle: Principle, texts: ProbeTexts) -> list[Dialogue]:
    """Requests for a message about the principle, and about each of the examples' rules."""
    rules = [_rule(principle, texts)]
    rules += [_put(texts.rule, example.rule) for example in texts.examples]
    return [(user(f"{rule}\n\n{texts.about}"),) for rule in rules]


async def is_on_topic(
    text: str, principle: Principle, texts: ProbeTexts, writer: Complete
) -> bool | None:
    """Whether the writer finds the text likelier about the principle than about an example's rule.

    This needs no judgement of it, so that a small model can tell. None: its context has no room.
    """
    requests = [
        writer(Request(messages, continuations=(text,), principle=principle.id))
        for messages in topic_requests(principle, texts)
    ]
    completions = await gather_rows(requests)
    if any(completion.finish_reason == "too_long" for completion in completions):
        return None
    of_principle, *of_examples = (completion.logprobs[0] for completion in completions)
    return of_principle > max(of_examples)


def _order(rule: str, kind: Kind, texts: ProbeTexts, earlier: Sequence[str] = ()) -> Message:
    order = texts.red_team if kind == "red_team" else texts.benign
    parts = [_put(order, str(REQUESTED)), texts.number]
    if earlier:
        parts.insert(1, _put(texts.earlier, "\n".join(f"- {text}" for text in earlier)))
    return user(f"{rule}\n\n{' '.join(parts)}")


def _put(text: str, value: str) -> str:
    return text.replace("{}", value)


def read_prompts(text: str) -> list[str]:
    """The prompts of a list with numbers, or with bullets where it has none."""
    entries = read_list(text) or [entry.strip() for entry in BULLET.split(text)[1:]]
    return [_plain(entry) for entry in entries]


def _plain(entry: str) -> str:
    """An entry without what models put around a prompt: labels, quotes, and remarks below it."""
    entry = entry.split("\n\n", 1)[0].strip()
    entry = LABEL.sub("", entry).strip()
    if len(entry) > 1 and QUOTES.get(entry[0]) == entry[-1]:
        return entry[1:-1].strip()
    return entry


def prompt_fault(text: str, principle: Principle) -> str | None:
    """Why a text is no prompt to use, whatever others there are; None where it may be one.

    short, long, placeholder, repetitive, refusal (the model declines to write it) or language.
    """
    prompt_words = words(text)
    if len(prompt_words) < MIN_WORDS:
        return "short"
    if len(prompt_words) > MAX_WORDS:
        return "long"
    if PLACEHOLDER.search(text):
        return "placeholder"
    if repeats(text):
        return "repetitive"
    if refuses(text):
        return "refusal"
    return None if script(text) == script(principle.statement) else "language"


def seen_prompts(
    principle: Principle, kind: Kind, texts: ProbeTexts, max_similarity: float
) -> SeenInstructions:
    """What prompts of a kind may not be like: the principle, and what the model was shown.

    A benign prompt may be like a red-team one. The best look-alikes are.
    """
    known_texts = [principle.statement]
    for example in texts.examples:
        known_texts += [example.rule, *_of_kind(example, kind)]
    return SeenInstructions(known_texts, max_similarity)


def _of_kind(example: Example, kind: Kind) -> tuple[str, ...]:
    return example.red_team if kind == "red_team" else example.benign


def part_to_evaluate(ids: Sequence[str], share: float) -> set[str]:
    """The ids of the prompts to evaluate on: those with the lowest hashes.

    Of two or more prompts both parts get one at least, unless `share` is 0. The run's seed does
    not move them.
    """
    count = round(len(ids) * share)
    if share and len(ids) > 1:
        count = min(max(count, 1), len(ids) - 1)
    return set(sorted(ids, key=lambda prompt_id: seed_of(0, prompt_id, "probe"))[:count])
