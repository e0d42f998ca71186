"""The tables of the page of a comparison: verdicts, models by category, agreement, pairs, what could be dropped, details. Pure; `compare_page` calls it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from metier.compare_figures import NONE, chance, part, percent, percents, thousands
from metier.compare_page_text import safe
from metier_workflows.choosing.comparison import Category, Comparison, Pair
from metier_workflows.choosing.pooling import Drop, Kept
from metier_workflows.choosing.segments import Segment
from metier_workflows.choosing.verdicts import Verdict

PAIRS = 12
"""So many pairs stand on the page, of those that reach most together."""
SHOWN = 40
"""Characters of a name at the head of a column; all of it is in the cell's title."""
LONGEST = 120
"""Characters of a name at the head of a row."""
FAR = 0.25
"""A difference at which a colour is as strong as it gets, in shares of right answers."""
STRONGEST = 0.6


def verdicts(categories: Iterable[Category]) -> str:
    """A row for each category: what kind, and the sentence."""
    rows = [
        (_head(one.segment.name), _cell(f"{one.segment.queries:,}"), _cell(_kind(one.verdict), "text"), _cell(safe(one.verdict.sentence), "say"))
        for one in categories
    ]  # fmt: skip
    return _table(("category", "queries", "verdict", ""), rows, "verdicts")


def _kind(verdict: Verdict) -> str:
    return f'<span class="kind kind-{verdict.kind.replace(" ", "-")}">{verdict.kind}</span>'


def models_by_category(found: Comparison) -> str:
    """Accuracy of each model in each category, coloured by how far it is from the model that is best on all."""
    names = found.whole.ranked
    rows = [_heat_row(one.segment, names, f"{one.segment.name}, {one.segment.queries:,}") for one in found.categories]
    return _table(("", *names), [_heat_row(found.whole, names, f"all, {found.queries:,}"), *rows], "heat")


def _heat_row(segment: Segment, names: Sequence[str], head: str) -> list[str]:
    apart = {one.first: one for one in segment.against(names[0])}
    cells = [_head(head)]
    for name in names:
        accuracy, one = segment.standing(name).accuracy, apart.get(name)
        marks = ("sure" if one and one.significant else "", "top" if name in segment.ranked[:1] else "")
        text, away = percent(accuracy.value if accuracy else None), one.difference.value if one else 0.0
        cells.append(_heat(text, away, f"{name}: {percents(accuracy)} %", *marks))
    return cells


def _heat(text: str, away: float, title: str, *marks: str, far: float = FAR) -> str:
    much = round(STRONGEST * min(1.0, abs(away) / far), 2)
    kinds = " ".join(filter(None, ("up" if away > 0 else "down", *marks)))
    return f'<td class="{kinds}" style="--much:{much}" title="{safe(title)}">{text}</td>'


def agreement(pairs: Iterable[Pair], names: Sequence[str]) -> str:
    """Below the diagonal how often two models give the same answer, in percent; above it how far their errors go together (phi)."""
    by_names = {frozenset((one.contrast.first, one.contrast.second)): one for one in pairs}
    rows: list[list[str]] = []
    for row, name in enumerate(names):
        cells = [_head(name)]
        for column, other in enumerate(names):
            one = by_names.get(frozenset((name, other)))
            cells.append(_cell("") if one is None else _same(one) if column < row else _together(one))
        rows.append(cells)
    return _table(("", *names), rows, "heat")


def _same(pair: Pair) -> str:
    if pair.agreement is None:
        return _cell("")
    title = f"{_both(pair)}: same answer {percents(pair.agreement)} %"
    return _heat(percent(pair.agreement.value, 0), pair.agreement.value, title, far=1.0)


def _together(pair: Pair) -> str:
    phi = pair.error_correlation
    title = f"{_both(pair)}: error correlation {part(phi)}, both wrong {percents(pair.both_wrong)} %"
    return _heat(NONE if phi is None else part(phi).split(" ")[0], -phi.value if phi else 0.0, title, far=1.0)


def _both(pair: Pair) -> str:
    return f"{pair.contrast.first} and {pair.contrast.second}"


OF_A_PAIR = ("either is right %", "above the better, points", "error correlation", "same answer %", "right then %", "same wrong answer %")  # fmt: skip


def pairs(found: Sequence[Pair]) -> str:
    """Those that reach most together."""
    rows = [[_head(_added(one)), *_of_a_pair(one)] for one in found[:PAIRS]]
    return _table(("pair", *OF_A_PAIR), rows)


def pairs_by_category(found: Iterable[Category]) -> str:
    """Of each category the pair that reaches most together."""
    rows = [
        [_head(one.segment.name), _cell(safe(_added(one.pairs[0]), LONGEST), "text"), *_of_a_pair(one.pairs[0])]
        for one in found
        if one.pairs
    ]
    return _table(("category", "pair", *OF_A_PAIR), rows, "by-category")


def _added(pair: Pair) -> str:
    return f"{pair.contrast.first} + {pair.contrast.second}"


def _of_a_pair(one: Pair) -> list[str]:
    shares = (one.agreement, one.right_agreed, one.same_wrong)
    figures = (
        percents(one.either_right),
        percents(one.complement),
        part(one.error_correlation),
        *map(percents, shares),
    )
    return [_figure(text) for text in figures]


def drops(found: Sequence[Drop]) -> str:
    """What is lost without each model."""
    rows = [[_head(one.model), _figure(percents(one.by_category)), _figure(percents(one.oracle))] for one in found]
    return _table(("without", "choosing by category loses, points", "an oracle loses, points"), rows)


def pools(found: Sequence[Kept]) -> str:
    """What the best pool of each size reaches."""
    rows = [
        [_cell(str(number)), _head(one.model), _figure(percents(one.oracle)), _figure(percents(one.by_category))]
        for number, one in enumerate(found, start=1)
    ]
    return _table(("models", "the next", "an oracle, right %", "choosing by category, right %"), rows)


def models(segment: Segment) -> str:
    """Each model with its accuracy, cost, and difference to the best one."""
    behind = {one.first: one for one in segment.against(segment.ranked[0])} if segment.ranked else {}
    heads = ("model", "right %", "less the best, points", "corrected p", "$ for 1,000", "answered %")
    rows: list[list[str]] = []
    for one in segment.standings:
        away = behind.get(one.model)
        told = (percents(away.difference), chance(away.p)) if away else (NONE, NONE)
        texts = (percents(one.accuracy), *told, thousands(one.cost_usd), percent(one.answered))
        rows.append([_head(one.model), *map(_figure, texts)])
    return _table(heads, rows)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    head = "".join(f'<th scope="col" title="{safe(one)}"><span>{safe(one, SHOWN if kind == "heat" else None)}</span></th>' for one in heads)  # fmt: skip
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return (
        f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
    )


def _head(text: str) -> str:
    return f'<th scope="row">{safe(text, LONGEST)}</th>'


def _cell(html: str, kind: str = "") -> str:
    """Of text that is safe already."""
    return f'<td class="{kind}">{html}</td>'


def _figure(text: str) -> str:
    """A figure with its interval small beside it."""
    value, _, interval = text.partition(" [")
    return _cell(safe(value) + (f" <small>[{safe(interval)}</small>" if interval else ""))
