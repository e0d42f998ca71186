"""Whose turn it is: runs wait here for a place, tenants alike, those of one tenant by priority. Pure; `holdings` obeys it.

Between tenants: start-time fair queueing (Goyal, Vin and Cheng 1996). Each turn moves its tenant's clock on by 1 / weight, and the tenant whose clock
is behind goes first; one that comes back starts at the time of the last turn, so that nobody saves turns up.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from metier_workflows.tenants import Tenants

AGEING = 100
"""Turns of its tenant that a run waits to count as much as one of the next higher priority: none waits for ever."""

REMEMBERED = 1000
"""So many tenants are known at one time; beyond, the idle ones are forgotten, with what they are behind or ahead."""

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, order=True)
class _Place(Generic[K]):
    """A run's place in its tenant's queue: the lower goes first. Its turns so far stand in for the time that it waits."""

    fresh: bool
    rank: int
    number: int
    key: K = field(compare=False)
    tenant: str = field(compare=False)


@dataclass
class _Queue(Generic[K]):
    clock: float
    waiting: list[_Place[K]] = field(default_factory=list[_Place[K]])
    turns: int = 0
    under_way: int = 0
    closed: bool = False


class Turns(Generic[K]):
    """Things by key that wait or have their turn; at most `limit` of them have it at one time.

    A tenant's runs have at most as many turns at one time as it may have under way, and none while it is `closed`: another replica's may be among them.
    """

    def __init__(self, limit: int, tenants: Tenants | None = None) -> None:
        self._free = limit
        self._tenants = tenants or Tenants()
        self._queues: dict[str, _Queue[K]] = {}
        self._places: dict[K, _Place[K]] = {}
        self._having: set[K] = set()
        self._clock = 0.0
        self._count = 0

    def __len__(self) -> int:
        """How many wait or have their turn."""
        return len(self._places)

    @property
    def known(self) -> int:
        """How many tenants are remembered."""
        return len(self._queues)

    def wait(self, key: K, tenant: str, priority: int, *, begun: bool = False) -> None:
        """Queue it. Its `priority` is 0 to 9; of the same, the first goes first. What has `begun` had its turn before, and goes before all that has not."""
        if len(self._queues) >= REMEMBERED:
            self._queues = {name: one for name, one in self._queues.items() if one.waiting or one.under_way}
        queue = self._queues.setdefault(tenant, _Queue(self._clock))
        self._count += 1
        place = _Place(not begun, queue.turns - AGEING * priority, self._count, key, tenant)
        self._places[key] = place
        self._push(queue, place)

    def _push(self, queue: _Queue[K], place: _Place[K]) -> None:
        if not queue.waiting:
            queue.clock = max(queue.clock, self._clock)
        heapq.heappush(queue.waiting, place)

    def next(self) -> K | None:
        """Whose turn it is now; None while there is no place for anybody that waits."""
        able = [name for name in self._queues if self._able(name)] if self._free > 0 else []
        if not able:
            return None
        name = min(able, key=lambda one: (self._queues[one].clock, self._queues[one].waiting[0].number))
        queue = self._queues[name]
        place = heapq.heappop(queue.waiting)
        self._clock = queue.clock
        queue.clock += 1 / self._tenants.of(name).weight
        queue.turns += 1
        queue.under_way += 1
        self._free -= 1
        self._having.add(place.key)
        return place.key

    def _able(self, name: str) -> bool:
        queue, runs = self._queues[name], self._tenants.of(name).runs
        return bool(queue.waiting) and not queue.closed and (runs is None or queue.under_way < runs)

    def refused(self, key: K) -> None:
        """Its tenant has no turn left, over all replicas: it waits again where it stood, and its tenant is closed."""
        place = self._places[key]
        queue = self._queues[place.tenant]
        self._give_back(key, queue)
        queue.turns -= 1
        queue.clock -= 1 / self._tenants.of(place.tenant).weight
        queue.closed = True
        self._push(queue, place)

    def over(self, key: K) -> None:
        """It ended, or waits no more. What is not here is over already."""
        place = self._places.pop(key, None)
        if place is None:
            return
        queue = self._queues[place.tenant]
        if key in self._having:
            self._give_back(key, queue)
        else:
            queue.waiting.remove(place)
            heapq.heapify(queue.waiting)

    def _give_back(self, key: K, queue: _Queue[K]) -> None:
        self._having.discard(key)
        queue.under_way -= 1
        self._free += 1

    def open(self, tenant: str | None = None) -> None:
        """Let a closed tenant try again, or all of them."""
        for name, queue in self._queues.items():
            if tenant in {None, name}:
                queue.closed = False
