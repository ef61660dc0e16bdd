"""Pairs for `label` that no judge makes: by revisions, rules, people and demonstrations."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from cai.config.schema import LabelConfig, Prompts
from cai.data.parquet import Row, read_rows
from cai.data.prompts import (
    SPLIT_SEED,
    UnfitRows,
    load_demonstrations,
    load_preferences,
    load_prompts,
)
from cai.data.verdicts import RevisionVerdicts
from cai.digest import seed_of
from cai.engines.base import Request, RequestFailed
from cai.engines.ledger import Recorded
from cai.engines.rows import gather_results, gather_rows
from cai.errors import CaiError
from cai.messages import Prompt, as_dicts, assistant, from_dicts
from cai.method.contrast import ContrastPair
from cai.method.preferences import (
    PreferencePair,
    SampledAnswer,
    distinct_answers,
    mix_pairs,
    rule_pair,
    shuffle_pairs,
    similar,
    with_origins,
)
from cai.method.refusal import refuses
from cai.stages.base import Context, OpenModel, split_failed
from cai.text import words

# each prompt with the policy's different answers: text -> how it was sampled
Answered = list[tuple[Prompt, dict[str, SampledAnswer]]]

Pair = TypeVar("Pair", PreferencePair, ContrastPair)


@dataclass
class Pairs:
    """Preference pairs, what was counted on the way to them, and the rows that failed."""

    pairs: list[PreferencePair] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)
    failed: list[Row] = field(default_factory=list)


def prompts_to_ask(key: str, chosen: Prompts, context: Context) -> tuple[list[Prompt], int]:
    """The prompts of label.`key`, and the number left out since an evaluation suite holds them."""
    loaded = load_prompts(chosen, context.data, context.seed)
    prompts, overlapping = context.decontaminate(loaded)
    if not prompts:
        raise CaiError(f"label.{key}: no prompt is left; see label.{key}.limit and offset")
    return prompts, overlapping


def policy_answers(
    prompts: list[Prompt], config: LabelConfig, context: Context, open_model: OpenModel
) -> tuple[Answered, int, list[Row]]:
    """The policy's different answers to each prompt: text -> how it was sampled.

    And how many prompts its context has no room for, and the rows of those that failed.
    The policy is closed at the end, so that a judge finds its memory free.
    """
    policy = open_model(context.policy)
    context.progress.start(config.answers * len(prompts), "answers")
    try:
        results = asyncio.run(_answers(prompts, config, context, policy))
    finally:
        policy.close()
    answered, failed = split_failed(prompts, results)
    fitting = [(prompt, answers) for prompt, answers in answered if answers is not None]
    return fitting, len(answered) - len(fitting), failed


async def _answers(
    prompts: list[Prompt], config: LabelConfig, context: Context, policy: Recorded
) -> list[dict[str, SampledAnswer] | RequestFailed | None]:
    """None: the prompt is beyond the policy's context."""

    async def answer(prompt: Prompt, number: int) -> tuple[str, SampledAnswer] | None:
        seed = seed_of(context.seed, prompt.id, "candidate", number)
        completion = await policy.complete(Request(prompt.messages, config.sampling, seed))
        if completion.finish_reason == "too_long":
            return None
        return completion.text, SampledAnswer(seed, completion.finish_reason == "stop")

    async def answers(prompt: Prompt) -> dict[str, SampledAnswer] | None:
        sampled = await gather_rows([answer(prompt, number) for number in range(config.answers)])
        fitting = [result for result in sampled if result is not None]
        return distinct_answers(fitting, config.max_similarity) if fitting else None

    rows = [answers(prompt) for prompt in prompts]
    return await gather_results(rows, context.engine.max_failures)


def prompts_of_both(config: LabelConfig, context: Context) -> tuple[list[Prompt], set[str], int]:
    """The prompts of label.prompts and label.benign, the ids of the latter, and those left out."""
    prompts, overlapping = prompts_to_ask("prompts", config.prompts, context)
    harmless: list[Prompt] = []
    if config.benign:
        harmless, harmless_overlapping = prompts_to_ask("benign", config.benign, context)
        overlapping += harmless_overlapping
    return prompts + harmless, {prompt.id for prompt in harmless}, overlapping


def split_by_harm(pairs: Sequence[Pair], harmless: set[str]) -> tuple[list[Pair], list[Pair]]:
    """The pairs on harmful prompts, and those on the prompts with the ids `harmless`."""
    on_harmful = [pair for pair in pairs if pair.prompt.id not in harmless]
    on_harmless = [pair for pair in pairs if pair.prompt.id in harmless]
    return on_harmful, on_harmless


def count_pairs(
    pairs: list[PreferencePair], answered: Answered, harmless: set[str]
) -> dict[str, int]:
    """What label.COUNTS says of the pairs of harmful and harmless prompts."""
    on_harmful, on_harmless = split_by_harm(pairs, harmless)
    cut_off = [answer for _, sampled in answered for answer in sampled.values() if not answer.ended]
    longer = [pair for pair in pairs if len(words(pair.chosen)) > len(words(pair.rejected))]
    return {
        "benign_prompts": len(harmless),
        "cut_off": len(cut_off),
        "harmful": len(on_harmful),
        "harmless": len(on_harmless),
        "chosen_longer": len(longer),
    }


