"""The method, on prompts and answers that a program has: `revise` and `compare`."""

from collections.abc import Iterable, Sequence
from typing import TypeVar, Unpack

from cai.api import loop
from cai.api.engine import Engine
from cai.api.prompts import PromptLike, read_prompt, read_prompts
from cai.api.results import Failed, Results
from cai.api.settings import CompareSettings, ReviseSettings, read_settings
from cai.config.schema import LabelConfig, ReviseConfig
from cai.engines.base import RequestFailed
from cai.engines.rows import RowCoroutine, gather_results
from cai.errors import UsageError
from cai.messages import Prompt
from cai.method import critique, preferences
from cai.method.constitution import Constitution
from cai.method.critique import Revision
from cai.method.preferences import PreferencePair
from cai.observe.progress import Progress
from cai.stages import feedback, pairs, revision_rows
from cai.stages.revise import completions_for_a_prompt, ranking

T = TypeVar("T")


def revise(
    prompts: Iterable[PromptLike],
    constitution: Constitution,
    engine: Engine,
    *,
    critic: Engine | None = None,
    seed: int = 0,
    progress: bool = False,
    **settings: Unpack[ReviseSettings],
) -> Results[Revision]:
    """Answers each prompt, then criticises and revises the answer by principles.

    `prompts`: texts, or conversations as lists of {"role", "content"} that end with the user's.
    `critic`: another engine that criticises and revises.
    `seed`: the same seed, prompt and settings give what a run's stage `revise` has.
    `settings`: those of conf/revise/default.yaml, by their names: `rounds=1, exemplars=0,
    sampling={"answer": {"max_new_tokens": 64}}`.

    A Revision has `prompt`, `answer` (the first one), `steps` (each with `principle_id`,
    `critique`, `revision` and `gates`, the checks that it failed), and `final`, the last revision
    that failed none, or "". It is `too_long` where the model's context has no room for the prompt.

    Raises UsageError (a prompt or a setting is wrong) and CaiError (the engine can't answer).
    """
    config = read_settings(
        ReviseConfig, "revise/default", dict(settings), [*ReviseSettings.__annotations__]
    )
    rows = read_prompts(prompts)
    rank = ranking(constitution) if config.draw == "relevant" else None
    reviser = critic or engine
    chains = [
        critique.revise(prompt, constitution, config, seed, engine.complete, reviser.complete, rank)
        for prompt in rows
    ]
    engines = [engine] if critic is None else [engine, critic]
    requests = len(rows) * completions_for_a_prompt(config, constitution)
    revisions, failed = _gather(rows, chains, engines, progress, requests, "revise")
    return Results(revisions, failed, revision_rows.as_row, revision_rows.REVISIONS)


def compare(
    answers: Iterable[tuple[PromptLike, str, str]],
    constitution: Constitution,
    engine: Engine,
    *,
    seed: int = 0,
    progress: bool = False,
    **settings: Unpack[CompareSettings],
) -> Results[PreferencePair]:
    """Asks a judge which of two answers is better by the principles, in both orders.

    `answers`: (prompt, one answer, another), as AI feedback labels them.
    `seed`: draws the principles; the same seed, prompt and settings give what a run's stage
    `label` has.
    `settings`: those of conf/label/default.yaml: `principles=3, thoughts=1`.

    A PreferencePair has `prompt`, `chosen`, `rejected`, `probability` (in [0.5, 1]: that `chosen`
    is better, the mean over both orders), `orders` (the probability of the first answer, shown as
    A and as B: far apart, the judge goes by position) and `letters` (in the same two orders, the
    probability that the judge writes A or B at all: small, it can't be relied on). A pair that is
    too long for the judge's context counts as failed.

    Raises UsageError (a row or a setting is wrong) and CaiError (the engine can't answer).
    """
    config = read_settings(
        LabelConfig, "label/default", dict(settings), [*CompareSettings.__annotations__]
    )
    rows = [_read_answers(row, place) for place, row in enumerate(answers)]
    judge = feedback.judge_settings(config)

    async def compare_row(prompt: Prompt, first: str, second: str) -> PreferencePair:
        pair = await preferences.compare(
            prompt, first, second, constitution, judge, seed, engine.complete
        )
        if pair is None:
            raise RequestFailed("the judge's context has no room for it")
        return pair

    requests = len(rows) * feedback.requests_for_a_pair(config, constitution)
    prompts = [prompt for prompt, _, _ in rows]
    comparisons = [compare_row(*row) for row in rows]
    compared, failed = _gather(prompts, comparisons, [engine], progress, requests, "compare")
    return Results(compared, failed, pairs.as_row)


def _read_answers(row: tuple[PromptLike, str, str], place: int) -> tuple[Prompt, str, str]:
    name = f"answers[{place}]"
    if isinstance(row, str) or not isinstance(row, Sequence) or len(row) != 3:
        raise UsageError(f"{name}: give (prompt, one answer, another)")
    prompt, first, second = row
    for answer in (first, second):
        if not isinstance(answer, str) or not answer.strip():
            raise UsageError(f"{name}: an answer is a text that is not empty")
    return read_prompt(prompt, f"{name}[0]"), first, second


def _gather(
    prompts: Sequence[Prompt],
    rows: Sequence[RowCoroutine[T]],
    engines: Sequence[Engine],
    progress: bool,
    requests: int,
    verb: str,
) -> tuple[list[T], list[Failed]]:
    """The rows' results, and those that failed. Shows `progress` on the way."""
    bar = Progress(verb, quiet=not progress)
    for engine in engines:
        engine.progress = bar
    bar.start(requests, "completions")
    try:
        allowed = max(engine.config.max_failures for engine in engines)
        results = loop.run(gather_results(rows, allowed))
    finally:
        bar.finish()
    paired = list(zip(prompts, results, strict=True))
    failed = [
        Failed(prompt, str(error)) for prompt, error in paired if isinstance(error, RequestFailed)
    ]
    return [result for _, result in paired if not isinstance(result, RequestFailed)], failed
