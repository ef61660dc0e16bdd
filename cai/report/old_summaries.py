"""StageViews from the summaries of manifests, until the stages make them themselves.

The only file of the report that knows the keys of a stage's summary (but for evaluate's metrics).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cai.config.schema import first_round
from cai.report.metrics import METRICS, format_metric, format_share
from cai.report.pictures import number
from cai.report.stage_view import StageView, Table
from cai.store.run_folder import Manifest

Summary = Mapping[str, Any]
Line = tuple[str, str]

DESCRIPTIONS = {
    "build": "wrote instructions and answers to train on",
    "sft": "tuned the starting model on instructions",
    "revise": "answered red-team prompts, then criticised and revised each answer by a drawn "
    "principle",
    "sl_cai": "tuned on the revisions and on helpful rows",
    "label": "answered further prompts twice; a judge said which answer a drawn principle prefers",
    "dpo": "direct preference optimisation on those pairs",
    "evaluate": "asked every model the same held-out prompts",
    "report": "wrote this page",
}

LABEL_DESCRIPTIONS = {  # by label.kind
    "feedback": DESCRIPTIONS["label"],
    "revision": "preferred each prompt's last good revision to its first answer, without a judge",
    "rule": "answered further prompts, harmful and harmless, several times; rules preferred what "
    "declines the harmful and helps with the harmless",
    "mixed": f"{DESCRIPTIONS['label']}; beside them, revisions that are preferred to first answers "
    "without a judge",
}

NO_JUDGE = {  # by label.kind
    "revision": "No judge was asked: every revision is preferred to the first answer.",
    "rule": "No judge was asked: the rules that find refusals said which of the model's own answers"
    " is preferred. Refusal rates by these rules flatter what was trained so; read its answers.",
}

MAIN_COUNTS = ("prompts", "rows", "pairs", "steps")

LINES = {  # key -> what it counts
    "lists": "lists asked for",
    "unread": "of them without an item",
    "parsed": "instructions read",
    "distilled": "prompts given",
    "instructions": "instruction rows",
    "revisions": "revisions",
    "prompts": "prompts",
    "benign_prompts": "harmless prompts",
    "kept": "prompts with a revision to train on",
    "helpful": "helpful answers sampled",
    "helpful_left_out": "helpful answers left out",
    "rows": "training rows",
    "pairs": "pairs",
    "harmful": "pairs on harmful prompts",
    "harmless": "pairs on harmless prompts",
    "chosen_longer": "pairs with the longer answer chosen",
    "all_good": "prompts with good answers alone",
    "none_good": "prompts without a good answer",
    "cut_off": "answers cut off, which are never chosen",
    "held_out_rows": "rows held out",
    "steps": "steps",
    "trained_tokens": "tokens trained on",
    "held_out_loss": "held-out loss",
    "loss": "last loss",
    "rewards/chosen": "reward of the chosen",
    "rewards/margins": "reward margin",
    "rewards/accuracies": "reward accuracy",
    "read": "rows read",
    "skipped": "rows left out that do not fit",
    "no_answer": "rows left out without an answer",
    "not_drawn": "rows not drawn",
    "dropped": "rows dropped",
    "truncated": "rows cut to length",
    "judged": "comparisons",
    "revised_prompts": "revised prompts",
    "demonstrations": "pairs of a data set's answers and the model's own",
    "demonstrations_refused": "of these own answers, refusals",
    "unrevised": "prompts without a good revision that differs",
    "overlapping": "left out, as an evaluation suite holds them",
    "lost_end_of_turn": "ends of turn lost in the cut",
    "identical": "prompts with nearly equal or empty answers",
    "too_long": "too long for the judge",
    "uncertain": "under the margin",
    "failed": "failed: no engine answered",
    "built": "kept",
}

AUDITED = [
    "read",
    "skipped",
    "no_answer",
    "overlapping",
    "not_drawn",
    "rows",
    "truncated",
    "lost_end_of_turn",
    "dropped",
    "trained_tokens",
    "instructions",
    "revisions",
]  # keys of sft's summary that audit_lines shows


def stage_view(manifest: Manifest, model: str = "") -> StageView:
    """What a finished stage did, in words; `model` is the starting model's name."""
    kind, summary = first_round(manifest.stage), manifest.summary
    view = StageView(
        name=manifest.stage,
        description=DESCRIPTIONS.get(kind, ""),
        counts=", ".join(
            f"{summary[key]} {key}" for key in MAIN_COUNTS if isinstance(summary.get(key), int)
        ),
        lines=tuple(_count_lines(summary)),
        warnings=tuple(summary.get("signs", [])),
        lengths=summary.get("lengths", {}).get("up_to", {}),
    )
    if kind in ("sft", "sl_cai") and "texts" in summary:
        rest = {key: value for key, value in summary.items() if key not in AUDITED}
        return replace(view, lines=(*audit_lines(summary), *_count_lines(rest)))
    if kind == "build":
        left_out = [(f"left out: {why}", number(n)) for why, n in summary["left_out"].items()]
        return replace(view, lines=(*view.lines, *left_out))
    if kind == "revise":
        return _revise_view(view, manifest)
    return _label_view(view, manifest, model) if kind == "label" else view


