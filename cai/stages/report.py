"""The report stage: reads what the other stages made and writes one HTML page."""

import dataclasses
import json
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from functools import reduce
from itertools import zip_longest
from pathlib import Path
from typing import Any

from cai.config.build import ASKING, build
from cai.config.schema import ModelConfig, ReportConfig, first_round, other_model
from cai.data.parquet import read_rows
from cai.errors import CaiError
from cai.report.old_summaries import stage_view
from cai.report.page import (
    MODELS,
    cost_rows,
    notices,
    records,
    render,
    stage_warnings,
    verdict,
)
from cai.report.pictures import bars, curves, picture
from cai.stages.base import Context
from cai.stages.evaluate import shown_name
from cai.store.run_folder import Manifest, read_manifest


def run(config: ReportConfig, inputs: Any, work: Path, context: Context) -> dict[str, Any]:
    """Writes work/report.html. Returns how many records the page carries, by kind."""
    out = {name: Path(given.path) for name, given in context.inputs.items()}
    manifests = {
        name: m for name, path in out.items() if (m := read_manifest(path.parent)) is not None
    }
    settings = configuration(context.root / "run.json", manifests)
    kinds = {name: suite["kind"] for name, suite in settings["evaluate"]["suites"].items()}
    metrics = json.loads((out["evaluate"] / "metrics.json").read_text(encoding="utf-8"))
    models = model_order(context)
    metrics = {name: metrics[name] for name in sorted(metrics, key=[*models, *metrics].index)}
    stages = {name: figures for name, figures in metrics.items() if name in models}  # the run's own
    measured = manifests["evaluate"].summary
    revisions = read_rows(out["revise"] / "revisions.parquet")
    by_round = [
        read_rows(path / "pairs.parquet")
        for name, path in out.items()
        if first_round(name) == "label"
    ]
    pairs = [
        row for rows in zip_longest(*by_round) for row in rows if row is not None
    ]  # a share for every round
    kept, totals = records(
        revisions, pairs, read_rows(out["evaluate"] / "answers.parquet"), config.records
    )
    with closing(context.ledger()) as ledger:
        cost = cost_rows(ledger.cost(), model_names(context, settings), config.price)
    views = {name: stage_view(manifest, context.model.name) for name, manifest in manifests.items()}
    histories = {name: out[name] / "history.json" for name in models if name in out}
    page = render(
        "report.html.j2",
        context=context,
        settings={"name": context.root.name} | settings,
        manifests=manifests,
        finished=datetime.fromtimestamp(
            max(m.started + m.seconds for m in manifests.values()), UTC
        ),
        verdict=verdict(stages, kinds),
        notices=[
            *stage_warnings(views.values()),
            *(note for view in views.values() for note in view.notes),
            *notices(stages, kinds),
        ],
        views=views,
        training=[name for name in views if name in ("sft", "sl_cai")],
        labels=[name for name in views if first_round(name) == "label"],
        picture=picture(stages, kinds),
        lengths={
            name: bars(m.summary["lengths"]["up_to"])
            for name, m in manifests.items()
            if m.summary.get("lengths")
        },
        metrics=metrics,
        comparisons=[
            row for row in measured.get("comparisons", []) if row["first"] == next(iter(metrics))
        ],
        wins=measured.get("wins", []),
        refusal=measured.get("refusal", {"by": "rules"}),
        harm=measured.get("harm"),
        sources={
            shown_name(name, shots): ", ".join(suite["prompts"]["data"])
            for name, suite in settings["evaluate"]["suites"].items()
            for shots in suite["shots"]
        },
        curves={
            name: curves(json.loads(file.read_text()))
            for name, file in histories.items()
            if file.is_file()
        },
        texts=principle_texts(context, manifests["revise"]),
        cost=cost,
        records=kept,
        totals=totals,
    )
    (work / "report.html").write_bytes(page)
    return {"records": {kind: len(rows) for kind, rows in kept.items()}}


def configuration(file: Path, manifests: Mapping[str, Manifest]) -> dict[str, Any]:
    """The run's configuration; each stage's own section as its manifest has it, for that is what was run."""
    try:
        whole = json.loads(file.read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError):
        whole = {}
    return whole | {
        n: whole.get(n, {}) | m.ingredients[n] for n, m in manifests.items() if n in m.ingredients
    }


def principle_texts(context: Context, revise: Manifest) -> dict[str, str]:
    """Principle id -> its critique request, where the file still holds what the run was made with."""
    try:
        rules = context.load_constitution()
    except CaiError:  # edited or moved while the run went on
        return {}
    now, then = (
        rules.revising()["principles"],
        revise.ingredients.get("constitution", {}).get("principles", {}),
    )
    return {p.id: p.critique for p in rules.principles if now[p.id] == then.get(p.id)}


def model_order(context: Context) -> list[str]:
    """The models' names, the rounds' after the others."""
    return [
        *MODELS,
        *(name for name in context.inputs if first_round(name) == "dpo" and name not in MODELS),
    ]


def model_names(context: Context, settings: Mapping[str, Any]) -> dict[str, str]:
    """Digest, as the ledger has it -> name, of the models of this run."""
    names = {
        context.model_digest(name): name for name in model_order(context) if context.owns(name)
    }
    asked = [
        reduce(lambda part, key: part.get(key) or {}, f"{name}.model".split("."), settings)
        for name in ASKING
    ]
    others = [build(ModelConfig, one) for one in asked if one]
    others += [
        other_model(name)
        for name in settings["evaluate"].get("models", [])
        if name not in model_order(context)
    ]
    for other in others:
        names.setdefault(dataclasses.replace(context, model=other).model_digest("base"), other.name)
    return names
