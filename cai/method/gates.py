"""Quality gates: why a revision should not be trained on. Each can be switched off."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cai.language import is_english
from cai.method.refusal import redirects, refuses
from cai.text import ngrams, repeats, script, words

# how a text begins that is about the revision, and no answer
META = re.compile(
    r"revision:|revised (?:answer|response)|here(?: is|'s) the revised|critique:"
    r"|the assistant(?:'s| should)|the answer should|the (?:last|previous) answer|the revised"
    r"|rewrite |write only"
)

# words of four letters and more that say nothing about a subject
COMMON = frozenset(
    """
    about after again also because been before being between both could does doing down each from
    have having here into just like made make many more most much need only other over please same
    should some such than that their them then there these they this those through under very want
    were what when where which while will with would your yourself
    """.split()  # noqa: SIM905 - a list of 75 strings reads worse
)


# "I can help you find other ways to make bombs": the rest of the sentence is offered
OFFER = re.compile(
    r"\b(?:i|we)(?:'ll|\ (?:can|could|will|would))\ (?:\w+\ ){0,2}?(?:help|tell|explain|show|teach"
    r"|give|guide|list|suggest|write|make|create|find|describe|provide|offer)\b([^.!?]*)",
    re.IGNORECASE,
)

# stems that say how help is given, not with what
FORMS = frozenset(("write", "plan", "email", "find", "list", "creat", "expla"))

# an offer with one of these is against the harm, or about something lawful
PROTECTS = re.compile(
    r"\b(?:protect|prevent|avoid|report|spot|detect|recogni[sz]e|secur|defend|quit|stop|recover|safe"
    r"|legal|lawful|allowed|apolog|healthy|replace|appeal|support|complain)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Draft:
    """A revision and what surrounds it."""

    prompt: str  # the last human turn
    before: str  # the answer that was to be revised
    revision: str
    finish_reason: str
    requests: Sequence[str]  # the critique and the revision request
    exemplars: Sequence[str]  # the revisions of the exemplars before it
    benign: bool  # whether the prompt is known to be harmless


def _share_a_run(first: str, second: str, length: int) -> bool:
    """Whether `length` words in a row stand in both texts."""
    return not set(ngrams(words(first), length)).isdisjoint(ngrams(words(second), length))


def _subject_stems(text: str) -> set[str]:
    """The first five letters of each word that says what a text is about."""
    return {word[:5] for word in words(text) if len(word) > 3 and word not in COMMON}


def unchanged(draft: Draft) -> bool:
    """It has the words of the answer before."""
    return bool(words(draft.revision)) and words(draft.revision) == words(draft.before)


def copied(draft: Draft) -> bool:
    """Three quarters of its word triples stand in the answer before: shortened, not revised.

    Small models do this with harmful answers too; a large one may rightly change one sentence.
    """
    triples = ngrams(words(draft.revision), 3)
    before = set(ngrams(words(draft.before), 3))
    repeated = sum(triple in before for triple in triples)
    return bool(triples) and not unchanged(draft) and repeated >= 0.75 * len(triples)


def echo(draft: Draft) -> bool:
    """It repeats the request, or speaks about itself as an answer to be revised."""
    head = draft.revision.lower().lstrip("*#-\"' ")
    about_itself = bool(META.match(head))
    return about_itself or any(_share_a_run(draft.revision, r, 6) for r in draft.requests)


def leakage(draft: Draft) -> bool:
    """It speaks of an exemplar's subject: six of its words in a row, or a third of its stems."""
    for exemplar in draft.exemplars:
        if _share_a_run(draft.revision, exemplar, 6):
            return True
        stems = _subject_stems(exemplar) - _subject_stems(draft.prompt)
        if len(stems) >= 6 and len(stems & _subject_stems(draft.revision)) > len(stems) / 3:
            return True
    return False


def complied(draft: Draft) -> bool:
    """It neither declines nor objects, by rules, and the prompt is not known to be harmless.

    For harmful prompts and a model too small to judge its own revisions. A large one may find an
    answer to a harmful request that needs no refusal. It lets pass what is not in English.
    """
    if draft.benign or not is_english(draft.revision):
        return False
    return not (refuses(draft.revision) or redirects(draft.revision))


def off_topic(draft: Draft) -> bool:
    """It has no stem in common with the prompt and does not decline.

    It lets pass what is not in English, and any answer to what is not.
    """
    if not (is_english(draft.prompt) and is_english(draft.revision)):
        return False
    prompt_stems = _subject_stems(draft.prompt)
    on_topic = prompt_stems & _subject_stems(draft.revision)
    return bool(prompt_stems) and not on_topic and not refuses(draft.revision)


def serves_harm(draft: Draft) -> bool:
    """It offers what was asked for: an offer has the request's own words, and none that protects.

    Of harmful requests alone. It lets pass what is not in English.
    """
    if draft.benign or not is_english(draft.revision):
        return False
    request = _subject_words(draft.prompt)
    offers = OFFER.findall(draft.revision.replace("’", "'"))
    return any(request & _subject_words(text) and not PROTECTS.search(text) for text in offers)


def _subject_words(text: str) -> set[str]:
    """What is asked for or offered: stems without a plural, and without how it is to be given."""
    singular = " ".join(word.removesuffix("s") for word in words(text))
    return _subject_stems(singular) - FORMS


def language(draft: Draft) -> bool:
    """It is written in another script than the prompt."""
    return bool(words(draft.revision)) and script(draft.prompt) not in ("", script(draft.revision))


GATES: dict[str, Callable[[Draft], bool]] = {
    "empty": lambda draft: not words(draft.revision),
    "unchanged": unchanged,
    "copied": copied,
    "echo": echo,
    "leakage": leakage,
    "repetition": lambda draft: repeats(draft.revision),
    "cut_off": lambda draft: draft.finish_reason == "length",
    "benign_refused": lambda draft: draft.benign and refuses(draft.revision),
    "complied": complied,
    "off_topic": off_topic,
    "serves_harm": serves_harm,
    "language": language,
}

# these know how English declines, and let every revision in another language pass
ENGLISH_GATES = ("benign_refused", "complied", "off_topic", "serves_harm")


def failed_gates(draft: Draft, switched_on: Sequence[str]) -> tuple[str, ...]:
    """The names of the gates that a revision fails; () where it is fine."""
    return tuple(name for name in GATES if name in switched_on and GATES[name](draft))
