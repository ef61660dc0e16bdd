"""Every model on the same held-out prompts, with the same seeds, through the ledger."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cai.config.names import (
    IN_CONTEXT,
    evaluated_models,
    other_model,
    own_models,
    reads_probes,
    suite_data,
    unprobed,
)
from cai.config.schema import Config, EvaluateConfig
from cai.data.parquet import write_rows
from cai.digest import JsonObject, file_digest
from cai.method.constitution import Constitution
from cai.models.source import fingerprint
from cai.report.adherence import adherence_tables
from cai.report.metrics import Metrics
from cai.report.stage_view import Table
from cai.scoring.adherence import Adherence
from cai.scoring.statistics import AttackRise, ModelComparison
from cai.stages.base import Context, Stage, own_model_part, write_failed
from cai.stages.summary import Summary as BaseSummary
from cai.stages.summary import nonzero
from cai.store.files import write_json


@dataclass(frozen=True)
class Summary(BaseSummary):
    prompts: dict[str, int]  # suite -> prompts
    metrics: Metrics
    refusal: JsonObject  # what says that an answer refuses, and how it agrees with people
    harm: JsonObject | None
    comparisons: Sequence[ModelComparison]  # paired tests between models
    changes: Sequence[ModelComparison]  # of refusals, from stage to stage, by kind of suite
    attacks: Sequence[AttackRise]  # what each adds to the answers that do not refuse
    wins: list[JsonObject]  # a judge's comparisons of two models
    failed: int
    adherence: Adherence | None = None  # by principle

    def description(self) -> str:
        return "asked every model the same held-out prompts"

    def lines(self) -> list[tuple[str, str]]:
        prompts = ", ".join(f"{count} {suite}" for suite, count in self.prompts.items())
        failed = nonzero(("prompts that no engine answered", self.failed))
        return [("prompts", prompts), ("models", ", ".join(self.metrics)), *failed]

    def tables(self) -> list[Table]:
        return adherence_tables(self.adherence) if self.adherence else []

    def warnings(self) -> list[str]:
        warnings = self._judge_warnings()
        if self.adherence:
            warnings += self.adherence.warnings
        languages = self.refusal.get("not_english", {})
        if not languages:
            return warnings
        counts = ", ".join(f"{code} {count}" for code, count in languages.items())
        return [
            *warnings,
            f"{sum(languages.values())} answers are not in English ({counts}). What finds refusals "
            f"({self.refusal['by']}) knows English only, so they are in no share of refusals, "
            "redirections or compliance. A judge reads them (evaluate.harm).",
        ]

    def _judge_warnings(self) -> list[str]:
        by_setting = {f"evaluate.wins on {row['suite']}": row for row in self.wins}
        if self.harm:
            by_setting["evaluate.harm"] = self.harm
        warnings: list[str] = []
        for setting, row in by_setting.items():
            warnings += [f"{setting}: {text}" for text in row.get("warnings", ())]
        return warnings


def run(config: EvaluateConfig, work: Path, context: Context) -> Summary:
    """Writes work/answers.parquet, metrics.json (model -> suite -> metric with its interval),
    comparisons.json (paired tests between models), wins.json (a judge's comparisons), and
    adherence.parquet (its verdicts by principle), where those were asked for."""
    from cai.stages.adherence import judge_adherence, load_suites_and_cases
    from cai.stages.model_answers import ask_models
    from cai.stages.scores import (
        RatedAnswer,
        estimates,
        harness_tasks,
        paired_tests,
        refusals,
        score_model,
    )
    from cai.stages.verdicts import Verdicts

    suites, cases = load_suites_and_cases(config, context)
    trained = [name for name in ("base", *context.inputs) if name in config.models]
    names = [*config.models, *([IN_CONTEXT] if config.in_context else [])]
    by_model = ask_models(names, suites, config, context)
    answers = [answer for model in by_model.values() for answer in model.answers]
    with context.models() as open_model:
        verdicts = Verdicts(config, context, open_model)
        wins = verdicts.wins(answers)
        harm_chances, harm = verdicts.harm(answers)
        adherence = judge_adherence(verdicts, answers, cases, trained, work)
    refused, refusal = refusals(config, answers)
    rated = [RatedAnswer(*row) for row in zip(answers, refused, harm_chances, strict=True)]
    scores = {name: score_model(model, suites, rated) for name, model in by_model.items()}
    metrics = {name: estimates(model, suites, scores[name]) for name, model in by_model.items()}
    for name, tasks in harness_tasks(config, context).items():
        metrics[name] |= tasks
    tests = paired_tests(config, scores, trained)
    write_rows(work / "answers.parquet", [row.as_row() for row in rated])
    write_json(work / "metrics.json", metrics)
    write_json(work / "comparisons.json", tests.comparisons)
    write_json(work / "wins.json", wins)
    failed = [row for model in by_model.values() for row in model.failed]
    return Summary(
        prompts=suites.counts(),
        metrics=metrics,
        refusal=refusal,
        harm=harm,
        comparisons=tests.comparisons,
        changes=tests.changes,
        attacks=tests.attacks,
        wins=wins,
        failed=write_failed(work, failed),
        adherence=adherence,
    )


def _check(config: Config) -> None:
    if config.evaluate.lm_eval:
        from cai.scoring.harness import task_manager

        task_manager(config.evaluate.lm_eval)


def _inputs(config: Config, round: int) -> list[str]:
    evaluate, models = config.evaluate, set(evaluated_models(config))
    if (evaluate.wins or evaluate.harm or evaluate.adherence) and not evaluate.judge.model:
        models.add(evaluate.judge.name)
    trained = [name for name in own_models(config) if name != "base" and name in models]
    return [*reads_probes(suite_data(config)), *trained]


def _data(config: Config, round: int) -> list[str]:
    names = set(unprobed(suite_data(config)))
    for suite in config.evaluate.suites.values():
        if any(suite.shots):
            names |= set(suite.examples)
    return sorted(names)


def _key_parts(config: Config, law: Constitution) -> JsonObject:
    models = [name for name in evaluated_models(config) if name not in own_models(config)]
    parts: JsonObject = {"others": {name: fingerprint(other_model(name)) for name in models}}
    if files := [task for task in config.evaluate.lm_eval if Path(task).is_file()]:
        parts["tasks"] = {task: file_digest(Path(task)) for task in files}
    if config.evaluate.wins or config.evaluate.in_context:
        parts["constitution"] = law.comparison_digests()
    if config.evaluate.adherence:
        parts["constitution"] = parts.get("constitution", {}) | law.adherence_digests()
    return parts | own_model_part("judge", "evaluate.judge", config)


def _settings(section: EvaluateConfig, config: Config, round: int) -> EvaluateConfig:
    return replace(section, models=evaluated_models(config))


STAGE = Stage(
    kind="evaluate",
    version=9,
    run=run,
    summary=Summary,
    inputs=_inputs,
    data=_data,
    key_parts=_key_parts,
    settings=_settings,
    check=_check,
)
