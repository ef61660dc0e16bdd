"""Adherence by principle: which prompts a principle is about, and what the judge says of answers.

A prompt is about a principle where its row says so. A principle that no row names is measured on
the prompts of the suites that share words with it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cai.config.names import ADHERENCE
from cai.config.schema import EvaluateConfig
from cai.data.parquet import Row, write_rows
from cai.data.prompts import SPLIT_SEED, load_dialogues, load_tagged_prompts
from cai.data.turns import is_empty
from cai.errors import CaiError, nearest
from cai.messages import Prompt
from cai.method.constitution import Constitution
from cai.method.principle import Principle
from cai.method.relevance import Relevance
from cai.report.pictures import percent
from cai.scoring.adherence import Adherence, Reliability
from cai.scoring.adherence_rates import (
    Agreement,
    Case,
    JudgedAnswer,
    agreement_share,
    kept_by_group,
    kept_by_principle,
    reliability,
)
from cai.scoring.answers import Answer
from cai.scoring.judge import MANY_QUESTIONS, no_letter_warning
from cai.scoring.statistics import Estimate
from cai.stages.base import Context
from cai.stages.suites import Suites, load_suites
from cai.stages.verdicts import Verdicts


def load_suites_and_cases(config: EvaluateConfig, context: Context) -> tuple[Suites, list[Case]]:
    """The suites, with one of the prompts whose rows name a principle; and the cases.

    No cases where adherence is not measured, and at most `evaluate.judge.limit` of a principle.
    Raises CaiError where a suite has no row, or a row names no principle of the constitution.
    """
    suites = load_suites(config, context)
    if config.adherence is None:
        return suites, []
    law = context.load_constitution()
    tagged = _limited(_tagged_cases(config, context, law), config.judge.limit)
    tagged_ids = {case.principle for case in tagged}
    untagged = [principle for principle in law.principles if principle.id not in tagged_ids]
    routed = _limited(_routed_cases(config, context, law, untagged), config.judge.limit)
    prompts = {case.prompt.id: case.prompt for case in tagged}
    if prompts:
        suites = replace(suites, prompts={**suites.prompts, ADHERENCE: list(prompts.values())})
    return suites, [*tagged, *routed]


def _limited(cases: Iterator[Case], limit: int | None) -> list[Case]:
    """The first `limit` cases of each principle."""
    counts = Counter[str]()
    limited = []
    for case in dict.fromkeys(cases):  # a row may stand twice
        counts[case.principle] += 1
        if limit is None or counts[case.principle] <= limit:
            limited.append(case)
    return limited


def _tagged_cases(config: EvaluateConfig, context: Context, law: Constitution) -> Iterator[Case]:
    principles = {principle.id: principle for principle in law.principles}
    assert config.adherence is not None
    for prompt, rows in load_tagged_prompts(config.adherence, context.data, SPLIT_SEED):
        for row in rows:
            principle = _principle_of(row, principles, context.constitution)
            if not is_empty(row.get("keeps")):
                continue  # a person's verdict on an answer
            yield Case(principle.id, ADHERENCE, prompt, _groups(row, principle), tagged=True)


def _principle_of(row: Row, principles: Mapping[str, Principle], constitution: str) -> Principle:
    where = f"evaluate.adherence: {row['place']}"
    if is_empty(row.get("principle")):
        raise CaiError(
            f"{where}: no column 'principle', the id of the principle that the prompt is about; "
            f"another column's name is set with data.{row['source']}.fields.principle"
        )
    name = str(row["principle"])
    if name not in principles:
        hint = nearest(name, list(principles))
        raise CaiError(f"{where}: {constitution} has no principle '{name}'{hint}")
    return principles[name]


def _agreements(verdicts: Verdicts, principles: Mapping[str, Principle]) -> list[Agreement]:
    """The judge against people: rows of `evaluate.adherence` with an answer and `keeps`."""
    context, selection = verdicts.context, verdicts.config.adherence
    assert selection is not None
    questions, labels = [], []
    for dialogue, row in load_dialogues(selection.data, context.data, SPLIT_SEED).dialogues:
        if is_empty(row.get("keeps")):
            continue
        label = str(row["keeps"]).lower()
        if dialogue[-1].role != "assistant" or label not in ("true", "false"):
            raise CaiError(
                f"evaluate.adherence: {row['place']}: a row with 'keeps' has an answer, and true "
                "or false there"
            )
        principle = _principle_of(row, principles, context.constitution)
        prompt = Prompt.of(dialogue[:-1], row["source"]).under(context.data[row["source"]].system)
        answer = Answer("people", ADHERENCE, prompt, dialogue[-1].content)
        questions.append((answer, Case(principle.id, ADHERENCE, prompt, (), tagged=True)))
        labels.append(label == "true")
    if not questions:
        return []
    return [
        Agreement(case.principle, case.prompt.id, (verdict.probability > 0.5) == keeps)
        for (_, case), keeps, verdict in zip(
            questions, labels, verdicts.adherence(questions, principles), strict=True
        )
        if verdict is not None
    ]


def _routed_cases(
    config: EvaluateConfig, context: Context, law: Constitution, principles: Sequence[Principle]
) -> Iterator[Case]:
    """The suites' prompts, each with those of `principles` that it shares words with."""
    relevance = Relevance(law.principles)
    for name, suite in config.suites.items():
        if suite.kind == "instructions":
            continue
        for prompt, rows in load_tagged_prompts(suite.prompts, context.data, SPLIT_SEED):
            for principle in relevance.rank(prompt):
                if principle in principles:
                    groups = _groups({"kind": suite.kind} | rows[0], principle)
                    yield Case(principle.id, name, prompt, groups, tagged=False)


