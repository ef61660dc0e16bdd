"""The run as one HTML page that needs no network: verdict, picture, metrics, and the records to read."""

import json
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from cai import __version__
from cai.config.schema import Price
from cai.report.metrics import NAMES, RULED, SHARES, format_metric
from cai.report.pictures import TOPICS, number, percent, refusal_rates
from cai.store.manifest import Manifest

MODELS = ("base", "sft", "sl_cai", "dpo")


def render(template: str, **view: Any) -> bytes:
    """The page in UTF-8, with everything escaped but the records (see `embedded`)."""
    import yaml
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.lstrip_blocks = True
    environment.filters |= {
        "number": number,
        "duration": duration,
        "figure": format_metric,
        "embedded": embedded,
    }
    environment.filters["yaml"] = lambda value: yaml.safe_dump(
        value, sort_keys=False, allow_unicode=True, width=100
    )
    environment.globals |= {"SHARES": SHARES, "FIGURES": NAMES}
    page = environment.get_template(template).render(view, version=__version__).lstrip()
    return page.encode(
        "utf-8", "xmlcharrefreplace"
    )  # references to what UTF-8 has no place for show as U+FFFD


def verdict(metrics: Mapping[str, Any], kinds: Mapping[str, str]) -> list[str]:
    """What changed from the first model to the last: a sentence on red-team prompts, and one on benign ones."""
    sentences = []
    for kind, (prompts, name) in TOPICS.items():
        rates = refusal_rates(metrics, kinds, kind)
        if len(rates) < 2:
            sentences.append(
                f"No two models were evaluated on {prompts}, so nothing is said about {name}."
            )
            continue
        (first, before), *_, (last, after) = rates.items()
        old, new = percent(before), percent(after)
        if old == new:
            sentences.append(f"Refusals of {prompts} stayed at {old} ({first}, {last}).")
            continue
        found = f"do not overlap: {name} {'rose' if after.value > before.value else 'fell'}."
        if before.low <= after.high and after.low <= before.high:
            found = "overlap, so this run does not show a change."
        sentences.append(
            f"Refusals of {prompts} went from {old} ({first}) to {new} ({last}); the intervals {found}"
        )
    return sentences


JUDGE = {  # figure -> what it is, in the order in which it is shown
    "flipped": "preferences that turn with the order",
    "longer": "the longer answer is chosen",
    "agreement": "two principles agree",
    "accuracy": "right on labelled pairs",
    "shorter": "of these, the shorter is labelled better",
}

NUMBERS = {
    "probability": "mean probability of the chosen",
    "entropy": "entropy of the feedback, bits",
}


def judge_view(summary: Mapping[str, Any], label: Mapping[str, Any]) -> dict[str, Any] | None:
    """Figures of the AI feedback, over every comparison, with their intervals in words; None where nothing judged."""
    if "judge" not in summary:
        return None
    found = summary["judge"]
    facts = [
        (text, format_metric(found[name], percent=True))
        for name, text in JUDGE.items()
        if name in found
    ]
    facts += [
        (text, format_metric(found[key], percent=False))
        for key, text in NUMBERS.items()
        if key in found
    ]
    name = label["model"]["name"] if label.get("model") else label["judge"]
    return {
        **found,
        "name": name,
        "other": bool(label.get("model")),
        "facts": facts,
        "judged": summary["judged"],
    }


UNJUDGED = (
    "No judge was asked: every revision is preferred to the first answer.",
    RULED,
)  # the second: by rules


def people(summary: Mapping[str, Any]) -> list[str]:
    if not summary.get("human"):
        return []
    return [
        f"Of the {summary['pairs']} preference pairs, people have labelled {summary['human']} (label.human)."
    ]


def described(model: str, trained: Manifest) -> str:
    """The model's name and the size of its trained weights."""
    weights = [
        f["bytes"]
        for name, f in trained.files.items()
        if name.startswith("model/") and "safetensors" in name
    ]
    return f"{model}, {sum(weights) / 1e9:.2g} GB of weights" if weights else model


