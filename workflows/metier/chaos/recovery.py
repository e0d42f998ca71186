"""How long work that lay with a harmed process lies there: from the harm until somebody has taken it up again, or it ended.

`faults` tells it whose work to follow; `harness` lets it look, at the journal, where a take-over shows as a higher epoch or attempt.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from metier_infra.database import Database
from metier_infra.errors import RetryLater

LOOK_S = 0.1
_HELD = (
    "SELECT run_id AS id, epoch AS n FROM runs WHERE owner = :name AND lease_until > 0 AND finished_at IS NULL"
    " UNION ALL SELECT call_id AS id, attempt AS n FROM calls WHERE holder LIKE :holder AND answered_at IS NULL AND held_until > 0"
)
_OPEN = (
    "SELECT run_id AS id, epoch AS n FROM runs WHERE finished_at IS NULL"
    " UNION ALL SELECT call_id AS id, attempt AS n FROM calls WHERE answered_at IS NULL"
)


@dataclass(frozen=True)
class Waits:
    """A run or call that waits since `since`, on a monotonic clock, for an epoch or attempt after `n`."""

    id: str
    n: int
    since: float


@dataclass
class Recovery:
    """What waits, and what was waited, in milliseconds."""

    db: Database
    waiting: list[Waits] = field(default_factory=list[Waits])
    took_ms: list[float] = field(default_factory=list[float])

    async def follow(self, name: str) -> None:
        """The process `name` was harmed just now: follow what it holds. If the journal is away too, nothing is measured."""
        since = time.monotonic()
        with suppress(RetryLater):
            rows = await self.db.read(_HELD, {"name": name, "holder": f"{name}/%"})
            self.waiting += [Waits(row["id"], row["n"], since) for row in rows]

    async def look(self) -> None:
        """Look again and again, as long as something waits."""
        while True:
            await asyncio.sleep(LOOK_S)
            with suppress(RetryLater):
                if self.waiting:
                    self._see({row["id"]: row["n"] for row in await self.db.read(_OPEN)}, time.monotonic())

    def _see(self, still: dict[str, int], now: float) -> None:
        waits = [one for one in self.waiting if still.get(one.id, one.n + 1) <= one.n]
        self.took_ms += [1000 * (now - one.since) for one in self.waiting if one not in waits]
        self.waiting = waits

    def at(self, percent: int) -> float | None:
        """A percentile of what was waited; None: nothing was."""
        return percentile(self.took_ms, percent)


def percentile(values: Sequence[float], percent: int) -> float | None:
    """The least value that so many percent do not exceed."""
    ordered = sorted(values)
    return round(ordered[max(0, -(-len(ordered) * percent // 100) - 1)], 1) if ordered else None
