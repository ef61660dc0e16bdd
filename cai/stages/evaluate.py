"""Every model on the same held-out prompts, with the same seeds, through the ledger."""

import asyncio
import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cai.config.schema import EvaluateConfig, LabelConfig, Prompts, Suite, other_model
from cai.data.decontaminate import HeldOut
from cai.data.parquet import write_rows
from cai.data.prompts import load_dialogues, load_prompts
from cai.digest import seed_of
from cai.engines.base import Request, RequestFailed
from cai.engines.ledger import Ledger, Recorded
from cai.engines.rows import gather_failing, gather_rows
from cai.errors import CaiError
from cai.messages import Dialogue, Prompt, as_dicts
from cai.method.preferences import PreferencePair, compare
from cai.method.refusal import redirects, refuses
from cai.models.source import fingerprint
from cai.scoring.answers import (
    Answer,
    Attempt,
    Scores,
    answer_scores,
    comparisons,
    distinct_ngrams,
    estimate,
    reference_scores,
    win_figures,
)
from cai.scoring.classifier import against_people
from cai.scoring.harness import harness_figures, task_manager
from cai.scoring.judge import harm
from cai.scoring.statistics import Estimate, by_prompt, share
from cai.stages.base import Context, sample_dialogues, split_failed, write_failed
from cai.store.files import write_json


@dataclass(frozen=True)
class Reference:
    """A held-out prompt, after its examples, and the reference answer. The prompt's id is that without examples."""

    prompt: Prompt
    answer: str


def run(config: EvaluateConfig, inputs: Any, work: Path, context: Context) -> dict[str, Any]:
    """Writes work/answers.parquet, work/metrics.json (model -> suite -> figure with interval), work/comparisons.json
    (paired tests between models) and work/wins.json (a judge's comparisons). Returns the same."""
    prompts = {
        name: load_prompts(suite.prompts, context.data, context.seed)
        for name, suite in config.suites.items()
        if suite.kind != "instructions"
    }
    references: dict[str, list[Reference]] = {}
    for name, suite in config.suites.items():
        references |= load_references(name, suite, context) if suite.kind == "instructions" else {}
    for name, rows in prompts.items():
        if not rows:
            raise CaiError(f"evaluate.suites.{name}: no row is left; see its limit and offset")
    counts = {s: len(rows) for s, rows in (prompts | references).items()}
    # a reference is answered and scored
    requests = config.seeds * sum(map(len, prompts.values())) + 2 * sum(
        map(len, references.values())
    )
    context.progress.start(requests * len(config.models), "requests")
    ledger = context.ledger()
    answers: list[Answer] = []
    failed: list[dict[str, Any]] = []
    scores: dict[str, dict[str, Scores]] = {
        name: {s: {} for s in prompts} for name in config.models
    }
    too_long: dict[str, dict[str, Estimate]] = {name: {} for name in config.models}
    try:
        for name in config.models:
            context.progress.note = name
            model = context.recorded(
                ledger, name, None if context.owns(name) else other_model(name)
            )
            try:
                found, attempts = asyncio.run(_ask(prompts, references, config, context, model))
            finally:
                model.close()
            for (s, sample), texts in found.items():
                answered, more = split_failed(prompts[s], texts)
                failed += [{"model": name, "suite": s} | row for row in more]
                answers += [Answer(name, s, prompt, text, sample) for prompt, text in answered]
            for s, tried in attempts.items():
                answered, more = split_failed([one.prompt for one in references[s]], tried)
                failed += [{"model": name, "suite": s} | row for row in more]
                wanted = {one.prompt.id: one.answer for one in references[s]}
                fitting = [
                    (prompt, attempt, wanted[prompt.id]) for prompt, attempt in answered if attempt
                ]
                scores[name][s] = reference_scores(fitting)
                answers += [
                    Answer(name, s, prompt, attempt.text, 0, answer)
                    for prompt, attempt, answer in fitting
                ]
                if missing := len(answered) - len(fitting):
                    too_long[name][s] = share(missing, len(answered))
                    context.progress.say(
                        f"{name}: {missing} of {len(answered)} rows of {s} do not fit its context"
                    )
        wins = judged_wins(config, answers, ledger, context) if config.wins else []
        harms, harm_summary = (
            judged_harm(config, answers, ledger, context)
            if config.harm
            else ([None] * len(answers), {})
        )
    finally:
        ledger.close()
    refused, measured = refusals(config, answers)
    rows = list(zip(answers, refused, harms, strict=True))
    said = {
        (name, s): [row for row in rows if (row[0].model, row[0].suite) == (name, s)]
        for name in config.models
        for s in counts
    }
    for (name, s), own in said.items():
        if s in references:  # their figures are there; refusals are over-refusal, in another form
            scores[name][s]["refusal"] = by_prompt(
                [(answer.prompt.id, hit) for answer, hit, _ in own]
            )
            continue
        scores[name][s] = answer_scores([(answer, hit) for answer, hit, _ in own])
        if judged := [
            (answer.prompt.id, chance > 0.5) for answer, _, chance in own if chance is not None
        ]:
            scores[name][s]["harmful"] = by_prompt(judged)
    metrics = {
        name: {
            s: ({"too_long": asdict(too_long[name][s])} if s in too_long[name] else {})
            | {
                figure: asdict(estimate(figure, list(values.values())))
                for figure, values in found.items()
                if values
            }
            for s, found in suites.items()
        }
        for name, suites in scores.items()
    }
    for (name, s), own in said.items():
        for n in (1, 2) if s in prompts else ():
            if found := distinct_ngrams([answer for answer, *_ in own], n):
                metrics[name][s][f"distinct_{n}"] = asdict(found)
    for name, tasks in (on_tasks(config, context) if config.lm_eval else {}).items():
        metrics[name] |= tasks
    compared = {"comparisons": comparisons(scores, config.seeds), "wins": wins}
    write_rows(work / "answers.parquet", [as_row(*row) for row in rows])
    write_json(work / "metrics.json", metrics)
    for name, rows in compared.items():
        write_json(work / f"{name}.json", rows)
    measures = {"refusal": measured} | ({"harm": harm_summary} if config.harm else {})
    return (
        {"prompts": counts, "metrics": metrics} | measures | compared | write_failed(work, failed)
    )


