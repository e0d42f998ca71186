"""A tool lane that says what it is told to say, for tests of agents without a sandbox. `model.ScriptedModel` is its counterpart.

Tests hand it to the worker or the loop in place of a real lane.
"""

from __future__ import annotations

from collections.abc import Callable

from metier_infra.errors import MetierError
from metier_tools.tool import ToolCall, ToolResult

Reply = ToolResult | MetierError


class ScriptedLane:
    """Answers each call with what `reply` makes of it; an error is raised. `calls` holds every call that was sent."""

    def __init__(self, reply: Callable[[ToolCall], Reply]) -> None:
        self.calls: list[ToolCall] = []
        self._reply = reply

    async def call(self, call: ToolCall) -> ToolResult:
        """See `ToolLane.call`."""
        self.calls.append(call)
        found = self._reply(call)
        if isinstance(found, MetierError):
            raise found
        return found

    async def close(self) -> None:
        """Nothing is held."""
