"""Adherence by principle as tables and sentences: which moved, and which got worse."""

from collections.abc import Sequence

from cai.report.changes import points, shows_change
from cai.report.pictures import percent
from cai.report.stage_view import Table
from cai.scoring.adherence import Adherence, AdherenceRates
from cai.scoring.statistics import ModelComparison

MOST_NAMED = 6  # principles in a sentence

MOST_GROUPS = 20  # rows of the second table


def adherence_tables(adherence: Adherence) -> list[Table]:
    """Principle by model, and the same for groups of prompts."""
    title = f"Answers that keep each principle, says a judge ({adherence.judge})"
    tables = [_table(title, "principle", adherence.principles, adherence.routed)]
    if groups := adherence.groups:
        title = "The same by kind, category and tag"
        if len(groups) > MOST_GROUPS:
            title += f", the largest {MOST_GROUPS} of {len(groups)}"
            groups = sorted(groups, key=lambda row: -row.prompts)[:MOST_GROUPS]
        tables.append(_table(title, "group", groups, ()))
    return [table for table in tables if table.rows]


def _table(
    title: str, head: str, measured: Sequence[AdherenceRates], routed: Sequence[str]
) -> Table:
    models = list(dict.fromkeys(model for row in measured for model in row.rates))
    has_people = any(row.agreement for row in measured)
    rows = []
    for row in measured:
        cells = [percent(row.rates[model]) if model in row.rates else "" for model in models]
        source = "suites" if row.name in routed else "tagged"
        prompts = f"{row.prompts} {source}" if head == "principle" else str(row.prompts)
        turns = f"{100 * row.judge.flipped.value:.0f} %"
        people = (percent(row.agreement) if row.agreement else "",) if has_people else ()
        rows.append((row.name, prompts, *cells, turns, *people, change_cell(row)))
    people = ("people agree",) if has_people else ()
    columns = (head, "prompts", *models, "judge turns", *people, "change")
    return Table(title, columns, tuple(rows))


def change_cell(row: AdherenceRates) -> str:
    """`dpo +35 points [20, 50]`, with WORSE before what fell."""
    if row.judge.doubt:
        return f"NOT RELIABLE: {row.judge.doubt}"
    texts = []
    for change in filter(shows_change, row.changes):
        worse = "" if change["difference"]["value"] > 0 else "WORSE: "
        sign = "" if worse else "+"
        texts.append(f"{worse}{_step(change)} {sign}{points(change, signed=True)}")
    if not row.changes:
        return ""
    return "; ".join(texts) or "none shown"


def _step(change: ModelComparison) -> str:
    return f"{change['second']} after {change['first']}"


def adherence_sentences(adherence: Adherence | None) -> list[str]:
    """What each principle did from the first model to the last, in a paragraph; [] of nothing."""
    if adherence is None or not any(row.changes for row in adherence.principles):
        return []
    compared = [row for row in adherence.principles if row.changes]
    sure = [row for row in compared if not row.judge.doubt]
    moved = [row for row in sure if shows_change(_whole(row))]
    fell = [row for row in moved if _whole(row)["difference"]["value"] < 0]
    rose = [row for row in moved if row not in fell]
    phrases = []
    if fell:
        phrases.append(f"got worse: {_movements(fell)}")
    if rose:
        phrases.append(f"rose: {_movements(rose)}")
    if still := len(sure) - len(moved):
        phrases.append(f"{still} of {len(compared)} show no change")
    if doubted := len(compared) - len(sure):
        phrases.append(
            f"for {doubted} of {len(compared)} the judge ({adherence.judge}) can't be relied on"
        )
    return [f"By principle, says a judge: {'; '.join(phrases)}."]


def _movements(rows: Sequence[AdherenceRates]) -> str:
    texts = []
    for row in rows[:MOST_NAMED]:
        whole = _whole(row)
        old, new = (percent(row.rates[whole[end]]) for end in ("first", "second"))
        texts.append(f"{row.name} from {old} ({whole['first']}) to {new} ({whole['second']})")
    if len(rows) > MOST_NAMED:
        texts.append(f"and {len(rows) - MOST_NAMED} more")
    return ", ".join(texts)


def _whole(row: AdherenceRates) -> ModelComparison:
    """From the first model to the last."""
    return row.changes[-1]
