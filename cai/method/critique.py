"""The critique and revision loop (Bai et al. 2022, section 3.1), pure: no disk, no torch."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cai.config.schema import ReviseConfig, Sampling
from cai.digest import seed_of
from cai.engines.base import Completion, Request
from cai.messages import Dialogue, Prompt, assistant
from cai.method import gates
from cai.method.constitution import Constitution, Exemplar, Principle
from cai.method.requests import critique_request, direct_request, revision_request

Ask = Callable[[Request], Awaitable[Completion]]


@dataclass(frozen=True)
class CritiqueStep:
    """One round: the critique and the revision requested by one principle, and the gates that the revision failed."""

    principle_id: str
    critique: str
    revision: str
    gates: tuple[str, ...] = ()
    seeds: tuple[int, int] = (0, 0)  # of the critique and the revision
    tokens: int = 0  # new ones, critique and revision together


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


async def revise(
    prompt: Prompt,
    constitution: Constitution,
    config: ReviseConfig,
    seed: int,
    ask: Ask,
    critic: Ask | None = None,
) -> Revision:
    """First answer, then rounds of critique and revision; each draws one principle and builds on the last revision.

    `ask` answers the prompt; `critic` (by default the same model) critiques and revises. Every draw is seeded by (seed,
    prompt id, round), so a row is the same whatever ran before or beside it. Exemplars stand before critique and
    revision only, never before the first answer.
    """

    async def reply(
        whom: Ask, messages: Dialogue, sampling: Sampling, *purpose: object, rule: str = ""
    ) -> tuple[Completion, int]:
        own = seed_of(seed, prompt.id, *purpose)
        return await whom(Request(messages, sampling, own, principle=rule)), own

    first = (await reply(ask, prompt.messages, config.sampling.answer, "answer"))[0].text
    answer, steps = first, []
    for number, principle in enumerate(drawn(prompt, constitution, config, seed) if first else ()):
        rng = random.Random(seed_of(seed, prompt.id, number, "exemplars"))  # noqa: S311 - a draw, not a secret
        shown = shown_exemplars(constitution, config, rng)
        dialogue = (*prompt.messages, assistant(answer))
        critique, critique_seed = Completion("", "skipped", 0, 0, 0.0), 0
        request = direct_request(dialogue, principle, shown, config.form)
        if config.critique:
            asked = critique_request(dialogue, principle, shown, config.form)
            sampling = config.sampling.critique
            critique, critique_seed = await reply(
                critic or ask, asked, sampling, number, "critique", rule=principle.id
            )
            request = revision_request(dialogue, critique.text, principle, shown, config.form)
        sampling = config.sampling.revision
        revision, revision_seed = await reply(
            critic or ask, request, sampling, number, "revision", rule=principle.id
        )
        failed = gates.failed(
            _draft(prompt, answer, revision, principle, shown, config), config.gates
        )
        tokens = critique.new_tokens + revision.new_tokens
        seeds = (critique_seed, revision_seed)
        steps.append(
            CritiqueStep(principle.id, critique.text, revision.text, failed, seeds, tokens)
        )
        if config.stop_when_unchanged and revision.text == answer:
            break
        answer = (
            answer if failed else revision.text
        )  # after a gated revision the next round starts before it
    return Revision(prompt, first, tuple(steps))


def drawn(
    prompt: Prompt, constitution: Constitution, config: ReviseConfig, seed: int
) -> list[Principle]:
    """The principles of a prompt's rounds.

    `random`: drawn anew for every round, with replacement, by weight (the paper); `cycle`: in the file's order from a
    random start; `all`: each once in random order, whatever `rounds` says.
    """
    rng = random.Random(seed_of(seed, prompt.id, "draw"))  # noqa: S311 - a draw, not a secret
    rules = constitution.principles
    if config.draw == "all":
        return rng.sample(rules, len(rules))
    if config.draw == "cycle":
        start = rng.randrange(len(rules))
        return [rules[(start + number) % len(rules)] for number in range(config.rounds)]
    return [constitution.draw(rng) for _ in range(config.rounds)]


def shown_exemplars(
    constitution: Constitution, config: ReviseConfig, rng: random.Random
) -> tuple[Exemplar, ...]:
    """The exemplars of a round: sampled for the row, or the file's first ones for all."""
    if config.exemplar_choice == "fixed":
        return constitution.exemplars[: config.exemplars]
    return constitution.sample_exemplars(rng, config.exemplars)


def _draft(
    prompt: Prompt,
    answer: str,
    revision: Completion,
    principle: Principle,
    shown: tuple[Exemplar, ...],
    config: ReviseConfig,
) -> gates.Draft:
    return gates.Draft(
        prompt=prompt.text,
        before=answer,
        revision=revision.text,
        finish_reason=revision.finish_reason,
        requests=(principle.critique, principle.revision),
        exemplars=[one.revision for one in shown],
        benign=prompt.source in config.benign,
    )
