"""The journal's calls: outbox for the runs that ask, inbox for their answers. `journal` puts it beside its other parts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from metier_infra.database import Database, Statement
from metier_infra.rows import Call, call_of
from metier_infra.words import Answer, CallId, Failure, RunId, Spent, Stamp

_UNKNOWN: Mapping[str, None] = {"usd": None, "tokens": None, "tool_calls": None}
_LATE = (
    "UPDATE calls SET cost_usd = :usd, tokens = :tokens, tool_calls = :tool_calls"
    " WHERE call_id = :call_id AND (tokens IS NULL OR cost_usd < :usd OR (cost_usd = :usd AND tokens < :tokens))"
)

NOT_NEEDED = "not needed: enough agreed without it"
"""Why a call was given up by the panel that asked. From then on it counts for nothing there, whatever comes of it."""
_WITHDRAW = (
    "UPDATE calls SET cancelled = coalesce(cancelled, :why), answered_at = CASE WHEN attempt = 0 THEN :now END,"
    " failure = CASE WHEN attempt = 0 THEN :failure END, tokens = CASE WHEN attempt = 0 THEN 0 ELSE tokens END"
    " WHERE call_id = :call_id AND answered_at IS NULL RETURNING *"
)


def requested(call: Call) -> Statement:
    """Records a call unless it is recorded; gives its row if it was not."""
    return Statement(
        "INSERT INTO calls (call_id, run_id, agent, task, deadline, stamp, slot, allowance, requested_at)"
        " VALUES (:call_id, :run_id, :agent, :task, :deadline, :stamp, :slot, :allowance, :now) ON CONFLICT (call_id) DO NOTHING RETURNING *",
        {
            **call.model_dump(include={"call_id", "run_id", "agent", "deadline"}),
            "task": call.task.model_dump_json(),
            "stamp": call.stamp.model_dump_json() if call.stamp else None,
            "slot": json.dumps(call.slot) if call.slot else None,
            "allowance": call.allowance.model_dump_json() if call.allowance else None,
        },
    )


class Calls:
    """Calls: recorded before they are sent, claimed before they are worked on, answered once."""

    def __init__(self, db: Database, lease_s: float) -> None:
        self._db = db
        self._lease_s = lease_s

    async def request(self, call: Call) -> Call:
        """Record the call unless it is recorded; what is stored, with its answer if there is one."""
        stored = await self._db.write(requested(call))
        return call_of(stored[0][0]) if stored[0] else await self._get(call.call_id)

    async def _get(self, call_id: CallId) -> Call:
        rows = await self._db.read("SELECT * FROM calls WHERE call_id = :call_id", {"call_id": call_id})
        return call_of(rows[0])

    async def get(self, call_id: CallId) -> Call | None:
        """The call, or None when it was never recorded."""
        rows = await self._db.read("SELECT * FROM calls WHERE call_id = :call_id", {"call_id": call_id})
        return call_of(rows[0]) if rows else None

    async def claim(self, call_id: CallId, holder: str, stamp: Stamp | None = None) -> Call | None:
        """Take the call for `holder`, counting the attempt; None when another live holder has it, it is answered, or it still waits for a person.

        `stamp` is what it is worked on under; that of the last attempt is kept. If it was parked, its time goes on.
        """
        rows = await self._db.write(
            Statement(
                "UPDATE calls SET holder = :holder, attempt = attempt + 1, held_until = :now + :ttl, claimed_at = coalesce(claimed_at, :now),"
                " stamp = :stamp, deadline = deadline + coalesce(:now - parked_at, 0), parked_s = parked_s + coalesce(:now - parked_at, 0),"
                " parked_at = NULL, taken_at = :now, tokens = NULL"
                " WHERE call_id = :call_id AND answered_at IS NULL AND (holder = :holder OR held_until < :now) AND (parked_at IS NULL"
                " OR cancelled IS NOT NULL OR EXISTS (SELECT 1 FROM approvals WHERE approvals.call_id = calls.call_id"
                " AND approvals.decided_at >= calls.taken_at)) RETURNING *",
                {
                    "call_id": call_id,
                    "holder": holder,
                    "ttl": self._lease_s,
                    "stamp": stamp.model_dump_json() if stamp else None,
                },
            )
        )
        return call_of(rows[0][0]) if rows[0] else None

    async def renew(self, holder: str) -> None:
        """Keep every open claim of `holder` alive."""
        await self._db.write(
            Statement(
                "UPDATE calls SET held_until = :now + :ttl WHERE holder = :holder AND answered_at IS NULL AND held_until > 0",
                {"holder": holder, "ttl": self._lease_s},
            )
        )

    async def release(self, holder: str, call_id: CallId | None = None) -> None:
        """Give up one open claim of `holder`, or all of them."""
        await self._db.write(
            Statement(
                "UPDATE calls SET held_until = 0, holder = NULL WHERE holder = :holder AND answered_at IS NULL"
                " AND (call_id = :call_id OR :all = 1)",
                {"holder": holder, "call_id": call_id or "", "all": int(call_id is None)},
            )
        )

    async def park(self, call_id: CallId, holder: str, took: Spent | None = None) -> Call:
        """Let the call wait for a person: nobody holds it, and its time stands still. What is stored; another may have answered it.

        `took` is what it took until now.
        """
        parked = await self._db.write(
            Statement(
                "UPDATE calls SET parked_at = :now, held_until = 0, holder = NULL,"
                " cost_usd = :usd, tokens = :tokens, tool_calls = :tool_calls"
                " WHERE call_id = :call_id AND holder = :holder AND answered_at IS NULL RETURNING *",
                {"call_id": call_id, "holder": holder, **(took or Spent()).model_dump(exclude={"time_s"})},
            )
        )
        return call_of(parked[0][0]) if parked[0] else await self._get(call_id)

    async def answer(
        self,
        call_id: CallId,
        *,
        answer: Answer | None = None,
        failure: Failure | None = None,
        took: Spent | None = None,
    ) -> Call:
        """Record the result; the first one wins, and it is the winner that is returned.

        `took` is what the call took: it counts also where another result has won. Whoever did not work on the call does not know, and says None: if nobody
        did, the call took nothing; else its worker tells yet.
        """
        won = await self._db.write(
            Statement(
                "UPDATE calls SET answer = :answer, failure = :failure, answered_at = :now, cost_usd = coalesce(:usd, cost_usd),"
                " tokens = coalesce(:tokens, CASE WHEN attempt = 0 THEN 0 ELSE tokens END), tool_calls = coalesce(:tool_calls, tool_calls)"
                " WHERE call_id = :call_id AND answered_at IS NULL RETURNING *",
                {
                    "call_id": call_id,
                    "answer": answer.model_dump_json() if answer else None,
                    "failure": failure.model_dump_json() if failure else None,
                    **(took.model_dump(exclude={"time_s"}) if took else _UNKNOWN),
                },
            )
        )
        if won[0]:
            return call_of(won[0][0])
        if took:
            await self._db.write(Statement(_LATE, {"call_id": call_id, **took.model_dump(exclude={"time_s"})}))
        return await self._get(call_id)

    async def cancel(self, call_id: CallId, why: str) -> bool:
        """Give the call up, unless it is answered; whether it was given up. Its worker ends what it is doing and answers that it was cancelled."""
        rows = await self._db.write(
            Statement(
                "UPDATE calls SET cancelled = coalesce(cancelled, :why) WHERE call_id = :call_id AND answered_at IS NULL RETURNING call_id",
                {"call_id": call_id, "why": why},
            )
        )
        return bool(rows[0])

    async def withdraw(self, call: Call) -> Call:
        """Give up a call that is not needed any more, recorded or not, unless it is answered; how it stands then. One that nobody has claimed is over at once."""
        failure = Failure(code="not_needed", message=NOT_NEEDED).model_dump_json()
        _, rows = await self._db.write(
            requested(call), Statement(_WITHDRAW, {"call_id": call.call_id, "why": NOT_NEEDED, "failure": failure})
        )
        return call_of(rows[0]) if rows else await self._get(call.call_id)

    async def given_up(self, holder: str) -> Mapping[CallId, str]:
        """The calls that `holder` works on and that were cancelled, and why."""
        rows = await self._db.read(
            "SELECT call_id, cancelled FROM calls WHERE holder = :holder AND answered_at IS NULL AND cancelled IS NOT NULL",
            {"holder": holder},
        )
        return {CallId(row["call_id"]): row["cancelled"] for row in rows}

    async def parked_in_vain(self, limit: int = 100) -> Sequence[Call]:
        """Parked calls that were cancelled: their agent is to be told, so that it ends them."""
        rows = await self._db.read(
            "SELECT * FROM calls WHERE parked_at IS NOT NULL AND answered_at IS NULL AND cancelled IS NOT NULL ORDER BY parked_at LIMIT :limit",
            {"limit": limit},
        )
        return [call_of(row) for row in rows]

    async def of_run(self, run_id: RunId) -> Sequence[Call]:
        """The run's calls, in the order in which they were requested."""
        rows = await self._db.read(
            "SELECT * FROM calls WHERE run_id = :run_id ORDER BY requested_at, call_id", {"run_id": run_id}
        )
        return [call_of(row) for row in rows]
