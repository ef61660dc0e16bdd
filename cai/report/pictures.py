"""The report's pictures in pixels: models by their refusals, training's curves, and histograms of lengths."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, pairwise, product
from typing import Any

from cai.report.metrics import format_metric
from cai.scoring.statistics import Estimate, share

TOPICS = {
    "red_team": ("red-team prompts", "refusals"),
    "benign": ("benign prompts", "over-refusal"),
}

CURVES = {
    "loss": "loss",
    "reward margin": "rewards/margins",
    "reward accuracy": "rewards/accuracies",
    "reward of the chosen": "rewards/chosen",
    "reward of the rejected": "rewards/rejected",
    "KL to the reference": "kl",
    "tokens an answer": "answers/tokens",
}


def refusal_rates(
    metrics: Mapping[str, Any], kinds: Mapping[str, str], kind: str
) -> dict[str, Estimate]:
    """Model -> share refused of the prompts of all suites of a kind."""
    rates = {}
    for model, figures in metrics.items():
        found = [
            figures[s]["refusal"]
            for s, k in kinds.items()
            if k == kind and "refusal" in figures.get(s, {})
        ]
        if found:
            refused = sum(round(one["value"] * one["count"]) for one in found)
            rates[model] = share(refused, sum(one["count"] for one in found))
    return rates


def percent(rate: Estimate) -> str:
    return format_metric(asdict(rate), percent=True)


BOX = (66.0, 16.0, 420.0, 336.0)  # left, top, right, bottom of the picture's axes, in pixels


@dataclass(frozen=True)
class Point:
    """A model in the picture: where it stands, and how far its intervals reach, in pixels."""

    model: str
    x: float
    y: float
    across: tuple[float, float]
    down: tuple[float, float]
    title: str


def picture(
    metrics: Mapping[str, Any], kinds: Mapping[str, str], arrows: bool = True
) -> dict[str, Any] | None:
    """Benign prompts answered (x) against red-team prompts refused (y), with arrows from each model to the next.

    None where a kind of suite is missing.
    """
    red, benign = (refusal_rates(metrics, kinds, kind) for kind in TOPICS)
    left, top, right, bottom = BOX

    def x(value: float) -> float:
        return round(left + value * (right - left), 1)

    def y(value: float) -> float:
        return round(bottom - value * (bottom - top), 1)

    points = []
    for name, (r, b) in {
        name: (rate, benign[name]) for name, rate in red.items() if name in benign
    }.items():
        title = f"{name}: refuses {percent(r)} of red-team prompts and {percent(b)} of benign ones"
        bars = (x(1 - b.high), x(1 - b.low)), (y(r.high), y(r.low))
        points.append(Point(name, x(1 - b.value), y(r.value), *bars, title))
    far = [(a, b) for a, b in pairwise(points) if math.dist((a.x, a.y), (b.x, b.y)) > 20]
    moves = far if arrows else []
    ticks = [(n, x(n / 100), y(n / 100)) for n in range(0, 101, 25)]
    return (
        {"points": points, "moves": moves, "ticks": ticks, "box": BOX, "labels": labels(points)}
        if points
        else None
    )


def labels(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Names beside their points, where they cover least of points, bars and names, and the upper point's above the
    lower's; points that coincide share one."""
    groups: dict[Point, list[str]] = {}
    for point in points:
        leader = next((p for p in groups if math.dist((p.x, p.y), (point.x, point.y)) < 8), point)
        groups.setdefault(leader, []).append(point.model)
    taken = [(p.x - 5, p.y - 5, p.x + 5, p.y + 5) for p in points]
    taken += [(p.across[0], p.y - 1, p.across[1], p.y + 1) for p in points]
    taken += [(p.x - 1, p.down[0], p.x + 1, p.down[1]) for p in points]
    placed: list[dict[str, Any]] = []
    for p, names in sorted(groups.items(), key=lambda one: one[0].y):
        width = 7.2 * sum(map(len, names)) + 8 * (len(names) - 1)
        best, box = math.inf, (0.0, 0.0, 0.0, 0.0)
        for shift, start in product(
            range(-120, 121, 5), (p.x + 9, p.x - 9 - width, p.across[0] - 9 - width)
        ):
            tried = (start, p.y + shift - 7, start + width, p.y + shift + 7)
            hits = sum(
                tried[0] < t[2] and t[0] < tried[2] and tried[1] < t[3] and t[1] < tried[3]
                for t in taken
            )
            outside = (
                tried[0] < BOX[0]
                or tried[1] < BOX[1] - 8
                or tried[2] > BOX[2] + 8
                or tried[3] > BOX[3]
            )
            turned = sum(
                (p.y - one["point"].y) * (tried[1] + 11.5 - one["y"]) < 0 for one in placed
            )
            cost = (
                100 * (hits + turned)
                + 1000 * outside
                + abs(shift)
                + max(start - p.x, p.x - start - width) / 2
            )
            if cost < best:
                best, box = cost, tried
        taken.append(box)
        x, anchor = (box[0], "start") if box[0] > p.x else (box[2], "end")
        placed.append(
            {"text": ", ".join(names), "x": x, "y": box[1] + 11.5, "anchor": anchor, "point": p}
        )
    return placed


def curves(
    entries: Sequence[Mapping[str, Any]], width: int = 260, height: int = 120
) -> list[dict[str, Any]]:
    """Line plots of a training history: the lines in pixels, of training and held-out rows, and the axes' ends."""
    plots = []
    for title, key in CURVES.items():
        both = (key, f"eval_{key}")
        series = [
            [(e["step"], e[k]) for e in entries if math.isfinite(e.get(k, math.nan))] for k in both
        ]
        series = [points[:: len(points) // 300 + 1] for points in series]
        if not any(series):
            continue
        steps, values = zip(*chain(*series), strict=True)
        low, high, first, last = min(values), max(values), min(steps), max(steps)
        across, down = width / ((last - first) or 1), height / ((high - low) or 1)
        lines = [
            [(round((x - first) * across, 1), round((high - y) * down, 1)) for x, y in one]
            for one in series
        ]
        ends = {"low": number(low), "high": number(high), "first": first, "last": last}
        plots.append({"title": title, "lines": lines, "width": width, "height": height} | ends)
    return plots


def bars(counts: Mapping[str, int], width: int = 260, height: int = 120) -> dict[str, Any]:
    """A histogram in pixels, of {"4": rows of 3 or 4 tokens, "8": rows of 5 to 8, ...}; bins between may be missing."""
    edges = [min(map(int, counts))]
    while edges[-1] < max(map(int, counts)):
        edges.append(2 * edges[-1])
    step, high = width / len(edges), max(counts.values())
    shown = [
        {
            "edge": edge,
            "count": count,
            "x": round(place * step, 1),
            "height": round(height * count / high, 1),
        }
        for place, edge in enumerate(edges)
        for count in [counts.get(str(edge), 0)]
    ]
    return {"bars": shown, "step": round(step, 1), "high": high, "width": width, "height": height}


def number(value: Any) -> str:
    """Thousands apart by a thin space; four significant digits of what is not whole."""
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.4g}"
    return f"{value:,.0f}".replace(",", "\u202f") if isinstance(value, int | float) else str(value)
