"""The run as one HTML page that needs no network: verdict, picture, figures, and the records to read."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import reduce
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from cai import __version__
from cai.checks import ASKING, build
from cai.config import ModelConfig, Price, ReportConfig, first_round, other_model
from cai.errors import CaiError
from cai.figures import NAMES, RULED, SHARES, figure
from cai.stages.base import Context, read_rows
from cai.stages.evaluate import shown_name
from cai.stages.pictures import TOPICS, bars, curves, number, percent, picture, refusal_rates
from cai.store import Manifest, read_manifest
from cai.tables import audit_rows

MODELS = ("base", "sft", "sl_cai", "dpo")


def run(config: ReportConfig, inputs: Any, work: Path, context: Context) -> dict[str, Any]:
    """Writes work/report.html. Returns how many records the page carries, by kind."""
    out = {name: Path(given.path) for name, given in context.inputs.items()}
    manifests = {name: m for name, path in out.items() if (m := read_manifest(path.parent)) is not None}
    settings = configuration(context.root / "run.json", manifests)
    kinds = {name: suite["kind"] for name, suite in settings["evaluate"]["suites"].items()}
    metrics = json.loads((out["evaluate"] / "metrics.json").read_text(encoding="utf-8"))
    models = model_order(context)
    metrics = {name: metrics[name] for name in sorted(metrics, key=[*models, *metrics].index)}
    stages = {name: figures for name, figures in metrics.items() if name in models}  # the run's own
    measured = manifests["evaluate"].summary
    revisions = read_rows(out["revise"] / "revisions.parquet")
    by_round = [read_rows(path / "pairs.parquet") for name, path in out.items() if first_round(name) == "label"]
    pairs = [row for rows in zip_longest(*by_round) for row in rows if row is not None]  # a share for every round
    kept, totals = records(revisions, pairs, read_rows(out["evaluate"] / "answers.parquet"), config.records)
    with closing(context.ledger()) as ledger:
        cost = cost_rows(ledger.cost(), model_names(context, settings), config.price)
    judge = judge_view(manifests["label"].summary, settings["label"])
    unjudged = UNJUDGED[settings["label"].get("kind") == "rule"]
    histories = {name: out[name] / "history.json" for name in models if name in out}
    page = render(
        "report.html.j2",
        context=context,
        settings={"name": context.root.name} | settings,
        manifests=manifests,
        finished=datetime.fromtimestamp(max(m.started + m.seconds for m in manifests.values()), UTC),
        verdict=verdict(stages, kinds),
        notices=[
            *([unjudged] if judge is None else []),
            *notices(stages, kinds, judge, described(context.model.name, manifests["dpo"]), settings["revise"]),
            *people(manifests["label"].summary),
            *(f"{name}: {doubt}" for name in manifests for doubt in later_doubts(name, manifests[name])),
            *(f"{name}: {sign}" for name in manifests for sign in manifests[name].summary.get("signs", [])),
        ],
        picture=picture(stages, kinds),
        lengths={
            name: bars(m.summary["lengths"]["up_to"]) for name, m in manifests.items() if m.summary.get("lengths")
        },
        audits={name: audit_rows(m.summary) for name, m in manifests.items() if "texts" in m.summary},
        metrics=metrics,
        comparisons=[row for row in measured.get("comparisons", []) if row["first"] == next(iter(metrics))],
        wins=measured.get("wins", []),
        refusal=measured.get("refusal", {"by": "rules"}),
        harm=measured.get("harm"),
        sources={
            shown_name(name, shots): ", ".join(suite["prompts"]["data"])
            for name, suite in settings["evaluate"]["suites"].items()
            for shots in suite["shots"]
        },
        curves={name: curves(json.loads(file.read_text())) for name, file in histories.items() if file.is_file()},
        texts=principle_texts(context, manifests["revise"]),
        judge=judge,
        unjudged=unjudged,
        cost=cost,
        records=kept,
        totals=totals,
    )
    (work / "report.html").write_bytes(page)
    return {"records": {kind: len(rows) for kind, rows in kept.items()}}


def render(template: str, **view: Any) -> bytes:
    """The page in UTF-8, with everything escaped but the records (see `embedded`)."""
    import yaml
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.lstrip_blocks = True
    environment.filters |= {"number": number, "duration": duration, "figure": figure, "embedded": embedded}
    environment.filters["yaml"] = lambda value: yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
    environment.globals |= {"SHARES": SHARES, "FIGURES": NAMES}
    page = environment.get_template(template).render(view, version=__version__).lstrip()
    return page.encode("utf-8", "xmlcharrefreplace")  # references to what UTF-8 has no place for show as U+FFFD


def configuration(file: Path, manifests: Mapping[str, Manifest]) -> dict[str, Any]:
    """The run's configuration; each stage's own section as its manifest has it, for that is what was run."""
    try:
        whole = json.loads(file.read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError):
        whole = {}
    return whole | {n: whole.get(n, {}) | m.ingredients[n] for n, m in manifests.items() if n in m.ingredients}


def verdict(metrics: Mapping[str, Any], kinds: Mapping[str, str]) -> list[str]:
    """What changed from the first model to the last: a sentence on red-team prompts, and one on benign ones."""
    sentences = []
    for kind, (prompts, name) in TOPICS.items():
        rates = refusal_rates(metrics, kinds, kind)
        if len(rates) < 2:
            sentences.append(f"No two models were evaluated on {prompts}, so nothing is said about {name}.")
            continue
        (first, before), *_, (last, after) = rates.items()
        old, new = percent(before), percent(after)
        if old == new:
            sentences.append(f"Refusals of {prompts} stayed at {old} ({first}, {last}).")
            continue
        found = f"do not overlap: {name} {'rose' if after.value > before.value else 'fell'}."
        if before.low <= after.high and after.low <= before.high:
            found = "overlap, so this run does not show a change."
        sentences.append(f"Refusals of {prompts} went from {old} ({first}) to {new} ({last}); the intervals {found}")
    return sentences


JUDGE = {  # figure -> what it is, in the order in which it is shown
    "flipped": "preferences that turn with the order",
    "longer": "the longer answer is chosen",
    "agreement": "two principles agree",
    "accuracy": "right on labelled pairs",
    "shorter": "of these, the shorter is labelled better",
}
NUMBERS = {"probability": "mean probability of the chosen", "entropy": "entropy of the feedback, bits"}


def judge_view(summary: Mapping[str, Any], label: Mapping[str, Any]) -> dict[str, Any] | None:
    """Figures of the AI feedback, over every comparison, with their intervals in words; None where nothing judged."""
    if "judge" not in summary:
        return None
    found = summary["judge"]
    facts = [(text, figure(found[name], percent=True)) for name, text in JUDGE.items() if name in found]
    facts += [(text, figure(found[key], percent=False)) for key, text in NUMBERS.items() if key in found]
    name = label["model"]["name"] if label.get("model") else label["judge"]
    return {**found, "name": name, "other": bool(label.get("model")), "facts": facts, "judged": summary["judged"]}


UNJUDGED = ("No judge was asked: every revision is preferred to the first answer.", RULED)  # the second: by rules


def people(summary: Mapping[str, Any]) -> list[str]:
    if not summary.get("human"):
        return []
    return [f"Of the {summary['pairs']} preference pairs, people have labelled {summary['human']} (label.human)."]


def described(model: str, trained: Manifest) -> str:
    """The model's name and the size of its trained weights."""
    weights = [f["bytes"] for name, f in trained.files.items() if name.startswith("model/") and "safetensors" in name]
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
    if judge and "flipped" in judge and judge["flipped"]["value"] <= 0.5:  # above that, it is among the doubts
        turned = figure(judge["flipped"], percent=True)
        said.append(f"{turned} of the judge's preferences turned when the two answers were swapped (position bias).")
    if critic := revise.get("model"):
        said.append(f"Critiques and revisions came from another model, {critic['name']}.")
    counts = [rate.count for kind in TOPICS for rate in refusal_rates(metrics, kinds, kind).values()]
    if counts and min(counts) < 30:
        said.append(f"With {min(counts)} prompts of a kind, this run tests the machinery and measures little.")

    def often(name: str, suites: Mapping[str, Any]) -> str:
        """The suites where at least one answer in ten is such."""
        found = ((suite, one[name]) for suite, one in suites.items() if one.get(name, {}).get("value", 0) >= 0.1)
        return ", ".join(f"{figure(one, percent=True)} of {suite}" for suite, one in found)

    for name, suites in metrics.items():
        if where := often("degenerate", suites):
            said.append(f"Answers of {name} that are empty or go round in circles: {where}.")
        if where := often("refusal", {suite: one for suite, one in suites.items() if "bits_per_byte" in one}):
            said.append(f"{name} declines ordinary instructions: {where}.")
    return said


