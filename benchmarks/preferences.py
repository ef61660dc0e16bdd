"""Hard or soft labels? AI feedback, or revisions preferred to first answers?

DPO on equally many pairs of each kind.

    .venv/bin/python benchmarks/preferences.py --seeds 0 1 2

Runs `cai` three times for each seed, in one run folder. Instruction tuning, revisions, the sl_cai
model and its answers are made once for each seed. The three ways of preference training start from
them, with equally many steps.

The table's rewards are of held-out pairs of all three kinds (by AI feedback, by revision, by
people), so that each model is measured on pairs of the others too. Brackets hold 95 % intervals
over the seeds' prompts together, Wilson's for shares and the bootstrap's for means. Parentheses
hold each seed's figure. See docs/preferences.md.
"""

import argparse
import asyncio
import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cai.config.compose import compose
from cai.config.schema import Config, Prompts
from cai.data.parquet import read_rows
from cai.data.prompts import load_preferences
from cai.engines.base import Request, open_engine
from cai.engines.ledger import Ledger, Recorded
from cai.engines.rows import gather_rows
from cai.messages import Dialogue, from_dicts
from cai.report.metrics import Interval, format_mean, format_metric, format_share
from cai.run.process import quiet
from cai.scoring.significance import bootstrap_mean
from cai.scoring.statistics import Estimate, share

NAME = "preferences"
# words: people's pairs with a longer answer are left out, since none that is trained on comes near
LONG = 80
BEFORE = "before: sl_cai"
ARMS = {  # the first two share their pairs
    "AI feedback, soft labels": ["dpo.loss=soft"],
    "AI feedback, hard labels": ["dpo.loss=trl"],
    "revision over first answer": ["label.kind=revision", "dpo.loss=trl"],
}
SETTINGS = [
    "experiment=bench",
    f"name={NAME}",
    "stages=[sft,revise,sl_cai,label,dpo,evaluate]",
    "evaluate.models=[sl_cai,dpo]",
    # the model is an instruct one already, and without demonstrations it keeps its refusals
    *("sft.data=[seed]", "sft.weights=null", "sft.limit=16", "sft.args.num_train_epochs=1"),
    # as the open recipes have it: a direct revision, and next to no gates
    *("revise.critique=false", "revise.gates=[empty,unchanged,repetition]"),
    *("sl_cai.limit=8", "+sl_cai.args.max_steps=6"),
    *(
        "dpo.args.learning_rate=2e-4",
        "dpo.args.per_device_train_batch_size=3",
        "dpo.args.gradient_accumulation_steps=1",
    ),
    *(
        "dpo.args.eval_steps=0.999",
        "dpo.args.save_steps=0.999",
        "dpo.args.precompute_ref_log_probs=true",
    ),
    *("dpo.guards.prompts=0", "dpo.args.per_device_eval_batch_size=8"),
]


@dataclass(frozen=True)
class Pair:
    """A prompt with a better and a worse answer."""

    messages: Dialogue
    better: str
    worse: str


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pairs", type=int, default=40, help="of each kind")
    parser.add_argument("--held-out", type=int, default=16, help="of these, and of people's pairs")
    parser.add_argument(
        "--prompts", type=int, default=60, help="revised, so that so many pairs are left"
    )
    parser.add_argument(
        "--tokens", type=int, default=48, help="most of an answer; a revision has 16 more"
    )
    parser.add_argument("--suite", type=int, default=8, help="evaluation prompts of each kind")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"))
    parser.add_argument("overrides", nargs="*", help="Hydra overrides for all of them", default=[])
    options = parser.parse_intermixed_args()
    quiet()
    models: dict[
        str, list[dict[str, Any]]
    ] = {}  # model -> for each seed: figure -> values, one a prompt or one in all
    for seed in options.seeds:
        for model, values in measured(seed, options).items():
            models.setdefault(model, []).append(values)
    print(table(models))