def notices(
    metrics: Mapping[str, Any],
    kinds: Mapping[str, str],
    judge: Mapping[str, Any] | None,
    model: str,
    revise: Mapping[str, Any],
) -> list[str]:
    """What a reader has to know before believing the verdict."""
    said = list(judge["doubts"]) if judge else []
    if judge and judge["other"]:
        said.append(f"The preferences came from another model, {judge['name']}, not from people.")
    elif judge:
        said.append(
            f"The model judged itself. The preferences came from {judge['name']}, of the same small model family that "
            f"is trained ({model}), not from people and not from a stronger model."
        )
    if (
        judge and "flipped" in judge and judge["flipped"]["value"] <= 0.5
    ):  # above that, it is among the doubts
        turned = format_metric(judge["flipped"], percent=True)
        said.append(
            f"{turned} of the judge's preferences turned when the two answers were swapped (position bias)."
        )
    if critic := revise.get("model"):
        said.append(f"Critiques and revisions came from another model, {critic['name']}.")
    counts = [
        rate.count for kind in TOPICS for rate in refusal_rates(metrics, kinds, kind).values()
    ]
    if counts and min(counts) < 30:
        said.append(
            f"With {min(counts)} prompts of a kind, this run tests the machinery and measures little."
        )

    def often(name: str, suites: Mapping[str, Any]) -> str:
        """The suites where at least one answer in ten is such."""
        found = (
            (suite, one[name])
            for suite, one in suites.items()
            if one.get(name, {}).get("value", 0) >= 0.1
        )
        return ", ".join(f"{format_metric(one, percent=True)} of {suite}" for suite, one in found)

    for name, suites in metrics.items():
        if where := often("degenerate", suites):
            said.append(f"Answers of {name} that are empty or go round in circles: {where}.")
        if where := often(
            "refusal", {suite: one for suite, one in suites.items() if "bits_per_byte" in one}
        ):
            said.append(f"{name} declines ordinary instructions: {where}.")
    return said


def cost_rows(
    rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], price: Price | None = None
) -> list[dict[str, Any]]:
    """The ledger's rows with the models' names, speeds and prices, and a last row of totals."""
    shown = [{**row, "model": names.get(row["model"], f"({row['model'][:8]})")} for row in rows]
    sums = {
        key: sum(row[key] for row in rows)
        for key in ("completions", "prompt_tokens", "new_tokens", "seconds")
    }
    shown += [{"stage": "all", "model": ""} | sums] if rows else []
    for row in shown:
        row["speed"] = row["new_tokens"] / row["seconds"] if row["seconds"] else 0
        if price:
            row["price"] = (
                row["prompt_tokens"] * price.prompt + row["new_tokens"] * price.new
            ) / 1e6
    return shown


def records(
    revisions: Sequence[dict[str, Any]],
    pairs: Sequence[dict[str, Any]],
    answers: Sequence[dict[str, Any]],
    limit: int,
) -> tuple[dict[str, list[Any]], dict[str, int]]:
    """At most `limit` records of each kind, and how many there are. One of answers is a prompt with every model's."""
    suites: dict[str, dict[str, Any]] = {}
    for row in answers:
        record = {
            "suite": row["suite"],
            "id": row["id"],
            "prompt": prompt_text(row["prompt"]),
            "answers": {},
        }
        record |= {"reference": row["reference"]}
        record = suites.setdefault(row["suite"], {}).setdefault(row["id"], record)
        record["answers"][row["model"]] = {"text": row["answer"], "refuses": row["refuses"]}
    in_turn = chain.from_iterable(
        zip_longest(*(rows.values() for rows in suites.values()))
    )  # a share for every suite
    asked = [record for record in in_turn if record is not None]
    kept: dict[str, list[Any]] = {
        "revisions": [row | {"prompt": prompt_text(row["prompt"])} for row in revisions[:limit]],
        "pairs": [
            row | {key: prompt_text(row[key]) for key in ("prompt", "chosen", "rejected")}
            for row in pairs[:limit]
        ],
        "answers": sorted(asked[:limit], key=lambda record: list(suites).index(record["suite"])),
    }
    return kept, {"revisions": len(revisions), "pairs": len(pairs), "answers": len(asked)}


def prompt_text(messages: Sequence[Mapping[str, str]]) -> str:
    """The one turn, or all turns with their roles."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(
        f"{message['role'].capitalize()}: {message['content']}" for message in messages
    )


def embedded(value: Any) -> str:
    """JSON that may stand in a <script>: ASCII, and none of the characters that HTML knows."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
