"""Who waits in a run, for what, and whether the run may leave memory meanwhile. `run_desk` keeps it; `segment` follows `idle`.

Await hot, park cold: who waits is served from memory at first. Once every task of the graph has waited for long, or for a person, the run is idle.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from metier_infra import metrics
from metier_infra.events import CallAnswered
from metier_infra.rows import Awaited
from metier_infra.words import CallId
from metier_workflows.node import Place

PARK_AFTER_S = 60.0


@dataclass(eq=False)
class Waiter:
    """A node that waits. `news` says that what it waits for is there, or is to be looked at again.

    It is cold from `cold_at` on, by the loop's clock: infinite until what it waits for is in the journal, and was sent. `parked`: a person is waited for.
    """

    place: Place
    kind: Awaited
    cold_at: float = math.inf
    recorded: bool = False
    parked: bool = False
    answered: CallAnswered | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def heard(self) -> None:
        """Wait for the next news."""
        await self.news.wait()
        self.news.clear()


class Waiting:
    """The waiters of one run, by the id of what they wait for, and the tasks of its graph that are under way.

    `idle` is set while every task waits and every waiter is cold. A node that does something else keeps the run in memory.
    """

    def __init__(self, park_after_s: float = PARK_AFTER_S) -> None:
        self.idle = asyncio.Event()
        self._park_after_s = park_after_s
        self._waiters: dict[str, Waiter] = {}
        self._unsettled: set[Waiter] = set()
        self._tasks: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def waiter(self, awaited: str, kind: Awaited, place: Place) -> Generator[Waiter]:
        """Somebody waits, inside, for what has this id. What is not recorded yet does not count as cold."""
        waiter = self._waiters[awaited] = Waiter(place, kind)
        self._unsettled.add(waiter)
        self._weigh()
        try:
            yield waiter
        finally:
            del self._waiters[awaited]
            self._unsettled.discard(waiter)
            self._weigh()

    def settle(self, waiter: Waiter, *, at_least_s: float = 0.0) -> None:
        """What it waits for is recorded and sent: it gets cold. At once, where a person is waited for, or it is known to last so long."""
        known = waiter.parked or at_least_s > self._park_after_s
        waiter.cold_at = -math.inf if known else asyncio.get_running_loop().time() + self._park_after_s
        self._unsettled.discard(waiter)
        self._weigh()

    def began(self, task: str) -> None:
        """A task of the graph runs."""
        self._tasks.add(task)
        self._weigh()

    def ended(self, task: str) -> None:
        """It ended."""
        self._tasks.discard(task)
        self._weigh()

    @property
    def awaited(self) -> Mapping[str, Awaited]:
        """What is waited for, by id."""
        return {one: waiter.kind for one, waiter in self._waiters.items()}

    @property
    def sharers(self) -> int:
        """How many calls want a share of what is left: those that are not recorded yet, and one for each task that has asked nothing."""
        unrecorded = sum(not waiter.recorded for waiter in self._waiters.values() if waiter.kind == "call")
        return unrecorded + len(self._tasks - self._asking())

    def _asking(self) -> set[str]:
        """The tasks that wait, with those of the graphs round them: LangGraph's namespace is `NODE:TASK`, joined by `|`."""
        return {part for waiter in self._waiters.values() for part in re.split(r"[:|]", waiter.place.task)}

    def _weigh(self) -> None:
        """Set or clear `idle`; while somebody is warm, a timer says when to look again. The last to come are looked at first: they are warm for longest."""
        self.idle.clear()
        if not self._waiters:
            self._disarm()
        if not self._waiters or self._unsettled:
            return
        loop = asyncio.get_running_loop()
        waiting = reversed(self._waiters.values())
        warm = next((waiter for waiter in waiting if waiter.cold_at > loop.time()), None)
        if warm is None and self._tasks <= self._asking():
            self._disarm()
            self.idle.set()
        elif warm is not None and self._timer is None:
            self._timer = loop.call_at(warm.cold_at, self._look_again)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _look_again(self) -> None:
        self._timer = None
        self._weigh()

    def deliver(self, answered: CallAnswered) -> None:
        """Hand a committed result to the node that waits for it; a second one, or one for another time, is dropped."""
        waiter = self._waiters.get(answered.call_id)
        if waiter is not None and waiter.answered is None:
            waiter.answered = answered
            waiter.news.set()
        else:
            metrics.add(metrics.DUPLICATES, 1, {metrics.REASON: "answer"})

    def look(self, call_id: CallId | None = None) -> None:
        """A call was parked, or goes on: the node that waits for it shall look. None: all that wait for what only the journal tells."""
        for known, waiter in self._waiters.items():
            if known == call_id or (call_id is None and (waiter.parked or waiter.kind != "call")):
                waiter.news.set()
