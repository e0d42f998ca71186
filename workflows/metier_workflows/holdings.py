"""The runs that one replica holds: their tasks, their leases, and how they are handed over.

The orchestrator starts a run here and delivers answers to it; `holdings` renews leases, lets go of what moved to another replica, and
at the end wakes what was let go, once nobody here reads the wake-ups any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog

from metier_infra.errors import NoTurn, RetryLater
from metier_infra.events import RunAccepted
from metier_infra.journal import Journal
from metier_infra.rows import Run
from metier_infra.words import RunId
from metier_workflows.run_desk import RunDesk
from metier_workflows.tenants import Tenants
from metier_workflows.turns import Turns

log = structlog.get_logger()

Wake = Callable[[Run], Awaitable[None]]
Work = Callable[[int | None], Awaitable[None]]
"""One segment of a run. It is given how many runs of its tenant may be under way, over all replicas, and raises `NoTurn` where so many are."""
STOP_S = 1.0
"""How long a segment that is stopped may take to end; seconds."""


@dataclass
class Held:
    """A run in this process: its task, its desk, and the partition through which it came."""

    task: asyncio.Task[None]
    desk: RunDesk
    partition: int


class Holdings:
    """Runs by id. `limit` of them run at one time, the others wait for their turn without a lease, as `turns` and `tenants` have it.

    `wake` announces a run, so that whoever owns its partition takes it.
    """

    def __init__(self, journal: Journal, instance: str, wake: Wake, limit: int, tenants: Tenants | None = None) -> None:
        self._journal = journal
        self._instance = instance
        self._wake = wake
        self._tenants = tenants or Tenants()
        self._turns = Turns[RunDesk](limit, self._tenants)
        self._called: dict[RunDesk, asyncio.Event] = {}
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

    def of(self, partition: int) -> Sequence[RunDesk]:
        """The desks of the runs that came through a partition."""
        return [held.desk for held in self._held.values() if held.partition == partition]

    def start(self, desk: RunDesk, partition: int, accepted: RunAccepted | None, work: Work) -> None:
        """Run `work` for the desk's run, in the turn of what was `accepted` (None: the journal knows); while draining, the run is only remembered, to be handed over."""
        if self._draining:
            self._orphans.add(desk.run_id)
            return
        task = asyncio.create_task(self._in_turn(desk, accepted, work))
        held = self._held[desk.run_id] = Held(task, desk, partition)
        task.add_done_callback(lambda _: self._forget(held))

    def replace(self, desk: RunDesk, partition: int, work: Coroutine[None, None, None]) -> None:
        """Stop whatever runs for the desk's run, or waits for its turn, and run `work` in its place: at once, it takes no turn."""
        before = self._held.get(desk.run_id)
        if self._draining and before is None:
            self._orphans.add(desk.run_id)
            work.close()
            return
        task = asyncio.create_task(_after(before.task if before else None, work))
        held = self._held[desk.run_id] = Held(task, desk, partition)
        task.add_done_callback(lambda _: self._forget(held))

    def _forget(self, held: Held) -> None:
        if self._held.get(held.desk.run_id) is held:
            del self._held[held.desk.run_id]

    def leave(self, run_id: RunId) -> None:
        """The run is about to be parked: from now on, whatever wakes it takes it up anew."""
        self._held.pop(run_id, None)

    async def _in_turn(self, desk: RunDesk, accepted: RunAccepted | None, work: Work) -> None:
        asked = accepted or await self._asked(desk.run_id)
        if asked is None:
            return
        if asked.parent is not None:  # it runs within its parent's turn, or the two would wait for each other
            await work(None)
            return
        at_most = self._tenants.of(asked.tenant).runs
        self._turns.wait(desk, asked.tenant, asked.priority, begun=asked.begun)
        try:
            while not await self._turn(desk, work, at_most):
                self._turns.refused(desk)
        finally:
            self._turns.over(desk)
            self._call_up()
        if at_most is not None:
            await self._tell_next(asked.tenant)

    async def _asked(self, run_id: RunId) -> Run | None:
        with suppress(RetryLater):
            return await self._journal.runs.get(run_id)
        return None  # whoever attends finds the run

    async def _turn(self, desk: RunDesk, work: Work, at_most: int | None) -> bool:
        """Wait for the desk's turn and work; whether its tenant had a turn left, over all replicas."""
        called = self._called[desk] = asyncio.Event()
        try:
            self._call_up()
            await called.wait()
        finally:
            del self._called[desk]
        try:
            await work(at_most)
        except NoTurn:
            return False
        return True

    def _call_up(self) -> None:
        """Call those whose turn it is."""
        while (desk := self._turns.next()) is not None:
            self._called[desk].set()

    async def _tell_next(self, tenant: str) -> None:
        """A run of a limited tenant ended: whoever holds the next one, by the journal, shall try."""
        with suppress(RetryLater):
            following = await self._journal.runs.next_in_turn(tenant)
            if following is not None and following.run_id not in self._held:
                await self._wake(following)
                return
        self.look(tenant)

    def look(self, tenant: str | None = None) -> None:
        """A turn may be free that this replica was refused: of this tenant, or of any."""
        self._turns.open(tenant)
        self._call_up()

    async def renew(self) -> None:
        """Keep the leases of the runs that are here; give back those of runs that are not, whatever lost them."""
        self.look()
        await self._journal.runs.renew(self._instance)
        for run_id, epoch in (await self._journal.runs.held_by(self._instance)).items():
            if run_id not in self._held:
                await self._journal.runs.give_back(run_id, epoch)

    def moved(self, partitions: Collection[int]) -> None:
        """Another replica owns these partitions now: let their runs go, so that it can take them at their last checkpoint.

        A run that has ended stays until that is told: another's word of its end could overtake what is on its way from here.
        """
        lost = [held for held in self._held.values() if held.partition in partitions and not held.desk.ended]
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
            if one.desk.epoch is not None:
                await self._journal.runs.give_back(one.desk.run_id, one.desk.epoch)

    async def drain(self, limit_s: float) -> None:
        """Take no more runs; give those that are here `limit_s` seconds to end, then let them go."""
        self._draining = True
        if self._held:
            log.info("draining", action="drain", runs=len(self._held), limit_s=limit_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await self._emptied()
        left = list(self._held.values())
        self._orphans |= {one.desk.run_id for one in left}
        await self._let_go(left)

    async def _emptied(self) -> None:
        """Wait until nothing is here: a run that is given up meanwhile is replaced by its end."""
        while self._held:
            await asyncio.wait([held.task for held in self._held.values()])

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


async def _after(before: asyncio.Task[None] | None, work: Coroutine[None, None, None]) -> None:
    """Run `work` once `before`, which is cancelled, has ended. A node that does not let go is left behind: the new lease fences it off."""
    try:
        if before is not None:
            before.cancel()
            await asyncio.wait([before], timeout=STOP_S)
        await work
    finally:
        work.close()
