"""What a run that goes on where another ended takes over from it: its checkpoints and signals, what it decided and waited for, and what was answered well.

The orchestrator's `control` writes it beside the new run, in one transaction. Calls, decisions, waits and runs below stand under ids that are made of the
run's, so each gets the id under which the new run will look for it; LangGraph's task ids are made of the checkpoint and not of the run, and stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from metier_infra.calls import NOT_NEEDED
from metier_infra.database import Database, Row, Statement
from metier_infra.words import RunId, source_below, stable_id

_COPIES = (
    (
        "INSERT INTO checkpoints (run_id, ns, checkpoint_id, parent_id, kind, body, metadata)"
        " SELECT :run_id, ns, checkpoint_id, parent_id, kind, body, metadata FROM checkpoints WHERE run_id = :origin"
        " AND EXISTS (SELECT 1 FROM runs WHERE run_id = :run_id) ON CONFLICT DO NOTHING"
    ),
    (
        "INSERT INTO channel_values (run_id, ns, channel, version, kind, body)"
        " SELECT :run_id, ns, channel, version, kind, body FROM channel_values WHERE run_id = :origin"
        " AND EXISTS (SELECT 1 FROM runs WHERE run_id = :run_id) ON CONFLICT DO NOTHING"
    ),
    (
        "INSERT INTO channel_writes (run_id, ns, checkpoint_id, task_id, idx, path, channel, kind, body)"
        " SELECT :run_id, ns, checkpoint_id, task_id, idx, path, channel, kind, body FROM channel_writes WHERE run_id = :origin"
        " AND EXISTS (SELECT 1 FROM runs WHERE run_id = :run_id) ON CONFLICT DO NOTHING"
    ),
    (
        "INSERT INTO signals (run_id, signal_id, n, name, data, sent_by, at, wait_id)"
        " SELECT :run_id, signal_id, n, name, data, sent_by, at, wait_id FROM signals WHERE run_id = :origin"
        " AND EXISTS (SELECT 1 FROM runs WHERE run_id = :run_id) ON CONFLICT DO NOTHING"
    ),
)
"""Every checkpoint, and not the newest alone: a channel may be told from those before it. Nothing for a run that was not accepted, and nothing twice."""
_CALL = (
    "INSERT INTO calls (call_id, run_id, slot, agent, task, deadline, answer, failure, cancelled, stamp, requested_at, claimed_at, answered_at, tokens)"
    " SELECT :id, :run_id, slot, agent, task, deadline, answer, CASE WHEN answer IS NULL THEN failure END,"
    " CASE WHEN cancelled = :not_needed THEN cancelled END, stamp, :now, :now, :now, 0 FROM calls WHERE call_id = :old"
    " AND EXISTS (SELECT 1 FROM runs WHERE run_id = :run_id) ON CONFLICT DO NOTHING"
)
_DECISION = (
    "INSERT INTO decisions (decision_id, run_id, slot, body, wanted, at)"
    " SELECT :id, :run_id, slot, body, wanted, :now FROM decisions WHERE decision_id = :old"
    " AND EXISTS (SELECT 1 FROM runs WHERE run_id = :run_id) ON CONFLICT DO NOTHING"
)
_WAIT = (
    "INSERT INTO waits (wait_id, run_id, n, slot, name, due, asked_at, ended_at, signal_id, data)"
    " SELECT :id, :run_id, n, slot, name, due, asked_at, ended_at, signal_id, data FROM waits WHERE wait_id = :old"
    " AND EXISTS (SELECT 1 FROM runs WHERE run_id = :run_id) ON CONFLICT DO NOTHING"
)
_BELOW = (
    "INSERT INTO runs (run_id, source, event_id, workflow, version, status, input, result, agents, traceparent, announced, tenant, priority, limits,"
    " parent, origin, accepted_at, started_at, finished_at)"
    " SELECT :id, :source, event_id, workflow, version, status, input, result, agents, traceparent, 1, tenant, priority, limits,"
    " :run_id, run_id, :now, :now, :now FROM runs WHERE run_id = :old"
    " AND EXISTS (SELECT 1 FROM runs WHERE run_id = :run_id) ON CONFLICT DO NOTHING"
)


async def taken_over(db: Database, origin: RunId, run_id: RunId) -> Sequence[Statement]:
    """What gives `run_id` all that it needs to go on where `origin`, which ended, stopped.

    Calls and runs below that did not end well are not among it, but for calls that a panel had given up; those that are cost nothing again.
    """
    run = {"origin": origin}
    answered = await db.read(
        "SELECT call_id AS old, slot FROM calls WHERE run_id = :origin AND (answer IS NOT NULL OR cancelled = :not_needed) AND slot IS NOT NULL",
        {**run, "not_needed": NOT_NEEDED},
    )
    decided = await db.read(
        "SELECT decision_id AS old, slot FROM decisions WHERE run_id = :origin AND slot IS NOT NULL", run
    )
    waited = await db.read("SELECT wait_id AS old, slot FROM waits WHERE run_id = :origin", run)
    below = await db.read(
        "SELECT run_id AS old, event_id FROM runs WHERE parent = :origin AND status = 'succeeded'", run
    )
    return [
        *[Statement(sql, {"run_id": run_id, "origin": origin}) for sql in _COPIES],
        *_renamed(_CALL, "call", answered, run_id),
        *_renamed(_DECISION, "decision", decided, run_id),
        *_renamed(_WAIT, "wait", waited, run_id),
        *_below(below, run_id),
    ]


def _renamed(sql: str, kind: str, rows: Sequence[Row], run_id: RunId) -> Iterator[Statement]:
    for row in rows:
        name = stable_id(kind, run_id, *json.loads(row["slot"]))
        more = {"not_needed": NOT_NEEDED} if sql == _CALL else {}
        yield Statement(sql, {"id": name, "run_id": run_id, "old": row["old"], **more})


def _below(rows: Sequence[Row], run_id: RunId) -> Iterator[Statement]:
    source = source_below(run_id)
    for row in rows:
        name = stable_id("run", source, row["event_id"])
        yield Statement(_BELOW, {"id": name, "source": source, "run_id": run_id, "old": row["old"]})
