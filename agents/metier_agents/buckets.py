"""Token buckets that workers share: the port, what is drawn from one, and buckets in memory.

`rate` draws from them before each request. `redis_buckets` and `journal_buckets` are the adapters for more than one process; one contract
test holds all three.

A bucket is known by two times, one for requests and one for tokens: when it will be full again if nothing more is drawn. Whoever draws
moves them on by the seconds that it takes to refill what was drawn. This is the virtual scheduling form of the leaky bucket as a meter
(ITU-T I.371, GCRA), which needs no clock of its own but that of the store, and no process that refills anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from metier_agents.model_table import Limit

ALWAYS = 1e9
"""More seconds than any bucket is ever behind: what is drawn with so much room is drawn at once."""
Pair: TypeAlias = "tuple[float, float]"


@dataclass(frozen=True)
class Draw:
    """What is drawn, each pair for requests and tokens, all in seconds of refilling.

    Attributes:
        cost: what is taken.
        room: taken only if the bucket is full again within so long.
        owed: what goes before it: taken besides, or, less than 0, given back.
        away_s: goes before it too: the bucket loses what it holds, and so much more that it is full no sooner than after so long.
    """

    cost: Pair = (0.0, 0.0)
    room: Pair = (ALWAYS, ALWAYS)
    owed: Pair = (0.0, 0.0)
    away_s: float = 0.0


class Buckets(Protocol):
    """Buckets by name. All processes see the same, by the clock of the store. A bucket that nobody has drawn from is full."""

    async def draw(self, name: str, draw: Draw) -> float:
        """Draw all of it and return 0; or nothing, and return the seconds after which it may be there.

        Raises:
            RetryLater: the store does not answer; it may have been drawn.
        """
        ...

    async def close(self) -> None:
        """Let go of the store."""
        ...


def share(limit: Limit, tokens: int) -> Draw:
    """One request of so many tokens. What is more than the bucket ever holds waits until it is full, and is then owed."""
    first, second = cost = _cost(limit, 1, tokens)
    return Draw(cost, (max(0.0, limit.burst_s - first), max(0.0, limit.burst_s - second)))


def given_back(drawn: Draw) -> Pair:
    """What is owed for a request that was never sent: all that was drawn for it, back."""
    return -drawn.cost[0], -drawn.cost[1]


def settled(limit: Limit, tokens: int) -> Pair:
    """What is owed for a request that took so many tokens more than were drawn for it; less than 0: fewer."""
    return _cost(limit, 0, tokens)


def emptied(limit: Limit, after_s: float) -> Draw:
    """Nothing, for everybody, before `after_s` seconds have passed; then it fills again."""
    return Draw(away_s=after_s + limit.burst_s)


def _cost(limit: Limit, requests: int, tokens: int) -> Pair:
    by_request, by_token = limit.requests_per_minute, limit.tokens_per_minute
    return 60 * requests / by_request if by_request else 0.0, 60 * tokens / by_token if by_token else 0.0


class MemoryBuckets:
    """See `Buckets`; for all that runs in one process. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._full_at: dict[str, Pair] = {}

    async def draw(self, name: str, draw: Draw) -> float:
        """See `Buckets.draw`."""
        now = self._clock()
        kept = self._full_at.get(name, (now, now))
        ahead = [max(full_at + owed - now, draw.away_s) for full_at, owed in zip(kept, draw.owed, strict=True)]
        wait_s = max(one - room for one, room in zip(ahead, draw.room, strict=True))
        if wait_s > 0:
            return wait_s
        first, second = (now + one + cost for one, cost in zip(ahead, draw.cost, strict=True))
        self._full_at[name] = (first, second)
        return 0.0

    async def close(self) -> None:
        """See `Buckets.close`."""