def _groups(row: Mapping[str, object], principle: Principle) -> tuple[str, ...]:
    labels = [f"{tag}: {row[tag]}" for tag in ("kind", "category") if row.get(tag)]
    return (*labels, *(f"tag: {tag}" for tag in principle.tags))


def judge_adherence(
    verdicts: Verdicts,
    answers: Sequence[Answer],
    cases: Sequence[Case],
    trained: Sequence[str],
    work: Path,
) -> Adherence | None:
    """Whether each answer keeps the principles that its prompt is about; None if not measured.

    `trained`: the models in the order of training, which changes are told of. Writes
    work/adherence.parquet, a row for each answer and principle.
    """
    if verdicts.config.adherence is None:
        return None
    law = verdicts.context.load_constitution()
    questions = _questions(answers, cases)
    by_id = {principle.id: principle for principle in law.principles}
    results = verdicts.adherence(questions, by_id)
    agreements = _agreements(verdicts, by_id)
    judged_answers = [
        JudgedAnswer(case, answer.model, answer.sample, verdict)
        for (answer, case), verdict in zip(questions, results, strict=True)
        if verdict is not None
    ]
    if judged_answers:
        write_rows(work / "adherence.parquet", [answer.as_row() for answer in judged_answers])
    models = list(dict.fromkeys(answer.model for answer in answers))
    principles = kept_by_principle(judged_answers, models, trained, agreements)
    order = [principle.id for principle in law.principles]
    measured = {row.name for row in principles}
    unmeasured = [p.id for p in law.principles if p.weight and p.id not in measured]
    itself = [name for name in verdicts.config.models if verdicts.judges_itself(name)]
    groups = kept_by_group(judged_answers, models, trained)
    whole = reliability(judged_answers) if judged_answers else None
    agreement = agreement_share(agreements)
    return Adherence(
        judge=verdicts.name,
        judges_itself=itself,
        unjudged=len(questions) - len(judged_answers),
        reliability=whole,
        agreement=agreement,
        principles=sorted(principles, key=lambda row: order.index(row.name)),
        groups=sorted(groups, key=lambda row: row.name),
        routed=sorted({case.principle for case in cases if not case.tagged}),
        unmeasured=unmeasured,
        warnings=_warnings(verdicts.name, whole, agreement, itself, unmeasured),
    )


def _questions(answers: Sequence[Answer], cases: Sequence[Case]) -> list[tuple[Answer, Case]]:
    """Each answer with each case of its prompt."""
    cases_of: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        cases_of.setdefault((case.suite, case.prompt.id), []).append(case)
    return [
        (answer, case)
        for answer in answers
        for case in cases_of.get((answer.suite, answer.prompt.id), ())
    ]


def _warnings(
    judge: str,
    whole: Reliability | None,
    agreement: Estimate | None,
    itself: Sequence[str],
    unmeasured: Sequence[str],
) -> list[str]:
    """Why the judge can't be relied on, and what was not measured, in sentences."""
    warnings = []
    if whole is None:
        warnings.append("No answer was judged, so nothing is said about the principles.")
    elif whole.flipped.value > 0.5:
        warnings.append(
            f"The judge ({judge}) goes by position: its verdict turns with the order of keeps and "
            f"breaks for {percent(whole.flipped)} of the prompts. So the rates of the principles "
            "say nothing. Take a larger judge (evaluate.judge)."
        )
    if whole and whole.neither.value > MANY_QUESTIONS:
        warnings.append(no_letter_warning(whole.neither.interval()))
    if agreement and agreement.low <= 0.5:
        warnings.append(
            f"The judge ({judge}) says what people say of {percent(agreement)} of the answers that "
            "they judged, which is no better than chance."
        )
    if itself:
        warnings.append(f"The judge ({judge}) judges itself, as {', '.join(itself)}.")
    if unmeasured:
        warnings.append(
            f"No prompt is about {', '.join(unmeasured)}. Name prompts of theirs in "
            "evaluate.adherence."
        )
    return [f"evaluate.adherence: {text}" for text in warnings]
