"""The two plots of the page of a comparison, as SVG: accuracy over cost, and what pools of each size reach. Pure; `compare_page` calls it.

Colours are those of the page's style sheet, so that they follow light and dark; each series has a shape of its own too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from metier.compare_figures import percent, percents, thousand, thousands
from metier.compare_page_text import safe
from metier_workflows.choosing.pooling import Kept
from metier_workflows.choosing.segments import Standing
from metier_workflows.choosing.statistics import Estimate

WIDTH, LEFT, TOP, BOTTOM = 1080, 52, 16, 44
NAMES = 330
"""Room for names on one side."""
APART = 16
"""Between two names, one under the other."""
SHOWN = 44
"""Characters of a name that are drawn; all of it is in the tables."""
MOST_MARKS, LARGEST_POWER = 12, 300
"""Marks on an axis of costs, and the powers of ten that floats have with room to spare."""


@dataclass(frozen=True)
class Axis:
    """Values from low to high, drawn from begin to end."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        """Where a value lies; one beyond an end lies at it."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.begin + share * (self.end - self.begin), 1)


@dataclass(frozen=True)
class Point:
    """A model: accuracy as a share, cost as the logarithm of USD for 1,000 queries where costs are known, else its rank."""

    name: str
    told: str
    y: Estimate
    x: Estimate | None
    across: float
    front: bool


def scatter(standings: Sequence[Standing]) -> str:
    """Accuracy over cost; over the rank where costs are not known of all. Names stand at the right, each with a line to its point."""
    points = _points([one for one in standings if one.accuracy])
    height = max(360, TOP + BOTTOM + APART * len(points))
    y = _up([point.y for point in points], height)
    x = _across(points)
    parts = [_rows(y), _columns(x, height) if points[0].x else "", _front(points, x, y), _labels(points, x, y, height)]
    parts += [_cross(point, x, y) for point in points]
    across = "US dollars for 1,000 queries, on a logarithmic scale" if points[0].x else "models, best first"
    axis = f'<text class="soft" x="{LEFT}" y="{height - 6}">{across}</text>'
    return _svg(height, "Share of right answers of each model, over what it costs", points, "\n".join([*parts, axis]))


def _points(standings: Sequence[Standing]) -> list[Point]:
    costs = [one.cost_usd for one in standings if one.cost_usd and one.cost_usd.low > 0]
    priced = len(costs) == len(standings)
    found: list[Point] = []
    for rank, one in enumerate(standings):
        accuracy, cost = one.accuracy, one.cost_usd if priced else None
        if accuracy is None:
            continue
        cheaper = (
            other for other in standings[:rank] if other.cost_usd and cost and other.cost_usd.value <= cost.value
        )
        told = f"{percents(accuracy)} %" + (f", ${thousands(cost)} for 1,000" if cost else "")
        across = math.log10(1000 * cost.value) if cost else float(rank)
        found.append(Point(one.model, told, accuracy, cost, across, bool(cost) and not any(cheaper)))
    return found


def _up(values: Sequence[Estimate], height: float) -> Axis:
    low, high = min(one.low for one in values), max(one.high for one in values)
    step = 0.05 if high - low < 0.4 else 0.1
    return Axis(math.floor(low / step) * step, math.ceil(high / step) * step or step, height - BOTTOM, TOP)


def _across(points: Sequence[Point]) -> Axis:
    ends = [math.log10(1000 * end) for one in points if one.x for end in (one.x.low, one.x.high)]
    ends = ends or [one.across for one in points]
    room = 0.05 * (max(ends) - min(ends)) + 0.05
    return Axis(min(ends) - room, max(ends) + room, LEFT, WIDTH - NAMES)


def _rows(y: Axis) -> str:
    step = 0.05 if y.high - y.low < 0.4 else 0.1
    levels = [y.low + step * number for number in range(round((y.high - y.low) / step) + 1)]
    return "\n".join(
        f'<path class="grid" d="M{LEFT} {y(level)}H{WIDTH - NAMES}"/>'
        f'<text class="soft" x="{LEFT - 6}" y="{y(level) + 4}" text-anchor="end">{percent(level, 0)} %</text>'
        for level in levels
    )


def _columns(x: Axis, height: float) -> str:
    powers = range(max(math.floor(x.low), -LARGEST_POWER), min(math.ceil(x.high), LARGEST_POWER) + 1)
    marks = [base * 10.0**power for power in powers for base in (1, 2, 5)]
    inside = [mark for mark in marks if x.low <= math.log10(mark) <= x.high]
    few = inside if len(inside) <= MOST_MARKS else [mark for mark in inside if f"{mark:.0e}".startswith("1")]
    few = few[:: math.ceil(len(few) / MOST_MARKS) or 1]
    return "\n".join(
        f'<path class="grid" d="M{x(math.log10(mark))} {TOP}V{height - BOTTOM}"/>'
        f'<text class="soft" x="{x(math.log10(mark))}" y="{height - BOTTOM + 15}" text-anchor="middle">{thousand(mark / 1000)}</text>'
        for mark in few
    )


