"""The port by which an agent calls tools, wherever they run.

The agent's loop calls it. `inline_lane` runs tools in this process; `celery_lane` sends them to the hosts that may touch a container
engine. One contract test holds both.
"""

from __future__ import annotations

from typing import Protocol

from metier_tools.tool import ToolCall, ToolResult


class ToolLane(Protocol):
    """Carries tool calls, and forgets them: whoever calls has written the call down before.

    Contract: the same `tool_call_id` called again is the same work; a runner that still knows it gives the first result again.
    All that a tool can do wrong is a result. No call outlasts its deadline by more than a moment.
    """

    async def call(self, call: ToolCall) -> ToolResult:
        """Run one call.

        Raises:
            LaneGone: no runner answered before the deadline, or no container became free.
            EngineGone: the container engine does not answer.
            GrantRefused: the grant is forged, expired, or for another call.
            DeadlineMissed: the deadline had passed before the call could start.
        """
        ...

    async def close(self) -> None:
        """Let go of every connection, thread and container."""
        ...
