"""What the journal forgets of runs that ended long ago: first their checkpoints, which only a look back or a redrive needs, later the whole run.

`metier prune` calls it. A run that is open, whose end was not told, or on which an open run stands, is left alone, and so is one of whose calls an account
that is still in use does not know yet what it took. Accounts that nobody uses any more go with the runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metier_infra import old_accounts
from metier_infra.database import Database, Statement

DAY_S = 86_400.0
AT_ONCE = 200
"""Runs that one transaction forgets: some milliseconds, so that no run in flight waits long behind it."""

_OLD = (
    "SELECT WHAT FROM runs WHERE finished_at < :now - :age_s AND announced = 1"
    " AND NOT EXISTS (SELECT 1 FROM runs AS other WHERE (other.parent = runs.run_id OR other.origin = runs.run_id) AND other.announced = 0)"
    " AND MORE"
)
_WITH_CHECKPOINTS = _OLD.replace("MORE", "EXISTS (SELECT 1 FROM checkpoints WHERE checkpoints.run_id = runs.run_id)")
_SETTLED = _OLD.replace(
    "MORE",
    "NOT EXISTS (SELECT 1 FROM calls JOIN reservations ON reservations.call_id = calls.call_id WHERE calls.run_id = runs.run_id)",
)
_KNOWN = _SETTLED.replace("WHERE calls.run_id", "WHERE calls.tokens IS NULL AND calls.run_id")
"""Of which all will be settled once `prune` has cleared the accounts, and perhaps more."""
_CHECKPOINTS = ("channel_writes", "channel_values", "checkpoints")
_STEPS = "DELETE FROM steps WHERE call_id IN (SELECT call_id FROM calls WHERE run_id IN (THESE))"
_ORPHANS = "DELETE FROM outcomes WHERE at < :now - :age_s AND NOT EXISTS (SELECT 1 FROM runs WHERE runs.run_id = outcomes.run_id)"
_BY_RUN = ("tool_calls", "decisions", "outcomes", "approvals", "waits", "signals", "calls", "runs")


@dataclass(frozen=True)
class Prunable:
    """How many runs have checkpoints, or stand there at all, that are old enough to be forgotten."""

    checkpoints: int
    runs: int


async def prunable(db: Database, *, checkpoints_days: float, runs_days: float) -> Prunable:
    """What `prune` would forget."""
    return Prunable(
        await _count(db, _WITH_CHECKPOINTS, checkpoints_days),
        await _count(db, _KNOWN, runs_days),
    )


async def prune(db: Database, *, checkpoints_days: float, runs_days: float) -> Prunable:
    """Forget the checkpoints of runs that ended so many days ago, then runs that ended so many; how many that were. May be cut off, and goes on.

    With a run go the words about it, and at that age those about runs that were never there.
    """
    await old_accounts.clear(db, runs_days * DAY_S)
    by_run = [_delete(table) for table in _CHECKPOINTS]
    forgotten = await _forget(db, _WITH_CHECKPOINTS, by_run, checkpoints_days)
    whole = [*by_run, _STEPS, *[_delete(table) for table in _BY_RUN]]
    runs = await _forget(db, _SETTLED, whole, runs_days)
    await db.write(Statement(_ORPHANS, {"age_s": runs_days * DAY_S}))
    return Prunable(forgotten, runs)


async def _count(db: Database, sql: str, days: float) -> int:
    return int((await db.read(sql.replace("WHAT", "count(*) AS n"), {"age_s": days * DAY_S}))[0]["n"])


async def _forget(db: Database, which: str, deletes: Sequence[str], days: float) -> int:
    done, sql = 0, which.replace("WHAT", "run_id") + " ORDER BY finished_at LIMIT :n"
    while rows := await db.read(sql, {"age_s": days * DAY_S, "n": AT_ONCE}):
        names: Mapping[str, object] = {f"run{n}": row["run_id"] for n, row in enumerate(rows)}
        listed = ", ".join(f":{name}" for name in names)
        await db.write(*[Statement(one.replace("THESE", listed), names) for one in deletes])
        done += len(rows)
    return done


def _delete(table: str) -> str:
    return "DELETE FROM TABLE WHERE run_id IN (THESE)".replace("TABLE", table)