def principle_texts(context: Context, revise: Manifest) -> dict[str, str]:
    """Principle id -> its critique request, where the file still holds what the run was made with."""
    try:
        rules = context.load_constitution()
    except CaiError:  # edited or moved while the run went on
        return {}
    now, then = rules.revising()["principles"], revise.ingredients.get("constitution", {}).get("principles", {})
    return {p.id: p.critique for p in rules.principles if now[p.id] == then.get(p.id)}


def model_order(context: Context) -> list[str]:
    """The models' names, the rounds' after the others."""
    return [*MODELS, *(name for name in context.inputs if first_round(name) == "dpo" and name not in MODELS)]


def later_doubts(stage: str, manifest: Manifest) -> list[str]:
    """About the judge of a later round of `label`; the first round's stand with its figures."""
    return manifest.summary.get("judge", {}).get("doubts", []) if first_round(stage) == "label" != stage else []


def model_names(context: Context, settings: Mapping[str, Any]) -> dict[str, str]:
    """Digest, as the ledger has it -> name, of the models of this run."""
    names = {context.model_digest(name): name for name in model_order(context) if context.owns(name)}
    asked = [reduce(lambda part, key: part.get(key) or {}, f"{name}.model".split("."), settings) for name in ASKING]
    others = [build(ModelConfig, one) for one in asked if one]
    others += [other_model(name) for name in settings["evaluate"].get("models", []) if name not in model_order(context)]
    for other in others:
        names.setdefault(dataclasses.replace(context, model=other).model_digest("base"), other.name)
    return names


