"""Token buckets in the journal's database, shared by all workers. `compose` opens it; nothing else names it.

A draw is one upsert, so it is whole or not at all, by the database's own clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from metier_agents.buckets import Draw
from metier_infra.database import Database, Statement

DRAW = (
    "INSERT INTO model_buckets (name, requests, tokens) VALUES (:name, :now + :new_requests, :now + :new_tokens)"
    " ON CONFLICT (name) DO UPDATE SET"
    " requests = CASE WHEN model_buckets.requests + :owed_requests > :now + :away"
    " THEN model_buckets.requests + :owed_requests ELSE :now + :away END + :cost_requests,"
    " tokens = CASE WHEN model_buckets.tokens + :owed_tokens > :now + :away"
    " THEN model_buckets.tokens + :owed_tokens ELSE :now + :away END + :cost_tokens"
    " WHERE model_buckets.requests + :owed_requests <= :now + :room_requests"
    " AND model_buckets.tokens + :owed_tokens <= :now + :room_tokens RETURNING name"
)
WAIT = (
    "SELECT requests + :owed_requests - :now - :room_requests AS requests, tokens + :owed_tokens - :now - :room_tokens AS tokens"
    " FROM model_buckets WHERE name = :name"
)
FILLED_S = 0.001
"""When the bucket filled between the two statements, it is tried again after so long; seconds."""


DIGITS = 6
"""Of seconds since the epoch a double tells no smaller part than a quarter of a microsecond: what stands further back is noise."""


class JournalBuckets:
    """See `metier_agents.buckets.Buckets`. `open_database` is called when it is first drawn from; the database is then its own."""

    def __init__(self, open_database: Callable[[], Awaitable[Database]]) -> None:
        self._open = open_database
        self._opening = asyncio.Lock()
        self._db: Database | None = None

    async def draw(self, name: str, draw: Draw) -> float:
        """See `Buckets.draw`."""
        db = await self._opened()
        asked = {"name": name, **_pair("owed", draw.owed), **_pair("room", draw.room)}
        fresh = (max(owed, draw.away_s) + cost for owed, cost in zip(draw.owed, draw.cost, strict=True))
        taken = {**_pair("cost", draw.cost), **_pair("new", fresh), "away": draw.away_s}
        drawn = await db.write(Statement(DRAW, {**asked, **taken}))
        if drawn[0]:
            return 0.0
        (row,) = await db.read(WAIT, asked)
        return max(FILLED_S, round(max(float(row["requests"]), float(row["tokens"])), DIGITS))

    async def _opened(self) -> Database:
        async with self._opening:
            self._db = self._db or await self._open()
            return self._db

    async def close(self) -> None:
        """See `Buckets.close`."""
        if self._db is not None:
            await self._db.close()


def _pair(what: str, pair: Iterable[float]) -> dict[str, object]:
    return {f"{what}_{kind}": seconds for kind, seconds in zip(("requests", "tokens"), pair, strict=True)}
