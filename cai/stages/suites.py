"""The evaluation suites: their held-out prompts and references, and a model's answers to them."""

import asyncio
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cai.config.names import IN_CONTEXT, other_model
from cai.config.schema import EvaluateConfig, Suite
from cai.data.decontaminate import HeldOut
from cai.data.prompts import SPLIT_SEED, load_dialogues, load_prompts
from cai.digest import seed_of
from cai.engines.base import Request, RequestFailed, sharing_servers
from cai.engines.ledger import Recorded
from cai.engines.rows import gather_results, gather_rows
from cai.errors import CaiError
from cai.messages import Dialogue, Prompt, as_dicts, assistant, under_system, with_system
from cai.method.attacks import OPENINGS, attacked, continued
from cai.models.convert import locate
from cai.models.source import adapter_base
from cai.scoring.answers import Answer, Attempt, Scores, reference_scores
from cai.scoring.statistics import Estimate, share
from cai.stages.base import Context, OpenModel, sample_dialogues, split_failed
from cai.stages.summary import attack_title, suite_title


@dataclass(frozen=True)
class Reference:
    """A held-out prompt after its examples, and its reference answer.

    The prompt's id is that of the prompt without examples.
    """

    prompt: Prompt
    answer: str


@dataclass(frozen=True)
class Suites:
    """What every model is asked, by the suite's title."""

    prompts: Mapping[str, list[Prompt]]
    references: Mapping[str, list[Reference]]
    # suite -> how the assistant's turn has begun, where it has
    openings: Mapping[str, str] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        return {
            title: len(rows) for title, rows in (*self.prompts.items(), *self.references.items())
        }

    def under(self, system: str) -> "Suites":
        """The same behind a system message; a prompt's own follows it."""

        def behind(prompt: Prompt) -> Prompt:
            return replace(prompt, messages=under_system(prompt.messages, system))

        prompts = {title: list(map(behind, rows)) for title, rows in self.prompts.items()}
        references = {
            title: [replace(row, prompt=behind(row.prompt)) for row in rows]
            for title, rows in self.references.items()
        }
        return replace(self, prompts=prompts, references=references)

    def requests(self, samples: int) -> int:
        """Of one model. A reference is answered and scored."""
        prompts = sum(len(rows) for rows in self.prompts.values())
        return samples * prompts + 2 * sum(len(rows) for rows in self.references.values())


@dataclass
class ModelAnswers:
    """What one model answered."""

    answers: list[Answer] = field(default_factory=list)
    reference_scores: dict[str, Scores] = field(default_factory=dict)  # by suite
    too_long: dict[str, Estimate] = field(default_factory=dict)  # share of prompts, by suite
    failed: list[dict[str, Any]] = field(default_factory=list)

    def count_too_long(self, suite: str, unfit: int, total: int) -> None:
        if unfit:
            self.too_long[suite] = share(unfit, total)


def load_suites(config: EvaluateConfig, context: Context) -> Suites:
    """Raises CaiError where a suite has no row."""
    prompts: dict[str, list[Prompt]] = {}
    references: dict[str, list[Reference]] = {}
    openings: dict[str, str] = {}
    for name, suite in config.suites.items():
        if suite.kind == "instructions":
            references |= load_references(name, suite, context)
            continue
        prompts[name] = load_prompts(suite.prompts, context.data, SPLIT_SEED)
        if not prompts[name]:
            raise CaiError(f"evaluate.suites.{name}: no row is left; see its limit and offset")
        for attack in suite.attacks:
            title = attack_title(name, attack)
            prompts[title] = [attacked(prompt, attack) for prompt in prompts[name]]
            if attack in OPENINGS:
                openings[title] = OPENINGS[attack]
    return Suites(prompts, references, openings)


def load_references(name: str, suite: Suite, context: Context) -> dict[str, list[Reference]]:
    """For each number of shots: the suite's prompts with that many examples before them.

    A prompt's examples follow from the prompt alone; fewer shots are the first of more.
    Raises CaiError where no row is left, or where there are not enough examples.
    """
    loaded = load_dialogues(suite.prompts.data, context.data, SPLIT_SEED)
    dialogues = [dialogue for dialogue, _ in loaded.dialogues]
    system = {dialogue: context.data[tags["source"]].system for dialogue, tags in loaded.dialogues}
    answered = [turns for turns in dialogues if len(turns) > 1 and turns[-1].role == "assistant"]
    rows = list({turns[:-1]: turns for turns in answered}.values())  # no prompt twice
    rows.sort(key=lambda turns: seed_of(SPLIT_SEED, as_dicts(turns)))
    rows = rows[suite.prompts.offset :][: suite.prompts.limit]
    if not rows:
        raise CaiError(f"evaluate.suites.{name}: no row is left; see its limit and offset")
    most_shots = max(suite.shots)
    pool = example_pool(suite, dialogues, context) if most_shots else []
    if len(pool) < most_shots:
        raise CaiError(
            f"evaluate.suites.{name}.shots: {most_shots} examples are needed, and "
            f"{', '.join(suite.examples)} has {len(pool)}: rows of one request and its answer that "
            "repeat no held-out prompt; name other data in examples"
        )
    references: dict[str, list[Reference]] = {suite_title(name, shots): [] for shots in suite.shots}
    for turns in rows:
        plain = Prompt.of(turns[:-1], name)
        turns = with_system(turns, system[turns])
        rng = random.Random(seed_of(SPLIT_SEED, plain.id, "shots"))  # noqa: S311 - a draw
        examples = rng.sample(pool, most_shots)
        head = int(turns[0].role == "system")
        for shots in suite.shots:
            shot_messages = tuple(message for example in examples[:shots] for message in example)
            messages = (*turns[:head], *shot_messages, *turns[head:-1])
            reference = Reference(replace(plain, messages=messages), turns[-1].content)
            references[suite_title(name, shots)].append(reference)
    return references


