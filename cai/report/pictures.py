"""The report's pictures in pixels: models by their refusals, training's curves, and lengths."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, product
from typing import NamedTuple

from cai.report.metrics import Metrics, format_share
from cai.scoring.statistics import Estimate, share

TOPICS = {  # kind of suite -> its prompts, and what a refusal of them is called
    "red_team": ("red-team prompts", "refusals"),
    "benign": ("benign prompts", "over-refusal"),
}

CURVES = {  # title -> key in a training history
    "loss": "loss",
    "reward margin": "rewards/margins",
    "reward accuracy": "rewards/accuracies",
    "reward of the chosen": "rewards/chosen",
    "reward of the rejected": "rewards/rejected",
    "KL to the reference": "kl",
    "tokens an answer": "answers/tokens",
}

WIDTH, HEIGHT = 260, 120  # of curves and histograms, in pixels

MOST_POINTS = 300  # of a curve


def refusal_rates(metrics: Metrics, kinds: Mapping[str, str], kind: str) -> dict[str, Estimate]:
    """Model -> share refused of the prompts of all suites of a kind."""
    names = [suite for suite, suite_kind in kinds.items() if suite_kind == kind]
    rates = {}
    for model, suites in metrics.items():
        refusals = [suites[s]["refusal"] for s in names if "refusal" in suites.get(s, {})]
        counts = [refusal.get("count", 0) for refusal in refusals]
        if refusals:
            values = [refusal["value"] for refusal in refusals]
            refused = sum(round(value * count) for value, count in zip(values, counts, strict=True))
            rates[model] = share(refused, sum(counts))
    return rates


def percent(rate: Estimate) -> str:
    return format_share({"value": rate.value, "low": rate.low, "high": rate.high})


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, box: "Box") -> bool:
        across = self.left < box.right and box.left < self.right
        return across and self.top < box.bottom and box.top < self.bottom


AXES = Box(66.0, 16.0, 420.0, 336.0)


@dataclass(frozen=True)
class Point:
    """A model in the picture: where it stands, and how far its intervals reach, in pixels."""

    model: str
    x: float
    y: float
    across: tuple[float, float]
    down: tuple[float, float]
    title: str


@dataclass(frozen=True)
class Label:
    """A name in the picture, and the point that it belongs to."""

    text: str
    x: float
    y: float
    anchor: str  # start | end: the side of the text that stands at x
    point: Point


@dataclass(frozen=True)
class Picture:
    """Models by the share of prompts that they refuse."""

    points: list[Point]
    moves: list[tuple[Point, Point]]  # arrows
    ticks: list[tuple[int, float, float]]  # percent, its x, its y
    labels: list[Label]
    axes: Box = AXES


def picture(metrics: Metrics, kinds: Mapping[str, str], arrows: bool = True) -> Picture | None:
    """Benign prompts answered (x) against red-team prompts refused (y).

    Arrows lead from each model to the next. None where a kind of suite is missing.
    """
    red_team, benign = (refusal_rates(metrics, kinds, kind) for kind in TOPICS)
    points = [
        _point(model, red_team[model], benign[model]) for model in red_team if model in benign
    ]
    if not points:
        return None
    moves = [(a, b) for a, b in pairwise(points) if arrows and _distance(a, b) > 20]
    ticks = [(tick, _x(tick / 100), _y(tick / 100)) for tick in range(0, 101, 25)]
    return Picture(points, moves, ticks, place_labels(points))


def _x(value: float) -> float:
    return round(AXES.left + value * (AXES.right - AXES.left), 1)


def _y(value: float) -> float:
    return round(AXES.bottom - value * (AXES.bottom - AXES.top), 1)


def _point(model: str, red: Estimate, benign: Estimate) -> Point:
    title = (
        f"{model}: refuses {percent(red)} of red-team prompts and {percent(benign)} of benign ones"
    )
    return Point(
        model,
        _x(1 - benign.value),
        _y(red.value),
        (_x(1 - benign.high), _x(1 - benign.low)),
        (_y(red.high), _y(red.low)),
        title,
    )


def _distance(a: Point, b: Point) -> float:
    return math.dist((a.x, a.y), (b.x, b.y))


def place_labels(points: Sequence[Point]) -> list[Label]:
    """Names beside their points, where they cover the fewest points, bars and names.

    The upper point's name stands above the lower's. Points that coincide share one.
    """
    groups: dict[Point, list[str]] = {}
    for point in points:
        leader = next((first for first in groups if _distance(first, point) < 8), point)
        groups.setdefault(leader, []).append(point.model)
    taken = [Box(p.x - 5, p.y - 5, p.x + 5, p.y + 5) for p in points]
    taken += [Box(p.across[0], p.y - 1, p.across[1], p.y + 1) for p in points]
    taken += [Box(p.x - 1, p.down[0], p.x + 1, p.down[1]) for p in points]
    labels: list[Label] = []
    for point, names in sorted(groups.items(), key=lambda group: group[0].y):
        text = ", ".join(names)
        box = min(
            _label_boxes(point, names), key=lambda box: _label_cost(box, point, taken, labels)
        )
        taken.append(box)
        x, anchor = (box.left, "start") if box.left > point.x else (box.right, "end")
        labels.append(Label(text, x, _baseline(box), anchor, point))
    return labels


def _label_boxes(point: Point, names: Sequence[str]) -> Iterator[Box]:
    """Where the names might stand: to the right or the left of a point, or of its bar."""
    width = 7.2 * sum(map(len, names)) + 8 * (len(names) - 1)
    starts = (point.x + 9, point.x - 9 - width, point.across[0] - 9 - width)
    for shift, start in product(range(-120, 121, 5), starts):
        yield Box(start, point.y + shift - 7, start + width, point.y + shift + 7)


def _label_cost(box: Box, point: Point, taken: Sequence[Box], labels: Sequence[Label]) -> float:
    hits = sum(box.overlaps(obstacle) for obstacle in taken)
    # a name must not stand above another one whose point is higher
    turned = sum((point.y - label.point.y) * (_baseline(box) - label.y) < 0 for label in labels)
    outside = (
        box.left < AXES.left
        or box.top < AXES.top - 8
        or box.right > AXES.right + 8
        or box.bottom > AXES.bottom
    )
    shift = abs(round(box.top + 7 - point.y))
    distance = max(box.left - point.x, point.x - box.right) / 2
    return 100 * (hits + turned) + 1000 * outside + shift + distance


def _baseline(box: Box) -> float:
    return box.top + 11.5


@dataclass(frozen=True)
class Plot:
    """Lines of training and of held-out rows in pixels, and the axes' ends."""

    title: str
    lines: list[list[tuple[float, float]]]
    low: str
    high: str
    first: int
    last: int
    width: int = WIDTH
    height: int = HEIGHT


