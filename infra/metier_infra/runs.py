"""The journal's runs and their leases. `journal` puts it beside its other parts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from metier_infra import segments
from metier_infra.database import Database, Statement
from metier_infra.errors import FencedOff, NoTurn, QueueFull
from metier_infra.rows import Awaited, Run, run_of
from metier_infra.words import Failure, RunId, Spent

_ASKED = {
    *("run_id", "source", "event_id", "workflow", "version", "traceparent"),
    *("tenant", "priority", "parent", "origin"),
}


def _with_those_below(sql: str) -> str:
    """The same, with BELOW in it for a table `tree` of the ids of a run and of all that stand under it."""
    return sql.replace(
        "BELOW",
        "RECURSIVE tree(run_id) AS (SELECT CAST(:run_id AS text)"
        " UNION SELECT runs.run_id FROM runs JOIN tree ON runs.parent = tree.run_id)",
    )


_CANCEL_RUNS = _with_those_below(
    "WITH BELOW UPDATE runs SET cancelled_by = :by, cancel_note = :note, cancelled_at = :now"
    " WHERE run_id IN (SELECT run_id FROM tree) AND cancelled_at IS NULL AND status IN ('accepted', 'running', 'parked')"
)
_CANCEL_CALLS = _with_those_below(
    "WITH BELOW UPDATE calls SET cancelled = coalesce(cancelled, :why) WHERE answered_at IS NULL AND run_id IN"
    " (SELECT runs.run_id FROM runs JOIN tree ON runs.run_id = tree.run_id WHERE cancelled_at IS NOT NULL)"
)
_GIVE_UP_CALLS = "UPDATE calls SET cancelled = coalesce(cancelled, :why) WHERE run_id = :run_id AND answered_at IS NULL"
_STILL_OPEN = _with_those_below(
    "WITH BELOW SELECT runs.* FROM runs JOIN tree ON runs.run_id = tree.run_id"
    " WHERE cancelled_at IS NOT NULL AND status IN ('accepted', 'running', 'parked')"
)
_SPENT_IN_ALL = _with_those_below(
    "WITH BELOW SELECT coalesce(sum(cost_usd), 0) AS usd, coalesce(sum(tokens), 0) AS tokens, coalesce(sum(tool_calls), 0) AS tool_calls"
    " FROM calls JOIN tree ON calls.run_id = tree.run_id"
)
_ACCEPT = (
    "INSERT INTO runs (run_id, source, event_id, workflow, version, traceparent, tenant, priority, parent, origin, status, input, limits, accepted_at)"
    " SELECT :run_id, :source, :event_id, :workflow, :version, :traceparent, :tenant, :priority, :parent, :origin, 'accepted', :input, :limits, :now"
    " WHERE :queued < 0 OR (SELECT count(*) FROM runs WHERE tenant = :tenant AND status = 'accepted' AND parent IS NULL) < :queued"
    " ON CONFLICT (source, event_id) DO NOTHING RETURNING *"
)


def _telling_whether_it_worked(sql: str) -> str:
    """The same, with WORKED in it for 1 where the holder of the run ran nodes of it, else 0: a run that waited has no part in the death of its process."""
    return sql.replace(
        "WORKED",
        "CASE WHEN owner IS NOT NULL AND status = 'running'"
        " AND NOT EXISTS (SELECT 1 FROM calls WHERE calls.run_id = runs.run_id AND answered_at IS NULL)"
        " AND NOT EXISTS (SELECT 1 FROM waits WHERE waits.run_id = runs.run_id AND waits.ended_at IS NULL)"
        " AND NOT EXISTS (SELECT 1 FROM runs AS child WHERE child.parent = runs.run_id AND child.status IN ('accepted', 'running', 'parked'))"
        " THEN 1 ELSE 0 END",
    )


_LEASE = _telling_whether_it_worked(
    "UPDATE runs SET owner = :owner, epoch = epoch + 1, lease_until = :now + :ttl, status = 'running',"
    " lost = lost + CASE WHEN owner <> :owner THEN WORKED ELSE 0 END,"
    " started_at = coalesce(started_at, :now), parked_s = parked_s + CASE WHEN parked_at IS NOT NULL AND EXISTS (SELECT 1 FROM approvals"
    " WHERE approvals.run_id = runs.run_id AND (decided_at IS NULL OR decided_at >= parked_at)) THEN :now - parked_at ELSE 0 END, parked_at = NULL, wake_at = NULL"
    " WHERE run_id = :run_id AND status IN ('accepted', 'running', 'parked') AND (owner = :owner OR lease_until < :now)"
    " AND (:at_most < 0 OR status = 'running' OR parent IS NOT NULL OR cancelled_at IS NOT NULL OR (SELECT count(*) FROM runs AS other"
    " WHERE other.tenant = runs.tenant AND other.status = 'running' AND other.parent IS NULL) < :at_most) RETURNING *"
)
_RECOVER = _telling_whether_it_worked(
    "UPDATE runs SET lease_until = 0, owner = NULL, lost = lost + WORKED WHERE owner = :owner"
)
_AT_RISK = _telling_whether_it_worked("SELECT WORKED AS worked FROM runs WHERE run_id = :run_id AND lost > 0")
_AWAIT: Mapping[Awaited, str] = {
    "call": "UPDATE calls SET awaited = :epoch WHERE call_id = :id",
    "wait": "UPDATE waits SET awaited = :epoch WHERE wait_id = :id",
    "run": "UPDATE runs SET awaited = :epoch WHERE run_id = :id",
}


def _telling_news(sql: str) -> str:
    """The same, with NEWS in it for whether something has happened that the run waits for, or waited for when it was parked."""
    return sql.replace(
        "NEWS",
        "(EXISTS (SELECT 1 FROM calls WHERE calls.run_id = runs.run_id AND calls.awaited = runs.epoch"
        " AND (calls.answered_at IS NOT NULL OR (calls.parked_at IS NULL AND calls.deadline <= :now)))"
        " OR EXISTS (SELECT 1 FROM waits WHERE waits.run_id = runs.run_id AND waits.awaited = runs.epoch"
        " AND (waits.ended_at IS NOT NULL OR waits.due <= :now))"
        " OR EXISTS (SELECT 1 FROM runs AS child WHERE child.parent = runs.run_id AND child.awaited = runs.epoch"
        " AND child.status IN ('succeeded', 'failed', 'cancelled')))",
    )


_PARK = _telling_news(
    "UPDATE runs SET status = 'parked', parked_at = :now, owner = NULL, lease_until = 0, lost = 0, wake_at = (SELECT min(due) FROM"
    " (SELECT deadline AS due FROM calls WHERE calls.run_id = :run_id AND awaited = :epoch AND parked_at IS NULL"
    " UNION ALL SELECT due FROM waits WHERE waits.run_id = :run_id AND awaited = :epoch"
    " UNION ALL SELECT CAST(:ends_at AS double precision) AS due WHERE NOT EXISTS"
    " (SELECT 1 FROM approvals WHERE approvals.run_id = :run_id AND decided_at IS NULL)) AS times)"
    " WHERE run_id = :run_id AND epoch = :epoch AND status = 'running' AND cancelled_at IS NULL AND NOT NEWS RETURNING run_id"
)
_RECALL = (
    "UPDATE runs SET status = 'running', parked_s = parked_s + (:now - parked_at), parked_at = NULL, wake_at = NULL WHERE status = 'parked' AND EXISTS"
    " (SELECT 1 FROM calls WHERE calls.run_id = runs.run_id AND answered_at IS NULL AND calls.parked_at IS NULL AND calls.awaited IS NOT NULL)"
)
_UNSENT = "UPDATE calls SET awaited = NULL WHERE answered_at IS NULL AND parked_at IS NULL AND awaited IS NOT NULL"
_UNATTENDED = _telling_news(
    "SELECT * FROM runs WHERE announced = 0 AND accepted_at < :now - :quiet_s"
    " AND lease_until < :now - CASE WHEN status IN ('succeeded', 'failed', 'cancelled') THEN :grace_s ELSE 0 END"
    " AND (status <> 'parked' OR cancelled_at IS NOT NULL OR NEWS)"
    " ORDER BY status = 'accepted', row_number() OVER (PARTITION BY tenant ORDER BY priority DESC, accepted_at), accepted_at LIMIT :limit"
)
_LEASABLE = "SELECT run_id FROM runs WHERE run_id = :run_id AND status IN ('accepted', 'running', 'parked') AND (owner = :owner OR lease_until < :now)"
_LOCK_TENANT = (
    "INSERT INTO tenant_locks (tenant) VALUES (:tenant) ON CONFLICT (tenant) DO UPDATE SET tenant = excluded.tenant"
)
"""What is counted of the tenant afterwards, in the same transaction, stays so until its end."""
_LOCK_ITS_TENANT = (
    "INSERT INTO tenant_locks (tenant) SELECT tenant FROM runs WHERE run_id = :run_id"
    " ON CONFLICT (tenant) DO UPDATE SET tenant = excluded.tenant"
)
NO_LIMIT = -1


class Runs:
    """Runs and their leases. A lease is an owner, an epoch that only grows, and a time until which the owner is believed alive."""

    def __init__(self, db: Database, lease_s: float) -> None:
        self._db = db
        self._lease_s = lease_s

    async def accept(self, run: Run, *beside: Statement, queued: int | None = None) -> tuple[Run, bool]:
        """Insert the run under its event's (source, id), and write what goes `beside` it. Returns what is stored, and whether it is new.

        Raises `QueueFull` where `queued` of its tenant's runs, or more, wait for their turn already.
        """
        asked = {
            **run.model_dump(include=_ASKED),
            "input": json.dumps(run.input),
            "limits": run.limits.model_dump_json() if run.limits else None,
            "queued": NO_LIMIT if queued is None else queued,
        }
        locks = [] if queued is None else [Statement(_LOCK_TENANT, {"tenant": run.tenant})]
        with suppress(FencedOff):  # then nothing was written beside it either
            stored = (await self._db.write(*locks, Statement(_ACCEPT, asked, must=bool(beside)), *beside))[len(locks)]
            if stored:
                return run_of(stored[0]), True
        rows = await self._db.read(
            "SELECT * FROM runs WHERE source = :source AND event_id = :event_id",
            {"source": run.source, "event_id": run.event_id},
        )
        if not rows:
            raise QueueFull(f"{queued} runs of the tenant {run.tenant!r} wait for their turn, and no more may")
        return run_of(rows[0]), False

    async def lease(self, run_id: RunId, owner: str) -> Run | None:
        """Take the run for `owner` under a new epoch, unless it ended or another live owner holds it."""
        rows = await self._db.write(Statement(_LEASE, self._taken(run_id, owner, NO_LIMIT)))
        return run_of(rows[0][0]) if rows[0] else None

    def _taken(self, run_id: RunId, owner: str, at_most: int) -> dict[str, object]:
        return {"run_id": run_id, "owner": owner, "ttl": self._lease_s, "at_most": at_most}

    async def lease_in_turn(self, run_id: RunId, owner: str, at_most: int) -> Run | None:
        """The same, if fewer than `at_most` runs of its tenant are under way, over all replicas. Raises `NoTurn` where so many are.

        A run that is under way already, is given up, or stands under another run, needs no turn of its own.
        """
        _, taken, free = await self._db.write(
            Statement(_LOCK_ITS_TENANT, {"run_id": run_id}),
            Statement(_LEASE, self._taken(run_id, owner, at_most)),
            Statement(_LEASABLE, {"run_id": run_id, "owner": owner}),
        )
        if free and not taken:
            raise NoTurn(f"{at_most} runs of the tenant are under way, and no more may be")
        return run_of(taken[0]) if taken else None

    async def next_in_turn(self, tenant: str) -> Run | None:
        """The tenant's run that waits for its turn and is the next by priority and time, wherever it waits."""
        rows = await self._db.read(
            "SELECT * FROM runs WHERE tenant = :tenant AND status = 'accepted' AND parent IS NULL ORDER BY priority DESC, accepted_at LIMIT 1",
            {"tenant": tenant},
        )
        return run_of(rows[0]) if rows else None

    async def renew(self, owner: str) -> None:
        """Keep every lease of `owner` alive."""
        await self._db.write(
            Statement(
                "UPDATE runs SET lease_until = :now + :ttl WHERE owner = :owner AND lease_until > 0",
                {"owner": owner, "ttl": self._lease_s},
            )
        )

    async def held_by(self, owner: str) -> Mapping[RunId, int]:
        """The runs whose lease `owner` has, and its epoch."""
        rows = await self._db.read("SELECT run_id, epoch FROM runs WHERE owner = :owner", {"owner": owner})
        return {RunId(row["run_id"]): int(row["epoch"]) for row in rows}

    async def release(self, owner: str) -> None:
        """Give up every lease of `owner`, so that others may take its runs at once."""
        await self._db.write(
            Statement("UPDATE runs SET lease_until = 0, owner = NULL WHERE owner = :owner", {"owner": owner})
        )

    async def recover(self, owner: str) -> None:
        """The same at the start of a process, for what one of its name held that died."""
        await self._db.write(Statement(_RECOVER, {"owner": owner}))

    async def give_back(self, run_id: RunId, epoch: int, *, broke: bool = False) -> None:
        """Give up the lease of this epoch, because our own code `broke` at it or not. One that was taken since, by whomever, stays."""
        await self._db.write(
            Statement(
                "UPDATE runs SET lease_until = 0, owner = NULL, lost = lost + :broke WHERE run_id = :run_id AND epoch = :epoch",
                {"run_id": run_id, "epoch": epoch, "broke": int(broke)},
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

    async def park(
        self, run_id: RunId, epoch: int, waits_for: Mapping[str, Awaited], ends_at: float = math.inf
    ) -> bool:
        """Let the run wait without a lease for these, by id, if nothing of it has happened; whether it was done. Raises `FencedOff`.

        It is due at `ends_at`, in seconds since the epoch, too; not where it waits for a person: then its time stands still.
        First each is marked, so that whoever ends it at the same time comes before the look, or after the parking: then `unattended` tells it.
        """
        run = {"run_id": run_id, "epoch": epoch, "ends_at": ends_at if ends_at < math.inf else None}
        marks = [Statement(_AWAIT[kind], {"epoch": epoch, "id": one}) for one, kind in sorted(waits_for.items())]
        fence = Statement("UPDATE runs SET epoch = epoch WHERE run_id = :run_id AND epoch = :epoch", run, must=True)
        *_, parked, _ = await self._db.write(fence, *marks, Statement(_PARK, run), segments.parked(run_id, epoch))
        return bool(parked)

    async def recall(self) -> None:
        """Nobody has what was sent to agents any more: it is to be sent again, by runs that go on. For a bus that ended with its process."""
        await self._db.write(Statement(_RECALL), Statement(_UNSENT))

    async def due(self, limit: int = 1000) -> Sequence[Run]:
        """Parked runs for which a time is over: a timer's, or that of a call, or of a wait for a signal; the first first."""
        rows = await self._db.read(
            "SELECT * FROM runs WHERE wake_at <= :now AND status = 'parked' ORDER BY wake_at LIMIT :limit",
            {"limit": limit},
        )
        return [run_of(row) for row in rows]

    async def children(self, run_id: RunId) -> Sequence[Run]:
        """The runs that this one's nodes started, in the order in which they were accepted."""
        rows = await self._db.read(
            "SELECT * FROM runs WHERE parent = :run_id ORDER BY accepted_at, run_id", {"run_id": run_id}
        )
        return [run_of(row) for row in rows]

    async def finish(
        self, run_id: RunId, epoch: int, *, result: Mapping[str, Any] | None = None, failure: Failure | None = None
    ) -> Run:
        """Write the terminal state, once: what the run took is the sum over its calls, its agents those that they went to. Raises `FencedOff`.

        The `result` of a run that failed is what it has of one; its open calls are given up. A run that was given up before this is written ends cancelled, whatever its graph gave.
        """
        stamps = await self._db.read(
            "SELECT DISTINCT stamp FROM calls WHERE run_id = :run_id AND stamp IS NOT NULL ORDER BY stamp",
            {"run_id": run_id},
        )
        rows = await self._db.write(
            Statement(
                "UPDATE runs SET status = CASE WHEN cancelled_at IS NULL THEN :status ELSE 'cancelled' END,"
                " result = CASE WHEN cancelled_at IS NULL THEN :result END, partial = CASE WHEN cancelled_at IS NULL THEN :partial END, failure = CASE WHEN cancelled_at IS NULL THEN :failure END, agents = :agents, finished_at = :now,"
                " cost_usd = (SELECT coalesce(sum(calls.cost_usd), 0) FROM calls WHERE calls.run_id = runs.run_id),"
                " tokens = (SELECT coalesce(sum(calls.tokens), 0) FROM calls WHERE calls.run_id = runs.run_id),"
                " tool_calls = (SELECT coalesce(sum(calls.tool_calls), 0) FROM calls WHERE calls.run_id = runs.run_id)"
                " WHERE run_id = :run_id AND epoch = :epoch AND status = 'running' RETURNING *",
                {
                    "run_id": run_id,
                    "epoch": epoch,
                    "status": "failed" if failure else "succeeded",
                    "agents": f"[{', '.join(row['stamp'] for row in stamps)}]",
                    "result": None if result is None or failure else json.dumps(result),
                    "partial": json.dumps(result) if result is not None and failure else None,
                    "failure": failure.model_dump_json() if failure else None,
                },
                must=True,
            ),
            *(
                [Statement(_GIVE_UP_CALLS, {"run_id": run_id, "why": f"its run failed: {failure.code}"})]
                if failure
                else ()
            ),
        )
        return run_of(rows[0][0])

    async def cancel(self, run_id: RunId, *, by: str, note: str) -> Sequence[Run]:
        """Give the run up, with the runs under it and all their open calls; the first who does so counts, and what ended stays.

        Returns those of them that are cancelled and have not ended: each is to be woken, so that it ends.
        """
        run = {"run_id": run_id}
        why = f"its run was given up by {by}{f': {note}' if note else ''}"
        *_, left = await self._db.write(
            Statement(_CANCEL_RUNS, {**run, "by": by, "note": note}),
            Statement(_CANCEL_CALLS, {**run, "why": why}),
            Statement(_STILL_OPEN, run),
        )
        return [run_of(row) for row in left]

    async def announced(self, run_id: RunId) -> None:
        """Remember that the terminal event reached the bus."""
        await self._db.write(
            Statement(
                "UPDATE runs SET announced = 1, owner = NULL, lease_until = 0 WHERE run_id = :run_id",
                {"run_id": run_id},
            )
        )

    async def at_risk(self, run_id: RunId) -> bool:
        """Whether a run that lost processes is where it lost them: the death of its holder would count once more."""
        rows = await self._db.read(_AT_RISK, {"run_id": run_id})
        return bool(rows and rows[0]["worked"])

    async def unattended(self, quiet_s: float = 0.0, limit: int = 1000) -> Sequence[Run]:
        """Runs that need somebody: held by nobody alive, or ended and not announced; and accepted at least `quiet_s` seconds ago.

        At most `limit`; those that never ran come last, and tenants alike. A parked run needs somebody once something has happened that it waits for. The end of a run is left to its
        holder for a lease more: after an outage of the journal it may live, and still have to tell what came before the end.
        """
        rows = await self._db.read(
            _UNATTENDED,
            {"quiet_s": quiet_s, "limit": limit, "grace_s": self._lease_s},
        )
        return [run_of(row) for row in rows]

    async def get(self, run_id: str) -> Run | None:
        """The run whose id is, or uniquely begins with, `run_id`."""
        rows = await self._db.read(
            "SELECT * FROM runs WHERE run_id >= :low AND run_id < :high LIMIT 2", {"low": run_id, "high": run_id + "g"}
        )
        return run_of(rows[0]) if len(rows) == 1 or (rows and rows[0]["run_id"] == run_id) else None

    async def spent_in_all(self, run_id: RunId) -> Spent:
        """What the calls of a run, and of all that stand under it, took until now; without its time."""
        rows = await self._db.read(_SPENT_IN_ALL, {"run_id": run_id})
        row = rows[0]
        return Spent(usd=float(row["usd"]), tokens=int(row["tokens"]), tool_calls=int(row["tool_calls"]))

    async def above(self, run: Run) -> Sequence[Run]:
        """The run whose node started this one, the run above that one, and so on."""
        rows = await self._db.read(
            "WITH RECURSIVE above(run_id, level) AS (SELECT CAST(:parent AS text), 1 UNION ALL"
            " SELECT runs.parent, level + 1 FROM runs JOIN above ON runs.run_id = above.run_id WHERE runs.parent IS NOT NULL AND level < 100)"
            " SELECT runs.* FROM runs JOIN above ON runs.run_id = above.run_id ORDER BY level",
            {"parent": run.parent},
        )
        return [run_of(row) for row in rows]

    async def unrepeated(self, *, status: str | None, workflow: str | None, since: float, limit: int) -> Sequence[Run]:
        """The newest runs that failed or were cancelled, accepted at `since` or later, which no other run repeats or goes on with; none under another run."""
        rows = await self._db.read(
            "SELECT * FROM runs WHERE status IN ('failed', 'cancelled') AND (:status = '' OR status = :status)"
            " AND (:workflow = '' OR workflow = :workflow) AND accepted_at >= :since AND parent IS NULL"
            " AND NOT EXISTS (SELECT 1 FROM runs AS later WHERE later.origin = runs.run_id) ORDER BY accepted_at DESC LIMIT :limit",
            {"status": status or "", "workflow": workflow or "", "since": since, "limit": limit},
        )
        return [run_of(row) for row in rows]

    async def recent(self, *, status: str | None = None, workflow: str | None = None, limit: int = 50) -> Sequence[Run]:
        """The newest runs first."""
        rows = await self._db.read(
            "SELECT * FROM runs WHERE (:status = '' OR status = :status) AND (:workflow = '' OR workflow = :workflow)"
            " ORDER BY accepted_at DESC LIMIT :limit",
            {"status": status or "", "workflow": workflow or "", "limit": limit},
        )
        return [run_of(row) for row in rows]
