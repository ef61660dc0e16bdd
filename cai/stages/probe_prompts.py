"""Lists of prompts that a model writes for the stage `probe`, and which of them are of use."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from cai.config.schema import ProbeConfig
from cai.digest import seed_of
from cai.engines.base import Completion, Request, RequestFailed
from cai.engines.ledger import Recorded
from cai.engines.rows import gather_results
from cai.errors import CaiError
from cai.messages import Prompt
from cai.method.principle import Principle
from cai.method.probe import (
    KINDS,
    REQUESTED,
    Kind,
    is_on_topic,
    probe_request,
    prompt_fault,
    read_prompts,
    seen_prompts,
    topic_requests,
)
from cai.method.probe_texts import ProbeTexts, texts_for
from cai.method.self_instruct import SeenInstructions
from cai.stages.base import Context, split_failed
from cai.stages.lists import ListTally


@dataclass
class Harvest:
    """A principle's prompts by their kind, and what became of the others."""

    principle: Principle
    seen: dict[Kind, SeenInstructions]
    prompts: dict[Kind, list[str]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    left_out: list[dict[str, str]] = field(default_factory=list)

    def take(
        self, text: str, kind: Kind, on_topic: bool | RequestFailed | None, target: int
    ) -> None:
        """Keeps a prompt that is on topic, up to `target` of a kind."""
        if on_topic is not True:
            self.leave_out(text, kind, "off_topic" if on_topic is False else "unscored")
        elif len(self.prompts[kind]) >= target:
            self.leave_out(text, kind, "surplus")
        else:
            self.prompts[kind].append(text)

    def leave_out(self, text: str, kind: Kind, reason: str) -> None:
        row = {"principle": self.principle.id, "kind": kind, "prompt": text, "reason": reason}
        self.left_out.append(row)


Candidate = tuple[Harvest, Kind, str]


async def write_prompts(
    principles: Sequence[Principle], config: ProbeConfig, context: Context, writer: Recorded
) -> tuple[list[Harvest], ListTally]:
    """Rounds of lists, until each principle has `target` prompts of each kind.

    A principle's requests depend on nothing of another principle, so when one has changed,
    the ledger has the answers of all others.
    """
    texts = texts_for([principle.statement for principle in principles])
    harvests = [_empty_harvest(principle, texts, config) for principle in principles]
    tally = ListTally()
    lists_in_round = len(harvests) * len(KINDS) * config.requests
    scores = REQUESTED * len(topic_requests(principles[0], texts)) * config.on_topic
    context.progress.start(config.rounds * lists_in_round * (1 + scores), "requests")
    max_failures = (config.engine or context.engine).max_failures
    for round in range(config.rounds):
        list_requests = _list_requests(harvests, texts, config, context.seed, round)
        if not list_requests:
            break
        candidates: list[Candidate] = []
        completions = [writer.complete(request) for _, _, request in list_requests]
        replies = await gather_results(completions, max_failures)
        for (harvest, kind, request), reply in zip(list_requests, replies, strict=True):
            answered, failed = split_failed([Prompt.of(request.messages, "probe")], [reply])
            tally.lists += 1
            tally.failed += failed
            for _, completion in answered:
                candidates += _candidates(completion, harvest, kind, context, tally)
        on_topic = await _on_topic(candidates, texts, config, writer, max_failures)
        for (harvest, kind, text), fits in zip(candidates, on_topic, strict=True):
            harvest.take(text, kind, fits, config.target)
    return harvests, tally


def _list_requests(
    harvests: Sequence[Harvest], texts: ProbeTexts, config: ProbeConfig, seed: int, round: int
) -> list[tuple[Harvest, Kind, Request]]:
    """A round's requests for lists, of the principles and kinds that lack prompts."""
    return [
        (harvest, kind, _request(harvest, kind, texts, config, seed, (round, place)))
        for harvest in harvests
        for kind in KINDS
        for place in range(config.requests)
        if len(harvest.prompts[kind]) < config.target
    ]


def _empty_harvest(principle: Principle, texts: ProbeTexts, config: ProbeConfig) -> Harvest:
    similarity = config.max_similarity
    seen: dict[Kind, SeenInstructions] = {
        kind: seen_prompts(principle, kind, texts, similarity) for kind in KINDS
    }
    return Harvest(principle, seen)


async def _on_topic(
    candidates: Sequence[Candidate],
    texts: ProbeTexts,
    config: ProbeConfig,
    writer: Recorded,
    max_failures: float,
) -> list[bool | RequestFailed | None]:
    if not config.on_topic:
        return [True] * len(candidates)
    scored = [
        is_on_topic(text, harvest.principle, texts, writer.complete)
        for harvest, _, text in candidates
    ]
    try:
        return await gather_results(scored, max_failures)
    except CaiError as error:
        advice = "probe.on_topic=false takes the prompts without scores"
        raise CaiError(f"probe.on_topic: {error}; {advice}") from None


def _request(
    harvest: Harvest,
    kind: Kind,
    texts: ProbeTexts,
    config: ProbeConfig,
    run_seed: int,
    place: tuple[int, int],  # the round, and the request's number in it
) -> Request:
    seed = seed_of(run_seed, "probe", harvest.principle.id, kind, *place)
    rng = random.Random(seed)  # noqa: S311 - a draw, not a secret
    earlier = harvest.prompts[kind]
    examples = rng.sample(earlier, min(config.shown, len(earlier)))
    messages = probe_request(harvest.principle, kind, texts, examples, rng)
    return Request(messages, config.sampling, seed, principle=harvest.principle.id)


def _candidates(
    completion: Completion, harvest: Harvest, kind: Kind, context: Context, tally: ListTally
) -> list[Candidate]:
    """A list's prompts, without those in which something is wrong by themselves."""
    texts = read_prompts(completion.text)
    tally.unread += not texts
    tally.parsed += len(texts)
    if completion.finish_reason != "stop" and texts:
        harvest.leave_out(texts.pop(), kind, "cut_off")
    candidates: list[Candidate] = []
    for text in texts:
        fault = prompt_fault(text, harvest.principle)
        if fault is None and context.is_held_out(text):
            fault = "overlapping"
        elif fault is None and text in harvest.seen[kind]:
            fault = "similar"
        if fault is not None:
            harvest.leave_out(text, kind, fault)
        else:
            harvest.seen[kind].add(text)
            candidates.append((harvest, kind, text))
    return candidates
