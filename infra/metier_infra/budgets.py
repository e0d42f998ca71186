"""The journal's accounts: what limited runs and tenants may take, and what of it is set aside for calls. `journal` puts it beside its other parts.

A call under limits is recorded in the same transaction in which its allowance is set aside, so that however many are asked at one time, no more is set
aside than the limits hold. Nothing settles a reservation: what counts of a call is its allowance until what it took is known, and that from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from metier_infra.calls import requested
from metier_infra.database import Database, Statement
from metier_infra.errors import FencedOff
from metier_infra.rows import Call, call_of
from metier_infra.words import Allowance, Limits, Spent

_LOCK = (
    "INSERT INTO accounts (account, usd_limit, tokens_limit, tool_calls_limit) VALUES (:account, :usd, :tokens, :tool_calls)"
    " ON CONFLICT (account) DO UPDATE SET usd_limit = excluded.usd_limit, tokens_limit = excluded.tokens_limit,"
    " tool_calls_limit = excluded.tool_calls_limit"
)
_HOLDS = (
    "UPDATE accounts SET account = account WHERE account = :account AND EXISTS (SELECT 1 FROM balances AS b WHERE b.account = :account"
    " AND (b.usd_limit IS NULL OR b.usd + :usd <= b.usd_limit + 1e-9)"
    " AND (b.tokens_limit IS NULL OR b.tokens + :tokens <= b.tokens_limit)"
    " AND (b.tool_calls_limit IS NULL OR b.tool_calls + :tool_calls <= b.tool_calls_limit))"
)
_SET_ASIDE = (
    "INSERT INTO reservations (account, call_id, usd, tokens, tool_calls)"
    " SELECT :account, call_id, :usd, :tokens, :tool_calls FROM calls WHERE call_id = :call_id AND answered_at IS NULL"
    " ON CONFLICT (account, call_id) DO NOTHING"
)
_MARK = (
    "UPDATE reservations SET settled = 1 WHERE account = :account AND EXISTS (SELECT 1 FROM calls AS c"
    " WHERE c.call_id = reservations.call_id AND c.answered_at < :now - :late_s AND c.tokens IS NOT NULL)"
)
_ADD_UP = (
    "UPDATE accounts SET usd = accounts.usd + held.usd, tokens = accounts.tokens + held.tokens, tool_calls = accounts.tool_calls + held.tool_calls"
    " FROM (SELECT coalesce(sum(c.cost_usd), 0) AS usd, coalesce(sum(c.tokens), 0) AS tokens, coalesce(sum(c.tool_calls), 0) AS tool_calls"
    " FROM reservations AS r JOIN calls AS c ON c.call_id = r.call_id WHERE r.account = :account AND r.settled = 1) AS held"
    " WHERE accounts.account = :account"
)
LONGEST = 500
"""Reservations that are looked through for each call, before those that are settled are added up for good."""
LATE_S = 600.0
"""How long after its answer a call may be told to have taken more, by a worker that was believed dead; seconds."""


@dataclass(frozen=True)
class Account:
    """What several calls take from. `pooled`: by runs that know nothing of each other, as a tenant's are."""

    name: str
    limits: Limits
    pooled: bool = False


@dataclass(frozen=True)
class Balance:
    """What is taken of an account: what its calls took, and the allowances of those of which that is not known yet; `open` of these are under way and wait for nobody."""

    account: Account
    taken: Spent
    open: int


class Budgets:
    """Accounts and reservations. An account begins with the first call that takes from it."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def balance(self, account: Account) -> Balance:
        """How the account stands."""
        rows = await self._db.read("SELECT * FROM balances WHERE account = :account", {"account": account.name})
        if not rows:
            return Balance(account, Spent(), 0)
        row = rows[0]
        if row["calls"] - row["open"] > LONGEST:
            await self.add_up(account.name)
        taken = Spent(usd=float(row["usd"]), tokens=int(row["tokens"]), tool_calls=int(row["tool_calls"]))
        return Balance(account, taken, int(row["open"]))

    async def reserve(self, call: Call, accounts: Sequence[Account]) -> Call | None:
        """Record the call, unless it is recorded, with its allowance set aside in every account; what is stored, with its answer if there is one.

        None where an account holds less than the allowance by now: then nothing is written.
        """
        allowance = _amounts(call.allowance or Allowance())
        aside = [{"account": one.name, "call_id": call.call_id, **allowance} for one in accounts]
        statements = [
            *(
                Statement(_LOCK, {"account": one.name, **one.limits.model_dump(include={*allowance})})
                for one in accounts
            ),
            *(Statement(_HOLDS, {"account": one.name, **allowance}, must=True) for one in accounts),
            requested(call),
            *(Statement(_SET_ASIDE, one) for one in aside),
        ]
        try:
            rows = (await self._db.write(*statements))[2 * len(accounts)]
        except FencedOff:
            rows = ()
        if not rows:
            rows = await self._db.read("SELECT * FROM calls WHERE call_id = :call_id", {"call_id": call.call_id})
        return call_of(rows[0]) if rows else None

    async def add_up(self, account: str) -> None:
        """Put what is settled into the account's own row, once for all."""
        name = {"account": account}
        await self._db.write(
            Statement("UPDATE accounts SET account = account WHERE account = :account", name),
            Statement(_MARK, {**name, "late_s": LATE_S}),
            Statement(_ADD_UP, name),
            Statement("DELETE FROM reservations WHERE account = :account AND settled = 1", name),
        )


def _amounts(allowance: Allowance) -> dict[str, float | int]:
    return {"usd": allowance.usd or 0.0, "tokens": allowance.tokens or 0, "tool_calls": allowance.tool_calls or 0}
