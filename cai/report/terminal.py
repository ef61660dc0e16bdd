"""Tables and word diffs for the terminal. Results go to stdout."""

import re
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from cai.redact import safe
from cai.report.metrics import NAMES, SHARES, format_metric


def word_diff(before: str, after: str, coloured: bool = True) -> "Text":
    """`after` with its new words in green, and the words of `before` that are gone struck through in red."""
    import difflib

    from rich.text import Text

    old, new = re.findall(r"\S+\s*", safe(before)), re.findall(r"\S+\s*", safe(after))
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    if (
        not coloured or matcher.ratio() < 0.3
    ):  # another text altogether: marks would only be in the way
        return Text(safe(after))
    text = Text()
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind in ("replace", "delete"):
            text.append("".join(old[a:b]).rstrip() + " ", "red strike")
        if kind != "delete":
            text.append("".join(new[c:d]), "green" if kind != "equal" else "")
    return text


def tally(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def audit_rows(audit: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A training set's audit as (name, figures) pairs, for the terminal and the report."""
    texts, lengths, rows = audit["texts"], audit["lengths"], audit["rows"]
    drawn = audit["sources"] | ({"revisions": audit["revisions"]} if "revisions" in audit else {})
    lost = {
        "unfit": "skipped",
        "without an answer": "no_answer",
        "in an evaluation set": "overlapping",
    }
    shown = [
        ("rows read", f"{audit['read']}"),
        (
            "left out",
            tally(
                {name: audit[key] for name, key in lost.items()} | {"not drawn": audit["not_drawn"]}
            ),
        ),
        ("first unfit", "\n".join(audit["skipped_first"])),
        ("by evaluation set", tally(audit["overlaps"])),
        (
            "rows drawn",
            ", ".join(f"{name} {n} ({n / rows:.0%})" for name, n in drawn.items()) if rows else "0",
        ),
    ]
    if lengths:
        up_to = tally({f"≤{edge}:": count for edge, count in lengths["up_to"].items()})
        shown += [
            (
                "tokens a row",
                f"median {lengths['median']}, 95 % ≤ {lengths['p95']}, most {lengths['most']}",
            ),
            ("", up_to),
        ]
    cut = {
        "rows cut": "truncated",
        "ends of turn lost": "lost_end_of_turn",
        "without a trained token": "dropped",
    }
    return [
        (name, figures)
        for name, figures in [
            *shown,
            ("cut to max_length", tally({name: audit[key] for name, key in cut.items()})),
            ("tokens trained", f"{audit['trained_tokens']}"),
            (
                "duplicates",
                f"{texts['exact_duplicates']} exact, {texts['near_duplicates']} near (MinHash)",
            ),
            (
                "distinct n-grams",
                ", ".join(f"{n}: {share:.0%}" for n, share in texts["distinct"].items()),
            ),
            *((tag, tally(counts)) for tag, counts in texts["tags"].items()),
            ("openings", f"{texts['different_openings']} different: {tally(texts['openings'])}"),
            ("scripts", tally(texts["scripts"])),
            (
                "texts compared",
                f"{texts['compared']} of {rows}" if texts["compared"] < rows else "",
            ),
        ]
        if figures
    ]


def audit_table(stage: str, audit: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{stage}: what is trained on", title_justify="left", show_header=False)
    for name, figures in audit_rows(audit):
        table.add_row(name, safe(figures))
    Console(markup=False, highlight=False).print(table)


BEHAVIOUR = ("refusal", "words")  # degeneration is in the report

AGAINST = ("too_long", "exact", "rouge_l", "bits_per_byte", "acc", "acc_norm")


def result_columns(metrics: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """(suite, figure) pairs that some model has: the suites in their order, refusals first."""
    found = {
        (suite, name)
        for suites in metrics.values()
        for suite, figures in suites.items()
        for name in figures
        if not figures.keys() & {*AGAINST}  # they have a table of their own
    }
    suites = list(dict.fromkeys(suite for one in metrics.values() for suite in one))
    return sorted(
        (p for p in found if p[1] in BEHAVIOUR),
        key=lambda p: (BEHAVIOUR.index(p[1]), suites.index(p[0])),
    )


def result_table(metrics: dict[str, dict[str, Any]]) -> None:
    """One row a model, one column a suite and figure, then what has reference answers; 95 % intervals in brackets."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False)
    table = Table(
        title="held-out prompts, 95 % intervals", title_justify="left", title_style="bold"
    )
    table.add_column("model", style="bold")
    columns = result_columns(metrics)
    for suite, name in columns:
        table.add_column(f"{suite}\n{NAMES[name]}", justify="right")
    for model, suites in metrics.items():
        cells = [(suites.get(suite) or {}).get(name) for suite, name in columns]
        texts = [
            format_metric(c, n in SHARES) if c else ""
            for c, (_, n) in zip(cells, columns, strict=True)
        ]
        table.add_row(model, *texts)
    if not console.is_terminal:  # a file or a pipe keeps every column
        console = Console(markup=False, width=40 + 24 * max(len(columns), len(AGAINST)))
    console.print(table)
    _reference_table(metrics, console)


def _reference_table(metrics: dict[str, dict[str, Any]], console: "Console") -> None:
    """What has reference answers: a row a suite (with its shots) and model, so that models stand below each other."""
    from rich.table import Table

    rows = [
        (s, model, suites[s])
        for s in next(iter(metrics.values()), {})
        for model, suites in metrics.items()
    ]
    rows = [(s, model, figures) for s, model, figures in rows if figures.keys() & {*AGAINST}]
    shown = [name for name in ("refusal", *AGAINST) if any(name in figures for *_, figures in rows)]
    table = Table(
        title="against reference answers, 95 % intervals", title_justify="left", title_style="bold"
    )
    for head in ("prompts", "model", *(NAMES[name] for name in shown)):
        table.add_column(head, justify="left" if head in ("prompts", "model") else "right")
    for s, model, figures in rows:
        table.add_row(
            s,
            model,
            *(format_metric(figures[n], n in SHARES) if n in figures else "" for n in shown),
        )
    if rows:
        console.print(table)


def revision_tables(summary: dict[str, Any]) -> None:
    """What became of the revisions, by principle and by round, for the end of a run."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, width=None if Console().is_terminal else 160)
    columns = ("drawn", "changed", "refused", "passed", "gated by", "words before", "after")
    for title, key in (("principle", "principles"), ("round", "rounds")):
        table = Table(title=f"revisions by {title}", title_justify="left", title_style="bold")
        table.add_column(title, style="bold")
        for column in columns:
            table.add_column(column, justify="left" if column == "gated by" else "right")
        for name, tally in summary[key].items():
            gates = sorted(tally["gates"].items(), key=lambda pair: -pair[1])
            counts = [str(tally[column]) for column in columns[:4]]
            texts = [
                ", ".join(f"{gate} {count}" for gate, count in gates),
                tally["words_before"],
                tally["words_after"],
            ]
            table.add_row(safe(name), *counts, *map(str, texts))
        console.print(table)


def build_table(summary: Mapping[str, Any]) -> None:
    """How many instructions the teacher wrote, why some were left out, and how many rows there are to train on."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title="built instructions", title_justify="left", title_style="bold", show_header=False
    )
    table.add_column()
    table.add_column(justify="right")
    names = {
        "lists": "lists asked for",
        "unread": "of them without an item",
        "parsed": "instructions read",
    }
    for key, name in (names | {"distilled": "prompts given"}).items():
        table.add_row(name, str(summary[key]))
    for reason, count in summary["left_out"].items():
        table.add_row(f"left out: {reason}", str(count))
    table.add_row("failed", str(summary["failed"]))
    table.add_row("kept", str(summary["built"]), style="bold")
    Console(markup=False).print(table)
