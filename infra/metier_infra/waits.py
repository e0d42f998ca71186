"""The journal's waits and signals: what nodes wait for beside calls and other runs. `journal` puts them beside its other parts.

The run's desk asks `Waits`. Whoever takes a `Signalled` event records it, and wakes the run if it is new:

    journal.signals.record(run_id, signal_id, name, data, by) -> bool

Each signal ends one wait: the oldest that is open for its name, or, if there is none, the next that is asked for. So either no wait of a name is open or
no signal of it is left, whatever comes at the same time: both sides hold the run's row while they look.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import JsonValue

from metier_infra.database import Database, Statement
from metier_infra.rows import Signal, Wait, signal_of, wait_of
from metier_infra.words import RunId

_LOCK = "UPDATE runs SET epoch = epoch WHERE run_id = :run_id"
_ASK = (
    "INSERT INTO waits (wait_id, run_id, n, slot, name, due, asked_at) SELECT :wait_id, :run_id,"
    " (SELECT coalesce(max(n), 0) + 1 FROM waits WHERE run_id = :run_id), :slot, :name, coalesce(:due, :now + :after_s), :now"
    " WHERE true ON CONFLICT (wait_id) DO NOTHING"
)
_GET = "SELECT *, due - :now AS left_s FROM waits WHERE wait_id = :wait_id"
_OVER = "UPDATE waits SET ended_at = :now WHERE wait_id = :wait_id AND ended_at IS NULL AND due <= :now"
_RECORD = (
    "INSERT INTO signals (run_id, signal_id, n, name, data, sent_by, at) SELECT :run_id, :signal_id,"
    " (SELECT coalesce(max(n), 0) + 1 FROM signals WHERE run_id = :run_id), :name, :data, :by, :now"
    " WHERE true ON CONFLICT (run_id, signal_id) DO NOTHING RETURNING n"
)
_GIVE = (
    "UPDATE signals SET wait_id ="
    " (SELECT wait_id FROM waits WHERE run_id = :run_id AND name = :name AND ended_at IS NULL ORDER BY n LIMIT 1)"
    " WHERE run_id = :run_id AND n = (SELECT min(n) FROM signals WHERE run_id = :run_id AND name = :name AND wait_id IS NULL)"
)
_TAKE = (
    "UPDATE waits SET ended_at = :now, signal_id = given.signal_id, data = given.data"
    " FROM (SELECT signal_id, data, wait_id FROM signals WHERE run_id = :run_id AND name = :name) AS given"
    " WHERE given.wait_id = waits.wait_id AND waits.run_id = :run_id AND waits.ended_at IS NULL"
)


class Waits:
    """Waits: asked for once, so that a time is fixed once; ended once."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def ask(self, wait: Wait, after_s: float | None = None) -> Wait:
        """Record the wait unless it is recorded; what is stored, ended or not. It lasts until `wait.due`, or `after_s` seconds from now, or for ever."""
        asked = {**wait.model_dump(include={"wait_id", "run_id", "name", "due"}), "after_s": after_s}
        ask = Statement(_ASK, {**asked, "slot": json.dumps(wait.slot)})
        *_, rows = await self._db.write(_lock(wait.run_id), ask, *_pair(wait.run_id, wait.name), _get(wait.wait_id))
        return wait_of(rows[0])

    async def get(self, wait_id: str) -> Wait | None:
        """The wait as it stands, or None when it was never asked for."""
        rows = await self._db.read(_GET, {"wait_id": wait_id})
        return wait_of(rows[0]) if rows else None

    async def over(self, wait: Wait) -> Wait:
        """End the wait if its time is over by the database's clock and nothing ended it before; how it stands then."""
        end = Statement(_OVER, {"wait_id": wait.wait_id})
        *_, rows = await self._db.write(_lock(wait.run_id), end, _get(wait.wait_id))
        return wait_of(rows[0])

    async def of_run(self, run_id: RunId) -> Sequence[Wait]:
        """The run's waits, in the order in which they were asked for."""
        rows = await self._db.read(
            "SELECT *, due - :now AS left_s FROM waits WHERE run_id = :run_id ORDER BY n", {"run_id": run_id}
        )
        return [wait_of(row) for row in rows]


class Signals:
    """Signals: kept until a node waits for them, and counted once each."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def record(self, run_id: RunId, signal_id: str, name: str, data: JsonValue, by: str) -> bool:
        """Keep the signal, unless the run has one of this id, and end the wait that it is for; whether it is new.

        `signal_id` names the event that brought it: `stable_id("signal", source, id)`. Recording it wakes nobody; a parked run is found by the keeper.
        """
        told = {"run_id": run_id, "signal_id": signal_id, "name": name, "data": json.dumps(data), "by": by}
        _, new, *_ = await self._db.write(_lock(run_id), Statement(_RECORD, told), *_pair(run_id, name))
        return bool(new)

    async def of_run(self, run_id: RunId) -> Sequence[Signal]:
        """The run's signals, in the order in which they came."""
        rows = await self._db.read("SELECT * FROM signals WHERE run_id = :run_id ORDER BY n", {"run_id": run_id})
        return [signal_of(row) for row in rows]


def _lock(run_id: RunId) -> Statement:
    return Statement(_LOCK, {"run_id": run_id})


def _get(wait_id: str) -> Statement:
    return Statement(_GET, {"wait_id": wait_id})


def _pair(run_id: RunId, name: str | None) -> Sequence[Statement]:
    """Give the oldest signal that is left to the oldest wait that is open; a timer takes none."""
    of = {"run_id": run_id, "name": name}
    return [Statement(_GIVE, of), Statement(_TAKE, of)] if name is not None else []
