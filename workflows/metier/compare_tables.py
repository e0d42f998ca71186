"""A comparison of models as tables for a terminal. Pure; `cli_models` prints them.

Names are of whoever made the data: only shown, never obeyed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from metier.compare_figures import NONE, chance, part, percent, percents, thousands
from metier.terminal import shown
from metier_workflows.choosing.comparison import Category, Comparison, Pair
from metier_workflows.choosing.segments import Segment

PAIRS = 10
"""So many are shown, of those that reach most together."""


def tables(found: Comparison) -> RenderableType:
    """All of it, the verdict first."""
    parts: list[RenderableType] = [_say(found.verdict.sentence), "", _verdicts(found.categories), _models(found.whole)]
    parts += [_pairs("Pairs", found.pairs)] if found.pairs else []
    parts += [_drops(found), _growth(found)] if found.drops else []
    return Group(*parts)


def one_category(category: Category) -> RenderableType:
    """How every model, and every pair, stands on one kind of query."""
    parts: list[RenderableType] = [_say(category.verdict.sentence), "", _models(category.segment)]
    parts += [_pairs(f"Pairs in {shown(category.segment.name)}", category.pairs)] if category.pairs else []
    return Group(*parts)


def _verdicts(categories: Iterable[Category]) -> Table:
    rows = [(one.segment.name, f"{one.segment.queries:,}", one.verdict.sentence) for one in categories]
    return _table("By category", ("category", "queries", "verdict"), rows)


def _models(segment: Segment) -> Table:
    """Each model against the best one."""
    behind = {one.first: one for one in segment.against(segment.ranked[0])} if segment.ranked else {}
    rows = [
        (
            one.model,
            percents(one.accuracy),
            percents(behind[one.model].difference) if one.model in behind else NONE,
            chance(behind[one.model].p) if one.model in behind else NONE,
            thousands(one.cost_usd),
            percent(one.answered),
        )
        for one in segment.standings
    ]
    title = f"Models: {shown(segment.name)}, {segment.queries:,} queries; corrected p"
    return _table(title, ("model", "right %", "less the best, points", "p", "$ per 1,000", "answered %"), rows)


def _pairs(title: str, found: Sequence[Pair]) -> Table:
    rows = [
        (
            f"{one.contrast.first} + {one.contrast.second}",
            percents(one.either_right),
            percents(one.complement),
            part(one.error_correlation),
            percent(one.agreement.value if one.agreement else None),
            percent(one.right_agreed.value if one.right_agreed else None),
        )
        for one in found[:PAIRS]
    ]
    heads = ("pair", "either right %", "above the better, points", "error correlation", "agree %", "right then %")
    return _table(f"{title} that reach most together: {len(rows)} of {len(found)}", heads, rows)


def _drops(found: Comparison) -> Table:
    rows = [(one.model, percents(one.by_category), percents(one.oracle)) for one in found.drops]
    heads = ("without", "choosing by category loses, points", "an oracle loses, points")
    return _table(f"Which one could be dropped ({found.pooled:,} queries that all have a score for)", heads, rows)


def _growth(found: Comparison) -> Table:
    rows = [
        (str(number), one.model, percents(one.oracle), percents(one.by_category))
        for number, one in enumerate(found.growth, start=1)
    ]
    heads = ("models", "the next", "an oracle over them, right %", "choosing by category, right %")
    return _table("The best pool of each size", heads, rows)


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*map(_say, row))
    return table


def _say(text: str) -> Text:
    return Text(shown(text))
