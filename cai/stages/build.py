"""Training data where there is little: self-instruct (Wang et al. 2022), a teacher's answers."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from cai.config.names import builds
from cai.config.schema import BuildConfig, Config
from cai.data.parquet import Row, write_rows
from cai.data.prompts import load_prompts, sample_dialogues
from cai.digest import seed_of
from cai.engines.base import Completion, Request, RequestFailed
from cai.engines.ledger import Recorded
from cai.engines.rows import gather_results
from cai.errors import CaiError
from cai.messages import Dialogue, Prompt, as_dicts, assistant, user
from cai.method.self_instruct import (
    SeenInstructions,
    answer_fault,
    draw_examples,
    instruction_fault,
    list_request,
    read_list,
)
from cai.stages.base import (
    Context,
    Stage,
    own_model_part,
    split_failed,
    write_failed,
)
from cai.stages.lists import ListTally, write_left_out
from cai.stages.summary import Summary as BaseSummary
from cai.stages.summary import nonzero


@dataclass(frozen=True)
class Summary(BaseSummary):
    lists: int  # lists of instructions that were asked for
    unread: int  # of them without an item
    parsed: int  # instructions that were read
    distilled: int  # given prompts
    left_out: dict[str, int]  # reason -> rows
    built: int  # rows to train on
    failed: int  # requests that no engine answered

    counted: ClassVar = ("built",)

    def description(self) -> str:
        return "wrote instructions and answers to train on"

    def lines(self) -> list[tuple[str, str]]:
        return nonzero(
            ("lists of instructions asked for", self.lists),
            ("of them without an instruction", self.unread),
            ("instructions read", self.parsed),
            ("given prompts", self.distilled),
            *((f"left out: {reason}", count) for reason, count in self.left_out.items()),
            ("requests that no engine answered", self.failed),
            ("rows built", self.built),
        )


@dataclass
class Written(ListTally):
    """New instructions, and what became of the others."""

    instructions: list[str] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)


def run(config: BuildConfig, work: Path, context: Context) -> Summary:
    """Writes work/instructions.parquet, which sft reads as `built`, and work/left_out.parquet."""
    given_prompts, left_out = given_to_answer(config, context)
    with context.models() as open_model:
        teacher = open_model("base", config.engine, config.model)
        max_failures = (config.engine or context.engine).max_failures
        written = asyncio.run(write_instructions(config, context, teacher, max_failures))
        built = [Prompt.of((user(text),), "self_instruct") for text in written.instructions]
        prompts = list({prompt.id: prompt for prompt in (*built, *given_prompts)}.values())
        context.progress.start(len(prompts), "answers")
        replies = asyncio.run(_answers(prompts, config, context.seed, teacher, max_failures))
    answered, unanswered = split_failed(prompts, replies)
    rows, faulty = rows_to_train_on(answered)
    left_out += written.left_out + faulty
    reasons = write_left_out(work, left_out)
    if not rows:
        raise CaiError(
            f"build: not one row is left of {written.parsed} instructions in {written.lists} lists "
            f"(left out: {reasons}); another build.model may write better lists and answers"
        )
    write_rows(work / "instructions.parquet", rows)
    return Summary(
        lists=written.lists,
        unread=written.unread,
        parsed=written.parsed,
        distilled=len(given_prompts),
        left_out=reasons,
        built=len(rows),
        failed=write_failed(work, written.failed + unanswered),
    )


def given_to_answer(
    config: BuildConfig, context: Context
) -> tuple[list[Prompt], list[dict[str, str]]]:
    """The prompts of `build.prompts`, and those of them that an evaluation suite holds."""
    if config.prompts is None:
        return [], []
    prompts, left_out = [], []
    for prompt in load_prompts(config.prompts, context.data, context.seed):
        if context.is_held_out(prompt.text):
            left_out.append(_left_out(prompt.text, "overlapping"))
        else:
            prompts.append(prompt)
    return prompts, left_out


def rows_to_train_on(
    answered: Sequence[tuple[Prompt, Completion]],
) -> tuple[list[Row], list[dict[str, str]]]:
    """The sound answers behind their prompts, and the others."""
    rows, left_out = [], []
    for prompt, answer in answered:
        if fault := answer_fault(answer.text, answer.finish_reason):
            left_out.append(_left_out(prompt.text, f"answer_{fault}", answer.text))
        else:
            messages = as_dicts((*prompt.messages, assistant(answer.text)))
            rows.append({"id": prompt.id, "source": prompt.source, "messages": messages})
    return rows, left_out


def _left_out(instruction: str, reason: str, answer: str = "") -> dict[str, str]:
    return {"instruction": instruction, "reason": reason, "answer": answer}


async def _answers(
    prompts: list[Prompt], config: BuildConfig, seed: int, teacher: Recorded, max_failures: float
) -> list[Completion | RequestFailed]:
    sampling = config.sampling.answer
    requests = [
        Request(prompt.messages, sampling, seed_of(seed, prompt.id, "build answer"))
        for prompt in prompts
    ]
    return await gather_results([teacher.complete(request) for request in requests], max_failures)


async def write_instructions(
    config: BuildConfig, context: Context, teacher: Recorded, max_failures: float
) -> Written:
    """Rounds of lists that the teacher writes, until there are `target` new instructions.

    A round asks for its lists at once and reads them in the order in which it has asked, so the
    result does not depend on which answer comes first.
    """
    seeds = [text for text in seed_instructions(config, context) if not context.is_held_out(text)]
    if config.target and not seeds:
        raise CaiError(
            f"build.data: no seed instruction in {', '.join(config.data)} that no suite holds"
        )
    seen = SeenInstructions(seeds, config.max_similarity)
    written = Written()
    context.progress.start(config.rounds * config.requests if config.target else 0, "lists")
    for round in range(config.rounds):
        if len(written.instructions) >= config.target:
            break
        prompts, requests = [], []
        for place in range(config.requests):
            seed = seed_of(context.seed, "build", round, place)
            rng = random.Random(seed)  # noqa: S311 - a draw, not a secret
            examples = draw_examples(
                seeds, written.instructions, config.shown, config.shown_built, rng
            )
            messages = list_request(examples)
            prompts.append(Prompt.of(messages, "self_instruct"))
            requests.append(Request(messages, config.sampling.instructions, seed))
        replies = await gather_results(
            [teacher.complete(request) for request in requests], max_failures
        )
        answered, failed = split_failed(prompts, replies)
        written.failed += failed
        written.lists += len(prompts)
        for _, reply in answered:
            _take(reply, written, seen, config.target, context)
    return written


def _take(
    reply: Completion, written: Written, seen: SeenInstructions, target: int, context: Context
) -> None:
    """Adds a list's instructions to those that are written, or to those that are left out."""
    instructions = read_list(reply.text)
    written.unread += not instructions
    written.parsed += len(instructions)
    if reply.finish_reason != "stop" and instructions:
        written.left_out.append(_left_out(instructions.pop(), "cut_off"))
    for text in instructions:
        fault = instruction_fault(text)
        if fault is None and len(written.instructions) >= target:
            fault = "surplus"
        elif fault is None and context.is_held_out(text):
            fault = "overlapping"
        elif fault is None and text in seen:
            fault = "similar"
        if fault is not None:
            written.left_out.append(_left_out(text, fault))
        else:
            seen.add(text)
            written.instructions.append(text)


def seed_instructions(config: BuildConfig, context: Context) -> list[str]:
    """Different requests, drawn by the seed, that data sets' conversations begin with."""

    def usable(dialogue: Dialogue) -> bool:
        return dialogue[0].role == "user" and instruction_fault(dialogue[0].content) is None

    dialogues = sample_dialogues(config.data, context.data, context.seed, usable)
    return list(dict.fromkeys(dialogue[0].content for dialogue in dialogues))


def _data(config: Config, round: int) -> list[str]:
    return [*config.build.data, *(config.build.prompts.data if config.build.prompts else ())]


STAGE = Stage(
    kind="build",
    version=3,
    run=run,
    summary=Summary,
    inputs=lambda config, round: (),
    data=_data,
    key_parts=lambda config, law: own_model_part("teacher", "build", config),
    included=builds,
    decontaminates=True,
)
