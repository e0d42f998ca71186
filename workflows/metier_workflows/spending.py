"""What a run spends, on the side that asks: a call under limits is recorded with an allowance, or not at all.

The run's desk asks it in place of the journal. Runs without limits pass through. `budget` decides what a call may take, `metier_infra.budgets` keeps it;
the agent's worker holds the call to it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime

from metier_infra.budgets import Account, Balance
from metier_infra.errors import LimitReached
from metier_infra.journal import Journal
from metier_infra.rows import Call, Run
from metier_infra.words import AgentCard, Allowance, Decision, Limits
from metier_workflows import budget
from metier_workflows.node import Cap
from metier_workflows.tenants import TenantLimits

TIME_OVER = "the run's time is over"
LOOK_S = 0.5
"""How often an account is looked at that other runs take from; seconds."""
_PERIODS = {"hour": "%Y-%m-%dT%H", "day": "%Y-%m-%d", "month": "%Y-%m"}


def tenant_account(tenant: str, limits: TenantLimits, now: float) -> Account:
    """The account of a tenant for the period that `now`, seconds since the epoch, lies in; periods are those of UTC."""
    period = datetime.fromtimestamp(now, UTC).strftime(_PERIODS[limits.per])
    return Account(
        f"tenant:{tenant}/{period}", Limits.model_validate(limits.model_dump(exclude={"per", "new_runs"})), pooled=True
    )


class Spending:
    """Of one run. `limits` are its tenant's. Of None, nothing is limited."""

    def __init__(self, journal: Journal, run: Run | None = None, limits: TenantLimits | None = None) -> None:
        self._journal = journal
        self._run = run
        self._limits = limits
        self._lineage: Sequence[Run] | None = None
        self._turn = asyncio.Lock()
        self._news = asyncio.Event()

    def settled(self) -> None:
        """A call of the run has ended: what it did not take is free for others."""
        self._news.set()

    async def request(self, call: Call, card: AgentCard, sharers: Callable[[], int], within: Cap | None = None) -> Call:
        """Record the call, unless it is recorded, with what it may take set aside; `sharers` are the calls that want a share, with this one.

        What it takes counts for the cap that it is asked `within`, too.

        It waits while all that is left is set aside for others. Raises `LimitReached` once nothing is left.
        """
        capped = [Account(within.name, Limits(usd=within.usd))] if within else []
        accounts, ends_at = [*await self._accounts(), *capped], await self.ends_at()
        if not accounts and ends_at == math.inf:
            return await self._journal.calls.request(call)
        if known := await self._journal.calls.get(call.call_id):
            return known
        bounded = _in_time(call, ends_at)
        return await (
            self._limited(bounded, card, accounts, sharers) if accounts else self._journal.calls.request(bounded)
        )

    async def ends_at(self) -> float:
        """When the time of the run, or of one above it, is over: seconds since the epoch; infinite where no such limit was set."""
        return _ends_at(await self._runs())

    async def affordable(self, decision: Decision, cards: Mapping[str, AgentCard]) -> Decision:
        """The decision, with fewer agents where a limit says so."""
        balances = await self._balances(await self._accounts())
        return budget.fewer(decision, cards, balances)

    async def _limited(
        self, call: Call, card: AgentCard, accounts: Sequence[Account], sharers: Callable[[], int]
    ) -> Call:
        if not card.priced and any(one.limits.usd is not None for one in accounts):
            raise LimitReached(f"the agent {card.name!r} has no price, and so a limit on money cannot be kept")
        async with self._turn:
            while True:
                if stored := await self._reserved(call, card, accounts, sharers):
                    return stored

    async def _reserved(
        self, call: Call, card: AgentCard, accounts: Sequence[Account], sharers: Callable[[], int]
    ) -> Call | None:
        """One try. None where others were quicker, or may leave something yet."""
        self._news.clear()
        balances = await self._balances(accounts)
        lacking = budget.used_up(balances) or budget.short(card.takes, balances)
        if lacking is not None:
            await self._wait(*lacking, until=call.deadline)
            return None
        allowed = budget.allowance(card.takes, balances, sharers())
        early = call.allowance.cut if call.allowance else ()
        allowed = allowed.model_copy(update={"cut": (*allowed.cut, *early)})
        return await self._journal.budgets.reserve(call.model_copy(update={"allowance": allowed}), accounts)

    async def _wait(self, balance: Balance, currency: str, *, until: float) -> None:
        """Wait for what open calls leave of an account. Raises `LimitReached` where there are none, or they leave nothing in time."""
        left_s = until - time.time()
        if not balance.open or left_s <= 0:
            limit = getattr(balance.account.limits, currency)
            raise LimitReached(f"nothing is left of the limit of {limit:g} {currency} of {balance.account.name}")
        with suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), min(LOOK_S, left_s))

    async def _balances(self, accounts: Sequence[Account]) -> Sequence[Balance]:
        return [await self._journal.budgets.balance(one) for one in accounts]

    async def _runs(self) -> Sequence[Run]:
        """The run, and those above it."""
        if self._lineage is None:
            run = self._run
            self._lineage = [run, *(await self._journal.runs.above(run) if run.parent else ())] if run else ()
        return self._lineage

    async def _accounts(self) -> Sequence[Account]:
        """The accounts that the run's calls take from, each time in the same order: its own, those of the runs above it, its tenant's."""
        runs = [account for one in await self._runs() if (account := _account(one))]
        shared = [tenant_account(self._run.tenant, self._limits, time.time())] if self._run and self._limits else []
        return [*runs, *shared]


def _account(run: Run) -> Account | None:
    limits = run.limits
    if limits is None or (limits.usd, limits.tokens, limits.tool_calls) == (None, None, None):
        return None
    return Account(f"run:{run.run_id}", limits)


def _ends_at(runs: Sequence[Run]) -> float:
    """When the time of the first of these runs is over, in seconds since the epoch; infinite where none has such a limit."""
    limited = [(one, one.limits.time_s) for one in runs if one.limits and one.limits.time_s is not None]
    return min((one.accepted_at + one.parked_s + time_s for one, time_s in limited), default=math.inf)


def _in_time(call: Call, ends_at: float) -> Call:
    """The call with its deadline before that time. Raises `LimitReached` when it is over."""
    if ends_at <= time.time():
        raise LimitReached(TIME_OVER)
    if call.deadline <= ends_at:
        return call
    return call.model_copy(update={"deadline": ends_at, "allowance": Allowance(cut=("time",))})
