"""The journal: what is true about runs, calls, steps, tool calls, decisions and approvals. Kafka and Celery are only transport.

The orchestrator writes `runs`, `decisions` and requests of `calls`; the agent worker claims and answers `calls` and writes `steps`
and `tools`; the cli reads all of it. Every id is deterministic, so each write may come twice and counts once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from metier_infra.approvals import Approvals
from metier_infra.calls import Calls
from metier_infra.database import Database, Statement
from metier_infra.rows import (
    HALF_LIFE,
    Run,
    Step,
    ToolCallRow,
    ToolRecord,
    run_of,
    tool_call_of,
    weigh_record,
)
from metier_infra.words import CallId, Decision, Failure, RunId, ToolCallId


class Runs:
    """Runs and their leases. A lease is an owner, an epoch that only grows, and a time until which the owner is believed alive."""

    def __init__(self, db: Database, lease_s: float) -> None:
        self._db = db
        self._lease_s = lease_s

    async def accept(self, run: Run) -> tuple[Run, bool]:
        """Insert the run under its event's (source, id). Returns what is stored, and whether it is new."""
        stored = await self._db.write(
            Statement(
                "INSERT INTO runs (run_id, source, event_id, workflow, version, status, input, failure, traceparent, accepted_at)"
                " VALUES (:run_id, :source, :event_id, :workflow, :version, 'accepted', :input, NULL, :traceparent, :now)"
                " ON CONFLICT (source, event_id) DO NOTHING RETURNING *",
                {
                    **run.model_dump(include={"run_id", "source", "event_id", "workflow", "version", "traceparent"}),
                    "input": json.dumps(run.input),
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


class Steps:
    """The trajectory of each call, step by step, so that a restart goes on where the last recorded step ended."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def append(self, call_id: CallId, n: int, body: Mapping[str, Any]) -> None:
        """Record step `n`; a step that is there stays as it is."""
        await self._db.write(
            Statement(
                "INSERT INTO steps (call_id, n, body, at) VALUES (:call_id, :n, :body, :now) ON CONFLICT (call_id, n) DO NOTHING",
                {"call_id": call_id, "n": n, "body": json.dumps(body)},
            )
        )

    async def of_call(self, call_id: CallId) -> Sequence[Step]:
        """The call's steps, in order."""
        rows = await self._db.read("SELECT * FROM steps WHERE call_id = :call_id ORDER BY n", {"call_id": call_id})
        return [Step(CallId(row["call_id"]), int(row["n"]), json.loads(row["body"]), float(row["at"])) for row in rows]


class Tools:
    """Tool calls: recorded before they are sent, finished once."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def request(self, call: ToolCallRow) -> ToolCallRow:
        """Record the tool call unless it is recorded; what is stored, with its result if there is one."""
        stored = await self._db.write(
            Statement(
                "INSERT INTO tool_calls (tool_call_id, run_id, call_id, agent, category, tool, arguments, requested_at)"
                " VALUES (:tool_call_id, :run_id, :call_id, :agent, :category, :tool, :arguments, :now)"
                " ON CONFLICT (tool_call_id) DO NOTHING RETURNING *",
                {
                    **call.model_dump(include={"tool_call_id", "run_id", "call_id", "agent", "category", "tool"}),
                    "arguments": json.dumps(call.arguments),
                },
            )
        )
        return tool_call_of(stored[0][0]) if stored[0] else await self._get(call.tool_call_id)

    async def finish(
        self,
        tool_call_id: ToolCallId,
        result: Mapping[str, Any],
        *,
        ok: bool,
        wall_ms: float,
        cost_usd: float | None = None,
    ) -> ToolCallRow:
        """Record the result, and the tool's own price if it told one; the first one wins, and it is the winner that is returned."""
        won = await self._db.write(
            Statement(
                "UPDATE tool_calls SET result = :result, status = :status, ok = :ok, wall_ms = :wall_ms, cost_usd = :cost_usd,"
                " finished_at = :now WHERE tool_call_id = :tool_call_id AND finished_at IS NULL RETURNING *",
                {
                    "tool_call_id": tool_call_id,
                    "result": json.dumps(result),
                    "status": result.get("status"),
                    "ok": int(ok),
                    "wall_ms": wall_ms,
                    "cost_usd": cost_usd,
                },
            )
        )
        return tool_call_of(won[0][0]) if won[0] else await self._get(tool_call_id)

    async def compare(self, tool_call_ids: Sequence[ToolCallId], *, agreed: bool, own_confidence: float) -> None:
        """Keep whether the answer that came of these calls agreed with the model's own from before, of which it was so sure (0 to 1)."""
        facts = {"agreed": int(agreed), "own_confidence": own_confidence}
        sql = "UPDATE tool_calls SET agreed = :agreed, own_confidence = :own_confidence WHERE tool_call_id = :id"
        await self._db.write(*(Statement(sql, {**facts, "id": one}) for one in tool_call_ids))

    async def get(self, tool_call_id: ToolCallId) -> ToolCallRow | None:
        """The tool call, or None when it was never recorded."""
        rows = await self._db.read("SELECT * FROM tool_calls WHERE tool_call_id = :id", {"id": tool_call_id})
        return tool_call_of(rows[0]) if rows else None

    async def _get(self, tool_call_id: ToolCallId) -> ToolCallRow:
        rows = await self._db.read("SELECT * FROM tool_calls WHERE tool_call_id = :id", {"id": tool_call_id})
        return tool_call_of(rows[0])

    async def of_run(self, run_id: RunId) -> Sequence[ToolCallRow]:
        """The run's tool calls, in the order in which they were requested."""
        rows = await self._db.read(
            "SELECT * FROM tool_calls WHERE run_id = :run_id ORDER BY requested_at, tool_call_id", {"run_id": run_id}
        )
        return [tool_call_of(row) for row in rows]

    async def record(
        self, *, agent: str, category: str, tool: str, half_life: float = HALF_LIFE, last: int = 200
    ) -> ToolRecord:
        """What the last calls of this tool by this agent in this category came to.

        Calls that ended count, good or bad; refused ones do not: the tool never ran.
        """
        rows = await self._db.read(
            "SELECT ok, wall_ms, cost_usd, agreed, own_confidence FROM tool_calls WHERE agent = :agent AND category = :category AND tool = :tool"
            " AND finished_at IS NOT NULL AND coalesce(status, '') <> 'refused'"
            " ORDER BY finished_at DESC, tool_call_id LIMIT :last",
            {"agent": agent, "category": category, "tool": tool, "last": last},
        )
        return weigh_record(rows, half_life)

    async def measured(self, agent: str | None = None) -> Sequence[tuple[str, str, str]]:
        """Every (agent, category, tool) that has a record, in order; of one agent, or of all."""
        rows = await self._db.read(
            "SELECT DISTINCT agent, category, tool FROM tool_calls WHERE finished_at IS NOT NULL"
            " AND coalesce(status, '') <> 'refused' AND (:agent = '' OR agent = :agent) ORDER BY agent, category, tool",
            {"agent": agent or ""},
        )
        return [(row["agent"], row["category"], row["tool"]) for row in rows]

    async def steps(self, *, agent: str, category: str, holding: str, last: int) -> Sequence[Step]:
        """Steps with `holding` in their body, newest first, of the calls in which the agent last used tools in this category."""
        rows = await self._db.read(
            "SELECT * FROM steps WHERE body LIKE :holding AND call_id IN (SELECT call_id FROM tool_calls"
            " WHERE agent = :agent AND category = :category ORDER BY requested_at DESC LIMIT :last)"
            " ORDER BY at DESC, call_id, n DESC LIMIT :last",
            {"agent": agent, "category": category, "holding": f"%{holding}%", "last": last},
        )
        return [Step(CallId(row["call_id"]), int(row["n"]), json.loads(row["body"]), float(row["at"])) for row in rows]


class Decisions:
    """Routing choices, kept with the run."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def record(self, decision_id: str, run_id: RunId, decision: Decision) -> Decision:
        """Keep the decision unless one is kept under this id; the one that is kept."""
        kept = await self._db.write(
            Statement(
                "INSERT INTO decisions (decision_id, run_id, body, at) VALUES (:decision_id, :run_id, :body, :now)"
                " ON CONFLICT (decision_id) DO NOTHING RETURNING body",
                {"decision_id": decision_id, "run_id": run_id, "body": decision.model_dump_json()},
            )
        )
        rows = kept[0] or await self._db.read(
            "SELECT body FROM decisions WHERE decision_id = :decision_id", {"decision_id": decision_id}
        )
        return Decision.model_validate_json(rows[0]["body"])

    async def of_run(self, run_id: RunId) -> Sequence[Decision]:
        """The run's decisions, in order."""
        rows = await self._db.read(
            "SELECT body FROM decisions WHERE run_id = :run_id ORDER BY at, decision_id", {"run_id": run_id}
        )
        return [Decision.model_validate_json(row["body"]) for row in rows]


class Journal:
    """The parts together. `lease_s` is how long a silent holder of a run or call is believed alive, in seconds."""

    def __init__(self, db: Database, lease_s: float = 15.0) -> None:
        self.db = db
        self.lease_s = lease_s
        self.runs = Runs(db, lease_s)
        self.calls = Calls(db, lease_s)
        self.steps = Steps(db)
        self.tools = Tools(db)
        self.decisions = Decisions(db)
        self.approvals = Approvals(db)
