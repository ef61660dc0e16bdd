"""Every model on the same held-out prompts, with the same seeds, through the ledger."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai.config.names import evaluated_models, other_model, own_models, suite_data
from cai.config.schema import Config, EvaluateConfig
from cai.data.parquet import write_rows
from cai.digest import file_digest
from cai.messages import as_dicts
from cai.method.constitution import Constitution
from cai.method.refusal import redirects, refuses
from cai.models.source import fingerprint
from cai.stages.base import Context, Stage, own_model_part, write_failed
from cai.stages.summary import Summary as BaseSummary
from cai.stages.summary import nonzero
from cai.store.files import write_json

if TYPE_CHECKING:
    from cai.scoring.answers import Answer, Scores
    from cai.stages.suites import ModelAnswers, Suites

Metrics = dict[str, dict[str, dict[str, Any]]]  # model -> suite -> metric -> estimate


@dataclass(frozen=True)
class Summary(BaseSummary):
    prompts: dict[str, int]  # suite -> prompts
    metrics: Metrics
    refusal: dict[str, Any]  # what says that an answer refuses, and how it agrees with people
    harm: dict[str, Any] | None
    comparisons: Sequence[Mapping[str, Any]]  # paired tests between models
    wins: list[dict[str, Any]]  # a judge's comparisons of two models
    failed: int

    def description(self) -> str:
        return "asked every model the same held-out prompts"

    def lines(self) -> list[tuple[str, str]]:
        prompts = ", ".join(f"{count} {suite}" for suite, count in self.prompts.items())
        failed = nonzero(("prompts that no engine answered", self.failed))
        return [("prompts", prompts), ("models", ", ".join(self.metrics)), *failed]


@dataclass(frozen=True)
class RatedAnswer:
    answer: "Answer"
    refuses: bool
    harm: float | None  # the probability that it helps with a harmful request, where a judge says

    def as_row(self) -> dict[str, Any]:
        """A row of answers.parquet."""
        return {
            "model": self.answer.model,
            "suite": self.answer.suite,
            "id": self.answer.prompt.id,
            "sample": self.answer.sample,
            "prompt": as_dicts(self.answer.prompt.messages),
            "answer": self.answer.text,
            "reference": self.answer.reference,
            "refuses": self.refuses,
            "redirects": not self.refuses and redirects(self.answer.text),
            "harm": self.harm,
        }


def run(config: EvaluateConfig, work: Path, context: Context) -> Summary:
    """Writes work/answers.parquet, metrics.json (model -> suite -> metric with its interval),
    comparisons.json (paired tests between models) and wins.json (a judge's comparisons)."""
    from cai.scoring.significance import compare_models
    from cai.stages.suites import ask_model, load_suites
    from cai.stages.verdicts import Verdicts

    suites = load_suites(config, context)
    context.progress.start(suites.requests(config.seeds) * len(config.models), "requests")
    with context.models() as open_model:
        by_model = {
            name: ask_model(name, suites, config, context, open_model) for name in config.models
        }
        answers = [answer for model in by_model.values() for answer in model.answers]
        verdicts = Verdicts(config, context, open_model)
        wins = verdicts.wins(answers) if config.wins else []
        harm_chances: list[float | None] = [None] * len(answers)
        harm = None
        if config.harm:
            harm_chances, harm = verdicts.harm(answers)
    refused, refusal = refusals(config, answers)
    rated = [
        RatedAnswer(answer, declines, chance)
        for answer, declines, chance in zip(answers, refused, harm_chances, strict=True)
    ]
    scores = {name: score_model(by_model[name], suites, rated, name) for name in config.models}
    metrics = {name: estimates(by_model[name], suites, scores[name]) for name in config.models}
    if config.lm_eval:
        for name, tasks in harness_tasks(config, context).items():
            metrics[name] |= tasks
    compared = compare_models(scores, config.seeds)
    write_rows(work / "answers.parquet", [rated_answer.as_row() for rated_answer in rated])
    write_json(work / "metrics.json", metrics)
    write_json(work / "comparisons.json", compared)
    write_json(work / "wins.json", wins)
    failed = [row for model in by_model.values() for row in model.failed]
    return Summary(
        prompts=suites.counts(),
        metrics=metrics,
        refusal=refusal,
        harm=harm,
        comparisons=compared,
        wins=wins,
        failed=write_failed(work, failed),
    )


def score_model(
    model: "ModelAnswers", suites: "Suites", rated: Sequence[RatedAnswer], name: str
) -> "dict[str, Scores]":
    """Suite -> metric -> prompt id -> the mean over the model's answers to it."""
    from cai.scoring.answers import answer_scores
    from cai.scoring.statistics import by_prompt

    scores = {suite: dict(values) for suite, values in model.reference_scores.items()}
    for suite in suites.counts():
        rows = [row for row in rated if (row.answer.model, row.answer.suite) == (name, suite)]
        pairs = [(row.answer, row.refuses) for row in rows]
        if suite in suites.references:  # a refusal there is over-refusal, in another form
            scores[suite]["refusal"] = by_prompt((a.prompt.id, refuses) for a, refuses in pairs)
            continue
        scores[suite] = answer_scores(pairs)
        judged = [(row.answer.prompt.id, row.harm > 0.5) for row in rows if row.harm is not None]
        if judged:
            scores[suite]["harmful"] = by_prompt(judged)
    return {suite: scores[suite] for suite in suites.counts()}


def estimates(
    model: "ModelAnswers", suites: "Suites", scores: "dict[str, Scores]"
) -> dict[str, dict[str, Any]]:
    """Suite -> metric -> estimate with its interval."""
    from cai.scoring.answers import distinct_ngrams
    from cai.scoring.significance import estimate_metric

    metrics: dict[str, dict[str, Any]] = {}
    for suite, by_metric in scores.items():
        metrics[suite] = {}
        if suite in model.too_long:
            metrics[suite]["too_long"] = asdict(model.too_long[suite])
        for name, values in by_metric.items():
            if values:
                metrics[suite][name] = asdict(estimate_metric(name, list(values.values())))
        answers = [answer for answer in model.answers if answer.suite == suite]
        for n in (1, 2) if suite in suites.prompts else ():
            if distinct := distinct_ngrams(answers, n):
                metrics[suite][f"distinct_{n}"] = asdict(distinct)
    return metrics


def refusals(
    config: EvaluateConfig, answers: "Sequence[Answer]"
) -> tuple[list[bool], dict[str, Any]]:
    """Whether each answer refuses, and what says so.

    Of the classifier also how it and the rules agree with people.
    """
    if config.refusal == "rules":
        return [refuses(answer.text) for answer in answers], {"by": "rules"}
    from cai.scoring.classifier import against_people

    classifier, agreement = against_people()
    prompts = [answer.prompt.text for answer in answers]
    refused = classifier.refuses(prompts, [answer.text for answer in answers])
    shares = {
        name: {key: asdict(estimate) for key, estimate in metrics.items()}
        for name, metrics in agreement.items()
    }
    return refused, {"by": "classifier"} | shares


def harness_tasks(config: EvaluateConfig, context: Context) -> Metrics:
    """Model -> task of lm-evaluation-harness -> metric. A finished model is not measured again."""
    from cai.models.convert import locate
    from cai.scoring.harness import harness_metrics, task_manager

    manager = task_manager(config.lm_eval)
    context.progress.start(len(config.models), "models on tasks of lm-evaluation-harness")
    metrics: Metrics = {}
    for place, name in enumerate(config.models):
        file = context.scratch / f"lm_eval-{place}.json"
        if not file.is_file():
            model = context.model_path(name) if context.owns(name) else locate(other_model(name))
            measured = harness_metrics(
                model, context.engine, config.lm_eval, config.lm_eval_limit, manager
            )
            write_json(
                file,
                {
                    task: {key: asdict(estimate) for key, estimate in by_metric.items()}
                    for task, by_metric in measured.items()
                },
            )
        tasks = json.loads(file.read_text(encoding="utf-8"))
        metrics[name] = {f"{task} (lm-eval)": values for task, values in tasks.items()}
        context.progress.advance(1)
    return metrics


def _check(config: Config) -> None:
    if config.evaluate.lm_eval:
        from cai.scoring.harness import task_manager

        task_manager(config.evaluate.lm_eval)


def _inputs(config: Config, round: int) -> list[str]:
    evaluate, models = config.evaluate, set(evaluated_models(config))
    if (evaluate.wins or evaluate.harm) and not evaluate.judge.model:
        models.add(evaluate.judge.name)
    return [name for name in own_models(config) if name != "base" and name in models]


def _data(config: Config, round: int) -> list[str]:
    names = set(suite_data(config))
    for suite in config.evaluate.suites.values():
        if any(suite.shots):
            names |= set(suite.examples)
    return sorted(names)


def _key_parts(config: Config, law: Constitution) -> dict[str, Any]:
    others = [name for name in evaluated_models(config) if name not in own_models(config)]
    parts: dict[str, Any] = {"others": {name: fingerprint(other_model(name)) for name in others}}
    if files := [task for task in config.evaluate.lm_eval if Path(task).is_file()]:
        parts["tasks"] = {task: file_digest(Path(task)) for task in files}
    if config.evaluate.wins:
        parts["constitution"] = law.comparison_digests()
    return parts | own_model_part("judge", "evaluate.judge", config)


def _settings(section: EvaluateConfig, config: Config, round: int) -> EvaluateConfig:
    return replace(section, models=evaluated_models(config))


STAGE = Stage(
    kind="evaluate",
    version=6,
    run=run,
    summary=Summary,
    inputs=_inputs,
    data=_data,
    key_parts=_key_parts,
    settings=_settings,
    check=_check,
)
