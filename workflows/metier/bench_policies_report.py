"""What `metier bench policies` makes of its cases: figures with intervals, claims, tables. Pure; `bench_policies_stand` measures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean

from rich.console import Group, RenderableType
from rich.table import Table

from metier.bench_figures import quantile
from metier_agents.record import Calibration, calibration

POINT = 0.01
Z = 1.959964
"""Of the normal distribution, for 95 %."""


@dataclass(frozen=True)
class Case:
    """One call of an agent. Values are right answers.

    Attributes:
        right: the answer is right, by literal equality with what running the code gives.
        cost_usd: of its model turns, as recorded.
        calls: tool calls.
        tool_s: seconds that they took, as the lane told.
        worth: a tool was offered because it was worth it.
        looked: a tool was offered only to be looked at.
        values: predicted and realised value, and the true one by what is right: summed over the tool calls; None without any.
        price: of the tool's time and the money.
    """

    right: bool
    cost_usd: float
    calls: int
    tool_s: float
    worth: bool = False
    looked: bool = False
    values: tuple[float, float, float] | None = None
    price: float = 0.0


@dataclass(frozen=True)
class Cell:
    """A model under a policy, with a tool of one reliability.

    Attributes:
        n: calls that count.
        accuracy, low, high: share of right answers, and its 95 % interval (Wilson 1927).
        cost_usd, tool_calls: of a call, on average.
        tool_p50_s, tool_mean_s: seconds that a call spent on tools.
        net: right answers less the price of time and money, by call.
        worth, looked: shares of calls in which a tool was offered, as worth it or to look at it.
        told: predicted value against the realised one, as the agent itself sees it.
        true: predicted value against the true one.
    """

    model: str
    policy: str
    level: float
    n: int
    accuracy: float
    low: float
    high: float
    cost_usd: float
    tool_calls: float
    tool_p50_s: float
    tool_mean_s: float
    net: float
    worth: float
    looked: float
    told: Calibration | None = None
    true: Calibration | None = None


def cell(model: str, policy: str, level: float, cases: Sequence[Case]) -> Cell:
    """The figures of the cases of one cell."""
    right = sum(case.right for case in cases)
    low, high = wilson(right, len(cases))
    values = [case.values for case in cases if case.values is not None]
    return Cell(
        model=model,
        policy=policy,
        level=level,
        n=len(cases),
        accuracy=right / len(cases),
        low=low,
        high=high,
        cost_usd=mean(case.cost_usd for case in cases),
        tool_calls=mean(case.calls for case in cases),
        tool_p50_s=quantile([case.tool_s for case in cases], 50),
        tool_mean_s=mean(case.tool_s for case in cases),
        net=mean(case.right - case.price for case in cases),
        worth=mean(case.worth for case in cases),
        looked=mean(case.looked for case in cases),
        told=calibration([(said, came) for said, came, _ in values]) if values else None,
        true=calibration([(said, true) for said, _, true in values]) if values else None,
    )


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927): it stays within 0 and 1, and is one of some width at both ends too."""
    share, spread = right / n, Z * Z / n
    middle = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Claim:
    """What the policies are designed for, held against one model and reliability; `by` is by how much it holds, in shares of right answers."""

    what: str
    model: str
    level: float
    by: float
    holds: bool


def claims(cells: Sequence[Cell]) -> list[Claim]:
    """At 1 collaborative wins, at 0 autonomous, and meta-reasoned is at most a point below the better of the two at every level."""
    found = {(one.model, one.level, one.policy): one.accuracy for one in cells}
    told: list[Claim] = []
    for model, level in dict.fromkeys((one.model, one.level) for one in cells):
        alone, tools, meta = (
            found.get((model, level, policy)) for policy in ("autonomous", "collaborative", "meta_reasoned")
        )
        if alone is None or tools is None:
            continue
        if level == 1:
            told.append(Claim("collaborative wins", model, level, tools - alone, tools > alone))
        if level == 0:
            told.append(Claim("autonomous wins", model, level, alone - tools, alone > tools))
        if meta is not None:
            by = meta - max(alone, tools)
            told.append(Claim("meta-reasoned is within a point of the better", model, level, by, by >= -POINT - 1e-9))
    return told


@dataclass(frozen=True)
class Report:
    """Everything. `elapsed_s` and `sandbox_ms` differ from run to run; the rest is decided by the seed and the number of queries."""

    seed: int
    queries: int
    warmup: int
    policies: Mapping[str, object]
    cells: Sequence[Cell]
    claims: Sequence[Claim]
    recovery: Mapping[str, int | None]
    broken: int
    faults: Mapping[str, int]
    programs_run: int
    sandbox_ms: Mapping[str, float] = field(default_factory=dict[str, float])
    elapsed_s: float = 0.0

    @property
    def met(self) -> bool:
        """Whether every claim holds, and every mended tool was used again."""
        return all(one.holds for one in self.claims) and None not in self.recovery.values()


def tables(report: Report) -> RenderableType:
    """Everything for a terminal."""
    models = list(dict.fromkeys(one.model for one in report.cells))
    held = sum(one.holds for one in report.claims)
    lines = [
        f"\n{report.programs_run} programs really ran in the sandbox; faults were injected into the tool lane: {_counted(report.faults)}.",
        f"Meta-reasoned warmed up with {report.warmup} calls on other queries in each cell. Seed {report.seed}; {report.elapsed_s:.0f} s.",
        f"{held} of {len(report.claims)} claims hold.",
        *(
            f"- does not hold: {one.model} at {one.level:g}: {one.what}: {100 * one.by:+.1f} points"
            for one in report.claims
            if not one.holds
        ),
        *(
            f"A tool that failed {report.broken} calls and then was mended is used again by {_recovered(*one)}"
            for one in report.recovery.items()
        ),
    ]
    return Group(*(_table(model, report.cells) for model in models), *lines)


def _counted(faults: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in faults.items()) or "none"


def _recovered(model: str, calls: int | None) -> str:
    return f"{model} {'not within the calls that were made' if calls is None else f'after {calls} calls'}."


_HEADS = (
    "reliability",
    "policy",
    "right",
    "95 %",
    "net",
    "USD a call",
    "tool calls",
    "tool p50 s",
    "mean s",
    "bias of prediction",
)


def _table(model: str, cells: Sequence[Cell]) -> Table:
    table = Table(*_HEADS, title=model)
    for one in sorted((one for one in cells if one.model == model), key=lambda one: -one.level):
        bias = "" if one.true is None or one.true.bias is None else f"{one.true.bias:+.3f} (n {one.true.n})"
        table.add_row(
            f"{one.level:g}",
            one.policy,
            f"{100 * one.accuracy:.1f} %",
            f"{100 * one.low:.0f} to {100 * one.high:.0f}",
            f"{one.net:.3f}",
            f"{one.cost_usd:.5f}",
            f"{one.tool_calls:.2f}",
            f"{one.tool_p50_s:.2f}",
            f"{one.tool_mean_s:.2f}",
            bias,
        )
    return table
