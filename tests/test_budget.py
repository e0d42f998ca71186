"""How a limit is shared out, and the accounts of it: pure rules by table and by invariant, and the journal under any order of events.

Not here: runs and workers under limits; `test_budgets` has those.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from metier_infra import budgets
from metier_infra.budgets import Account, Balance
from metier_infra.database import migrate
from metier_infra.journal import Journal
from metier_infra.rows import Call
from metier_infra.sqlite_journal import SqliteDatabase
from metier_infra.words import (
    AgentCard,
    Allowance,
    Answer,
    CallId,
    Candidate,
    Decision,
    Failure,
    Limits,
    RunId,
    Spent,
    Task,
)
from metier_workflows.budget import allowance, fewer, left, used_up

USD = st.floats(0, 5, allow_nan=False)


def balance(*, open: int = 0, pooled: bool = False, taken: Spent | None = None, **limits: Any) -> Balance:
    return Balance(Account("a", Limits.model_validate(limits), pooled), taken or Spent(), open)


def takes(**limits: Any) -> Allowance:
    return Allowance.model_validate(limits)


@pytest.mark.parametrize(
    ("own", "balances", "sharers", "allowed"),
    [
        (takes(usd=1.0), [], 1, takes(usd=1.0)),
        (takes(usd=1.0), [balance(usd=5)], 1, takes(usd=1.0)),
        (takes(), [balance(usd=5)], 4, takes(usd=1.25, cut=("usd",))),
        (takes(), [balance(usd=5)], 100, takes(usd=0.5, cut=("usd",))),
        (takes(usd=1.0), [balance(usd=5)], 100, takes(usd=1.0)),
        (takes(), [balance(usd=5)], 1, takes(usd=5.0, cut=("usd",))),
        (takes(), [balance(usd=5, at_limit="smaller", taken=Spent(usd=4.5))], 1, takes(usd=0.5, cut=("usd",))),
        (takes(), [balance(usd=5, at_limit="smaller", taken=Spent(usd=4.75))], 1, takes(usd=0.25, cut=("usd",), economy=True)),
        (takes(usd=1.0), [balance(usd=5, at_limit="smaller", taken=Spent(usd=4.5))], 1, takes(usd=0.5, cut=("usd",), economy=True)),
        (takes(), [balance(tokens=1000, at_limit="smaller", taken=Spent(tokens=950))], 1, takes(tokens=50, cut=("tokens",))),
        (takes(), [balance(tokens=10)], 4, takes(tokens=3, cut=("tokens",))),
        (takes(tool_calls=6), [balance(tool_calls=9, taken=Spent(tool_calls=9))], 1, takes(tool_calls=0, cut=("tool_calls",))),
        (takes(), [balance(usd=5), balance(usd=100, pooled=True, at_limit="smaller")], 1, takes(usd=5.0, cut=("usd",))),
        (takes(), [balance(usd=100, pooled=True)], 7, takes(usd=10.0, cut=("usd",))),
        (takes(usd=30.0), [balance(usd=100, pooled=True, taken=Spent(usd=80))], 7, takes(usd=20.0, cut=("usd",))),
        (takes(usd=1.0), [balance(usd=5), balance(usd=0.25)], 1, takes(usd=0.25, cut=("usd",))),
    ],
    ids=[
        "no limit", "the agent's own is less", "an equal share", "at least a tenth of the limit", "or what the agent may take", "all that is left", "a tenth of the limit will do", "less is short: the smaller model",
        "and less than the agent may take", "a smaller model takes no fewer tokens", "tokens are whole", "no tool call left", "the least of several accounts",
        "a tenth of a tenant's", "a tenant's last", "an account above",
    ],
)  # fmt: skip
def test_a_call_may_take_the_least_of_its_agents_limit_and_its_share_of_what_is_left(
    own: Allowance, balances: Sequence[Balance], sharers: int, allowed: Allowance
) -> None:
    assert allowance(own, balances, sharers) == allowed


def test_without_money_or_tokens_no_call_can_be_made_and_without_tool_calls_it_can() -> None:
    rich, poor = balance(usd=1, tokens=10, tool_calls=0), balance(usd=1, taken=Spent(usd=1.0))
    dumb = balance(tokens=10, taken=Spent(tokens=10))
    assert used_up([rich, balance()]) is None
    assert used_up([rich, poor]) == (poor, "usd")
    assert used_up([dumb]) == (dumb, "tokens")


@given(st.integers(1, 9), st.floats(0.01, 100), st.integers(1, 5000))
def test_calls_that_are_asked_together_get_equal_shares_and_no_more_than_there_is(
    n: int, usd: float, tokens: int
) -> None:
    taken, found = Spent(), list[Allowance]()
    for sharers in range(n, 0, -1):
        got = allowance(Allowance(), [balance(usd=usd, tokens=tokens, taken=taken)], sharers)
        found.append(got)
        taken = Spent(usd=taken.usd + (got.usd or 0), tokens=taken.tokens + (got.tokens or 0))
    assert taken.usd <= usd + 1e-9
    assert taken.tokens <= tokens
    assert max(one.usd or 0 for one in found) - min(one.usd or 0 for one in found) < 1e-6
    assert max(one.tokens or 0 for one in found) - min(one.tokens or 0 for one in found) <= 1


CARDS = {
    name: AgentCard(name=name, model="m", policy="p", takes=takes(usd=usd)) for name, usd in {"a": 0.5, "b": 0.3, "c": 0.2}.items()
}  # fmt: skip
PANEL = Decision(
    category="c", chosen=("a", "b", "c"), topology="panel", reason="hard", router="r",
    candidates=tuple(Candidate(agent=name, score=1, propensity=1) for name in "abcd"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("usd", "chosen", "topology"),
    [(1.0, "abc", "panel"), (0.99, "ab", "panel"), (0.79, "a", "specialist"), (0.0, "a", "specialist")],
)
def test_of_a_panel_as_many_are_asked_as_can_be_paid_for_the_best_first_and_one_at_least(
    usd: float, chosen: str, topology: str
) -> None:
    found = fewer(PANEL, CARDS, [balance(usd=usd, at_limit="fewer"), balance(usd=0)])
    assert (found.chosen, found.topology) == (tuple(chosen), topology)
    assert found.candidates == PANEL.candidates
    assert found.paid == (None if chosen == "abc" else len(chosen))
    assert (found == PANEL) if chosen == "abc" else found.reason == f"hard; limits pay for {len(chosen)} of 3"


@dataclass
class Book:
    """A journal, and beside it what should be in it: the oracle of the test of any order."""

    journal: Journal
    accounts: Sequence[Account]
    counted: dict[CallId, Spent] = field(default_factory=dict[CallId, Spent])
    allowed: dict[CallId, Allowance] = field(default_factory=dict[CallId, Allowance])
    open: set[CallId] = field(default_factory=set[CallId])

    async def ask(self, n: int, own: float) -> None:
        """Ask for the first time, or again as after a crash."""
        call_id, agent = CallId(f"c{n}"), takes(usd=own, tokens=7)
        balances = [await self.journal.budgets.balance(one) for one in self.accounts]
        if used_up(balances):
            return
        allowed = allowance(agent, balances, 2)
        call = Call(call_id=call_id, run_id=RunId("r"), agent="a", task=Task(text="?"), deadline=0, allowance=allowed)
        stored = await self.journal.budgets.reserve(call, self.accounts)
        assert stored is not None
        if call_id in self.counted:
            assert stored.allowance == self.allowed[call_id], "asked again, it has what it had"
            return
        self.allowed[call_id] = allowed
        self.open.add(call_id)
        self.counted[call_id] = Spent(usd=allowed.usd or 0.0, tokens=allowed.tokens or 0)

    async def answer(self, n: int, share: float) -> None:
        """The worker's answer, with some of what it may take. A second one took no more: that of a worker which was believed dead and went on is not held here."""
        call_id = CallId(f"c{n}")
        if call_id not in self.counted:
            return
        most = self.allowed[call_id] if call_id in self.open else self.counted[call_id]
        took = Spent(usd=(most.usd or 0) * share, tokens=int((most.tokens or 0) * share))
        await self.journal.calls.claim(call_id, "w")
        await self.journal.calls.answer(call_id, answer=Answer(text="", agent="a", model="m", policy="p"), took=took)
        if call_id in self.open:
            self.counted[call_id] = took
        self.open.discard(call_id)

    async def overdue(self, n: int, started: float) -> None:
        """The desk gives up: what the worker took, if it had begun, is not known yet."""
        call_id = CallId(f"c{n}")
        if call_id not in self.open:
            return
        stored = await self.journal.calls.get(call_id)
        if started > 0.5:
            await self.journal.calls.claim(call_id, "w")
        await self.journal.calls.answer(call_id, failure=Failure(code="deadline_missed", message=""))
        if started <= 0.5 and stored is not None and not stored.attempt:
            self.counted[call_id] = Spent()
            self.open.discard(call_id)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["ask", "ask", "answer", "overdue"]), st.integers(0, 8), st.floats(0, 1)), max_size=40
    ),
    st.floats(0.1, 3),
    st.integers(5, 60),
    st.booleans(),
)
@example(
    [("ask", 1, 0.1), ("ask", 2, 0.1), ("overdue", 2, 0.9), ("answer", 1, 0.5), *[("ask", 3, 0.1)] * 9], 3.0, 60, True
)
def test_whatever_comes_in_whatever_order_no_more_is_taken_than_the_limit_and_nothing_twice(
    steps: Sequence[tuple[str, int, float]], usd: float, tokens: int, adds_up: bool
) -> None:
    """After every step the journal's balance is what the oracle has. `adds_up`: what is settled is added up for good, at once."""

    async def main() -> None:
        db = SqliteDatabase(":memory:")
        await migrate(db)
        mine, shared = (
            Account("run:r", Limits(usd=usd, tokens=tokens)),
            Account("tenant:t", Limits(usd=2.0), pooled=True),
        )
        book = Book(Journal(db), (mine, shared))
        for name, n, number in steps:
            await getattr(book, name)(n, number)
            for account in book.accounts:
                found = await book.journal.budgets.balance(account)
                assert found.taken.usd == pytest.approx(sum(one.usd for one in book.counted.values()))
                assert found.taken.tokens == sum(one.tokens for one in book.counted.values())
                assert found.open == len(book.open)
                assert left(found, "usd") + found.taken.usd <= (account.limits.usd or 0) + 1e-6
                assert left(found, "tokens") >= 0
        await db.close()

    with pytest.MonkeyPatch.context() as patch:
        if adds_up:
            patch.setattr(budgets, "LONGEST", 0)
            patch.setattr(budgets, "LATE_S", 0.0)
        asyncio.run(main())