def _revise_view(view: StageView, manifest: Manifest) -> StageView:
    critic = manifest.ingredients.get("revise", {}).get("model")
    notes = ()
    if critic:
        notes = (f"Critiques and revisions came from another model, {critic['name']}.",)
    dataset = (
        f"`revisions.parquet`: for each of {manifest.summary.get('prompts')} prompts the first "
        "answer and each round's critique and revision, with the gates that it failed. "
        "`training.parquet`: what of it is trained on."
    )
    tables = tuple(_revision_tables(manifest.summary))
    return replace(view, tables=tables, notes=notes, dataset=dataset)


def _label_view(view: StageView, manifest: Manifest, model: str) -> StageView:
    summary, label = manifest.summary, manifest.ingredients.get("label", {})
    # the later rounds are labelled as the first
    notes = _label_notes(summary, label, model) if manifest.stage == "label" else []
    return replace(
        view,
        description=LABEL_DESCRIPTIONS[label.get("kind", "feedback")],
        lines=(*view.lines, *_judge_lines(summary, label)),
        tables=tuple(_calibration_tables(summary)),
        warnings=tuple(summary.get("judge", {}).get("doubts", [])),
        notes=tuple(notes),
        dataset=_pairs_description(summary),
    )


def audit_view(stage: str, audit: Summary) -> StageView:
    """The audit of a training set, before or after training on it."""
    return StageView(stage, "what is trained on", "", tuple(audit_lines(audit)))


def _count_lines(summary: Summary) -> list[Line]:
    """The counts that are not zero: in the order of LINES, then those that it lacks."""
    lines = []
    # of evaluate: by suite
    if isinstance(prompts := summary.get("prompts"), Mapping):
        lines = [(f"{suite} prompts", number(count)) for suite, count in prompts.items()]
    names = [name for name in LINES if name in summary]
    for name in [*names, *(name for name in summary if name not in LINES)]:
        value = summary[name]
        if isinstance(value, float) or (isinstance(value, int) and value != 0):
            lines.append((LINES.get(name, name.replace("_", " ")), number(value)))
    return lines


def _tally(counts: Summary) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def audit_lines(audit: Summary) -> list[Line]:
    """A training set's audit; a line without content is left out."""
    texts, rows = audit["texts"], audit["rows"]
    row_sources = audit["sources"] | (
        {"revisions": audit["revisions"]} if "revisions" in audit else {}
    )
    lost = {
        "unfit": audit["skipped"],
        "without an answer": audit["no_answer"],
        "in an evaluation set": audit["overlapping"],
        "not drawn": audit["not_drawn"],
    }
    cut = {
        "rows cut": audit["truncated"],
        "ends of turn lost": audit["lost_end_of_turn"],
        "without a trained token": audit["dropped"],
    }
    shares = [f"{name} {count} ({count / rows:.0%})" for name, count in row_sources.items() if rows]
    lines = [
        ("rows read", f"{audit['read']}"),
        ("left out", _tally(lost)),
        ("first unfit", "\n".join(audit["skipped_first"])),
        ("by evaluation set", _tally(audit["overlaps"])),
        ("rows drawn", ", ".join(shares) or "0"),
        *_length_lines(audit["lengths"]),
        ("cut to max_length", _tally(cut)),
        ("tokens trained", f"{audit['trained_tokens']}"),
        *_text_lines(texts),
        ("texts compared", f"{texts['compared']} of {rows}" if texts["compared"] < rows else ""),
    ]
    return [(name, amount) for name, amount in lines if amount]


def _length_lines(lengths: Summary) -> list[Line]:
    if not lengths:
        return []
    summary = f"median {lengths['median']}, 95 % ≤ {lengths['p95']}, most {lengths['most']}"
    bins = {f"≤{edge}:": count for edge, count in lengths["up_to"].items()}
    return [("tokens a row", summary), ("", _tally(bins))]


