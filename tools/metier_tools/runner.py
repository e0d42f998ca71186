"""A call in, a result out: verify the grant, keep the deadline, run it once, observe.

Lanes hand it calls from many threads; it hands on to `execution`. What is finished or under way is known by its `tool_call_id`, so that a
call sent twice runs once in this process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from metier_infra import telemetry
from metier_infra.errors import DeadlineMissed
from metier_infra.failpoints import failpoint
from metier_tools import grant
from metier_tools.execution import Holding
from metier_tools.once import Once
from metier_tools.tool import ToolCall, ToolResult

Execute = Callable[[ToolCall, Holding], ToolResult]
"""What runs a call that may run: see `execution.Execution.run`."""


@dataclass(frozen=True)
class Taken:
    """A call that the runner took: the answer to come, and the work that makes it come. None: somebody is at it, or it is done."""

    answer: Future[ToolResult]
    work: Callable[[], None] | None


def _failed(error: Exception) -> Future[ToolResult]:
    answer: Future[ToolResult] = Future()
    answer.set_exception(error)
    return answer


def _never(_: ToolCall) -> bool:
    return False


class Runner:
    """Runs calls, by `execute`. `key` is the secret that grants are signed with. Blocks; for any number of threads.

    `gave_up` says whether the caller gave a call up before it came here: asked when it is known here, so that no cancel falls between.
    """

    def __init__(self, execute: Execute, key: bytes, *, gave_up: Callable[[ToolCall], bool] = _never) -> None:
        self._execute, self._key, self._gave_up = execute, key, gave_up
        self._once = Once()

    def run(self, call: ToolCall) -> ToolResult:
        """The result of a call, from before if it is known. Raises as `ToolLane.call` says."""
        taken = self.take(call)
        if taken.work is not None:
            taken.work()
        return taken.answer.result()

    def take(self, call: ToolCall) -> Taken:
        """Take a call on, or find it. Raises nothing: what stands against it is its answer."""
        try:
            return self._taken(call)
        except Exception as error:
            return Taken(_failed(error), None)

    def _taken(self, call: ToolCall) -> Taken:
        grant.verify(self._key, call)
        if call.deadline <= time.time():
            raise DeadlineMissed(f"the deadline of tool call {call.tool_call_id} had passed before it could start")
        work, ours = self._once.take(call.tool_call_id, call.grant)
        if self._gave_up(call):
            self.cancel(call.tool_call_id, call.grant)
        if not ours:
            return Taken(work.answer, None)
        return Taken(work.answer, lambda: self._once.settle(work, lambda: self._observed(call, work.holding)))

    def cancel(self, tool_call_id: str, proof: str) -> bool:
        """End a call that its caller gave up, and its container. `proof` is the call's grant; with any other nothing happens.

        Returns whether the call is in hand and the proof holds. A call that others wait for, with grants of their own, goes on for them.
        """
        return self._once.give_up(tool_call_id, proof)

    def has(self, tool_call_id: str, proof: str) -> bool:
        """Whether the call with this grant is in hand."""
        return self._once.in_hand(tool_call_id, proof)

    @property
    def in_hand(self) -> tuple[str, ...]:
        """The ids of the calls that are under way."""
        return self._once.keys()

    def _observed(self, call: ToolCall, holding: Holding) -> ToolResult:
        name = telemetry.execute_tool(call.tool)
        with telemetry.span(name, parent=call.traceparent, attributes=_about(call)) as span:
            failpoint("tool.taken")
            result = self._execute(call, holding)
            failpoint("tool.executed")
            span.set({telemetry.SANDBOX_STATUS: result.status})
            if not result.ok:
                span.fail(result.status)
            return result


def _about(call: ToolCall) -> Mapping[str, telemetry.Value | None]:
    return {
        telemetry.OPERATION: "execute_tool",
        telemetry.TOOL_NAME: call.tool,
        telemetry.TOOL_CALL_ID: call.tool_call_id,
        telemetry.RUN_ID: call.run_id,
        telemetry.CALL_ID: call.call_id,
        **telemetry.stamped(call.stamp),
    }