def example_pool(suite: Suite, held_out: Sequence[Dialogue], context: Context) -> list[Dialogue]:
    """Training rows of one request and its answer; none repeats a held-out prompt."""
    overlap = HeldOut.of_dialogues(held_out)

    def usable(dialogue: Dialogue) -> bool:
        roles = [message.role for message in dialogue]
        return roles == ["user", "assistant"] and dialogue[0].content not in overlap

    return sample_dialogues(suite.examples, context.data, SPLIT_SEED, usable)


def ask_models(
    names: Sequence[str], suites: Suites, config: EvaluateConfig, context: Context
) -> dict[str, ModelAnswers]:
    """Every model's answers to every suite, one model after another.

    Adapters that are given by their folders may share a server, with the base model too.
    """
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
    result = ModelAnswers()
    for (suite, sample), texts in replies.items():
        answered, failed = split_failed(suites.prompts[suite], texts)
        result.failed += [{"model": name, "suite": suite} | row for row in failed]
        fitting = [(prompt, text) for prompt, text in answered if text is not None]
        result.answers += [Answer(name, suite, prompt, text, sample) for prompt, text in fitting]
        # a prompt that does not fit fits in no sample
        result.count_too_long(suite, len(answered) - len(fitting), len(answered))
    for suite, rows in attempts.items():
        references = suites.references[suite]
        answered, failed = split_failed([reference.prompt for reference in references], rows)
        result.failed += [{"model": name, "suite": suite} | row for row in failed]
        expected = {reference.prompt.id: reference.answer for reference in references}
        fitting = [
            (prompt, attempt, expected[prompt.id]) for prompt, attempt in answered if attempt
        ]
        result.reference_scores[suite] = reference_scores(fitting)
        result.answers += [
            Answer(name, suite, prompt, attempt.text, 0, reference)
            for prompt, attempt, reference in fitting
        ]
        result.count_too_long(suite, len(answered) - len(fitting), len(answered))
    for suite, estimate in result.too_long.items():
        count = estimate.count
        unfit = round(estimate.value * count)
        context.progress.say(f"{name}: {unfit} of {count} rows of {suite} do not fit its context")
    return result


Replies = dict[
    tuple[str, int], list[str | RequestFailed | None]
]  # by suite and sample; None: too long
Attempts = dict[str, list[Attempt | RequestFailed | None]]  # by suite


async def _ask(
    suites: Suites, config: EvaluateConfig, context: Context, model: Recorded
) -> tuple[Replies, Attempts]:
    async def reply(prompt: Prompt, opening: str, sample: int) -> str | None:
        draw = [sample] if sample else []
        seed = seed_of(context.seed, prompt.id, "evaluate", *draw)
        messages = (*prompt.messages, assistant(opening)) if opening else prompt.messages
        completion = await model.complete(Request(messages, config.sampling, seed))
        return (
            None if completion.finish_reason == "too_long" else continued(opening, completion.text)
        )

    # metrics against a reference compare models, not draws
    greedy = replace(config.sampling, temperature=0.0)

    async def attempt(reference: Reference) -> Attempt | None:
        """None where the prompt with its examples does not fit the model's context."""
        messages, answer = reference.prompt.messages, reference.answer
        requests = [Request(messages, greedy), Request(messages, continuations=(answer,))]
        answered, scored = await gather_rows([model.complete(request) for request in requests])
        if "too_long" in (answered.finish_reason, scored.finish_reason):
            return None
        bits = -scored.logprobs[0] / math.log(2)
        return Attempt(answered.text, bits / len(answer.encode()))

    allowed = context.engine.max_failures
    keys = [(suite, sample) for suite in suites.prompts for sample in range(config.seeds)]
    texts = await gather_rows(
        [
            gather_results(
                [
                    reply(prompt, suites.openings.get(suite, ""), sample)
                    for prompt in suites.prompts[suite]
                ],
                allowed,
            )
            for suite, sample in keys
        ]
    )
    attempts = await gather_rows(
        [
            gather_results([attempt(reference) for reference in references], allowed)
            for references in suites.references.values()
        ]
    )
    replies = dict(zip(keys, texts, strict=True))
    return replies, dict(zip(suites.references, attempts, strict=True))
