"""How a limit is shared out: pure functions from what is left to what one call may take. `spending` calls them for each call of a limited run.

The rules. What a call may need of an account is its agent's own limit, or where it has none, a tenth of the account's limit. It gets that, or an equal share
with the others that are asked just then where that is more, and never more than is left. Of a tenant's account, of which runs take that know nothing of each
other, nothing goes beyond what may be needed. Where less is left than may be needed, it is worth waiting for calls that are under way: they may leave something.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Literal, get_args

from metier_infra.budgets import Balance
from metier_infra.words import AgentCard, Allowance, Decision

Currency = Literal["usd", "tokens", "tool_calls"]
CURRENCIES: tuple[Currency, ...] = get_args(Currency)
NEEDED: tuple[Currency, ...] = ("usd", "tokens")
"""Without these no call can be made; without tool calls an agent answers from what it knows."""
PART = 0.1
"""Of a limit, what a call may need whose agent has no limit of its own."""
CRUMB = 1e-9
"""USD that are as good as nothing."""


def left(balance: Balance, currency: Currency) -> float:
    """What is left of an account; infinite where it has no such limit."""
    limit = _limit(balance, currency)
    return math.inf if limit is None else max(0.0, limit - float(getattr(balance.taken, currency)))


def need(takes: Allowance, balance: Balance, currency: Currency) -> float:
    """What a call may need of an account: its agent's own limit, or a tenth of the account's."""
    own, limit = _own(takes, currency), _limit(balance, currency)
    return own if own < math.inf or limit is None else limit * PART


def allowance(takes: Allowance, balances: Sequence[Balance], sharers: int = 1) -> Allowance:
    """What a call may take that is asked beside `sharers` - 1 others, by an agent that takes `takes` at the most."""
    amounts = {
        currency: min([_own(takes, currency), *(_share(takes, one, currency, sharers) for one in balances)])
        for currency in CURRENCIES
    }
    return Allowance(
        usd=amounts["usd"] if amounts["usd"] < math.inf else None,
        tokens=_whole(amounts["tokens"]),
        tool_calls=_whole(amounts["tool_calls"]),
        cut=tuple(currency for currency in CURRENCIES if amounts[currency] < _own(takes, currency)),
        economy=any(
            one.account.limits.at_limit == "smaller" and left(one, "usd") < need(takes, one, "usd") for one in balances
        ),
    )


def used_up(balances: Sequence[Balance]) -> tuple[Balance, Currency] | None:
    """The account of which nothing is left that a call cannot go without, and what of it; None where there is none."""
    for one, currency in product(balances, NEEDED):
        if left(one, currency) < _least(currency):
            return one, currency
    return None


def short(takes: Allowance, balances: Sequence[Balance]) -> tuple[Balance, Currency] | None:
    """The account that runs do not share and of which less is left than a call may need, while calls are open that may leave something; and what of it."""
    for one, currency in product(balances, NEEDED):
        if one.open and not one.account.pooled and left(one, currency) < need(takes, one, currency):
            return one, currency
    return None


def fewer(decision: Decision, cards: Mapping[str, AgentCard], balances: Sequence[Balance]) -> Decision:
    """The decision with as many of its chosen agents, the first ones, as accounts that ask for `fewer` can pay for; one at the least."""
    asking = [one for one in balances if one.account.limits.at_limit == "fewer"]
    takes = [cards[name].takes if name in cards else Allowance() for name in decision.chosen]
    return paid_for(decision, max(1, min((_paid(takes, one) for one in asking), default=len(takes))))


def paid_for(decision: Decision, paid: int) -> Decision:
    """The decision with its first agents, so many as limits pay for."""
    if paid >= len(decision.chosen):
        return decision
    told = f"limits pay for {paid} of {len(decision.chosen)}"
    return cut(decision, paid, told).model_copy(update={"paid": paid})


def cut(decision: Decision, left: int, why: str) -> Decision:
    """The decision with so many of its chosen agents, the first ones, and why. The chances with which each is chosen first stay as they are."""
    if left >= len(decision.chosen):
        return decision
    return decision.model_copy(
        update={
            "chosen": decision.chosen[:left],
            "weights": decision.weights[:left],
            "topology": "specialist" if left == 1 else decision.topology,
            "reason": f"{decision.reason}; {why}",
        }
    )


def _paid(takes: Sequence[Allowance], balance: Balance) -> int:
    """How many calls, the first ones, may take all that they may need."""

    def covered(n: int, currency: Currency) -> bool:
        return sum(need(one, balance, currency) for one in takes[:n]) <= left(balance, currency)

    return max(n for n in range(len(takes) + 1) if all(covered(n, currency) for currency in NEEDED))


def _share(takes: Allowance, balance: Balance, currency: Currency, sharers: int) -> float:
    there, limit = left(balance, currency), _limit(balance, currency)
    if limit is None:
        return math.inf
    needed, equal = need(takes, balance, currency), there / max(1, sharers)
    if currency != "usd":
        needed, equal = math.floor(needed), math.ceil(equal)
    return min(there, needed if balance.account.pooled else max(equal, needed))


def _own(takes: Allowance, currency: Currency) -> float:
    amount: float | None = getattr(takes, currency)
    return math.inf if amount is None else float(amount)


def _limit(balance: Balance, currency: Currency) -> float | None:
    limit: float | None = getattr(balance.account.limits, currency)
    return limit


def _least(currency: Currency) -> float:
    return CRUMB if currency == "usd" else 1.0


def _whole(amount: float) -> int | None:
    return None if amount == math.inf else int(amount)