def _text_lines(texts: Summary) -> list[Line]:
    distinct = ", ".join(f"{n}: {share:.0%}" for n, share in texts["distinct"].items())
    openings = f"{texts['different_openings']} different: {_tally(texts['openings'])}"
    exact, near = texts["exact_duplicates"], texts["near_duplicates"]
    return [
        ("duplicates", f"{exact} exact, {near} near (MinHash)"),
        ("distinct n-grams", distinct),
        *((tag, _tally(counts)) for tag, counts in texts["tags"].items()),
        ("openings", openings),
        ("scripts", _tally(texts["scripts"])),
    ]


def _revision_tables(summary: Summary) -> list[Table]:
    """What became of the revisions by principle and by round, and why some were left out."""
    tables = [
        _tally_table(title, summary[key])
        for title, key in (("principle", "principles"), ("round", "rounds"))
        if key in summary
    ]
    total = sum(tally["drawn"] for tally in summary.get("principles", {}).values())
    gates = sorted(summary.get("gates", {}).items(), key=lambda gate: -gate[1])
    rows = [
        (gate, number(count), f"{100 * count / total:.0f} %" if total else "")
        for gate, count in gates
    ]
    title = "gates: why a revision was not trained on; one may fail several"
    if rows:
        tables.append(Table(title, ("gate", "failed", f"of {total} revisions"), tuple(rows)))
    return tables


def _tally_table(title: str, tallies: Mapping[str, Summary]) -> Table:
    names = ("drawn", "changed", "refused", "passed", "gates", "words_before", "words_after")
    keys = [key for key in names if key == "gates" or any(key in row for row in tallies.values())]
    rows = []
    for name, tally in tallies.items():
        gates = dict(sorted(tally.get("gates", {}).items(), key=lambda gate: -gate[1]))
        cells = {key: str(tally.get(key, "")) for key in keys} | {"gates": _tally(gates)}
        rows.append((name, *(cells[key] for key in keys)))
    heads = ["gated by" if key == "gates" else key.replace("_", " ") for key in keys]
    return Table(f"revisions by {title}", (title, *heads), tuple(rows))


def _judge_lines(summary: Summary, label: Summary) -> list[Line]:
    """How far the judge can be relied on; [] where nothing judged."""
    judge = summary.get("judge")
    if judge is None:
        return []
    lines = [("judge", _judge_name(label))]
    for name, metric in METRICS.items():
        if metric.table == "judge" and judge.get(name) is not None:
            lines.append((metric.title, format_metric(name, judge[name])))
    if not judge.get("bins"):
        text = "Its accuracy is not known: label.calibrate names no labelled pairs."
        lines.append(("calibration", text))
    return lines


def _judge_name(label: Summary) -> str:
    return label["model"]["name"] if label.get("model") else label.get("judge", "")


def _calibration_tables(summary: Summary) -> list[Table]:
    judge = summary.get("judge", {})
    if not judge.get("bins"):
        return []
    rows = [
        (
            f"{row['low']} to {row['high']}",
            f"{row['probability']:.2f}",
            format_share(row["right"]),
            str(row["right"]["count"]),
        )
        for row in judge["bins"]
    ]
    title = (
        f"calibration on labelled pairs ({', '.join(judge['labelled'])}): certainty and accuracy "
        f"lie {100 * judge['calibration_error']:.0f} points apart"
    )
    return [Table(title, ("probability", "mean", "right", "pairs"), tuple(rows))]


def _pairs_description(summary: Summary) -> str:
    judge, principles = "", "; no judge was asked"
    if "judge" in summary:
        judge, principles = ", the judge's", ", with the principles it was asked about"
    return (
        f"{summary.get('pairs')} pairs of answers to one prompt: `chosen`, `rejected`, and "
        f"`probability`{judge} that `chosen` is the better (0.5 to 1){principles}."
    )


def _label_notes(summary: Summary, label: Summary, model: str) -> list[str]:
    """Who preferred what."""
    judge, name, notes = summary.get("judge"), _judge_name(label), []
    if not judge:
        notes.append(NO_JUDGE["rule" if label.get("kind") == "rule" else "revision"])
    elif label.get("model"):
        notes.append(f"The preferences came from another model, {name}, not from people.")
    else:
        notes.append(
            f"The model judged itself. The preferences came from {name}, of the same small model "
            f"family that is trained ({model}), not from people and not from a stronger model."
        )
    flipped = (judge or {}).get("flipped")
    # above a half, it is among the warnings
    if flipped and flipped["value"] <= 0.5:
        notes.append(
            f"{format_share(flipped)} of the judge's preferences turned when the two answers were "
            "swapped (position bias)."
        )
    if summary.get("human"):
        notes.append(
            f"Of the {summary['pairs']} preference pairs, people have labelled {summary['human']} "
            "(label.human)."
        )
    return notes