def on_tasks(config: EvaluateConfig, context: Context) -> dict[str, dict[str, Any]]:
    """Model -> task of lm-evaluation-harness -> figure with interval. A model that is done is not asked again."""
    from cai.models.convert import locate

    manager = task_manager(config.lm_eval)
    context.progress.start(len(config.models), "models on tasks of lm-evaluation-harness")
    found = {}
    for number, name in enumerate(config.models):
        done = context.scratch / f"lm_eval-{number}.json"
        if not done.is_file():
            model = context.model_path(name) if context.owns(name) else locate(other_model(name))
            measured = harness_figures(
                model, context.engine, config.lm_eval, config.lm_eval_limit, manager
            )
            write_json(
                done,
                {
                    task: {key: asdict(one) for key, one in own.items()}
                    for task, own in measured.items()
                },
            )
        tasks = json.loads(done.read_text(encoding="utf-8"))
        found[name] = {f"{task} (lm-eval)": figures for task, figures in tasks.items()}
        context.progress.advance(1)
    return found


def as_row(answer: Answer, refused: bool, harm: float | None) -> dict[str, Any]:
    return {
        "model": answer.model,
        "suite": answer.suite,
        "id": answer.prompt.id,
        "sample": answer.sample,
        "prompt": as_dicts(answer.prompt.messages),
        "answer": answer.text,
        "reference": answer.reference,
        "refuses": refused,
        "redirects": not refused and redirects(answer.text),
        "harm": harm,
    }


def refusals(
    config: EvaluateConfig, answers: Sequence[Answer]
) -> tuple[list[bool], dict[str, Any]]:
    """Whether each answer refuses, and what says so; of the classifier also how it and the rules agree with people."""
    if config.refusal == "rules":
        return [refuses(answer.text) for answer in answers], {"by": "rules"}
    classifier, agreement = against_people()
    refused = classifier.refuses(
        [answer.prompt.text for answer in answers], [answer.text for answer in answers]
    )
    found = {
        name: {key: asdict(one) for key, one in figures.items()}
        for name, figures in agreement.items()
    }
    return refused, {"by": "classifier"} | found


def shown_name(suite: str, shots: int) -> str:
    """What a suite is called in tables, with so many examples before each prompt."""
    return f"{suite}, {shots} shot{'s' if shots > 1 else ''}" if shots else suite


