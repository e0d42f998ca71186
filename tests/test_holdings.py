"""What becomes of a replica's runs when partitions move, when it drains, and when telling fails. Not here: real rebalances."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from metier_infra.bus import MemoryBus
from metier_infra.database import migrate
from metier_infra.errors import BusGone
from metier_infra.events import RunAccepted
from metier_infra.journal import Journal
from metier_infra.rows import Run
from metier_infra.sqlite_journal import SqliteDatabase
from metier_infra.words import RunId
from metier_workflows.holdings import Holdings
from metier_workflows.run_desk import RunDesk
from metier_workflows.segment import to_the_end
from metier_workflows.spending import Spending


class Replica:
    """Holdings over a real journal, a note of whom they woke, and runs that last until they are let."""

    def __init__(self, journal: Journal, limit: int = 10) -> None:
        self.journal = journal
        self.woken: list[str] = []
        self.fails: set[str] = set()
        self.working: list[str] = []
        self.may_end = asyncio.Event()
        self.takes_again = False
        self.changed = asyncio.Condition()
        self.holdings = Holdings(journal, "one", self._wake, limit)

    async def _wake(self, run: Run) -> None:
        if run.event_id in self.fails:
            raise BusGone("no broker")
        await self._note(self.woken, run.event_id)

    async def _note(self, what: list[str], name: str) -> None:
        async with self.changed:
            what.append(name)
            self.changed.notify_all()

    async def start(self, name: str, partition: int = 0, *, ended: bool = False) -> RunId:
        run = Run(
            run_id=RunId(name * 32), source="/s", event_id=name, workflow="w", version=None, status="accepted", input={}, traceparent="t"
        )  # fmt: skip
        await self.journal.runs.accept(run)
        desk = RunDesk(run.run_id, MemoryBus(), self.journal, {})
        self.holdings.start(
            desk, partition, RunAccepted(run_id=run.run_id, workflow="w"), lambda _: self._work(desk, ended=ended)
        )
        return run.run_id

    async def _work(self, desk: RunDesk, *, ended: bool) -> None:
        run = await self.journal.runs.lease(desk.run_id, "one")
        assert run is not None
        desk.serve(run, Spending(self.journal))
        desk.ended = ended
        await self._note(self.working, desk.run_id[0])
        try:
            await self.may_end.wait()
        finally:
            if self.takes_again:
                await self.journal.runs.lease(desk.run_id, "one")

    async def at_work(self, count: int) -> None:
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(lambda: len(self.working) >= count)

    async def free(self) -> set[str]:
        return {run.event_id for run in await self.journal.runs.unattended()}


@pytest.fixture
async def replica() -> AsyncGenerator[Replica]:
    """One replica, whose leases outlast the test."""
    db = SqliteDatabase(":memory:")
    await migrate(db)
    yield Replica(Journal(db, lease_s=600))
    await db.close()


async def test_while_draining_nothing_is_woken_that_nobody_else_could_read(replica: Replica) -> None:
    # Given one run at work
    await replica.start("a")
    await replica.at_work(1)
    # When the replica drains, and another run comes meanwhile
    draining = asyncio.create_task(replica.holdings.drain(0.2))
    await asyncio.sleep(0)
    await replica.start("b")
    await draining
    # Then both are free for others, but told of only once this replica reads nothing any more
    assert await replica.free() == {"a", "b"}
    assert replica.woken == []
    await replica.holdings.hand_over()
    assert sorted(replica.woken) == ["a", "b"]


async def test_a_run_that_ends_in_time_is_not_handed_over(replica: Replica) -> None:
    await replica.start("a")
    await replica.at_work(1)
    replica.may_end.set()
    await replica.holdings.drain(5)
    await replica.holdings.hand_over()
    assert replica.woken == []


async def test_runs_of_partitions_that_moved_are_let_go_though_telling_fails(replica: Replica) -> None:
    # Given three runs on a partition that moves, and one on a partition that stays
    for name in "abc":
        await replica.start(name, partition=3)
    stays = await replica.start("d", partition=4)
    await replica.at_work(4)
    # When it moves while the broker takes only some of the wake-ups
    replica.fails = {"a", "b"}
    replica.holdings.moved({3})
    async with asyncio.timeout(10), replica.changed:
        await replica.changed.wait_for(lambda: "c" in replica.woken)
    # Then the three are free, told or not, and the other goes on
    assert await replica.free() == {"a", "b", "c"}
    assert stays in replica.holdings
    assert set(await replica.journal.runs.held_by("one")) == {stays}


async def test_a_run_that_is_taken_up_again_before_its_lease_is_given_back_keeps_the_new_one(replica: Replica) -> None:
    # Given a run on a partition that moves away and back at once, so that it is taken up here anew as soon as it is let go
    replica.takes_again = True
    moved = await replica.start("a", partition=3)
    await replica.at_work(1)

    replica.holdings.moved({3})

    # Then it is held when its former lease was given back
    async with asyncio.timeout(10), replica.changed:
        await replica.changed.wait_for(lambda: replica.woken == ["a"])
    assert await replica.journal.runs.held_by("one") == {moved: 2}


async def test_a_run_that_has_ended_stays_until_that_is_told_though_its_partition_moves(replica: Replica) -> None:
    told = await replica.start("a", partition=3, ended=True)
    await replica.start("b", partition=3)
    await replica.at_work(2)

    replica.holdings.moved({3})

    async with asyncio.timeout(10), replica.changed:
        await replica.changed.wait_for(lambda: replica.woken == ["b"])
    assert told in replica.holdings
    assert set(await replica.journal.runs.held_by("one")) == {told}


async def test_a_lease_that_no_task_here_needs_is_given_back(replica: Replica) -> None:
    await replica.start("a")
    await replica.at_work(1)
    lost = Run(
        run_id=RunId("z" * 32), source="/s", event_id="z", workflow="w", version=None, status="accepted", input={}, traceparent="t"
    )  # fmt: skip
    await replica.journal.runs.accept(lost)
    assert await replica.journal.runs.lease(lost.run_id, "one")
    await replica.holdings.renew()
    assert set(await replica.journal.runs.held_by("one")) == {RunId("a" * 32)}


async def test_only_so_many_runs_are_in_flight(replica: Replica) -> None:
    few = Replica(replica.journal, limit=2)
    for name in "abcd":
        await few.start(name)
    await few.at_work(2)
    assert len(await few.journal.runs.held_by("one")) == 2
    few.may_end.set()
    await few.at_work(4)
    assert few.working == ["a", "b", "c", "d"]


async def test_a_run_that_is_let_go_before_its_turn_leaves_nothing_behind(replica: Replica) -> None:
    few = Replica(replica.journal, limit=1)
    await few.start("a")
    await few.at_work(1)
    await few.start("b")
    await few.holdings.drain(0)
    assert few.working == ["a"]
    await few.holdings.hand_over()
    assert sorted(few.woken) == ["a", "b"]


async def test_a_segment_that_is_let_go_leaves_no_task_behind(replica: Replica) -> None:
    async def nothing() -> AsyncGenerator[Any]:
        await asyncio.Event().wait()
        yield

    desk, before = RunDesk(RunId("a" * 32), MemoryBus(), replica.journal, {}), asyncio.all_tasks()
    segment = asyncio.create_task(to_the_end(desk, nothing()))
    await asyncio.sleep(0)
    segment.cancel()
    await asyncio.wait([segment])
    await asyncio.sleep(0)

    assert asyncio.all_tasks() == before