def curves(entries: Sequence[Mapping[str, float]]) -> list[Plot]:
    """Line plots of a training history. Values that are not finite are left out."""
    plots = []
    for title, key in CURVES.items():
        series = [_series(entries, key), _series(entries, f"eval_{key}")]
        if not any(series):
            continue
        steps, values = zip(*chain(*series), strict=True)
        low, high, first, last = min(values), max(values), min(steps), max(steps)
        across, down = WIDTH / ((last - first) or 1), HEIGHT / ((high - low) or 1)
        lines = [
            [
                (round((step - first) * across, 1), round((high - value) * down, 1))
                for step, value in points
            ]
            for points in series
        ]
        plots.append(Plot(title, lines, number(low), number(high), int(first), int(last)))
    return plots


def _series(entries: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    """(step, value) of a key of a training history, thinned to MOST_POINTS."""
    points = [
        (entry["step"], entry[key]) for entry in entries if math.isfinite(entry.get(key, math.nan))
    ]
    return points[:: len(points) // MOST_POINTS + 1]


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram in pixels: so many rows of at most `edge` tokens."""

    edge: int
    count: int
    x: float
    height: float


@dataclass(frozen=True)
class Histogram:
    """Bars in pixels, each `step` wide; the highest has `high` rows."""

    bars: list[Bar]
    step: float
    high: int
    width: int = WIDTH
    height: int = HEIGHT


def bars(counts: Mapping[str, int]) -> Histogram:
    """A histogram of {"4": rows of 3 or 4 tokens, "8": rows of 5 to 8, ...}.

    Bins between may be missing.
    """
    edges = [min(map(int, counts))]
    while edges[-1] < max(map(int, counts)):
        edges.append(2 * edges[-1])
    step, high = WIDTH / len(edges), max(counts.values())
    row_counts = [counts.get(str(edge), 0) for edge in edges]
    drawn_bars = [
        Bar(edge, count, round(place * step, 1), round(HEIGHT * count / high, 1))
        for place, (edge, count) in enumerate(zip(edges, row_counts, strict=True))
    ]
    return Histogram(drawn_bars, round(step, 1), high)


def number(value: float | str) -> str:
    """Thousands apart by a thin space; four significant digits of what is not whole."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.4g}"
    return f"{value:,.0f}".replace(",", "\u202f")
