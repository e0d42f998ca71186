"""The tool of `metier bench policies`: a lane round the real one, whose calls go wrong as often as a level of reliability says.

`bench_policies` opens one for each cell. What goes wrong is decided by a hash of seed, query, attempt and level, so that every policy and
model meets the same faults. A call that goes right runs its program in the sandbox.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from metier_agents.comparing import literal, same
from metier_agents.recordings import RecordedQuery
from metier_infra.words import CallId, stable_id
from metier_tools.lane import ToolLane
from metier_tools.tool import ToolCall, ToolResult

Fate = Literal["right", "error", "timeout", "wrong"]
FAULTS: tuple[Fate, ...] = ("error", "timeout", "wrong")
CLOCK_MS = 250
"""What an agent is told that a call took which ended by itself: agents decide by times, and what they decide must not depend on how busy the machine is.

What programs really took is in `real_ms`.
"""


def share(*parts: str | int) -> float:
    """A number between 0 and 1 that depends on the parts alone."""
    return int(stable_id(*parts)[:12], 16) / 16**12


def fate(seed: int, query: str, attempt: int, level: float) -> Fate:
    """What becomes of an attempt at a query, when the tool does its work in `level` of all calls; the faults have equal shares."""
    drawn = share("fate", seed, query, attempt, str(level))
    return "right" if drawn < level else FAULTS[min(2, int(3 * (drawn - level) / (1 - level)))]


class Liar:
    """Wrong outputs that look right: what another query's program prints, of the same type where there is one."""

    def __init__(self, queries: Sequence[RecordedQuery]) -> None:
        self._golds: defaultdict[str, list[str]] = defaultdict(list)
        for query in queries:
            self._golds[_type(query.gold)].append(query.gold or "")

    def output(self, seed: int, query: RecordedQuery, attempt: int) -> str:
        """The wrong output of this attempt."""
        kin = [gold for gold in self._golds[_type(query.gold)] if not same(gold, query.gold or "")]
        others = kin or [gold for found in self._golds.values() for gold in found if not same(gold, query.gold or "")]
        return others[int(share("lie", seed, query.id, attempt) * len(others))] + "\n"


def _type(gold: str | None) -> str:
    found = literal(gold or "")
    return type(found[0]).__name__ if found else ""


@dataclass
class Spent:
    """What one call of the agent had from the tool: calls, and seconds as the lane told them."""

    calls: int = 0
    seconds: float = 0.0


@dataclass
class FaultyLane:
    """See `metier_tools.lane.ToolLane`. `fates` counts what became of calls, `real_ms` are the times of the programs that ran."""

    inner: ToolLane
    seed: int
    liar: Liar
    fates: Counter[Fate] = field(default_factory=Counter[Fate])
    real_ms: list[float] = field(default_factory=list[float])
    _expected: dict[CallId, tuple[RecordedQuery, float, Spent]] = field(
        default_factory=dict[CallId, tuple[RecordedQuery, float, Spent]]
    )

    def expect(self, call_id: CallId, query: RecordedQuery, level: float) -> Spent:
        """Say what a call of the agent is about, and how reliable the tool is for it; what it spends."""
        self._expected[call_id] = (query, level, spent := Spent())
        return spent

    async def call(self, call: ToolCall) -> ToolResult:
        """See `ToolLane.call`. A timeout is told and not waited for."""
        query, level, spent = self._expected[call.call_id]
        came = fate(self.seed, query.id, spent.calls, level)
        told = await self._told(call, query, came, spent.calls)
        self.fates[came] += 1
        spent.calls, spent.seconds = spent.calls + 1, spent.seconds + told.wall_ms / 1000
        return told

    async def _told(self, call: ToolCall, query: RecordedQuery, came: Fate, attempt: int) -> ToolResult:
        match came:
            case "error":
                return ToolResult(status="error", exit_code=1, stderr="MemoryError\n", wall_ms=CLOCK_MS)
            case "timeout":
                return ToolResult(status="timeout", wall_ms=1000 * call.timeout_s)
            case "wrong":
                output = self.liar.output(self.seed, query, attempt)
                return ToolResult(status="ok", exit_code=0, stdout=output, wall_ms=CLOCK_MS)
            case "right":
                result = await self.inner.call(call)
                self.real_ms.append(result.wall_ms)
                return result.model_copy(update={"wall_ms": CLOCK_MS})

    async def close(self) -> None:
        """The real lane is others' too."""
