"""What was measured of an agent's tools, and of its own predictions, read from the journal.

The loop hands it to `appraisal` under a policy that assesses; `metier agents records` exports it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metier_agents.spec import AgentSpec, MetaReasoned
from metier_agents.turns import Realised, load, of_kind
from metier_agents.view import fitting
from metier_infra.journal import Journal
from metier_infra.rows import HALF_LIFE, ToolRecord

BINS = 5
JUDGED = 50
"""Steps that are looked at for what became of predictions, once in a call."""


async def records(journal: Journal, spec: AgentSpec, category: str) -> Mapping[str, ToolRecord]:
    """The record of each tool of `spec` that fits; none under a policy that does not weigh tools."""
    if not isinstance(spec.policy, MetaReasoned):
        return {}
    life = spec.policy.half_life
    return {
        tool: await journal.tools.record(agent=spec.name, category=category, tool=tool, half_life=life)
        for tool in fitting(spec, category)
    }


async def judged(journal: Journal, agent: str, category: str, last: int = JUDGED) -> list[Realised]:
    """What became of the agent's predictions in this category, newest first, from at most `last` steps."""
    steps = await journal.tools.steps(agent=agent, category=category, holding='"tag": "realised"', last=last)
    return [one for step in steps for one in reversed(of_kind(load(step.body), Realised))]


@dataclass(frozen=True)
class Bin:
    """Predictions from `low` to `high`: how many, their mean, and the mean of what was realised. Values are right answers."""

    low: float
    high: float
    n: int
    predicted: float
    realised: float


@dataclass(frozen=True)
class Calibration:
    """How predicted values compared with realised ones; None where nothing was predicted. Values are right answers.

    Attributes:
        n: pairs.
        predicted: mean predicted value.
        realised: mean realised value.
        bias: mean of predicted less realised; positive: too hopeful.
        error: mean absolute difference.
        bins: five equal ranges from the lowest to the highest prediction, those that hold any.
    """

    n: int = 0
    predicted: float | None = None
    realised: float | None = None
    bias: float | None = None
    error: float | None = None
    bins: tuple[Bin, ...] = ()


def calibration(pairs: Sequence[tuple[float, float]]) -> Calibration:
    """The calibration of (predicted, realised) values, in any order."""
    if not pairs:
        return Calibration()
    predicted, realised = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return Calibration(
        n=len(pairs),
        predicted=_mean(predicted),
        realised=_mean(realised),
        bias=_mean([said - came for said, came in pairs]),
        error=_mean([abs(said - came) for said, came in pairs]),
        bins=_bins(pairs, min(predicted), max(predicted)),
    )


def _bins(pairs: Sequence[tuple[float, float]], low: float, high: float) -> tuple[Bin, ...]:
    width = (high - low) / BINS
    held: list[list[tuple[float, float]]] = [[] for _ in range(BINS)]
    for pair in pairs:
        held[min(BINS - 1, int((pair[0] - low) / width)) if width else 0].append(pair)
    return tuple(
        Bin(
            low + n * width,
            low + (n + 1) * width,
            len(found),
            _mean([a for a, _ in found]),
            _mean([b for _, b in found]),
        )
        for n, found in enumerate(held)
        if found
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@dataclass(frozen=True)
class RecordRow:
    """One line of the export; the fields of `ToolRecord` with whose they are, and the half-life in calls that they were weighed by."""

    agent: str
    category: str
    tool: str
    n: int
    ok: float
    failed: float
    success: float | None
    latency_p50_s: float | None
    latency_p90_s: float | None
    cost_usd: float | None
    half_life: float


async def export(journal: Journal, agent: str | None = None, half_life: float = HALF_LIFE) -> list[RecordRow]:
    """Every record that the journal keeps, ordered by agent, category and tool; of one agent, or of all."""
    return [
        _row(
            key, await journal.tools.record(agent=key[0], category=key[1], tool=key[2], half_life=half_life), half_life
        )
        for key in await journal.tools.measured(agent)
    ]


def _row(key: tuple[str, str, str], record: ToolRecord, half_life: float) -> RecordRow:
    agent, category, tool = key
    return RecordRow(
        agent=agent,
        category=category,
        tool=tool,
        n=record.n,
        ok=record.ok,
        failed=record.failed,
        success=record.success,
        latency_p50_s=record.latency_p50_s,
        latency_p90_s=record.latency_p90_s,
        cost_usd=record.cost_usd,
        half_life=half_life,
    )
