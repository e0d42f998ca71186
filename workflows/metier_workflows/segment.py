"""One segment of a run: its graph, until it ends, or has waited for so long that it leaves memory.

The orchestrator gives it LangGraph's stream of values and tasks. A run that does nothing but wait is cancelled, as when its replica drains, and goes on
from its last checkpoint: `interrupt` would be an `Exception`, which a node of the author's may take for a failure and swallow.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, RESUME

from metier_infra.rows import Awaited
from metier_workflows import progress
from metier_workflows.run_desk import RunDesk


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
    desk: RunDesk, chunks: AsyncIterator[Any], *, done: frozenset[str] = frozenset()
) -> dict[str, object]:
    """The last values of the graph, of whose tasks those that are `done` do not run. Raises `Parked`, and whatever the graph raises."""
    work = asyncio.create_task(_last_values(desk, chunks, done))
    try:
        while not work.done():
            idle = asyncio.create_task(desk.waiting.idle.wait())
            try:
                await asyncio.wait([work, idle], return_when=asyncio.FIRST_COMPLETED)
            finally:
                idle.cancel()
            if desk.waiting.idle.is_set() and not work.done():
                raise Parked(desk.waiting.awaited)
        return work.result()
    finally:
        work.cancel()
        await asyncio.wait([work])


async def _last_values(desk: RunDesk, chunks: AsyncIterator[Any], done: frozenset[str]) -> dict[str, object]:
    """Follow the graph, and tell the desk which of its tasks run. An interrupt of the author's stands in the values under LangGraph's name for it."""
    values: dict[str, object] = {}
    interrupts: list[object] = []
    async for mode, chunk in chunks:
        if mode == "values":
            values = desk.outputs = dict(chunk)
        elif "result" in chunk:
            desk.waiting.ended(chunk["id"])
            desk.progress.tell(progress.node_ended(desk.run_id, chunk))
            interrupts += chunk["interrupts"]
        else:
            desk.progress.tell(progress.node_started(desk.run_id, chunk))
            if chunk["id"] in done:
                desk.progress.tell(progress.node_ended(desk.run_id, chunk))
            else:
                desk.waiting.began(chunk["id"])
    return values | ({"__interrupt__": interrupts} if interrupts else {})
