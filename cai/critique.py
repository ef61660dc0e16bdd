"""The critique and revision loop (Bai et al. 2022, section 3.1), pure: no disk, no torch."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cai.config import ReviseConfig, Sampling
from cai.constitution import Constitution
from cai.dialogue import Dialogue, Prompt, assistant, critique_request, revision_request
from cai.digest import seed_of
from cai.engines.base import Completion, Request

Ask = Callable[[Request], Awaitable[Completion]]


@dataclass(frozen=True)
class CritiqueStep:
    """One round: the critique and the revision requested by one principle, and the gates that the revision failed."""

    principle_id: str
    critique: str
    revision: str
    gates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Revision:
    """A prompt, the model's first answer, and every round."""

    prompt: Prompt
    answer: str
    steps: tuple[CritiqueStep, ...]

    @property
    def final(self) -> str:
        """The last revision that passed its gates, else the empty string."""
        return next((step.revision for step in reversed(self.steps) if not step.gates), "")


async def revise(prompt: Prompt, constitution: Constitution, config: ReviseConfig, seed: int, ask: Ask) -> Revision:
    """First answer, then `config.rounds` rounds; each draws one principle and builds on the last revision.

    Every draw is seeded by (seed, prompt id, round), so a row is the same whatever ran before or beside it. Exemplars
    stand before critique and revision only, never before the first answer.
    """

    async def reply(messages: Dialogue, sampling: Sampling, *purpose: object) -> str:
        request = Request(messages, sampling, seed_of(seed, prompt.id, *purpose))
        return (await ask(request)).text

    first = answer = await reply(prompt.messages, config.sampling.answer, "answer")
    steps: list[CritiqueStep] = []
    for number in range(config.rounds if first else 0):
        rng = random.Random(seed_of(seed, prompt.id, number, "draw"))  # noqa: S311 - a draw, not a secret
        principle = constitution.draw(rng)
        exemplars = constitution.sample_exemplars(rng, config.exemplars)
        dialogue = (*prompt.messages, assistant(answer))
        request = critique_request(dialogue, principle, exemplars)
        critique = await reply(request, config.sampling.critique, number, "critique")
        request = revision_request(dialogue, critique, principle, exemplars)
        revision = await reply(request, config.sampling.revision, number, "revision")
        gates = failed_gates(prompt, answer, revision, [e.revision for e in exemplars])
        steps.append(CritiqueStep(principle.id, critique, revision, gates))
        answer = (
            answer if gates else revision
        )  # a gated revision is kept on the row, and the next round starts before it
    return Revision(prompt, first, tuple(steps))


META = ("revision:", "revised answer:", "revised response:", "here is the revised", "here's the revised", "critique:")


def failed_gates(prompt: Prompt, before: str, revision: str, shown: list[str]) -> tuple[str, ...]:
    """Why a revision should not be trained on: empty, unchanged, meta text, leakage, repetition; () where fine."""
    words = _words(revision)
    reasons = {
        "empty": not words,
        "unchanged": bool(words) and words == _words(before),
        "meta": revision.lower().lstrip("*# ").startswith(META),
        "leakage": any(_shares(words, _words(one), _words(prompt.text)) for one in shown),
        "repetition": repeats(revision),
    }
    return tuple(name for name, failed in reasons.items() if failed)


def repeats(text: str) -> bool:
    """Whether a text goes round in circles: under half of its word 4-grams are different (20 words or more)."""
    words = _words(text)
    grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return len(words) >= 20 and len(set(grams)) < len(grams) / 2


def _words(text: str) -> list[str]:
    return "".join(c.lower() if c.isalnum() else " " for c in text).split()


def _shares(words: list[str], exemplar: list[str], prompt: list[str]) -> bool:
    """Whether an exemplar's revision is spoken: a third of its long words that the prompt lacks, or six in a row."""
    telling = {w for w in exemplar if len(w) > 4} - set(prompt)
    six = {tuple(exemplar[i : i + 6]) for i in range(len(exemplar) - 5)}
    row = any(tuple(words[i : i + 6]) in six for i in range(len(words) - 5))
    return row or (len(telling) >= 6 and len(telling & set(words)) > len(telling) / 3)
