"""Principles out of preferences, as Inverse Constitutional AI has it (Findeis et al. 2024).

A model says which rule would explain why one of two answers was preferred. A judge then chooses by
each rule alone; a rule explains the pairs where the judge chooses as people did.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from cai.engines.base import Completion
from cai.messages import Dialogue, Prompt, assistant, user
from cai.method.constitution import Constitution
from cai.method.judgement import JudgeSettings
from cai.method.preferences import compare, distinct_answers
from cai.method.principle import Principle
from cai.method.requests import Complete, as_options
from cai.method.sentences import from_template, sentence_id, template_for
from cai.method.yaml_file import PLACEHOLDER

MOST_WORDS = 40  # of a proposed rule

SIMILAR = 0.7  # share of words, in order, from which on two proposals are one

OPENING = "The assistant's answers should"  # of a proposal

NO_PRINCIPLE = Principle("(no principle)", "", "", "Which of these answers is better?")


class Pair(NamedTuple):
    """Two answers to a prompt, and which people prefer."""

    prompt: Prompt
    better: str
    worse: str


class Vote(NamedTuple):
    """What a judge says of a pair by one principle alone."""

    prompt_id: str
    choice: Literal["agrees", "against", "none"]  # none: it turned with the order of the answers
    letters: float  # probability of both letters together, the mean of both orders


async def vote(pair: Pair, principle: Principle, judge: Complete) -> Vote | None:
    """Asks the judge in both orders. None: too long for its context."""
    alone = Constitution("", (principle,), ())
    compared = await compare(*pair, alone, JudgeSettings(), 0, judge)
    if compared is None:
        return None
    (judgement,) = compared.judgements
    letters = sum(judgement.letters) / 2
    if judgement.flipped:
        return Vote(pair.prompt.id, "none", letters)
    agrees = judgement.orders[0] > 0.5
    return Vote(pair.prompt.id, "agrees" if agrees else "against", letters)


def proposal_request(pair: Pair, better_first: bool) -> Dialogue:
    """Asks which rule would explain that people prefer the better answer."""
    answers = (pair.better, pair.worse) if better_first else (pair.worse, pair.better)
    letter = "A" if better_first else "B"
    turns = (*pair.prompt.messages, user("Which of these answers is better?"))
    text = (
        f"{as_options(turns, *answers)}\n\nPeople preferred option ({letter}). Which rule for an "
        "assistant's answers would explain why? It must hold in other conversations too, so name "
        "nothing of this one. Write one short sentence, and nothing else."
    )
    return (user(text), assistant(OPENING))


def read_proposal(completion: Completion) -> str | None:
    """The proposed rule as an imperative; None where it is of no use.

    It was cut off, is empty or long, or has a placeholder.
    """
    text, _, rest = completion.text.strip().removeprefix(OPENING).strip().partition("\n")
    text = " ".join(text.split()).strip("\"'*: ")
    is_whole = completion.finish_reason == "stop" or bool(rest)
    few = 0 < len(text.split()) <= MOST_WORDS
    if not is_whole or not few or PLACEHOLDER.search(text):
        return None
    text = f"do {text}" if text.startswith("not ") else text
    return text[0].upper() + text[1:]


def as_principles(sentences: Sequence[str]) -> list[Principle]:
    """Principles of the different sentences, with the texts that templates give them."""
    distinct = list(distinct_answers([(sentence, None) for sentence in sentences], SIMILAR))
    template = template_for(distinct)
    principles: dict[str, Principle] = {}
    for sentence in distinct:
        texts = from_template(template, sentence)
        requests = (texts["critique"], texts["revision"], texts["comparison"])
        name = sentence_id(sentence, principles)
        principles[name] = Principle(name, *requests, sentence=sentence)
    return list(principles.values())
