"""Letters or contrast: which way of asking finds the better answer?

    .venv/bin/python -m benchmarks.judges RUN [OVERRIDES]      e.g. outputs/quickstart

Three sets of labelled pairs:

- people: people graded both answers (PyRIT's; at most 80 words each).
- harmful: RUN's answers to red-team prompts of two models, of which one declines and one does not.
- harmless: the same on its benign prompts; the better answer does not decline.

Each pair is put to the configured model twice: as two options of which it names the letter (both
orders), and by the contrast of answers under a principle and under its opposite. Brackets are 95 %
intervals (Wilson). `longer` and `shorter`: of the pairs whose better answer is the longer or the
shorter one. See docs/preferences.md.
"""

import asyncio
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from cai.config.compose import compose
from cai.config.schema import Prompts
from cai.data.parquet import read_rows
from cai.data.prompts import load_preferences
from cai.engines.base import open_engine
from cai.engines.rows import gather_rows
from cai.messages import Prompt, from_dicts
from cai.method.constitution import Constitution
from cai.method.contrast import contrast
from cai.method.judgement import JudgeSettings
from cai.method.preferences import compare
from cai.method.refusal import refuses
from cai.scoring.statistics import share
from cai.stages.base import verb_context
from cai.store.run_folder import Run
from cai.text import word_count

Pair = tuple[Prompt, str, str]  # the prompt, the better answer, the worse one

LONG = 80  # words
AT_ONCE = 16  # pairs


def run_pairs(run: Run) -> dict[str, list[Pair]]:
    """Pairs of two models' answers that the rules for refusals tell apart, by kind of prompt."""
    if run.latest("evaluate") is None:
        raise SystemExit(f"{run.root}: the run has no stage evaluate that is done")
    folder = run.root / "latest" / "evaluate"
    answers: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in read_rows(folder / "out" / "answers.parquet"):
        answers[row["suite"], row["id"]].append(row)
    pairs: dict[str, list[Pair]] = {"harmful": [], "harmless": []}
    for (suite, name), rows in answers.items():
        texts = {refuses(row["answer"]): row["answer"] for row in rows}
        if len(texts) < 2 or suite == "held_out":
            continue
        kind = "harmful" if suite == "red_team" else "harmless"
        prompt = Prompt(name, from_dicts(rows[0]["prompt"]), suite)
        pairs[kind].append((prompt, texts[kind == "harmful"], texts[kind == "harmless"]))
    return pairs


def cell(hits: list[float]) -> str:
    if not hits:
        return ""
    estimate = share(sum(hits), len(hits))
    low, value, high = (round(100 * x) for x in (estimate.low, estimate.value, estimate.high))
    return f"{value} % [{low}, {high}] of {len(hits)}"


def line(name: str, pairs: list[Pair], hits: list[float]) -> str:
    longer, shorter = [], []
    for (_, better, worse), hit in zip(pairs, hits, strict=True):
        lengths = word_count(better), word_count(worse)
        if lengths[0] != lengths[1]:
            (longer if lengths[0] > lengths[1] else shorter).append(hit)
    return f"| {name} | {cell(hits)} | {cell(longer)} | {cell(shorter)} |"


async def measure(name: str, pairs: list[Pair], law: Constitution, complete: Any) -> list[str]:
    async def letters(pair: Pair) -> float:
        judged = await compare(*pair, law, JudgeSettings(), 0, complete)
        if judged is None or judged.probability < 0.5 + 1e-9:
            return 0.5
        return float(judged.chosen == pair[1])

    async def contrasted(pair: Pair) -> float:
        prompt, better, worse = pair
        compared = await contrast(prompt, [better, worse], law, 1, 0, complete)
        return float(compared is not None and compared[0].log_ratio > 0)

    lines = []
    for title, ask in (("letters", letters), ("contrast", contrasted)):
        hits: list[float] = []
        for start in range(0, len(pairs), AT_ONCE):
            hits += await gather_rows([ask(pair) for pair in pairs[start : start + AT_ONCE]])
        lines.append(line(f"{name}, {title}", pairs, hits))
    return lines


def main() -> None:
    run, config = Run(Path(sys.argv[1])), compose(["experiment=bench", *sys.argv[2:]])
    people = load_preferences(Prompts(["human_harm"]), config.data, 0)
    short = [pair for pair in people if max(map(word_count, pair[1:])) <= LONG]
    sets = {"people": short, **run_pairs(run)}
    with tempfile.TemporaryDirectory() as folder:
        context = verb_context("judges", config, Path(folder), config.constitution, {})
        engine = open_engine(config.engine, context.model_path("base"))
    print("| pairs, asked by | right | the better is longer | the better is shorter |")
    print("| --- | --- | --- | --- |")
    for name, pairs in sets.items():
        law = Constitution.load("helpfulness" if name == "harmless" else config.constitution)
        for text in asyncio.run(measure(name, pairs, law, engine.complete)):
            print(text, flush=True)
    engine.close()


if __name__ == "__main__":
    main()
