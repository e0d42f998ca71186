"""The journal's approvals: tool calls that a person is asked about. `journal` puts it beside its other parts.

The agent worker records what it wants to do, an orchestrator what was decided of it. The first decision wins, and in the same transaction the
call's time goes on; its deadline is moved by as long as it stood still.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from metier_infra.database import Database, Statement
from metier_infra.rows import Approval, approval_of
from metier_infra.words import CallId, RunId, ToolCallId

EXPIRY = "expiry"
"""Who refused, where nobody answered in time."""
WITHDRAWN = "withdrawn"
"""Who refused, where the call ended while it was asked for."""

_DECIDE = (
    "UPDATE approvals SET granted = :granted, decided_by = :by, note = :note, changed = :changed, decided_at = :now"
    " WHERE approval_id = :id AND decided_at IS NULL AND (expires_at > :now OR :late = 1) RETURNING *"
)
_GO_ON = (
    "UPDATE calls SET deadline = deadline + (:now - parked_at), parked_s = parked_s + (:now - parked_at), parked_at = NULL"
    " WHERE parked_at IS NOT NULL AND call_id IN (SELECT approvals.call_id FROM approvals WHERE approvals.approval_id = :id"
    " AND approvals.decided_at >= calls.parked_at)"
)


class Approvals:
    """Approvals: wanted once, decided once, told until it is known that they were."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def want(self, approval: Approval, within_s: float) -> Approval:
        """Record the wish unless it is recorded, to be decided within so many seconds; what is stored, with the decision if there is one."""
        told = approval.model_dump(include={"approval_id", "run_id", "call_id", "agent", "tool", "digest", "why"})
        stored = await self._db.write(
            Statement(
                "INSERT INTO approvals (approval_id, run_id, call_id, agent, tool, digest, arguments, why, stamp, wanted_at, expires_at)"
                " VALUES (:approval_id, :run_id, :call_id, :agent, :tool, :digest, :arguments, :why, :stamp, :now, :now + :within_s)"
                " ON CONFLICT (approval_id) DO NOTHING RETURNING *",
                {
                    **told,
                    "arguments": json.dumps(approval.arguments),
                    "stamp": approval.stamp.model_dump_json() if approval.stamp else None,
                    "within_s": within_s,
                },
            )
        )
        return approval_of(stored[0][0]) if stored[0] else await self._get(approval.approval_id)

    async def decide(
        self,
        approval_id: ToolCallId,
        *,
        granted: bool,
        by: str,
        note: str = "",
        arguments: Mapping[str, Any] | None = None,
        late: bool = False,
    ) -> Approval | None:
        """Decide it, unless it was decided or, except where `late`, its time is over: then None. The call's time goes on."""
        decision = {"granted": int(granted), "by": by, "note": note, "late": int(late), "id": approval_id}
        changed = None if arguments is None else json.dumps(arguments)
        won, _ = await self._db.write(
            Statement(_DECIDE, {**decision, "changed": changed}), Statement(_GO_ON, {"id": approval_id})
        )
        return approval_of(won[0]) if won else None

    async def overdue(self, limit: int = 100) -> Mapping[ToolCallId, str]:
        """Approvals to be refused because nobody will decide them any more, and by what: `EXPIRY` or `WITHDRAWN`."""
        rows = await self._db.read(
            "SELECT approvals.approval_id, calls.answered_at FROM approvals LEFT JOIN calls ON calls.call_id = approvals.call_id"
            " WHERE decided_at IS NULL AND (expires_at <= :now OR answered_at IS NOT NULL) ORDER BY expires_at LIMIT :limit",
            {"limit": limit},
        )
        return {ToolCallId(row["approval_id"]): WITHDRAWN if row["answered_at"] else EXPIRY for row in rows}

    async def untold(self, quiet_s: float, limit: int = 100) -> Sequence[Approval]:
        """Approvals decided at least `quiet_s` seconds ago, of which nobody noted that it was told."""
        rows = await self._db.read(
            "SELECT * FROM approvals WHERE decided_at IS NOT NULL AND announced = 0 AND decided_at <= :now - :quiet_s"
            " ORDER BY decided_at LIMIT :limit",
            {"quiet_s": quiet_s, "limit": limit},
        )
        return [approval_of(row) for row in rows]

    async def told(self, approval_id: ToolCallId) -> None:
        """Remember that its decision reached the bus, and its call its agent."""
        sql = "UPDATE approvals SET announced = 1 WHERE approval_id = :id"
        await self._db.write(Statement(sql, {"id": approval_id}))

    async def _get(self, approval_id: ToolCallId) -> Approval:
        rows = await self._db.read("SELECT * FROM approvals WHERE approval_id = :id", {"id": approval_id})
        return approval_of(rows[0])

    async def get(self, approval_id: ToolCallId) -> Approval | None:
        """The approval, or None when nobody ever wanted it."""
        rows = await self._db.read("SELECT * FROM approvals WHERE approval_id = :id", {"id": approval_id})
        return approval_of(rows[0]) if rows else None

    async def find(self, beginning: str) -> Approval | None:
        """The approval whose id is, or uniquely begins with, `beginning`."""
        rows = await self._db.read(
            "SELECT * FROM approvals WHERE approval_id >= :low AND approval_id < :high LIMIT 2",
            {"low": beginning, "high": beginning + "g"},
        )
        return approval_of(rows[0]) if len(rows) == 1 or (rows and rows[0]["approval_id"] == beginning) else None

    async def of_run(self, run_id: RunId) -> Sequence[Approval]:
        """The run's approvals, in the order in which they were wanted."""
        sql = "SELECT * FROM approvals WHERE run_id = :run_id ORDER BY wanted_at, approval_id"
        return [approval_of(row) for row in await self._db.read(sql, {"run_id": run_id})]

    async def undecided(self, call_id: CallId) -> Sequence[Approval]:
        """What the call still waits for, in the order in which it was wanted."""
        sql = "SELECT * FROM approvals WHERE call_id = :call_id AND decided_at IS NULL ORDER BY wanted_at, approval_id"
        return [approval_of(row) for row in await self._db.read(sql, {"call_id": call_id})]

    async def waiting(self, limit: int = 100) -> Sequence[Approval]:
        """Those that somebody may still decide, the most urgent first."""
        rows = await self._db.read(
            "SELECT approvals.* FROM approvals JOIN calls ON calls.call_id = approvals.call_id"
            " WHERE decided_at IS NULL AND expires_at > :now AND answered_at IS NULL ORDER BY expires_at LIMIT :limit",
            {"limit": limit},
        )
        return [approval_of(row) for row in rows]

    async def recent(self, limit: int = 100) -> Sequence[Approval]:
        """The newest first, decided or not."""
        rows = await self._db.read("SELECT * FROM approvals ORDER BY wanted_at DESC LIMIT :limit", {"limit": limit})
        return [approval_of(row) for row in rows]
