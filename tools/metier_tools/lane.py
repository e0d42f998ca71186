"""The port by which an agent calls tools, wherever they run.

The agent's loop calls it. `inline_lane` runs tools in this process; `celery_lane` sends them to the hosts that may touch a container
engine. One contract test holds both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from metier_tools.tool import ToolCall, ToolResult


class ToolLane(Protocol):
    """Carries tool calls, and forgets them: whoever calls has written the call down before.

    Contract: the same `tool_call_id` called again is the same work; a runner that still knows it gives the first result again.
    All that a tool can do wrong is a result. No call outlasts its deadline by more than a moment. When the task that awaits a
    call is cancelled, and nobody else here awaits the same, its program and container are ended at once, and what has not
    started never starts; the same id may be called again under a new grant.
    """

    async def call(self, call: ToolCall) -> ToolResult:
        """Run one call.

        Raises:
            LaneGone: no runner answered before the deadline, or no container became free.
            EngineGone: the container engine does not answer.
            GrantRefused: the grant is forged, for another call, or ends before the call does.
            DeadlineMissed: the deadline had passed before the call could start.
            ToolCancelled: whoever else called it with the same grant gave it up.
            MissingService: the runner has no image for it.
            ServerBroken: the tool's server does not start, or does not speak the protocol.
        """
        ...

    async def close(self) -> None:
        """Let go of every connection, thread and container."""
        ...


@dataclass
class _Work:
    task: asyncio.Task[ToolResult]
    waiters: int = 0


class Shared:
    """What the lanes have in common: who calls the same id waits for the same work, and it is cancelled when the last of them gives up."""

    def __init__(self) -> None:
        self._works: dict[str, _Work] = {}

    async def result(self, key: str, work: Callable[[], Coroutine[Any, Any, ToolResult]]) -> ToolResult:
        """What comes of the work in hand, or of `work` if there is none."""
        shared = self._works.get(key) or self._works.setdefault(
            key, _Work(asyncio.create_task(work(), name="tool-call"))
        )
        shared.waiters += 1
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.waiters -= 1
            if not shared.waiters:
                await self._end(key, shared)

    async def _end(self, key: str, shared: _Work) -> None:
        """Who gave the last call up knows, when that returns, that the runner was told: nothing of it starts after."""
        if self._works.get(key) is shared:
            del self._works[key]
        shared.task.cancel()
        await asyncio.wait({shared.task})