def _front(points: Sequence[Point], x: Axis, y: Axis) -> str:
    """The models that no cheaper one beats."""
    path = "L".join(f"{x(one.across)} {y(one.y.value)}" for one in points if one.front)
    return f'<path class="front" d="M{path}"/>' if path else ""


def _cross(point: Point, x: Axis, y: Axis) -> str:
    at, up = x(point.across), y(point.y.value)
    wide = f"M{x(math.log10(1000 * point.x.low))} {up}H{x(math.log10(1000 * point.x.high))}" if point.x else ""
    return (
        f'<g class="one"><title>{safe(point.name)}: {point.told}</title>'
        f'<path d="M{at} {y(point.y.low)}V{y(point.y.high)}{wide}"/><circle cx="{at}" cy="{up}" r="4"/></g>'
    )


def _labels(points: Sequence[Point], x: Axis, y: Axis, height: float) -> str:
    """Names from top to bottom in the order of the points, never one over another."""
    ordered = sorted(points, key=lambda one: -one.y.value)
    places = apart([y(one.y.value) for one in ordered], TOP, height - BOTTOM)
    edge = WIDTH - NAMES
    return "\n".join(
        f'<path class="lead-line" d="M{x(one.across)} {y(one.y.value)}L{edge} {y(one.y.value)}L{edge + 12} {place}"/>'
        f'<text x="{edge + 16}" y="{place + 4}">{safe(one.name, SHOWN)}</text>'
        for one, place in zip(ordered, places, strict=True)
    )


def apart(wanted: Sequence[float], top: float, bottom: float) -> list[float]:
    """Places as near to the wanted ones as may be, in the same order, `APART` from one to the next, and none below the bottom if there is room."""
    places: list[float] = []
    for want in wanted:
        places.append(max(want, places[-1] + APART if places else top))
    limit = bottom
    for number in reversed(range(len(places))):
        places[number] = round(min(places[number], limit), 1)
        limit = places[number] - APART
    return places


def growth(pools: Sequence[Kept]) -> str:
    """What an oracle, and choosing by category, reach with one model, two, and so on: a row for each size."""
    height = TOP + BOTTOM + 26 * len(pools)
    values = [one.oracle for one in pools] + [one.by_category for one in pools]
    low, high = min(one.low for one in values), max(one.high for one in values)
    x = Axis(math.floor(20 * low) / 20, math.ceil(20 * high) / 20, NAMES, WIDTH - 30)
    rows = [_pool(number, one, x) for number, one in enumerate(pools)]
    told = [(f"{number} models, with {one.model}", f"oracle {percents(one.oracle)} %, by category {percents(one.by_category)} %") for number, one in enumerate(pools, 1)]  # fmt: skip
    return _drawn(height, "What the best pool of each size reaches", told, "\n".join([_scale(x, height), *rows]))


def _scale(x: Axis, height: float) -> str:
    step = 0.05 if x.high - x.low < 0.6 else 0.1
    levels = [x.low + step * number for number in range(round((x.high - x.low) / step) + 1)]
    return "\n".join(
        f'<path class="grid" d="M{x(level)} {TOP}V{height - BOTTOM}"/>'
        f'<text class="soft" x="{x(level)}" y="{height - BOTTOM + 15}" text-anchor="middle">{percent(level, 0)} %</text>'
        for level in levels
    )


def _pool(number: int, one: Kept, x: Axis) -> str:
    at = TOP + 26 * number + 13
    name = safe(one.model, SHOWN)
    return (
        f'<text x="{NAMES - 14}" y="{at + 4}" text-anchor="end">{"+ " if number else ""}{name}</text>'
        f'<g class="one"><path d="M{x(one.oracle.low)} {at - 4}H{x(one.oracle.high)}"/><circle cx="{x(one.oracle.value)}" cy="{at - 4}" r="4"/></g>'
        f'<g class="two"><path d="M{x(one.by_category.low)} {at + 5}H{x(one.by_category.high)}"/>'
        f'<path d="M{x(one.by_category.value)} {at + 5}m-4.5 3.5l4.5-8l4.5 8z"/></g>'
    )


def _svg(height: float, title: str, points: Iterable[Point], inside: str) -> str:
    return _drawn(height, title, [(one.name, one.told) for one in points], inside)


def _drawn(height: float, title: str, told: Iterable[tuple[str, str]], inside: str) -> str:
    """The picture, with the same figures in words."""
    words = "; ".join(f"{safe(name)}: {safe(text)}" for name, text in told)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">\n'
        f"<title>{title}</title>\n<desc>{words}</desc>\n{inside}\n</svg>"
    )
