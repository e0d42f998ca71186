"""A journal as it is after a long time: many ended runs, with their calls, steps and checkpoints. `bench_orchestrator` times runs in it.

The rows are made by the database itself, in statements of some thousand runs; their columns are as long as those of a run of `five`.
"""

from __future__ import annotations

from metier_infra.database import Database, Statement

AT_ONCE = 5_000
_RUNS = "WITH RECURSIVE n(i) AS (SELECT :first + 0 UNION ALL SELECT i + 1 FROM n WHERE i < :last)"
_EACH = (
    " CROSS JOIN (SELECT 0 AS k UNION ALL SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3 UNION ALL SELECT 4) AS five"
)
_RUN = "'old-' || CAST(i AS text)"
_CALL = "'old-' || CAST(i AS text) || '-' || CAST(k AS text)"
_OLD_RUNS = (
    "INSERT INTO runs (run_id, source, event_id, workflow, status, input, result, traceparent, announced, accepted_at, started_at, finished_at)"
    " NUMBERS SELECT RUN, '/old', RUN, 'five', 'succeeded', :text, :text, '', 1, :now - 900000 + i, :now, :now FROM n"
)
_OLD_CALLS = (
    "INSERT INTO calls (call_id, run_id, agent, task, deadline, attempt, answer, requested_at, claimed_at, answered_at)"
    " NUMBERS SELECT CALL, RUN, 'echo', :text, 0, 1, :text, :now, :now, :now FROM n EACH"
)
_OLD_STEPS = "INSERT INTO steps (call_id, n, body, at) NUMBERS SELECT CALL, 0, :text, :now FROM n EACH"
_OLD_CHECKPOINTS = "INSERT INTO checkpoints (run_id, ns, checkpoint_id, kind, body, metadata) NUMBERS SELECT RUN, '', CALL, 'msgpack', :bytes, :text FROM n EACH"
_OLD_VALUES = "INSERT INTO channel_values (run_id, ns, channel, version, kind, body) NUMBERS SELECT RUN, '', 'answers', CALL, 'msgpack', :bytes FROM n EACH"
_OLD_WRITES = (
    "INSERT INTO channel_writes (run_id, ns, checkpoint_id, task_id, idx, path, channel, kind, body)"
    " NUMBERS SELECT RUN, '', CALL, CALL, 0, '', 'answers', 'msgpack', :bytes FROM n EACH"
)
_TABLES = (_OLD_RUNS, _OLD_CALLS, _OLD_STEPS, _OLD_CHECKPOINTS, _OLD_VALUES, _OLD_WRITES)


async def fill(db: Database, runs: int) -> None:
    """Add so many ended runs, of five calls each."""
    shared = {"text": '{"x": "' + "y" * 200 + '"}', "bytes": b"z" * 200}
    for first in range(0, runs, AT_ONCE):
        some = {"first": first, "last": min(first + AT_ONCE, runs) - 1, **shared}
        for sql in _TABLES:
            await db.write(
                Statement(_spelt(sql), {name: value for name, value in some.items() if f":{name}" in _spelt(sql)})
            )
    await db.write(Statement("ANALYZE"))


def _spelt(sql: str) -> str:
    for short, whole in (("NUMBERS", _RUNS), ("CALL", _CALL), ("RUN", _RUN), ("EACH", _EACH)):
        sql = sql.replace(f" {short}", f" {whole}")
    return sql
