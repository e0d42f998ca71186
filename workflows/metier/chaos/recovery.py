"""P7: how long what a process held lies there after the harm until somebody has taken it up again, or it ended, and whether that took too long.

`faults` tells it whose work to follow, and who could go on with it; `harness` lets it look, at the journal, where a take-over shows as a higher epoch or attempt.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from metier_infra.database import Database
from metier_infra.errors import RetryLater

LOOK_S = 0.1
STARVED_S = 2 * LOOK_S
"""No look counts for longer: a machine that does not let us look in time does not let the roles work in time either."""
_HELD = (
    "SELECT run_id AS id, epoch AS n FROM runs WHERE owner = :name AND lease_until > 0 AND finished_at IS NULL"
    " UNION ALL SELECT call_id AS id, attempt AS n FROM calls WHERE holder LIKE :holder AND answered_at IS NULL AND held_until > 0"
)
_OPEN = (
    "SELECT run_id AS id, epoch AS n FROM runs WHERE finished_at IS NULL"
    " UNION ALL SELECT call_id AS id, attempt AS n FROM calls WHERE answered_at IS NULL"
)
Able = Callable[[str], bool]
"""Whether somebody could go on with what the process of this name held: he is well, and so is every service that he needs."""


@dataclass(frozen=True)
class Bound:
    """P7 by a system's settings, in seconds: how long a lease is, how long the broker believes a silent consumer alive, and the longest step."""

    lease_s: float
    session_s: float
    step_s: float

    def after(self, outages: int) -> float:
        """How long it may take: until the lease is over and a keeper has looked, until the broker gave the partitions to others, and one step.

        Each outage of what a take-over needs may begin all but the step anew; how long it lasts does not count.
        """
        return (1 + outages) * (self.lease_s + self.lease_s / 3 + self.session_s) + self.step_s


@dataclass(frozen=True)
class Waits:
    """A run or call that `whose` held waits since `since`, on a monotonic clock, for an epoch or attempt after `n`.

    For `able_s` of it somebody could have come, in so many stretches as there were `outages`, and one; `cut`: just now nobody can.
    """

    id: str
    n: int
    since: float
    whose: str = ""
    able_s: float = 0.0
    outages: int = 0
    cut: bool = False

    def passed(self, seconds: float, able: bool) -> Waits:
        """The same after so many seconds, in all of which somebody was able to come, or not."""
        if not able:
            return replace(self, cut=True)
        return replace(self, able_s=self.able_s + seconds, outages=self.outages + self.cut, cut=False)

    def __str__(self) -> str:
        return f"{self.id}: held by {self.whose}, and {self.able_s:.1f} s went by in which another could have gone on with it, with {self.outages} outages between"


@dataclass
class Recovery:
    """What waits, and what was waited, in milliseconds. What waits longer than the `bound` is `late`."""

    db: Database
    bound: Bound
    waiting: list[Waits] = field(default_factory=list[Waits])
    over: list[Waits] = field(default_factory=list[Waits])
    took_ms: list[float] = field(default_factory=list[float])

    async def follow(self, name: str) -> None:
        """The process `name` was harmed just now: follow what it holds. If the journal is away too, nothing is measured."""
        since = time.monotonic()
        with suppress(RetryLater):
            rows = await self.db.read(_HELD, {"name": name, "holder": f"{name}/%"})
            self.waiting += [Waits(row["id"], row["n"], since, name) for row in rows]

    def back(self, name: str) -> None:
        """The process `name` goes on by itself, with what nobody took from it."""
        self.over += [one for one in self.waiting if one.whose == name]
        self.waiting = [one for one in self.waiting if one.whose != name]

    async def look(self, able: Able) -> None:
        """Look again and again, as long as something waits."""
        while True:
            begun, before = time.monotonic(), self._able(able)
            await asyncio.sleep(LOOK_S)
            with suppress(RetryLater):
                found = {row["id"]: row["n"] for row in await self.db.read(_OPEN)} if self.waiting else {}
                now, after = time.monotonic(), self._able(able)
                self._wait(
                    min(now - begun, STARVED_S),
                    {name: before[name] and after[name] for name in before if name in after},
                )
                self._see(found, now)

    def _able(self, able: Able) -> Mapping[str, bool]:
        return {one.whose: able(one.whose) for one in self.waiting}

    def _wait(self, seconds: float, able: Mapping[str, bool]) -> None:
        self.waiting = [one.passed(seconds, able[one.whose]) if one.whose in able else one for one in self.waiting]

    def _see(self, still: Mapping[str, int], now: float) -> None:
        taken = [one for one in self.waiting if still.get(one.id, one.n + 1) > one.n]
        self.took_ms += [1000 * (now - one.since) for one in taken]
        self.over += taken
        self.waiting = [one for one in self.waiting if one not in taken]

    @property
    def late(self) -> Sequence[str]:
        """A sentence for each thing for which nobody came in time."""
        return [str(one) for one in [*self.over, *self.waiting] if one.able_s > self.bound.after(one.outages)]

    @property
    def closest(self) -> float | None:
        """The largest share of its bound that anything took; above 1 it is late. None: nothing waited."""
        shares = [one.able_s / self.bound.after(one.outages) for one in [*self.over, *self.waiting]]
        return round(max(shares), 3) if shares else None

    def at(self, percent: int) -> float | None:
        """A percentile of what was waited; None: nothing was."""
        return percentile(self.took_ms, percent)


def percentile(values: Sequence[float], percent: int) -> float | None:
    """The least value that so many percent do not exceed."""
    ordered = sorted(values)
    return round(ordered[max(0, -(-len(ordered) * percent // 100) - 1)], 1) if ordered else None