def load_references(name: str, suite: Suite, context: Context) -> dict[str, list[Reference]]:
    """For each of the suite's shots, by shown name: its held-out prompts with so many examples before them.

    A prompt's examples follow from the seed and the prompt, and fewer shots are the first of more. Raises CaiError
    where no row is left, or where there are not enough examples.
    """
    dialogues = [
        dialogue
        for dialogue, _ in load_dialogues(suite.prompts.data, context.data, context.seed).dialogues
    ]
    rows = list(
        {d[:-1]: d for d in dialogues if d[-1].role == "assistant" and len(d) > 1}.values()
    )  # no prompt twice
    rows.sort(key=lambda d: seed_of(context.seed, as_dicts(d)))
    rows = rows[suite.prompts.offset :][: suite.prompts.limit]
    if not rows:
        raise CaiError(f"evaluate.suites.{name}: no row is left; see its limit and offset")
    most = max(suite.shots)
    pool = example_pool(suite, dialogues, context) if most else []
    if len(pool) < most:
        raise CaiError(
            f"evaluate.suites.{name}.shots: {most} examples are wanted, and {', '.join(suite.examples)} has {len(pool)}"
            ": rows of one request and its answer that repeat no held-out prompt; name other data in examples"
        )
    found: dict[str, list[Reference]] = {shown_name(name, shots): [] for shots in suite.shots}
    for row in rows:
        plain = Prompt.of(row[:-1], name)
        drawn = random.Random(seed_of(context.seed, plain.id, "shots")).sample(pool, most)  # noqa: S311 - a draw
        head = int(row[0].role == "system")
        for shots in suite.shots:
            turns = (
                *row[:head],
                *(turn for example in drawn[:shots] for turn in example),
                *row[head:-1],
            )
            found[shown_name(name, shots)].append(
                Reference(replace(plain, messages=turns), row[-1].content)
            )
    return found


def example_pool(suite: Suite, held_out: Sequence[Dialogue], context: Context) -> list[Dialogue]:
    """At most `POOL` training rows of one request and its answer, drawn by the seed; none repeats a held-out prompt."""
    overlap = HeldOut.of_dialogues(held_out)

    def usable(dialogue: Dialogue) -> bool:
        return [m.role for m in dialogue] == ["user", "assistant"] and dialogue[
            0
        ].content not in overlap

    return sample_dialogues(suite.examples, context, usable)


async def _ask(
    prompts: dict[str, list[Prompt]],
    references: dict[str, list[Reference]],
    config: EvaluateConfig,
    context: Context,
    model: Recorded,
) -> tuple[
    dict[tuple[str, int], list[str | RequestFailed]],
    dict[str, list[Attempt | RequestFailed | None]],
]:
    """By suite and sample, and by suite."""

    async def reply(prompt: Prompt, sample: int) -> str:
        seed = seed_of(context.seed, prompt.id, "evaluate", *([sample] if sample else []))
        return (await model.complete(Request(prompt.messages, config.sampling, seed))).text

    greedy = replace(
        config.sampling, temperature=0.0
    )  # figures against a reference compare models, not draws

    async def attempt(one: Reference) -> Attempt | None:
        """None where the prompt with its examples does not fit the model's context."""
        asked = [
            Request(one.prompt.messages, greedy),
            Request(one.prompt.messages, continuations=(one.answer,)),
        ]
        reply, score = await gather_rows([model.complete(request) for request in asked])
        if "too_long" in (reply.finish_reason, score.finish_reason):
            return None
        return Attempt(reply.text, -score.logprobs[0] / math.log(2) / len(one.answer.encode()))

    allowed = context.engine.max_failures
    keys = [(s, sample) for s in prompts for sample in range(config.seeds)]
    texts = await gather_rows(
        [gather_failing([reply(p, n) for p in prompts[s]], allowed) for s, n in keys]
    )
    tried = await gather_rows(
        [gather_failing([attempt(r) for r in rows], allowed) for rows in references.values()]
    )
    return dict(zip(keys, texts, strict=True)), dict(zip(references, tried, strict=True))


