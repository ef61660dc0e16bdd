"""Models' answers to the evaluation suites."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from cai.config.names import IN_CONTEXT, other_model
from cai.config.schema import EvaluateConfig, Sampling
from cai.data.parquet import Row
from cai.digest import seed_of
from cai.engines.base import Request, RequestFailed, sharing_servers
from cai.engines.ledger import Recorded
from cai.engines.rows import gather_results, gather_rows
from cai.messages import Prompt, assistant
from cai.method.attacks import continued
from cai.models.convert import locate
from cai.models.source import adapter_base
from cai.scoring.answers import Answer, Attempt, Scores, reference_scores
from cai.scoring.statistics import Estimate, share
from cai.stages.base import Context, OpenModel, split_failed
from cai.stages.suites import Reference, Suites

T = TypeVar("T")

# by suite and sample; None: the prompt does not fit the model's context
Replies = dict[tuple[str, int], list[str | RequestFailed | None]]
Attempts = dict[str, list[Attempt | RequestFailed | None]]  # by suite


@dataclass
class ModelAnswers:
    """What one model answered."""

    name: str  # the model's
    answers: list[Answer] = field(default_factory=list)
    reference_scores: dict[str, Scores] = field(default_factory=dict)  # by suite
    too_long: dict[str, Estimate] = field(default_factory=dict)  # share of prompts, by suite
    failed: list[Row] = field(default_factory=list)

    def add_replies(
        self,
        suite: str,
        sample: int,
        prompts: Sequence[Prompt],
        replies: Sequence[str | RequestFailed | None],
    ) -> None:
        """One reply to each prompt of a suite."""
        self.answers += [
            Answer(self.name, suite, prompt, text, sample)
            for prompt, text in self._fitting(suite, prompts, replies)
        ]

    def add_attempts(
        self,
        suite: str,
        references: Sequence[Reference],
        attempts: Sequence[Attempt | RequestFailed | None],
    ) -> None:
        """One attempt at each prompt of a suite that has reference answers."""
        prompts = [reference.prompt for reference in references]
        expected = {reference.prompt.id: reference.answer for reference in references}
        rows = [
            (prompt, attempt, expected[prompt.id])
            for prompt, attempt in self._fitting(suite, prompts, attempts)
        ]
        self.reference_scores[suite] = reference_scores(rows)
        self.answers += [
            Answer(self.name, suite, prompt, attempt.text, 0, reference)
            for prompt, attempt, reference in rows
        ]

    def _fitting(
        self, suite: str, prompts: Sequence[Prompt], results: Sequence[T | RequestFailed | None]
    ) -> list[tuple[Prompt, T]]:
        """The results; counts the prompts that failed, or that the context has no room for."""
        answered, failed = split_failed(prompts, results)
        self.failed += [{"model": self.name, "suite": suite} | row for row in failed]
        fitting = [(prompt, result) for prompt, result in answered if result is not None]
        if unfit := len(answered) - len(fitting):
            # a prompt that does not fit fits in no sample
            self.too_long[suite] = share(unfit, len(answered))
        return fitting


def ask_models(
    names: Sequence[str], suites: Suites, config: EvaluateConfig, context: Context
) -> dict[str, ModelAnswers]:
    """Every model's answers to every suite, one model after another.

    Adapters that are given by their folders may share a server, with the base model too.
    """
    context.progress.start(suites.requests(config.seeds) * len(names), "requests")
    folders = [locate(other_model(name)) for name in names if not _is_own(name, context)]
    if any(map(adapter_base, folders)) and "base" in names:
        folders.append(context.model_path("base"))
    with sharing_servers(context.engine, folders, context.engine_opener) as opener:
        asking = replace(context, engine_opener=opener)
        with asking.models() as open_model:
            return {name: ask_model(name, suites, config, context, open_model) for name in names}


def _is_own(name: str, context: Context) -> bool:
    return name == IN_CONTEXT or context.owns(name)


def ask_model(
    name: str, suites: Suites, config: EvaluateConfig, context: Context, open_model: OpenModel
) -> ModelAnswers:
    """One model's answers to every suite. The model is closed at the end."""
    context.progress.note = name
    if name == IN_CONTEXT:
        suites = suites.under(context.load_constitution().as_system_prompt())
        model = open_model("base")
    else:
        model = open_model(name, model=None if context.owns(name) else other_model(name))
    try:
        replies, attempts = asyncio.run(_ask(suites, config, context, model))
    finally:
        model.close()
    answers = ModelAnswers(name)
    for (suite, sample), texts in replies.items():
        answers.add_replies(suite, sample, suites.prompts[suite], texts)
    for suite, rows in attempts.items():
        answers.add_attempts(suite, suites.references[suite], rows)
    for suite, estimate in answers.too_long.items():
        count = estimate.count
        unfit = round(estimate.value * count)
        context.progress.say(f"{name}: {unfit} of {count} rows of {suite} do not fit its context")
    return answers


async def _ask(
    suites: Suites, config: EvaluateConfig, context: Context, model: Recorded
) -> tuple[Replies, Attempts]:
    """All prompts of all suites at once, then all references."""
    allowed = context.engine.max_failures
    samples = [(suite, sample) for suite in suites.prompts for sample in range(config.seeds)]
    answering = []
    for suite, sample in samples:
        opening = suites.openings.get(suite, "")
        replies = [
            _reply(prompt, opening, sample, config.sampling, context.seed, model)
            for prompt in suites.prompts[suite]
        ]
        answering.append(gather_results(replies, allowed))
    texts = dict(zip(samples, await gather_rows(answering), strict=True))
    attempting = []
    for references in suites.references.values():
        attempts = [_attempt(reference, config.sampling, model) for reference in references]
        attempting.append(gather_results(attempts, allowed))
    return texts, dict(zip(suites.references, await gather_rows(attempting), strict=True))


async def _reply(
    prompt: Prompt, opening: str, sample: int, sampling: Sampling, run_seed: int, model: Recorded
) -> str | None:
    """With its `opening`, which the assistant's turn begins with. None: too long."""
    draw = [sample] if sample else []
    seed = seed_of(run_seed, prompt.id, "evaluate", *draw)
    messages = (*prompt.messages, assistant(opening)) if opening else prompt.messages
    completion = await model.complete(Request(messages, sampling, seed))
    too_long = completion.finish_reason == "too_long"
    return None if too_long else continued(opening, completion.text)


async def _attempt(reference: Reference, sampling: Sampling, model: Recorded) -> Attempt | None:
    """An answer, and the bits a byte that the reference costs. None: too long."""
    messages, answer = reference.prompt.messages, reference.answer
    # metrics against a reference compare models, not draws
    greedy = replace(sampling, temperature=0.0)
    requests = [Request(messages, greedy), Request(messages, continuations=(answer,))]
    answered, scored = await gather_rows([model.complete(request) for request in requests])
    if "too_long" in (answered.finish_reason, scored.finish_reason):
        return None
    bits = -scored.logprobs[0] / math.log(2)
    return Attempt(answered.text, bits / len(answer.encode()))
