"""How an evaluation looks on a terminal: one table of agents, one of segments, one against the baseline. `cli_eval` prints them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from metier.terminal import shown
from metier_workflows.choosing.statistics import Estimate
from metier_workflows.evaluating.report import Compared, Row


def tables(rows: Sequence[Row], against: Sequence[Compared]) -> list[Table]:
    """What is shown of an evaluation. Scores are in percent, with their 95 % interval."""
    whole = [row for row in rows if row.kind == "all"]
    segments = [row for row in rows if row.kind != "all"]
    found = [_agents(whole)]
    if len({(row.kind, row.segment) for row in segments}) > 1:
        found.append(_segments(segments, [row.agent for row in whole]))
    return [*found, _against(against)] if against else found


def _agents(rows: Sequence[Row]) -> Table:
    table = Table(
        "agent", "asked", "score %", "95 %", "no answer", "not scored", "cost USD", "judging USD", "tokens", "median s"
    )
    for row in rows:
        score = row.score
        table.add_row(
            shown(row.agent),
            str(row.asked),
            _percent(score.value) if score else "-",
            _interval(score) if score else "-",
            str(row.failed),
            str(row.unknown),
            f"{'' if row.cost_known else '>= '}{row.cost_usd:.6f}",
            f"{row.judging_usd:.6f}",
            str(row.tokens),
            f"{row.seconds:.2f}",
        )
    return table


def _segments(rows: Sequence[Row], agents: Sequence[str]) -> Table:
    """A line for each category and tag, a column for each agent."""
    table = Table("segment", "asked", *(f"{shown(name)} %" for name in agents))
    for kind, segment in dict.fromkeys((row.kind, row.segment) for row in rows):
        of = {row.agent: row for row in rows if (row.kind, row.segment) == (kind, segment)}
        cells = (_cell(of[name]) if name in of else "-" for name in agents)
        table.add_row(Text(shown(f"{kind} {segment}")), str(max(row.asked for row in of.values())), *cells)
    return table


def _cell(row: Row) -> str:
    return f"{_percent(row.score.value)} {_interval(row.score)}" if row.score else "-"


def _against(against: Sequence[Compared]) -> Table:
    table = Table("agent", "samples", "now - baseline", "95 %", "p", "")
    for one in against:
        found = one.difference
        table.add_row(
            shown(one.agent),
            str(found.n) if found else "0",
            f"{100 * found.value:+.1f}" if found else "-",
            _interval(found) if found else "-",
            f"{one.p:.4f}" if found else "-",
            "WORSE" if one.regressed else "",
        )
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _interval(found: Estimate) -> str:
    return f"{100 * found.low:.1f} to {100 * found.high:.1f}"