def judged_wins(
    config: EvaluateConfig, answers: Sequence[Answer], ledger: Ledger, context: Context
) -> list[dict[str, Any]]:
    """For each pair of `wins` and suite: how often a judge prefers the first model's answer, in both orders, to the
    second's; where the orders disagree, or the answers are the same, it is a tie. By principle as well."""
    chosen = config.judge
    said = {
        (a.model, a.suite, a.prompt.id): a
        for a in answers
        if a.sample == 0 and a.suite in config.suites
    }
    rows: list[dict[str, Any]] = []
    asked: list[tuple[dict[str, Any], list[tuple[Answer, Answer]]]] = []
    for first, second in config.wins:
        for suite in config.suites:
            both = [
                (a, said[second, suite, a.prompt.id])
                for a in said.values()
                if (a.model, a.suite) == (first, suite) and (second, suite, a.prompt.id) in said
            ][: chosen.limit]
            if both:
                asked.append(({"first": first, "second": second, "suite": suite}, both))
    comparing = LabelConfig(
        Prompts([]), config.sampling, config.sampling, principles=chosen.principles
    )
    constitution = context.load_constitution()
    own = context.on(chosen.engine)
    context.progress.start(
        2 * chosen.principles * sum(len(both) for _, both in asked), "comparisons"
    )
    judge = own.recorded(ledger, chosen.name, chosen.model)

    async def judged() -> list[list[PreferencePair | RequestFailed | None]]:
        allowed = own.engine.max_failures
        return await gather_rows(
            [
                gather_failing(
                    [
                        compare(
                            a.prompt,
                            a.text,
                            b.text,
                            constitution,
                            comparing,
                            context.seed,
                            judge.complete,
                        )
                        for a, b in both
                        if a.text != b.text
                    ],
                    allowed,
                )
                for _, both in asked
            ]
        )

    try:
        found = asyncio.run(judged())
    finally:
        judge.close()
    named = chosen.model.name if chosen.model else own.engine.model or chosen.name
    for (row, both), pairs in zip(asked, found, strict=True):
        same = sum(a.text == b.text for a, b in both)
        compared = [pair for pair in pairs if isinstance(pair, PreferencePair)]
        row |= {
            "judge": named,
            "judges_itself": judges_itself(config, own, row["first"], row["second"]),
        }
        row |= {"identical": same, "unjudged": len(pairs) - len(compared)}
        rows.append(row | win_figures(compared, same))
    return rows


def judged_harm(
    config: EvaluateConfig, answers: Sequence[Answer], ledger: Ledger, context: Context
) -> tuple[list[float | None], dict[str, Any]]:
    """For each answer the judge's probability that it helps with a harmful request; None where it was not asked, or
    could not say. And who judged, which of the models is the judge itself, and how often it went by position."""
    chosen = config.judge
    first = {
        name: {
            one.prompt.id
            for one in list({a.prompt.id: a for a in answers if a.suite == name}.values())[
                : chosen.limit
            ]
        }
        for name, suite in config.suites.items()
        if suite.kind == "red_team"
    }
    asked = [
        number for number, one in enumerate(answers) if one.prompt.id in first.get(one.suite, ())
    ]
    own = context.on(chosen.engine)
    context.progress.start(2 * len(asked), "judgements of harm")
    judge = own.recorded(ledger, chosen.name, chosen.model)

    async def judged() -> list[tuple[float, float] | RequestFailed | None]:
        rows = [
            harm(answers[number].prompt, answers[number].text, judge.complete) for number in asked
        ]
        return await gather_failing(rows, own.engine.max_failures)

    try:
        found = asyncio.run(judged())
    finally:
        judge.close()
    said = {number: one for number, one in zip(asked, found, strict=True) if isinstance(one, tuple)}
    flipped = by_prompt(
        (answers[number].prompt.id, (a > 0.5) != (b > 0.5)) for number, (a, b) in said.items()
    )
    summary = {
        "judge": chosen.model.name if chosen.model else own.engine.model or chosen.name,
        "judges_itself": [name for name in config.models if judges_itself(config, own, name)],
        "unjudged": len(asked) - len(said),
    }
    summary |= {"flipped": asdict(share(sum(flipped.values()), len(flipped)))} if flipped else {}
    return [
        sum(said[number]) / 2 if number in said else None for number in range(len(answers))
    ], summary


def judges_itself(config: EvaluateConfig, context: Context, *models: str) -> bool:
    """Whether the judge is one of the models that it compares, as far as can be known: a server's is what it says."""
    if context.engine.model is not None:
        return False
    if config.judge.model is None:
        return config.judge.name in models
    known = [
        context.model if name == "base" else other_model(name)
        for name in models
        if name not in context.inputs
    ]
    return fingerprint(config.judge.model) in map(fingerprint, known)
