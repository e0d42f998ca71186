"""One segment of a run: its graph, until it ends or waits for persons alone.

The orchestrator gives it LangGraph's stream of values and tasks. A run that waits for persons alone is cancelled, as when its replica drains, and goes on
from its last checkpoint: `interrupt` would be an `Exception`, which a node of the author's may take for a failure and swallow.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, RESUME

from metier_infra.words import CallId
from metier_workflows.run_desk import RunDesk


class Parked(BaseException):
    """The run waits for these calls alone, and they for persons: it leaves memory. Not an error."""

    def __init__(self, waits_for: Sequence[CallId]) -> None:
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
            idle = asyncio.create_task(desk.idle.wait())
            await asyncio.wait([work, idle], return_when=asyncio.FIRST_COMPLETED)
            idle.cancel()
            if desk.idle.is_set() and not work.done():
                raise Parked(desk.waits_for)
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
            values = dict(chunk)
        elif "result" in chunk:
            desk.ended(chunk["id"])
            interrupts += chunk["interrupts"]
        elif chunk["id"] not in done:
            desk.began(chunk["id"])
    return values | ({"__interrupt__": interrupts} if interrupts else {})