def rule_pairs(config: LabelConfig, context: Context) -> Pairs:
    """Pairs of the policy's own answers that rules tell apart."""
    prompts, harmless, overlapping = prompts_of_both(config, context)
    with context.models() as open_model:
        answered, too_long, failed = policy_answers(prompts, config, context, open_model)
    ruled = [rule_pair(prompt, sampled, prompt.id in harmless) for prompt, sampled in answered]
    pairs = [pair for pair in ruled if isinstance(pair, PreferencePair)]
    if config.harmless_share is None:
        # shuffled before the cut, so that harmful and harmless prompts keep their shares
        pairs = shuffle_pairs(pairs, context.seed)[: config.limit]
    else:
        by_harm = split_by_harm(pairs, harmless)
        pairs = mix_pairs(*by_harm, config.harmless_share, config.limit, context.seed)
    reasons = Counter(reason for reason in ruled if isinstance(reason, str))
    numbers = {
        "prompts": len(prompts),
        "overlapping": overlapping,
        "all_good": reasons["all_good"],
        "none_good": reasons["none_good"],
        "unread": reasons["unread"],
        "prompt_too_long": too_long,
    }
    return Pairs(pairs, numbers | count_pairs(pairs, answered, harmless), failed)


def revision_pairs(config: LabelConfig, context: Context) -> Pairs:
    """The last good revision of each prompt, preferred to its first answer with certainty.

    This is the open recipes' shortcut: nothing judges the pair, and neither text is the policy's.
    """
    rows = read_rows(context.output("revise") / "revisions.parquet")
    verdicts = RevisionVerdicts.load(context.verdicts, context.data)
    pairs = [pair for row in rows if (pair := _revision_pair(row, config, verdicts)) is not None]
    unrevised = len(rows) - len(pairs) - verdicts.left_out
    numbers = {"revised_prompts": len(rows), "unrevised": unrevised}
    if context.verdicts:
        numbers |= {"called_bad": verdicts.left_out, "edited": verdicts.edited}
    return Pairs(pairs, numbers)


def _revision_pair(
    row: Row, config: LabelConfig, verdicts: RevisionVerdicts
) -> PreferencePair | None:
    """None where there is no good revision, or one that changes nothing or is called bad."""
    last = next((step for step in reversed(row["steps"]) if not step["gates"]), None)
    if last is None or not row["answer"]:
        return None
    text = verdicts.text_to_train_on(row["id"], last["revision"])
    if text is None or similar(text, row["answer"], config.max_similarity):
        return None
    prompt = Prompt(row["id"], from_dicts(row["prompt"]), row["source"], row["about"])
    principles = (last["principle"],)
    return PreferencePair(prompt, text, row["answer"], 1.0, principles, kind="revision")


def without_judged(pairs: Sequence[PreferencePair], people: Pairs) -> list[PreferencePair]:
    """The pairs on whose two answers no person has decided: a person's word replaces another's."""
    decided = {_answers_of(pair) for pair in people.pairs}
    return [pair for pair in pairs if _answers_of(pair) not in decided]


def _answers_of(pair: PreferencePair) -> tuple[str, frozenset[str]]:
    return pair.prompt.id, frozenset((pair.chosen, pair.rejected))


def human_pairs(config: LabelConfig, context: Context) -> Pairs:
    """People's pairs, without those of which an evaluation suite holds a human turn."""
    if config.human is None:
        return Pairs()
    # shares its order with `calibrate`, so that offset and limit can keep the two apart
    unfit = UnfitRows()
    labelled = load_preferences(config.human, context.data, SPLIT_SEED, unfit)
    pairs = []
    for prompt, better, worse in labelled:
        turns = [message.content for message in prompt.messages if message.role == "user"]
        if not any(context.is_held_out(text) for text in turns):
            probability = config.human.probability
            pairs.append(PreferencePair(prompt, better, worse, probability, (), kind="human"))
    numbers = {
        "human": len(pairs),
        "human_overlapping": len(labelled) - len(pairs),
        "human_unfit": unfit.count,
    }
    return Pairs(pairs, numbers)


def demonstration_pairs(config: LabelConfig, context: Context) -> Pairs:
    """Rows whose answer is preferred to one of the policy's own: to a refusal, if it gave one."""
    if config.demonstrations is None:
        return Pairs()
    rows = load_demonstrations(config.demonstrations, context.data, context.seed)
    prompts, overlapping = context.decontaminate([prompt for prompt, _ in rows])
    demonstrated = {prompt.id: answer for prompt, answer in rows}
    with context.models() as open_model:
        answered, too_long, failed = policy_answers(prompts, config, context, open_model)
    pairs = []
    for prompt, sampled in answered:
        better = demonstrated[prompt.id]
        worse = next(iter(sorted(sampled, key=refuses, reverse=True)), None)  # None: all were empty
        if worse is not None and not similar(better, worse, config.max_similarity):
            pair = PreferencePair(prompt, better, worse, 1.0, (), kind="demonstration")
            pairs.append(with_origins(pair, sampled))
    numbers = {
        "demonstrations": len(pairs),
        "demonstrations_refused": sum(refuses(pair.rejected) for pair in pairs),
        "demonstrations_overlapping": overlapping,
        "demonstrations_too_long": too_long,
    }
    return Pairs(pairs, numbers, failed)


def as_row(pair: PreferencePair) -> Row:
    """A row of pairs.parquet: trl's conversational preference format, and what the feedback was."""
    return {
        "id": pair.prompt.id,
        "kind": pair.kind,
        "about": pair.prompt.principle,
        "prompt": as_dicts(pair.prompt.messages),
        "chosen": as_dicts([assistant(pair.chosen)]),
        "rejected": as_dicts([assistant(pair.rejected)]),
        "chosen_ended": pair.ended[0],
        "rejected_ended": pair.ended[1],
        "probability": pair.probability,
        "orders": list(pair.orders),
        "log_ratio": pair.log_ratio,
        "letters": list(pair.letters),
        "principles": list(pair.principle_ids),
        "logprobs": [list(judgement.logprobs) for judgement in pair.judgements],
        "seeds": list(pair.seeds),
    }
