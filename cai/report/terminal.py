"""Tables and word diffs for the terminal. Results go to stdout."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cai.redact import safe
from cai.report import stage_view
from cai.report.metrics import METRICS, Metrics, Suites, format_metric
from cai.report.stage_view import StageView
from cai.report.word_diff import word_diff

STYLES = {"same": "", "added": "green", "removed": "red strike"}


def marked_text(before: str, after: str, coloured: bool = True) -> Text:
    """`after` with its new words in green and the words that are gone struck through in red."""
    marks = word_diff(before, after) if coloured else None
    if marks is None:
        return Text(safe(after))
    text = Text()
    for kind, words in marks:
        text.append(safe(words.rstrip() + " " if kind == "removed" else words), STYLES[kind])
    return text


def wide_console(width: int = 160) -> Console:
    """A console for tables: as wide as a terminal, and `width` columns in a file or a pipe."""
    console = Console(markup=False, highlight=False)
    return console if console.is_terminal else Console(markup=False, highlight=False, width=width)


def print_stage_view(view: StageView, console: Console) -> None:
    """The lines of a finished stage as a table of two columns, its tables, and its warnings."""
    table = _table(f"{view.name}: {view.description}", show_header=False)
    for name, amount in view.lines:
        table.add_row(safe(name), safe(amount))
    if view.lines:
        console.print(table)
    print_tables(view, console)
    for warning in view.warnings:
        console.print(f"WARNING: {safe(warning)}", style="yellow")


def print_tables(view: StageView, console: Console) -> None:
    for rows in view.tables:
        console.print(_rich_table(rows))


def print_results(metrics: Metrics) -> None:
    """What an evaluation measured, in two tables; 95 % intervals stand in brackets."""
    pairs = _behaviour_columns(metrics)
    reference = [name for name, metric in METRICS.items() if metric.table == "reference"]
    console = wide_console(40 + 24 * max(len(pairs), len(reference)))
    table = _table("held-out prompts, 95 % intervals")
    table.add_column("model", style="bold")
    for suite, name in pairs:
        table.add_column(f"{safe(suite)}\n{METRICS[name].title}", justify="right")
    for model, suites in metrics.items():
        cells = [_cell(suites, suite, name) for suite, name in pairs]
        table.add_row(safe(model), *cells)
    console.print(table)
    _print_reference_table(metrics, reference, console)


def _behaviour_columns(metrics: Metrics) -> list[tuple[str, str]]:
    """(suite, metric) pairs that some model has, the metrics in the order of METRICS."""
    names = [name for name, metric in METRICS.items() if metric.table == "behaviour"]
    suites = dict.fromkeys(suite for measured in metrics.values() for suite in measured)
    return [
        (suite, name)
        for name in names
        for suite in suites
        if any(name in measured.get(suite, {}) for measured in metrics.values())
        and not any(_has_reference(measured, suite) for measured in metrics.values())
    ]


def _print_reference_table(metrics: Metrics, names: Sequence[str], console: Console) -> None:
    """What has reference answers: a row a suite (with its shots) and model.

    So the models stand below each other.
    """
    rows = [
        (suite, model, suites)
        for suite in next(iter(metrics.values()), {})
        for model, suites in metrics.items()
        if _has_reference(suites, suite)
    ]
    columns = [
        name
        for name in ("refusal", *names)
        if any(name in suites[suite] for suite, _, suites in rows)
    ]
    table = _table("against reference answers, 95 % intervals")
    table.add_column("prompts")
    table.add_column("model")
    for name in columns:
        table.add_column(METRICS[name].title, justify="right")
    for suite, model, suites in rows:
        cells = [_cell(suites, suite, name) for name in columns]
        table.add_row(safe(suite), safe(model), *cells)
    if rows:
        console.print(table)


def _has_reference(suites: Suites, suite: str) -> bool:
    return any(METRICS[n].table == "reference" for n in suites.get(suite, {}) if n in METRICS)


def _cell(suites: Suites, suite: str, name: str) -> str:
    interval = suites.get(suite, {}).get(name)
    return format_metric(name, interval) if interval else ""


def _rich_table(view: stage_view.Table) -> Table:
    table = _table(view.title)
    for column, numeric in zip(view.columns, view.numeric, strict=True):
        table.add_column(safe(column), justify="right" if numeric else "left")
    for row in view.rows:
        table.add_row(*map(safe, row))
    return table


def _table(title: str, show_header: bool = True) -> Table:
    return Table(
        title=safe(title), title_justify="left", title_style="bold", show_header=show_header
    )
