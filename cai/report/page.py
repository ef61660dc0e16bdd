"""The run as one HTML page that needs no network: verdict, picture, metrics, records to read."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cai import __version__
from cai.config.schema import Price
from cai.data.parquet import Row
from cai.report.adherence import adherence_sentences
from cai.report.changes import change_of_refusals
from cai.report.metrics import Metrics, Suites, format_metric, format_share, metric
from cai.report.pictures import TOPICS, number, refusal_rates
from cai.report.stage_view import StageView
from cai.report.word_diff import word_diff
from cai.scoring.adherence import Adherence
from cai.scoring.statistics import ModelComparison

MODELS = ("base", "sft", "sl_cai", "dpo")

TEMPLATES = Path(__file__).parent / "templates"


FEW = 30  # prompts of a kind; fewer measure little

OFTEN = 0.1  # of a model's answers; rarer faults are not worth a notice


def render(template: str, **view: object) -> bytes:
    """The page in UTF-8, with everything escaped but the records (see `embedded`)."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "duration": duration,
        "share": format_share,
        "embedded": embedded,
        "yaml": _as_yaml,
    }
    environment.tests["folded"] = lambda name: metric(name).folded
    environment.globals |= {"format_metric": format_metric, "metric": metric}
    page = environment.get_template(template).render(view, version=__version__).lstrip()
    # references to what UTF-8 has no place for show as U+FFFD
    return page.encode("utf-8", "xmlcharrefreplace")


def _as_yaml(value: object) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)


def verdict(
    metrics: Metrics,
    kinds: Mapping[str, str],
    changes: Sequence[ModelComparison],
    adherence: Adherence | None = None,
) -> list[str]:
    """What changed from the first model to the last, by paired tests, and which stage did it.

    A paragraph on red-team prompts, one on benign ones, and one on the principles where a judge has
    measured them. `changes` and `adherence`: of evaluate's summary.
    """
    refusals = [change_of_refusals(metrics, kinds, changes, kind) for kind in TOPICS]
    return [*refusals, *adherence_sentences(adherence)]


def notices(metrics: Metrics, kinds: Mapping[str, str]) -> list[str]:
    """What a reader has to know of the evaluation before believing the verdict."""
    texts = []
    counts = [
        rate.count for kind in TOPICS for rate in refusal_rates(metrics, kinds, kind).values()
    ]
    if counts and min(counts) < FEW:
        texts.append(
            f"With {min(counts)} prompts of a kind, this run tests the machinery and measures "
            "little."
        )
    for model, suites in metrics.items():
        if where := _often("degenerate", suites):
            texts.append(f"Answers of {model} that are empty or go round in circles: {where}.")
        instructions = {name: row for name, row in suites.items() if "bits_per_byte" in row}
        if where := _often("refusal", instructions):
            texts.append(f"{model} declines ordinary instructions: {where}.")
    return texts


def _often(name: str, suites: Suites) -> str:
    """The suites where a metric is at least OFTEN."""
    return ", ".join(
        f"{format_metric(name, measured[name])} of {suite}"
        for suite, measured in suites.items()
        if name in measured and measured[name]["value"] >= OFTEN
    )


def stage_warnings(views: Iterable[StageView]) -> list[str]:
    """The warnings of the stages, each with its stage; the first judge's stand without it."""
    return [
        warning if view.name == "label" else f"{view.name}: {warning}"
        for view in sorted(views, key=lambda view: view.name != "label")
        for warning in view.warnings
    ]


def cost_rows(
    rows: Sequence[Row], names: Mapping[str, str], price: Price | None = None
) -> list[Row]:
    """The ledger's rows with the models' names, speeds and prices, and a last row of totals."""
    named = [{**row, "model": names.get(row["model"], f"({row['model'][:8]})")} for row in rows]
    columns = ("completions", "prompt_tokens", "new_tokens", "seconds")
    totals = {column: sum(row[column] for row in rows) for column in columns}
    named += [{"stage": "all", "model": ""} | totals] if rows else []
    for row in named:
        row["speed"] = row["new_tokens"] / row["seconds"] if row["seconds"] else 0
        if price and (price.prompt or price.new):
            cost = row["prompt_tokens"] * price.prompt + row["new_tokens"] * price.new
            row["price"] = cost / 1e6
    return named


def records(
    revisions: Sequence[Row], pairs: Sequence[Row], answers: Sequence[Row], limit: int
) -> tuple[dict[str, list[Row]], dict[str, int]]:
    """At most `limit` records of each kind, and how many there are."""
    suites = _answers_by_prompt(answers)
    # a share for every suite
    in_turn = chain.from_iterable(zip_longest(*(rows.values() for rows in suites.values())))
    prompts = [record for record in in_turn if record is not None]
    order = list(suites)
    carried = {
        "revisions": [_revision_record(row) for row in revisions[:limit]],
        "pairs": [
            row | {key: prompt_text(row[key]) for key in ("prompt", "chosen", "rejected")}
            for row in pairs[:limit]
        ],
        "answers": sorted(prompts[:limit], key=lambda record: order.index(record["suite"])),
    }
    totals = {"revisions": len(revisions), "pairs": len(pairs), "answers": len(prompts)}
    return carried, totals


def _answers_by_prompt(answers: Sequence[Row]) -> dict[str, dict[str, Row]]:
    """Suite -> prompt's id -> a record of the prompt with every model's answer."""
    suites: dict[str, dict[str, Row]] = {}
    for row in answers:
        record = {key: row[key] for key in ("suite", "id", "reference")}
        record |= {"prompt": prompt_text(row["prompt"]), "answers": {}}
        record = suites.setdefault(row["suite"], {}).setdefault(row["id"], record)
        record["answers"][row["model"]] = {"text": row["answer"], "refuses": row["refuses"]}
    return suites


def _revision_record(row: Row) -> Row:
    """A row of revisions.parquet with each revision's `marks` against the answer before it."""
    before, steps = row["answer"], []
    for step in row["steps"]:
        steps.append(step | {"marks": word_diff(before, step["revision"])})
        if not step["gates"]:
            before = step["revision"]
    return row | {"prompt": prompt_text(row["prompt"]), "steps": steps}


def prompt_text(messages: Sequence[Mapping[str, str]]) -> str:
    """The one turn, or all turns with their roles."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(
        f"{message['role'].capitalize()}: {message['content']}" for message in messages
    )


def embedded(value: object) -> str:
    """JSON that may stand in a <script>: ASCII, and none of the characters that HTML knows."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
