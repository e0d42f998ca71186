"""Accounts from which nobody takes any more, and what of old runs still stands in the others. `retention` clears both before it forgets runs.

An account is named for what it limits: `run:ID`, `decision:ID`, or `tenant:NAME/PERIOD`, where the period is an hour, a day or a month of UTC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from metier_infra.budgets import Budgets
from metier_infra.database import Database, Statement

PERIODS: Mapping[int, str] = {13: "%Y-%m-%dT%H", 10: "%Y-%m-%d", 7: "%Y-%m"}
"""How a period is written, by its length."""
_OPEN = (
    "EXISTS (SELECT 1 FROM runs WHERE runs.run_id = ID AND (runs.finished_at IS NULL OR runs.announced = 0 OR runs.finished_at >= :now - :age_s"
    " OR EXISTS (SELECT 1 FROM runs AS other WHERE other.parent = runs.run_id AND other.announced = 0)))"
)
_OF_RUNS = "SELECT account FROM accounts WHERE substr(account, 1, 4) = 'run:' AND NOT OPEN".replace(
    "OPEN", _OPEN.replace("ID", "substr(accounts.account, 5)")
)
_OF_DECISIONS = (
    "SELECT account FROM accounts WHERE substr(account, 1, 9) = 'decision:' AND NOT EXISTS"
    " (SELECT 1 FROM decisions WHERE decisions.decision_id = substr(accounts.account, 10) AND OPEN)"
).replace("OPEN", _OPEN.replace("ID", "decisions.run_id"))
_OF_TENANTS = "SELECT account, :now - :age_s AS before FROM accounts WHERE substr(account, 1, 7) = 'tenant:'"
_HELD = (
    "SELECT DISTINCT r.account FROM reservations AS r JOIN calls AS c ON c.call_id = r.call_id JOIN runs ON runs.run_id = c.run_id"
    " WHERE runs.announced = 1 AND runs.finished_at < :now - :age_s"
)


async def clear(db: Database, age_s: float) -> int:
    """Forget accounts of runs that ended so long ago and of periods that are over so long; how many. In the others, add up what is known of old runs."""
    old = await _old(db, age_s)
    for name in old:
        account = {"account": name}
        await db.write(
            Statement("DELETE FROM reservations WHERE account = :account", account),
            Statement("DELETE FROM accounts WHERE account = :account", account),
        )
    for row in await db.read(_HELD, {"age_s": age_s}):
        await Budgets(db).add_up(str(row["account"]))
    return len(old)


async def _old(db: Database, age_s: float) -> Sequence[str]:
    age = {"age_s": age_s}
    found = [str(row["account"]) for sql in (_OF_RUNS, _OF_DECISIONS) for row in await db.read(sql, age)]
    tenants = await db.read(_OF_TENANTS, age)
    return found + [str(row["account"]) for row in tenants if over(str(row["account"]), float(row["before"]))]


def over(account: str, before: float) -> bool:
    """Whether a tenant's account is of a period that was over at `before`, seconds since the epoch."""
    period = account.rpartition("/")[2]
    written = PERIODS.get(len(period))
    return written is not None and period < datetime.fromtimestamp(before, UTC).strftime(written)
