"""A call in, a result out: keep the deadline, verify the grant, check the arguments, run, observe.

Lanes hand it calls from many threads; it hands on to the sandbox. What is finished or under way is known by its `tool_call_id`, so that a
call sent twice runs once in this process.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack

from metier_infra import telemetry
from metier_infra.errors import DeadlineMissed
from metier_tools import grant
from metier_tools.sandbox import Held, Outcome, Request, Sandbox
from metier_tools.tool import Program, ToolCall, ToolResult
from metier_tools.toolbox import Refusal, Toolbox

REMEMBERED = 256
"""Finished results that are kept for a call sent again."""
REMEMBERED_CHARS = 32 * 1024 * 1024
"""And how much text they may hold together."""


class Once:
    """Runs the work of one id once: who comes later waits for the first, and finds its result for a while. Errors are not kept."""

    def __init__(self, most: int = REMEMBERED, most_chars: int = REMEMBERED_CHARS) -> None:
        self._most, self._most_chars, self._chars = most, most_chars, 0
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Future[ToolResult]] = OrderedDict()

    def run(self, key: str, work: Callable[[], ToolResult]) -> ToolResult:
        """The result of `work`, now or from before."""
        with self._lock:
            known = self._known.get(key)
            mine: Future[ToolResult] = known or self._known.setdefault(key, Future())
        if known is None:
            self._settle(key, mine, work)
        return mine.result()

    def _settle(self, key: str, mine: Future[ToolResult], work: Callable[[], ToolResult]) -> None:
        try:
            result = work()
        except BaseException as error:
            with self._lock:
                del self._known[key]
            mine.set_exception(error)
            return
        mine.set_result(result)
        with self._lock:
            self._chars += _size(result)
            self._shrink()

    def _shrink(self) -> None:
        """Forget the oldest finished results; what is under way is never forgotten."""
        for key, known in list(self._known.items()):
            if len(self._known) <= self._most and self._chars <= self._most_chars:
                return
            if known.done():
                self._chars -= _size(known.result())
                del self._known[key]


def _size(result: ToolResult) -> int:
    return len(result.stdout) + len(result.stderr)


class Runner:
    """Runs calls. `key` is the secret that grants are signed with. Blocks; for any number of threads."""

    def __init__(self, toolbox: Toolbox, sandbox: Sandbox, key: bytes) -> None:
        self._toolbox, self._sandbox, self._key = toolbox, sandbox, key
        self._once = Once()

    def run(self, call: ToolCall) -> ToolResult:
        """The result of a call, from before if it is known. Raises as `ToolLane.call` says, and `MissingService`."""
        if call.deadline <= time.time():
            raise DeadlineMissed(f"the deadline of tool call {call.tool_call_id} had passed before it could start")
        grant.verify(self._key, call)
        return self._once.run(call.tool_call_id, lambda: self._observed(call))

    def _observed(self, call: ToolCall) -> ToolResult:
        name = telemetry.execute_tool(call.tool)
        with telemetry.span(name, parent=call.traceparent, attributes=_about(call)) as span:
            result = self._checked(call)
            span.set({telemetry.SANDBOX_STATUS: result.status})
            if not result.ok:
                span.fail(result.status)
            return result

    def _checked(self, call: ToolCall) -> ToolResult:
        spec = self._toolbox.check(call.tool, call.arguments)
        if isinstance(spec, Refusal):
            return ToolResult(status="refused", stderr=spec.sentence)
        if spec.runs is None:
            return ToolResult(status="refused", stderr=f"this runner cannot run tools of kind {spec.kind}")
        return self._run(call, spec.runs)

    def _run(self, call: ToolCall, program: Program) -> ToolResult:
        with ExitStack() as stack:
            with telemetry.span(telemetry.SANDBOX_LEASE) as span:
                held = stack.enter_context(self._sandbox.hold(call.run_id, call.deadline - time.time()))
                span.set(_where(held))
            timeout_s = max(0.001, min(call.timeout_s, call.deadline - time.time()))
            request = Request(program.language, str(call.arguments[program.argument]), timeout_s)
            with telemetry.span(telemetry.SANDBOX_EXEC, attributes=_where(held)) as span:
                outcome = held.run(request)
                span.set({telemetry.SANDBOX_STATUS: outcome.status, telemetry.SANDBOX_EXIT_CODE: outcome.exit_code})
        return _result(held, outcome)


def _about(call: ToolCall) -> Mapping[str, telemetry.Value]:
    return {
        telemetry.OPERATION: "execute_tool",
        telemetry.TOOL_NAME: call.tool,
        telemetry.TOOL_CALL_ID: call.tool_call_id,
        telemetry.RUN_ID: call.run_id,
        telemetry.CALL_ID: call.call_id,
    }


def _where(held: Held) -> Mapping[str, telemetry.Value]:
    return {
        telemetry.SANDBOX_CONTAINER: held.container,
        telemetry.SANDBOX_IMAGE: held.image,
        telemetry.SANDBOX_COLD: held.cold,
        telemetry.SANDBOX_WAIT_MS: held.wait_ms,
    }


def _result(held: Held, outcome: Outcome) -> ToolResult:
    return ToolResult(
        status=outcome.status,
        exit_code=outcome.exit_code,
        stdout=outcome.stdout,
        stderr=outcome.stderr,
        truncated=outcome.truncated,
        container=held.container,
        image=held.image,
        cold=held.cold,
        wait_ms=round(held.wait_ms, 3),
        boot_ms=round(held.boot_ms, 3),
        wall_ms=outcome.wall_ms,
    )
