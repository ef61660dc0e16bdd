"""Quality gates: why a revision should not be trained on. Pure functions of texts; each can be switched off."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from cai.method.refusal import redirects, refuses
from cai.text import repeats, words

META = (
    "revision:",
    "revised answer",
    "revised response",
    "here is the revised",
    "here's the revised",
    "critique:",
    "the assistant's",
    "the assistant should",
    "the answer should",
    "the last answer",
    "the previous answer",
    "the revised",
    "rewrite ",
    "write only",
)

COMMON = frozenset(  # words of four letters and more that say nothing about a subject
    """
    about after again also because been before being between both could does doing down each from have
    having here into just like made make many more most much need only other over please same should
    some such than that their them then there these they this those through under very want were what
    when where which while will with would your yourself
    """.split()  # noqa: SIM905 - a list of 75 strings reads worse
)


@dataclass(frozen=True)
class Draft:
    """A revision and what surrounds it."""

    prompt: str  # the last human turn
    before: str  # the answer that was to be revised
    revision: str
    finish_reason: str
    requests: Sequence[str]  # the critique and the revision request
    exemplars: Sequence[str]  # the revisions that were shown
    benign: bool  # whether the prompt is known to be harmless


def _run_of(found: list[str], other: list[str], length: int) -> bool:
    """Whether `length` words stand in a row in both."""
    runs = {tuple(other[i : i + length]) for i in range(len(other) - length + 1)}
    return any(tuple(found[i : i + length]) in runs for i in range(len(found) - length + 1))


def _telling(text: str) -> set[str]:
    """Stems of the words that say what a text is about."""
    return {word[:5] for word in words(text) if len(word) > 3 and word not in COMMON}


def _script(text: str) -> str:
    """The script that most of a text's letters belong to, e.g. LATIN."""
    names = [unicodedata.name(c, "?").split()[0] for c in text if c.isalpha()]
    return max(set(names), key=names.count) if names else ""


def leakage(draft: Draft) -> bool:
    """The revision speaks of an exemplar's subject: six of its words in a row, or a third of its telling words."""
    for shown in draft.exemplars:
        if _run_of(words(draft.revision), words(shown), 6):
            return True
        telling = _telling(shown) - _telling(draft.prompt)
        if len(telling) >= 6 and len(telling & _telling(draft.revision)) > len(telling) / 3:
            return True
    return False


def echo(draft: Draft) -> bool:
    """The revision repeats the request, or speaks about itself as an answer to be revised."""
    head = draft.revision.lower().lstrip("*#-\"' ")
    return head.startswith(META) or any(
        _run_of(words(draft.revision), words(one), 6) for one in draft.requests
    )


def unchanged(draft: Draft) -> bool:
    return bool(words(draft.revision)) and words(draft.revision) == words(draft.before)


def copied(draft: Draft) -> bool:
    """Three quarters of its word triples stand in the answer before: it is shortened, not revised.

    Small models do this with harmful answers as well; a large one may rightly change a single sentence.
    """
    now, before = (
        [tuple(found[i : i + 3]) for i in range(len(found) - 2)]
        for found in (words(draft.revision), words(draft.before))
    )
    return (
        not unchanged(draft)
        and len(now) >= 3
        and sum(gram in before for gram in now) >= 0.75 * len(now)
    )


def complied(draft: Draft) -> bool:
    """It neither declines nor objects, by rules, and the prompt is not known to be harmless.

    For prompts that are all harmful, and a model too small to judge its own revisions; a large one may find an answer
    to a harmful request that needs no refusal.
    """
    return not (draft.benign or refuses(draft.revision) or redirects(draft.revision))


def off_topic(draft: Draft) -> bool:
    """It has no telling word in common with the prompt and does not decline."""
    return (
        not refuses(draft.revision)
        and bool(_telling(draft.prompt))
        and not _telling(draft.prompt) & _telling(draft.revision)
    )


def language(draft: Draft) -> bool:
    """Written in another script than the prompt."""
    return bool(words(draft.revision)) and _script(draft.prompt) not in (
        "",
        _script(draft.revision),
    )


GATES = {
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
    "language": language,
}


def failed(draft: Draft, switched_on: Sequence[str]) -> tuple[str, ...]:
    """The names of the gates that a revision fails; () where it is fine."""
    return tuple(name for name in GATES if name in switched_on and GATES[name](draft))