def cost_rows(
    rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], price: Price | None = None
) -> list[dict[str, Any]]:
    """The ledger's rows with the models' names, speeds and prices, and a last row of totals."""
    shown = [{**row, "model": names.get(row["model"], f"({row['model'][:8]})")} for row in rows]
    sums = {key: sum(row[key] for row in rows) for key in ("completions", "prompt_tokens", "new_tokens", "seconds")}
    shown += [{"stage": "all", "model": ""} | sums] if rows else []
    for row in shown:
        row["speed"] = row["new_tokens"] / row["seconds"] if row["seconds"] else 0
        if price:
            row["price"] = (row["prompt_tokens"] * price.prompt + row["new_tokens"] * price.new) / 1e6
    return shown


def records(
    revisions: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]], answers: Sequence[dict[str, Any]], limit: int
) -> tuple[dict[str, list[Any]], dict[str, int]]:
    """At most `limit` records of each kind, and how many there are. One of answers is a prompt with every model's."""
    suites: dict[str, dict[str, Any]] = {}
    for row in answers:
        record = {"suite": row["suite"], "id": row["id"], "prompt": prompt_text(row["prompt"]), "answers": {}}
        record |= {"reference": row["reference"]}
        record = suites.setdefault(row["suite"], {}).setdefault(row["id"], record)
        record["answers"][row["model"]] = {"text": row["answer"], "refuses": row["refuses"]}
    in_turn = chain.from_iterable(zip_longest(*(rows.values() for rows in suites.values())))  # a share for every suite
    asked = [record for record in in_turn if record is not None]
    kept: dict[str, list[Any]] = {
        "revisions": [row | {"prompt": prompt_text(row["prompt"])} for row in revisions[:limit]],
        "pairs": [
            row | {key: prompt_text(row[key]) for key in ("prompt", "chosen", "rejected")} for row in pairs[:limit]
        ],
        "answers": sorted(asked[:limit], key=lambda record: list(suites).index(record["suite"])),
    }
    return kept, {"revisions": len(revisions), "pairs": len(pairs), "answers": len(asked)}


def prompt_text(messages: Sequence[Mapping[str, str]]) -> str:
    """The one turn, or all turns with their roles."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages)


def embedded(value: Any) -> str:
    """JSON that may stand in a <script>: ASCII, and none of the characters that HTML knows."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
