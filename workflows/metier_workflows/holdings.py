"""The runs that one replica holds: their tasks, their leases, and how they are handed over.

The orchestrator starts a run here and delivers answers to it; `holdings` renews leases, lets go of what moved to another replica, and
at the end wakes what was let go, once nobody here reads the wake-ups any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine
from contextlib import suppress
from dataclasses import dataclass

import structlog

from metier_infra.errors import RetryLater
from metier_infra.journal import Journal
from metier_infra.rows import Run
from metier_infra.words import RunId
from metier_workflows.run_desk import RunDesk

log = structlog.get_logger()

Wake = Callable[[Run], Awaitable[None]]


@dataclass
class Held:
    """A run in this process: its task, its desk, and the partition through which it came."""

    task: asyncio.Task[None]
    desk: RunDesk
    partition: int


class Holdings:
    """Runs by id. `limit` of them run at one time, the others wait for their turn without a lease.

    `wake` announces a run, so that whoever owns its partition takes it.
    """

    def __init__(self, journal: Journal, instance: str, wake: Wake, limit: int) -> None:
        self._journal = journal
        self._instance = instance
        self._wake = wake
        self._turns = asyncio.Semaphore(limit)
        self._held: dict[RunId, Held] = {}
        self._orphans: set[RunId] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._draining = False

    def __contains__(self, run_id: RunId) -> bool:
        """Whether the run is here."""
        return run_id in self._held

    def desk(self, run_id: RunId) -> RunDesk | None:
        """The desk of a run that is here."""
        held = self._held.get(run_id)
        return held.desk if held else None

    def start(self, desk: RunDesk, partition: int, work: Coroutine[None, None, None]) -> None:
        """Run `work` for the desk's run, in its turn; while draining, the run is only remembered, to be handed over."""
        if self._draining:
            self._orphans.add(desk.run_id)
            work.close()
            return
        task = asyncio.create_task(self._in_turn(work))
        held = self._held[desk.run_id] = Held(task, desk, partition)
        task.add_done_callback(lambda _: self._forget(held))

    def _forget(self, held: Held) -> None:
        if self._held.get(held.desk.run_id) is held:
            del self._held[held.desk.run_id]

    def leave(self, run_id: RunId) -> None:
        """The run is about to be parked: from now on, whatever wakes it takes it up anew."""
        self._held.pop(run_id, None)

    async def _in_turn(self, work: Coroutine[None, None, None]) -> None:
        try:
            async with self._turns:
                await work
        finally:
            work.close()

    async def renew(self) -> None:
        """Keep the leases of the runs that are here; give back those of runs that are not, whatever lost them."""
        await self._journal.runs.renew(self._instance)
        for run_id in await self._journal.runs.held_by(self._instance):
            if run_id not in self._held:
                await self._journal.runs.release(self._instance, run_id)

    def moved(self, partitions: Collection[int]) -> None:
        """Another replica owns these partitions now: let their runs go, so that it can take them at their last checkpoint."""
        lost = [held for held in self._held.values() if held.partition in partitions]
        if not lost or self._draining:
            return
        log.info("partitions moved", action="rebalance", partitions=sorted(partitions), runs=len(lost))
        leaving = asyncio.create_task(self._hand_on(lost))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    async def _hand_on(self, held: Collection[Held]) -> None:
        await self._let_go(held)
        await self._call({one.desk.run_id for one in held})

    async def _let_go(self, held: Collection[Held]) -> None:
        """End the tasks, then give all leases back before anything else can fail."""
        for one in held:
            one.task.cancel()
        if held:
            await asyncio.wait([one.task for one in held])
        for one in held:
            await self._journal.runs.release(self._instance, one.desk.run_id)

    async def drain(self, limit_s: float) -> None:
        """Take no more runs; give those that are here `limit_s` seconds to end, then let them go."""
        self._draining = True
        if self._held:
            log.info("draining", action="drain", runs=len(self._held), limit_s=limit_s)
            await asyncio.wait([held.task for held in self._held.values()], timeout=limit_s)
        left = list(self._held.values())
        self._orphans |= {one.desk.run_id for one in left}
        await self._let_go(left)

    async def hand_over(self) -> None:
        """Give every lease back and wake what was let go: to be called once this replica reads nothing any more."""
        await self._journal.runs.release(self._instance)
        await self._call(self._orphans)

    async def _call(self, run_ids: Collection[RunId]) -> None:
        """Wake runs for whoever owns them now. What cannot be told now is found by another replica when it attends."""
        for run_id in sorted(run_ids):
            with suppress(RetryLater):
                run = await self._journal.runs.get(run_id)
                if run and not run.ended:
                    await self._wake(run)
