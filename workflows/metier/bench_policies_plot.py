"""The plot of `metier bench policies` as SVG: one small panel a model, a line and its 95 % band a policy, over reliability. Pure.

Colours are those of Okabe and Ito (2008), which people who are colour-blind tell apart; each line has dashes and a mark of its own too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from metier.bench_policies_report import Cell

WIDTH, HEIGHT, COLUMNS = 330, 240, 2
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 30, 40
HEAD = 44
TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Look:
    """How a policy is drawn."""

    name: str
    colour: str
    dashes: str
    mark: str


LOOKS = {
    "autonomous": Look("autonomous", "#0072B2", "", '<circle cx="{x}" cy="{y}" r="3.2"/>'),
    "collaborative": Look("collaborative", "#D55E00", "7 3", '<path d="M{x} {y}m-3.6 3l3.6-6.4l3.6 6.4z"/>'),
    "meta_reasoned": Look(
        "meta-reasoned",
        "#009E73",
        "2 2.5",
        '<path d="M{x} {y}m-3.2-3.2h6.4v6.4h-6.4z" fill="none" stroke-width="1.6"/>',
    ),
}


def draw(cells: Sequence[Cell]) -> str:
    """The whole picture."""
    models = list(dict.fromkeys(one.model for one in cells))
    rows = -(-len(models) // COLUMNS)
    width, height = WIDTH * min(COLUMNS, len(models)), HEAD + HEIGHT * rows
    panels = "\n".join(
        f'<g transform="translate({number % COLUMNS * WIDTH} {HEAD + number // COLUMNS * HEIGHT})">\n{_panel(model, cells)}\n</g>'
        for number, model in enumerate(models)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img"'
        ' font-family="sans-serif" font-size="11" fill="#222">\n'
        "<title>Share of right answers by policy, as the tool gets less reliable</title>\n"
        f"<desc>{escape(_words(cells))}</desc>\n"
        f'<rect width="{width}" height="{height}" fill="#fff"/>\n{_legend()}\n{panels}\n</svg>\n'
    )


def _words(cells: Sequence[Cell]) -> str:
    """The same figures for who does not see the picture."""
    return "; ".join(
        f"{one.model}, reliability {one.level:g}, {LOOKS[one.policy].name}: {100 * one.accuracy:.1f} %" for one in cells
    )


def _legend() -> str:
    return "\n".join(
        f'<g transform="translate({LEFT + 150 * number} 22)" stroke="{look.colour}" fill="{look.colour}">'
        f'<path d="M0 0h30" stroke-width="2" stroke-dasharray="{look.dashes}"/>{look.mark.format(x=15, y=0)}'
        f'<text x="36" y="4" stroke="none" fill="#222">{look.name}</text></g>'
        for number, look in enumerate(LOOKS.values())
    )


def _panel(model: str, cells: Sequence[Cell]) -> str:
    mine = [one for one in cells if one.model == model]
    lines = "\n".join(_line(look, [one for one in mine if one.policy == policy]) for policy, look in LOOKS.items())
    levels = sorted({one.level for one in mine}, reverse=True)
    across = "\n".join(
        f'<text x="{_x(level)}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{level:g}</text>' for level in levels
    )
    up = "\n".join(
        f'<path d="M{LEFT} {_y(share)}H{WIDTH - RIGHT}" stroke="#ddd"/>'
        f'<text x="{LEFT - 6}" y="{_y(share) + 4}" text-anchor="end">{100 * share:.0f} %</text>'
        for share in TICKS
    )
    return (
        f'<text x="{LEFT}" y="18" font-weight="bold">{escape(model)}</text>\n{up}\n{across}\n'
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">share of calls in which the tool does its work</text>\n{lines}'
    )


def _line(look: Look, cells: Sequence[Cell]) -> str:
    ordered = sorted(cells, key=lambda one: -one.level)
    if not ordered:
        return ""
    band = [(one.level, one.high) for one in ordered] + [(one.level, one.low) for one in reversed(ordered)]
    marks = "".join(look.mark.format(x=_x(one.level), y=_y(one.accuracy)) for one in ordered)
    path = _points([(one.level, one.accuracy) for one in ordered])
    return (
        f'<g stroke="{look.colour}" fill="{look.colour}"><path d="M{_points(band)}z" stroke="none" fill-opacity="0.12"/>'
        f'<path d="M{path}" fill="none" stroke-width="2" stroke-dasharray="{look.dashes}"/>{marks}</g>'
    )


def _points(pairs: Sequence[tuple[float, float]]) -> str:
    return "L".join(f"{_x(level)} {_y(share)}" for level, share in pairs)


def _x(level: float) -> float:
    """Reliable on the left."""
    return round(LEFT + (1 - level) * (WIDTH - LEFT - RIGHT), 1)


def _y(share: float) -> float:
    return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)
