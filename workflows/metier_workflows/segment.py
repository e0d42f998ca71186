"""One segment of a run: its graph, until it ends, or has waited for so long that it leaves memory.

The orchestrator gives it LangGraph's stream of values and tasks. A run that does nothing but wait is cancelled, as when its replica drains, and goes on
from its last checkpoint: `interrupt` would be an `Exception`, which a node of the author's may take for a failure and swallow. One whose time is over is cancelled too.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, RESUME

from metier_infra.errors import FencedOff, LimitReached, RetryLater
from metier_infra.rows import Awaited
from metier_workflows import progress
from metier_workflows.run_desk import RunDesk
from metier_workflows.spending import TIME_OVER

GRACE_S = 1.0
"""When its time is over, a run has so long to make something of what it has; seconds."""
AGAIN = (RetryLater, FencedOff, asyncio.CancelledError)
"""What a node raises that has not ended: it runs again, or nobody waits for it any more."""


class Parked(BaseException):
    """The run waits for these alone, by id, and has for long: it leaves memory. Not an error."""

    def __init__(self, waits_for: Mapping[str, Awaited]) -> None:
        super().__init__()
        self.waits_for = waits_for


def written(begun: CheckpointTuple | None) -> frozenset[str]:
    """The tasks of a checkpoint that had ended before: LangGraph says of them too that they begin, and never that they end."""
    writes = begun.pending_writes or [] if begun else []
    return frozenset(task for task, channel, _ in writes if channel not in {ERROR, INTERRUPT, RESUME})


async def to_the_end(
    desk: RunDesk, chunks: AsyncIterator[Any], *, done: frozenset[str] = frozenset(), ends_at: float = math.inf
) -> dict[str, object]:
    """The last values of the graph, of whose tasks those that are `done` do not run.

    Raises `Parked`; `LimitReached` past `ends_at`, in seconds since the epoch, at once where it only waits and else after a little grace; and whatever the graph raises.
    """
    work = asyncio.create_task(_last_values(desk, chunks, done))
    clock = asyncio.get_running_loop().time
    limit = clock() + max(0.0, ends_at - time.time()) + GRACE_S
    try:
        while not work.done():
            idle = asyncio.create_task(desk.waiting.idle.wait())
            left_s = None if limit == math.inf else limit - clock()
            try:
                await asyncio.wait([work, idle], timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            finally:
                idle.cancel()
            if not work.done():
                _leave(desk, over=clock() >= limit, near=time.time() >= ends_at)
        return work.result()
    finally:
        work.cancel()
        await asyncio.wait([work])


def _leave(desk: RunDesk, *, over: bool, near: bool) -> None:
    """Raises `LimitReached` where its time is over, or `near` that and the run only waits; `Parked` where it waits."""
    waits = desk.waiting.idle.is_set()
    if over or (near and waits):
        raise LimitReached(TIME_OVER)
    if waits:
        raise Parked(desk.waiting.awaited)


async def _last_values(desk: RunDesk, chunks: AsyncIterator[Any], done: frozenset[str]) -> dict[str, object]:
    """Follow the graph, and tell the desk which of its tasks run. An interrupt of the author's stands in the values under LangGraph's name for it."""
    values: dict[str, object] = {}
    interrupts: list[object] = []
    async for mode, chunk in chunks:
        if mode == "values":
            values = desk.outputs = dict(chunk)
        elif "result" in chunk:
            desk.waiting.ended(chunk["id"])
            if not isinstance(chunk.get("error"), AGAIN):
                desk.progress.tell(progress.node_ended(desk.run_id, chunk))
            interrupts += chunk["interrupts"]
        else:
            desk.progress.tell(progress.node_started(desk.run_id, chunk))
            if chunk["id"] in done:
                desk.progress.tell(progress.node_ended(desk.run_id, chunk))
            else:
                desk.waiting.began(chunk["id"])
    return values | ({"__interrupt__": interrupts} if interrupts else {})
