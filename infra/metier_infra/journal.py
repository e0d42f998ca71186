"""The journal: what is true about runs, calls, steps, tool calls, decisions, outcomes, routers and approvals. Kafka and Celery are only transport.

The orchestrator writes `runs`, `decisions` and requests of `calls`; the agent worker claims and answers `calls` and writes `steps`
and `tools`; the cli reads all of it. Every id is deterministic, so each write may come twice and counts once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from metier_infra.approvals import Approvals
from metier_infra.budgets import Budgets
from metier_infra.calls import Calls
from metier_infra.database import Database, Statement
from metier_infra.decisions import Decisions
from metier_infra.open_runs import OpenRuns
from metier_infra.outcomes import Outcomes
from metier_infra.routers import Routers
from metier_infra.rows import (
    HALF_LIFE,
    Step,
    ToolCallRow,
    ToolRecord,
    tool_call_of,
    weigh_record,
)
from metier_infra.runs import Runs
from metier_infra.schedules import Schedules
from metier_infra.scores import Scores
from metier_infra.segments import Segments
from metier_infra.serving import Serving
from metier_infra.waits import Signals, Waits
from metier_infra.words import CallId, RunId, ToolCallId


class Steps:
    """The trajectory of each call, step by step, so that a restart goes on where the last recorded step ended."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def append(self, call_id: CallId, n: int, body: Mapping[str, Any], *, attempt: int | None = None) -> None:
        """Record step `n`; a step that is there stays as it is.

        Raises `FencedOff` where the call was claimed again since `attempt` (None: whoever records it): what two workers did at once would look like one's work.
        """
        held = "UPDATE calls SET attempt = attempt WHERE call_id = :call_id AND attempt = :attempt"
        fence = [] if attempt is None else [Statement(held, {"call_id": call_id, "attempt": attempt}, must=True)]
        await self._db.write(
            *fence,
            Statement(
                "INSERT INTO steps (call_id, n, body, at) VALUES (:call_id, :n, :body, :now) ON CONFLICT (call_id, n) DO NOTHING",
                {"call_id": call_id, "n": n, "body": json.dumps(body)},
            ),
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


class Journal:
    """The parts together. `lease_s` is how long a silent holder of a run or call is believed alive, in seconds."""

    def __init__(self, db: Database, lease_s: float = 15.0) -> None:
        self.db = db
        self.lease_s = lease_s
        self.runs = Runs(db, lease_s)
        self.open_runs = OpenRuns(db)
        self.calls = Calls(db, lease_s)
        self.segments = Segments(db)
        self.steps = Steps(db)
        self.tools = Tools(db)
        self.decisions = Decisions(db)
        self.outcomes = Outcomes(db)
        self.routers = Routers(db)
        self.scores = Scores(db)
        self.approvals = Approvals(db)
        self.serving = Serving(db)
        self.schedules = Schedules(db)
        self.budgets = Budgets(db)
        self.waits = Waits(db)
        self.signals = Signals(db)
