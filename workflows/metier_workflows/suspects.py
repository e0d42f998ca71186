"""Runs that processes died of, or beside: each is run apart from the others until it is known which. `execution` takes its leases through here.

A process that dies takes hundreds of runs with it, and one of them may be the reason. Those that were in the middle of something each time are suspects: a
replica runs one of them at a time, the others wait without a lease, and so are not counted again when the one takes its process along.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import structlog

from metier_infra.errors import RetryLater
from metier_infra.journal import Journal
from metier_infra.rows import Run
from metier_infra.words import RunId

log = structlog.get_logger()

SUSPECTED = 2
"""Processes that a run was there to lose before it is run apart: the first may be chance."""
LOST_AT_MOST = 5
"""Processes that a run may take with it, one after the other, before it is ended."""
LOOK_S = 0.1
"""How often it is looked whether a suspect is past what it was lost at; seconds."""
APART_S = 30.0
"""How long the other suspects wait for one at the most; seconds."""


class Suspects:
    """The turn that suspects of one replica take."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def leased(self, lease: Callable[[], Awaitable[Run | None]]) -> AsyncGenerator[Run | None]:
        """The run, leased by `lease`; a suspect once it is its turn. Raises what `lease` raises."""
        run = await lease()
        if run is None or not _suspected(run):
            yield run
            return
        log.warning("run is run apart", action="wait for its turn", run_id=run.run_id, lost=run.lost)
        await self._journal.runs.give_back(run.run_id, run.epoch)
        await self._turn.acquire()
        try:
            run = await lease()
        except BaseException:
            self._turn.release()
            raise
        watching = asyncio.create_task(self._until_cleared(run))
        watching.add_done_callback(lambda _: self._turn.release())
        try:
            yield run
        finally:
            watching.cancel()

    async def _until_cleared(self, run: Run | None) -> None:
        """While this run alone is under suspicion of taking its process along."""
        with suppress(TimeoutError):
            async with asyncio.timeout(APART_S):
                while run is not None:
                    await asyncio.sleep(LOOK_S)
                    run = run if await self._at_risk(run.run_id) else None

    async def _at_risk(self, run_id: RunId) -> bool:
        with suppress(RetryLater):
            return await self._journal.runs.at_risk(run_id)
        return True


def _suspected(run: Run) -> bool:
    """Whether nodes of the run will run, of which some may be deadly."""
    return SUSPECTED <= run.lost < LOST_AT_MOST and run.cancelled_at is None
