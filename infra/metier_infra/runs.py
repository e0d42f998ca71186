"""The journal's runs and their leases. `journal` puts it beside its other parts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from metier_infra.database import Database, Statement
from metier_infra.rows import Run, run_of
from metier_infra.words import CallId, Failure, RunId

_ASKED = {
    *("run_id", "source", "event_id", "workflow", "version", "traceparent"),
    *("tenant", "priority", "parent", "origin"),
}


class Runs:
    """Runs and their leases. A lease is an owner, an epoch that only grows, and a time until which the owner is believed alive."""

    def __init__(self, db: Database, lease_s: float) -> None:
        self._db = db
        self._lease_s = lease_s

    async def accept(self, run: Run) -> tuple[Run, bool]:
        """Insert the run under its event's (source, id). Returns what is stored, and whether it is new."""
        stored = await self._db.write(
            Statement(
                "INSERT INTO runs (run_id, source, event_id, workflow, version, traceparent, tenant, priority, parent, origin, status, input, limits,"
                " accepted_at) VALUES (:run_id, :source, :event_id, :workflow, :version, :traceparent, :tenant, :priority, :parent, :origin,"
                " 'accepted', :input, :limits, :now)"
                " ON CONFLICT (source, event_id) DO NOTHING RETURNING *",
                {
                    **run.model_dump(include=_ASKED),
                    "input": json.dumps(run.input),
                    "limits": run.limits.model_dump_json() if run.limits else None,
                },
            )
        )
        if stored[0]:
            return run_of(stored[0][0]), True
        rows = await self._db.read(
            "SELECT * FROM runs WHERE source = :source AND event_id = :event_id",
            {"source": run.source, "event_id": run.event_id},
        )
        return run_of(rows[0]), False

    async def lease(self, run_id: RunId, owner: str) -> Run | None:
        """Take the run for `owner` under a new epoch, unless it ended or another live owner holds it."""
        rows = await self._db.write(
            Statement(
                "UPDATE runs SET owner = :owner, epoch = epoch + 1, lease_until = :now + :ttl, status = 'running',"
                " started_at = coalesce(started_at, :now), parked_at = NULL"
                " WHERE run_id = :run_id AND status IN ('accepted', 'running', 'parked') AND (owner = :owner OR lease_until < :now) RETURNING *",
                {"run_id": run_id, "owner": owner, "ttl": self._lease_s},
            )
        )
        return run_of(rows[0][0]) if rows[0] else None

    async def renew(self, owner: str) -> None:
        """Keep every lease of `owner` alive."""
        await self._db.write(
            Statement(
                "UPDATE runs SET lease_until = :now + :ttl WHERE owner = :owner AND lease_until > 0",
                {"owner": owner, "ttl": self._lease_s},
            )
        )

    async def held_by(self, owner: str) -> Sequence[RunId]:
        """The runs whose lease `owner` has."""
        rows = await self._db.read("SELECT run_id FROM runs WHERE owner = :owner", {"owner": owner})
        return [RunId(row["run_id"]) for row in rows]

    async def release(self, owner: str, run_id: RunId | None = None) -> None:
        """Give up one lease of `owner`, or all of them, so that another may take the run at once."""
        await self._db.write(
            Statement(
                "UPDATE runs SET lease_until = 0, owner = NULL WHERE owner = :owner AND (run_id = :run_id OR :all = 1)",
                {"owner": owner, "run_id": run_id or "", "all": int(run_id is None)},
            )
        )

    async def pin(self, run_id: RunId, epoch: int, version: str) -> None:
        """Fix the workflow version that the run uses for the rest of its life. Raises `FencedOff`."""
        await self._db.write(
            Statement(
                "UPDATE runs SET version = coalesce(version, :version) WHERE run_id = :run_id AND epoch = :epoch",
                {"run_id": run_id, "epoch": epoch, "version": version},
                must=True,
            )
        )

    async def park(self, run_id: RunId, epoch: int, waits_for: Sequence[CallId]) -> bool:
        """Let the run wait without a lease for these calls, if all of them are parked still; whether it was done. Raises `FencedOff`."""
        run = {"run_id": run_id, "epoch": epoch}
        _, parked = await self._db.write(
            Statement("UPDATE runs SET epoch = epoch WHERE run_id = :run_id AND epoch = :epoch", run, must=True),
            Statement(
                "UPDATE runs SET status = 'parked', parked_at = :now, owner = NULL, lease_until = 0"
                " WHERE run_id = :run_id AND epoch = :epoch AND status = 'running' AND (SELECT count(*) FROM calls"
                " WHERE run_id = :run_id AND replace(:calls, call_id, '') <> :calls AND answered_at IS NULL AND parked_at IS NOT NULL) = :n"
                " RETURNING run_id",
                {**run, "calls": " ".join(waits_for), "n": len(waits_for)},
            ),
        )
        return bool(parked)

    async def finish(
        self, run_id: RunId, epoch: int, *, result: Mapping[str, Any] | None = None, failure: Failure | None = None
    ) -> Run:
        """Write the terminal state, once: the run's cost is the sum over its calls, its agents those that they went to. Raises `FencedOff`."""
        stamps = await self._db.read(
            "SELECT DISTINCT stamp FROM calls WHERE run_id = :run_id AND stamp IS NOT NULL ORDER BY stamp",
            {"run_id": run_id},
        )
        rows = await self._db.write(
            Statement(
                "UPDATE runs SET status = :status, result = :result, failure = :failure, agents = :agents, finished_at = :now, owner = NULL, lease_until = 0,"
                " cost_usd = (SELECT coalesce(sum(cost_usd), 0) FROM calls WHERE calls.run_id = runs.run_id)"
                " WHERE run_id = :run_id AND epoch = :epoch AND status = 'running' RETURNING *",
                {
                    "run_id": run_id,
                    "epoch": epoch,
                    "status": "failed" if failure else "succeeded",
                    "agents": f"[{', '.join(row['stamp'] for row in stamps)}]",
                    "result": None if result is None else json.dumps(result),
                    "failure": failure.model_dump_json() if failure else None,
                },
                must=True,
            )
        )
        return run_of(rows[0][0])

    async def announced(self, run_id: RunId) -> None:
        """Remember that the terminal event reached the bus."""
        await self._db.write(Statement("UPDATE runs SET announced = 1 WHERE run_id = :run_id", {"run_id": run_id}))

    async def unattended(self, quiet_s: float = 0.0, limit: int = 1000) -> Sequence[Run]:
        """Runs that need somebody: held by nobody alive, or ended and not announced; and accepted at least `quiet_s` seconds ago.

        A parked run needs somebody once one of its calls goes on, or was answered since (or a second before: it may have looked just then).
        """
        rows = await self._db.read(
            "SELECT * FROM runs WHERE announced = 0 AND lease_until < :now AND accepted_at < :now - :quiet_s"
            " AND (status <> 'parked' OR EXISTS (SELECT 1 FROM calls WHERE calls.run_id = runs.run_id"
            " AND CASE WHEN calls.answered_at IS NULL THEN calls.parked_at IS NULL ELSE calls.answered_at >= runs.parked_at - 1 END))"
            " ORDER BY accepted_at LIMIT :limit",
            {"quiet_s": quiet_s, "limit": limit},
        )
        return [run_of(row) for row in rows]

    async def get(self, run_id: str) -> Run | None:
        """The run whose id is, or uniquely begins with, `run_id`."""
        rows = await self._db.read(
            "SELECT * FROM runs WHERE run_id >= :low AND run_id < :high LIMIT 2", {"low": run_id, "high": run_id + "g"}
        )
        return run_of(rows[0]) if len(rows) == 1 or (rows and rows[0]["run_id"] == run_id) else None

    async def recent(self, *, status: str | None = None, workflow: str | None = None, limit: int = 50) -> Sequence[Run]:
        """The newest runs first."""
        rows = await self._db.read(
            "SELECT * FROM runs WHERE (:status = '' OR status = :status) AND (:workflow = '' OR workflow = :workflow)"
            " ORDER BY accepted_at DESC LIMIT :limit",
            {"status": status or "", "workflow": workflow or "", "limit": limit},
        )
        return [run_of(row) for row in rows]
