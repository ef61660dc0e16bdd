"""A judge on the models' answers: which of two is better, whether one does harm or keeps a rule."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence

from cai.config.names import other_model
from cai.config.schema import EvaluateConfig
from cai.digest import JsonObject
from cai.engines.base import RequestFailed
from cai.engines.rows import gather_results, gather_rows
from cai.method.judgement import JudgeSettings
from cai.method.preferences import PreferencePair, compare
from cai.method.principle import Principle
from cai.models.source import fingerprint
from cai.scoring.adherence_rates import Case
from cai.scoring.answers import Answer, win_metrics
from cai.scoring.judge import (
    Verdict,
    adherence_verdict,
    harm_verdict,
    judge_warnings,
    neither_share,
    question_letters,
)
from cai.scoring.statistics import by_prompt, share
from cai.stages.base import Context, OpenModel


class Verdicts:
    """The judge of evaluate.judge, and what it says."""

    def __init__(self, config: EvaluateConfig, context: Context, open_model: OpenModel):
        self.config, self.context, self.open_model = config, context, open_model
        self.judge = config.judge
        self.engine = config.judge.engine or context.engine
        self.name = config.judge.name
        if config.judge.model:
            self.name = config.judge.model.name
        elif self.engine.model:
            self.name = self.engine.model

    def wins(self, answers: Sequence[Answer]) -> list[JsonObject]:
        """For each pair of `evaluate.wins` and suite: wins, ties and losses of the first model.

        An answer wins where the judge prefers it in both orders. Where the orders disagree, or the
        answers are the same, it is a tie. By principle as well.
        """
        if not self.config.wins:
            return []
        firsts = {
            (answer.model, answer.suite, answer.prompt.id): answer
            for answer in answers
            if answer.sample == 0 and answer.suite in self.config.suites
        }
        rows, compared = [], []
        for first, second in self.config.wins:
            for suite in self.config.suites:
                pairs = [
                    (answer, firsts[second, suite, answer.prompt.id])
                    for answer in firsts.values()
                    if (answer.model, answer.suite) == (first, suite)
                    and (second, suite, answer.prompt.id) in firsts
                ][: self.judge.limit]
                if pairs:
                    rows.append({"first": first, "second": second, "suite": suite})
                    compared.append(pairs)
        total = sum(len(pairs) for pairs in compared)
        self.context.progress.start(2 * self.judge.principles * total, "comparisons")
        judgements = asyncio.run(self._compare(compared))
        for row, pairs, results in zip(rows, compared, judgements, strict=True):
            identical = sum(answer.text == against.text for answer, against in pairs)
            decided = [pair for pair in results if isinstance(pair, PreferencePair)]
            row |= {
                "judge": self.name,
                "judges_itself": self.judges_itself(row["first"], row["second"]),
                "identical": identical,
                "unjudged": len(results) - len(decided),
                "too_long": results.count(None),
            }
            row |= win_metrics(decided, identical) | _letters(question_letters(decided))
        return rows

    async def _compare(
        self, compared: Sequence[Sequence[tuple[Answer, Answer]]]
    ) -> list[list[PreferencePair | RequestFailed | None]]:
        law = self.context.load_constitution()
        settings = JudgeSettings(principles=self.judge.principles)
        judge = self.open_model(self.judge.name, self.judge.engine, self.judge.model)
        seed = self.context.seed

        async def compare_all(pairs: Sequence[tuple[Answer, Answer]]):
            comparisons = [
                compare(
                    answer.prompt, answer.text, against.text, law, settings, seed, judge.complete
                )
                for answer, against in pairs
                if answer.text != against.text
            ]
            return await gather_results(comparisons, self.engine.max_failures)

        try:
            return await gather_rows([compare_all(pairs) for pairs in compared])
        finally:
            judge.close()

    def harm(self, answers: Sequence[Answer]) -> tuple[list[float | None], JsonObject | None]:
        """For each answer the probability that it helps with a harmful request; None: not asked.

        And who judged, which of the models is the judge itself, and how often it went by position;
        None where `evaluate.harm` is off.
        """
        if not self.config.harm:
            return [None] * len(answers), None
        judged_places = self._red_team_answers(answers)
        self.context.progress.start(2 * len(judged_places), "judgements of harm")
        results = asyncio.run(self._harm([answers[place] for place in judged_places]))
        verdicts = {
            place: result
            for place, result in zip(judged_places, results, strict=True)
            if isinstance(result, Verdict)
        }
        flipped = by_prompt(
            (answers[place].prompt.id, verdict.flipped) for place, verdict in verdicts.items()
        )
        summary: JsonObject = {
            "judge": self.name,
            "judges_itself": [name for name in self.config.models if self.judges_itself(name)],
            "unjudged": len(judged_places) - len(verdicts),
            "too_long": results.count(None),
        }
        if flipped:
            summary["flipped"] = share(sum(flipped.values()), len(flipped)).interval()
        summary |= _letters(
            (answers[place].prompt.id, probability)
            for place, verdict in verdicts.items()
            for probability in verdict.letters
        )
        means = {place: verdict.probability for place, verdict in verdicts.items()}
        return [means.get(place) for place in range(len(answers))], summary

    def _red_team_answers(self, answers: Sequence[Answer]) -> list[int]:
        """The places of the answers to the first `evaluate.judge.limit` prompts of each suite."""
        chosen: dict[str, set[str]] = {}
        for name, suite in self.config.suites.items():
            if suite.kind == "red_team":
                ids = dict.fromkeys(a.prompt.id for a in answers if a.suite == name)
                chosen[name] = set(list(ids)[: self.judge.limit])
        return [
            place
            for place, answer in enumerate(answers)
            if answer.prompt.id in chosen.get(answer.suite, ())
        ]

    async def _harm(self, answers: Sequence[Answer]) -> list[Verdict | RequestFailed | None]:
        judge = self.open_model(self.judge.name, self.judge.engine, self.judge.model)
        rows = [harm_verdict(answer.prompt, answer.text, judge.complete) for answer in answers]
        try:
            return await gather_results(rows, self.engine.max_failures)
        finally:
            judge.close()

    def adherence(
        self, questions: Sequence[tuple[Answer, Case]], principles: Mapping[str, Principle]
    ) -> list[Verdict | None]:
        """Whether each answer keeps the case's principle. None: too long for the judge, or failed.

        The judge sees the case's prompt: what a model was told beside it is not part of it.
        """
        self.context.progress.start(2 * len(questions), "judgements of adherence")
        results = asyncio.run(self._adherence(questions, principles))
        return [result if isinstance(result, Verdict) else None for result in results]

    async def _adherence(
        self, questions: Sequence[tuple[Answer, Case]], principles: Mapping[str, Principle]
    ) -> list[Verdict | RequestFailed | None]:
        judge = self.open_model(self.judge.name, self.judge.engine, self.judge.model)
        rows = [
            adherence_verdict(case.prompt, answer.text, principles[case.principle], judge.complete)
            for answer, case in questions
        ]
        try:
            return await gather_results(rows, self.engine.max_failures)
        finally:
            judge.close()

    def judges_itself(self, *models: str) -> bool:
        """Whether the judge is one of these models, as far as can be known of a server's."""
        if self.engine.model is not None:
            return False
        if self.judge.model is None:
            return self.judge.name in models
        other_models = [name for name in models if name not in self.context.inputs]
        sources = [
            self.context.model if name == "base" else other_model(name) for name in other_models
        ]
        return fingerprint(self.judge.model) in [fingerprint(source) for source in sources]


def _letters(letters: Iterable[tuple[str, float]]) -> JsonObject:
    """How often the judge wants neither letter, by (prompt id, probability of both together)."""
    neither = neither_share(letters)
    if neither is None:
        return {"warnings": []}
    metrics: JsonObject = {"neither": neither.interval()}
    return metrics | {"warnings": judge_warnings(metrics, [])}
