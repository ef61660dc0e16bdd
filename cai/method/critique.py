"""The critique and revision loop (Bai et al. 2022, section 3.1).

Notation
    prompt       a conversation that ends with a human turn
    answer       what the model says to a prompt; in round k > 1 the revision of round k - 1
    principle    the source of a round's two requests, and of a comparison (see preferences.py)
    critique     what the critic finds wrong with the answer when a principle asks it to
    revision     the answer as the critic writes it again after its critique
    exemplar     a conversation with its critique and revision, shown as an example of both
    gate         a check of a revision's text; SL-CAI trains on no revision that fails one
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cai.config.schema import ReviseConfig
from cai.digest import seed_of
from cai.engines.base import Completion, Request
from cai.messages import Prompt, assistant
from cai.method.constitution import Constitution
from cai.method.gates import Draft, failed_gates
from cai.method.principle import Exemplar, Principle
from cai.method.requests import Complete, critique_request, direct_request, revision_request

# the principles that a prompt is about, the nearest first (cai/method/relevance.py)
Rank = Callable[[Prompt], Sequence[Principle]]

# in place of gates: the critic's context had no room for a request, so there is no revision
TOO_LONG = "too_long"


@dataclass(frozen=True)
class CritiqueStep:
    """One round: a critique and a revision by one principle."""

    principle_id: str
    critique: str
    revision: str
    # those that the revision failed, or TOO_LONG
    gates: tuple[str, ...] = ()
    seeds: tuple[int, int] = (0, 0)  # of the critique and the revision
    tokens: int = 0  # new ones, of both


@dataclass(frozen=True)
class Revision:
    """A prompt, the model's first answer, and every round."""

    prompt: Prompt
    answer: str
    steps: tuple[CritiqueStep, ...]
    too_long: bool = False  # the model's context has no room for the prompt: nothing was answered

    @property
    def final(self) -> str:
        """The last revision that passed its gates, else the empty string."""
        return next((step.revision for step in reversed(self.steps) if not step.gates), "")


async def revise(
    prompt: Prompt,
    constitution: Constitution,
    config: ReviseConfig,
    seed: int,
    model: Complete,
    critic: Complete | None = None,
    rank: Rank | None = None,
) -> Revision:
    """The first answer, then rounds of critique and revision, each by one principle.

    `model` answers the prompt; `critic`, by default the same model, critiques and revises. Every
    draw is seeded by (seed, prompt id, round), so no row depends on what runs beside it. Exemplars
    stand before critique and revision, never before the first answer. `rank`: see draw_principles.
    """
    answer_seed = seed_of(seed, prompt.id, "answer")
    first = await model(Request(prompt.messages, config.sampling.answer, answer_seed))
    answer, steps = first.text, []
    principles = draw_principles(prompt, constitution, config, seed, rank) if answer else []
    for number, principle in enumerate(principles):
        rng = random.Random(seed_of(seed, prompt.id, number, "exemplars"))  # noqa: S311 - a draw
        exemplars = choose_exemplars(constitution, config, rng)
        critique_seed = seed_of(seed, prompt.id, number, "critique") if config.critique else 0
        seeds = (critique_seed, seed_of(seed, prompt.id, number, "revision"))
        step = await _critique_and_revise(
            prompt, answer, principle, exemplars, config, seeds, critic or model
        )
        steps.append(step)
        if config.stop_when_unchanged and step.revision == answer:
            break
        # after a revision that failed a gate, the next round starts at the answer before it
        if not step.gates:
            answer = step.revision
    return Revision(prompt, first.text, tuple(steps), first.finish_reason == TOO_LONG)


async def _critique_and_revise(
    prompt: Prompt,
    answer: str,
    principle: Principle,
    exemplars: tuple[Exemplar, ...],
    config: ReviseConfig,
    seeds: tuple[int, int],
    critic: Complete,
) -> CritiqueStep:
    """One round: asks for a critique of `answer`, then for its revision."""
    dialogue = (*prompt.messages, assistant(answer))
    if config.critique:
        messages = critique_request(dialogue, principle, exemplars, config.form)
        critique = await critic(
            Request(messages, config.sampling.critique, seeds[0], principle=principle.id)
        )
        if critique.finish_reason == TOO_LONG:
            return CritiqueStep(principle.id, "", "", (TOO_LONG,), seeds)
        messages = revision_request(dialogue, critique.text, principle, exemplars, config.form)
    else:
        critique = Completion("", "skipped", 0, 0, 0.0)
        messages = direct_request(dialogue, principle, exemplars, config.form)
    revision = await critic(
        Request(messages, config.sampling.revision, seeds[1], principle=principle.id)
    )
    tokens = critique.new_tokens + revision.new_tokens
    if revision.finish_reason == TOO_LONG:
        return CritiqueStep(principle.id, critique.text, "", (TOO_LONG,), seeds, tokens)
    draft = Draft(
        prompt=prompt.text,
        before=answer,
        revision=revision.text,
        finish_reason=revision.finish_reason,
        requests=(principle.critique, principle.revision),
        exemplars=[exemplar.revision for exemplar in exemplars],
        benign=prompt.source in config.benign,
    )
    gates = failed_gates(draft, config.gates)
    return CritiqueStep(principle.id, critique.text, revision.text, gates, seeds, tokens)


def draw_principles(
    prompt: Prompt,
    constitution: Constitution,
    config: ReviseConfig,
    seed: int,
    rank: Rank | None = None,
) -> list[Principle]:
    """The principles of a prompt's rounds.

    `random`: a new draw in every round, with replacement, by weight (the paper); `cycle`: in the
    file's order from a random start; `all`: each once in random order, whatever `rounds` says;
    `relevant`: the first that `rank` gives, then, and where it gives none, drawn as for `random`.
    A prompt that is about one principle has that one in its first round.
    """
    rng = random.Random(seed_of(seed, prompt.id, "draw"))  # noqa: S311 - a draw, not a secret
    principles = constitution.principles
    about = constitution.about(prompt)
    if config.draw == "all":
        return _first(about, rng.sample(principles, len(principles)))
    if config.draw == "cycle":
        start = rng.randrange(len(principles))
        if about:
            start = principles.index(about[0])
        places = range(start, start + config.rounds)
        return [principles[place % len(principles)] for place in places]
    fitting = _first(about, rank(prompt) if rank else [])[: config.rounds]
    return [*fitting, *(constitution.draw(rng) for _ in range(config.rounds - len(fitting)))]


def _first(about: Sequence[Principle], principles: Sequence[Principle]) -> list[Principle]:
    """`about`, and then those of the principles that are not among them."""
    return [*about, *(principle for principle in principles if principle not in about)]


def choose_exemplars(
    constitution: Constitution, config: ReviseConfig, rng: random.Random
) -> tuple[Exemplar, ...]:
    """A round's exemplars: sampled by `rng`, or the file's first ones (`fixed`)."""
    if config.exemplar_choice == "fixed":
        return constitution.exemplars[: config.exemplars]
    return constitution.sample_exemplars(rng, config.exemplars)
