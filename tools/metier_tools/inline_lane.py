"""The tool lane of the embedded mode: the runner in this process.

`compose` opens it for `metier dev`, `metier demo` and tests. The runner blocks, so it runs on a few threads of its own.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from metier_infra.errors import LaneGone
from metier_tools.lane import Shared
from metier_tools.runner import Runner
from metier_tools.sandbox import Sandbox
from metier_tools.tool import ToolCall, ToolResult


class InlineLane:
    """See `metier_tools.lane.ToolLane`. `threads` calls run at one time; the sandbox is closed with the lane."""

    def __init__(self, runner: Runner, sandbox: Sandbox, *, threads: int = 8) -> None:
        self._runner, self._sandbox = runner, sandbox
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="tools")
        self._shared = Shared()
        self._closed = False

    async def call(self, call: ToolCall) -> ToolResult:
        """See `ToolLane.call`."""
        return await self._shared.result(call.tool_call_id, lambda: self._run(call))

    async def _run(self, call: ToolCall) -> ToolResult:
        if self._closed:
            raise LaneGone("the tool lane is closed")
        taken = self._runner.take(call)
        if taken.work is not None:
            self._threads.submit(taken.work)
        if taken.answer.done():
            return taken.answer.result()
        try:
            answer = asyncio.wrap_future(taken.answer)
            answer.add_done_callback(_looked_at)
            return await asyncio.wait_for(asyncio.shield(answer), call.deadline - time.time())
        except TimeoutError as error:
            raise LaneGone(f"tool call {call.tool_call_id} had no answer before its deadline") from error
        finally:
            if not taken.answer.done():
                self._runner.cancel(call.tool_call_id, call.grant)

    async def close(self) -> None:
        """See `ToolLane.close`."""
        self._closed = True
        await asyncio.to_thread(self._sandbox.close)
        await asyncio.to_thread(self._threads.shutdown)


def _looked_at(answer: asyncio.Future[ToolResult]) -> None:
    """Nobody else looks at the answer of a call that was given up, and asyncio would complain of it."""
    answer.exception()