def words_of(seed: int, options: argparse.Namespace) -> list[str]:
    sampling = [
        f"{key}.max_new_tokens={options.tokens + 16 * (key == 'revise.sampling.revision')}"
        for key in (
            "revise.sampling.answer",
            "revise.sampling.revision",
            "label.sampling",
            "evaluate.sampling",
        )
    ]
    suites = [
        f"evaluate.suites.{name}.prompts.limit={options.suite}"
        for name in ("red_team", "benign", "held_out")
    ]
    prompts = [f"revise.prompts.limit={options.prompts}", f"label.prompts.offset={options.prompts}"]
    prompts += [f"label.prompts.limit={options.pairs + 8}", f"label.limit={options.pairs}"]
    held = [f"dpo.validation={options.held_out / options.pairs}"]
    judge = [f"label.calibrate={{data: [human_harm], limit: {options.held_out}}}"]
    outputs = [f"outputs={options.outputs}", f"seed={seed}"]
    return [*SETTINGS, *sampling, *suites, *prompts, *held, *judge, *outputs, *options.overrides]


def measured(seed: int, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Model -> figure -> values of one seed.

    Raises SystemExit where the kinds have not equally many pairs."""
    words = words_of(seed, options)
    config = compose(words)
    latest = options.outputs / NAME / "latest"
    found: dict[str, dict[str, Any]] = {}
    trained: dict[str, Path] = {}
    held_out: dict[str, list[Pair]] = {}
    start = Path()
    for arm, own in ARMS.items():
        subprocess.run(
            [sys.executable, "-m", "cai", *words, *own], check=True, stdout=subprocess.DEVNULL
        )
        label = summary_of(latest / "label")
        if label["pairs"] != options.pairs:
            sys.exit(
                f"{arm}: {label['pairs']} pairs in place of {options.pairs}; "
                f"take more --prompts: {label}"
            )
        rows = read_rows(latest / "label" / "out" / "pairs.parquet")[
            : summary_of(latest / "dpo")["held_out_rows"]
        ]
        if "judge" in label and "feedback" not in held_out:
            print(f"seed {seed}, judge: {judge_line(label['judge'])}", file=sys.stderr, flush=True)
        held_out[rows[0]["kind"]] = [
            Pair(
                from_dicts(row["prompt"]),
                row["chosen"][0]["content"],
                row["rejected"][0]["content"],
            )
            for row in rows
        ]
        trained[arm], start = (latest / "dpo").resolve(), (latest / "sl_cai").resolve()
        metrics = json.loads((latest / "evaluate" / "out" / "metrics.json").read_text())
        found |= {BEFORE: suite_figures(metrics["sl_cai"]), arm: suite_figures(metrics["dpo"])}
    labelled = load_preferences(Prompts(["human_harm"]), config.data, seed)
    short = [
        Pair(p.messages, *both)
        for p, *both in labelled
        if max(len(text.split()) for text in both) <= LONG
    ]
    held_out["people"] = short[: options.held_out]
    longer = {
        kind: [len(p.better.split()) - len(p.worse.split()) for p in rows]
        for kind, rows in held_out.items()
    }
    found[BEFORE] |= {
        f"the better answer is longer, {kind} pairs": words for kind, words in longer.items()
    }
    for arm, margins in rewards(config, start, trained, held_out).items():
        found[arm] |= {f"reward margin, {kind} pairs": values for kind, values in margins.items()}
        both = [
            (m, w)
            for kind, values in margins.items()
            for m, w in zip(values, longer[kind], strict=True)
            if w
        ]
        found[arm] |= {
            "the longer answer has the higher reward": [margin * words for margin, words in both]
        }
    return found


def summary_of(stage: Path) -> dict[str, Any]:
    return json.loads((stage / "manifest.json").read_text())["summary"]


def suite_figures(suites: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        f"refuses, {name}": Estimate(**suites[name]["refusal"]) for name in ("red_team", "benign")
    }
    return found | {
        "bits a byte, held-out references": Estimate(**suites["held_out"]["bits_per_byte"])
    }


def judge_line(judge: dict[str, Any]) -> str:
    shares = {
        "flipped": "turn with the order",
        "longer": "longer is chosen",
        "accuracy": "right on people's pairs",
    }
    said = [
        f"{text} {format_metric(name, judge[name])}"
        for name, text in shares.items()
        if name in judge
    ]
    return "; ".join([*said, f"mean probability {judge['probability']['value']:.3f}"])


def rewards(
    config: Config, start: Path, trained: dict[str, Path], held_out: dict[str, list[Pair]]
) -> dict[str, dict[str, list[float]]]:
    """Arm -> kind of pairs -> for each pair, DPO's implicit reward of the better answer less that
    of the worse one.

    It is beta times the difference of their log-ratios to the sl_cai model, in nats over the
    answers' tokens."""
    pairs = [pair for of_kind in held_out.values() for pair in of_kind]

    def differences(stage: Path) -> list[float]:
        engine = replace(config.engine, batch_rows=8)  # a row of scores is large
        output = json.loads((stage / "manifest.json").read_text())["output"]
        with closing(Ledger(stage.parents[1] / "ledger.sqlite")) as ledger:
            model = Recorded(
                lambda: open_engine(engine, str(stage / "out" / "model")), ledger, NAME, output
            )
            with closing(model):
                return asyncio.run(scored(model, pairs))

    reference, beta = differences(start), config.dpo.args["beta"]
    margins: dict[str, dict[str, list[float]]] = {}
    for arm, stage in trained.items():
        policy = iter(zip(differences(stage), reference, strict=True))
        margins[arm] = {
            kind: [beta * (p - r) for p, r in (next(policy) for _ in rows)]
            for kind, rows in held_out.items()
        }
    return margins


async def scored(model: Recorded, pairs: Sequence[Pair]) -> list[float]:
    """log p(better) - log p(worse) of each pair."""
    requests = [Request(pair.messages, continuations=(pair.better, pair.worse)) for pair in pairs]
    found = await gather_rows([asked(model, request) for request in requests])
    return [better - worse for better, worse in found]


async def asked(model: Recorded, request: Request) -> tuple[float, ...]:
    return (await model.complete(request)).logprobs


def table(models: dict[str, list[dict[str, Any]]]) -> str:
    """A Markdown table, a row a figure and a column a model."""
    names = list(dict.fromkeys(name for seeds in models.values() for one in seeds for name in one))
    lines = [f"| | {' | '.join(models)} |", f"| --- |{' --- |' * len(models)}"]
    for name in names:
        views: dict[str, Callable[[list[Any]], str]] = {name: averaged}
        if name.startswith("refuses"):
            views = {name: counted}
        elif name.startswith("reward"):
            views = {name.replace("margin", "accuracy"): right, name: averaged_pairs}
        elif name.startswith("the "):
            views = {name: right}
        for title, view in views.items():
            cells = [
                view([one[name] for one in seeds]) if name in seeds[0] else ""
                for seeds in models.values()
            ]
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def counted(shares: list[Estimate]) -> str:
    pooled = share(
        sum(round(one.value * one.count) for one in shares), sum(one.count for one in shares)
    )
    seeds = ", ".join(f"{100 * one.value:.0f}" for one in shares)
    return f"{in_words(pooled, percent=True)} ({seeds})"


def right(margins: list[list[float]]) -> str:
    pooled = [one > 0 for seed in margins for one in seed]
    seeds = ", ".join(f"{100 * sum(one > 0 for one in seed) / len(seed):.0f}" for seed in margins)
    return f"{in_words(share(sum(pooled), len(pooled)), percent=True)} ({seeds})"


def averaged_pairs(margins: list[list[float]]) -> str:
    seeds = ", ".join(f"{sum(seed) / len(seed):.3f}" for seed in margins)
    pooled = bootstrap_mean([one for seed in margins for one in seed])
    return f"{in_words(pooled, percent=False)} ({seeds})"


def averaged(means: list[Estimate]) -> str:
    """The mean over the seeds; its interval follows from theirs, as of independent prompts."""
    value = sum(one.value for one in means) / len(means)
    half = math.hypot(*((one.high - one.low) / 2 for one in means)) / len(means)
    pooled = Estimate(value, value - half, value + half, sum(one.count for one in means))
    return f"{in_words(pooled, percent=False)} ({', '.join(f'{one.value:.3f}' for one in means)})"


def in_words(estimate: Estimate, percent: bool) -> str:
    interval: Interval = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return format_share(interval) if percent else format_mean(interval)


if __name__ == "__main__":
    main()
