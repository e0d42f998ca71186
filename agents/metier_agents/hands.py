"""How an agent acts: a tool use becomes a tool call, written down before it is sent, and its first recorded result an observation.

The loop calls it for the uses of a model turn; it asks `permission` whether a call may be made, and hands on to the tool lane.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

from metier_agents import measuring
from metier_agents.patience import until
from metier_agents.permission import Arguments, Parked, Permission, refused
from metier_agents.safety import Bundle, demand
from metier_agents.telling import tool_answered, tool_called
from metier_agents.turns import ModelTurn, ToolTurn, ToolUse
from metier_infra import metrics, telemetry
from metier_infra.errors import DeadlineMissed, LaneGone, ToolGone
from metier_infra.events import Event
from metier_infra.failpoints import failpoint
from metier_infra.journal import Journal
from metier_infra.messages import Envelope
from metier_infra.outgoing import Outgoing
from metier_infra.rows import Call, ToolCallRow
from metier_infra.words import Stamp, ToolCallId, stable_id
from metier_tools import grant
from metier_tools.lane import ToolLane
from metier_tools.tool import ToolCall, ToolResult, ToolSpec, digest_of
from metier_tools.toolbox import Refusal, Tool, Toolbox

QUEUE_S = 35.0
"""What one sending may wait for a runner and a container beyond the tool's own time; then it is sent again under the same id."""
LONGEST_REMARK = 2_000


@dataclass(frozen=True)
class Hands:
    """What tool calls need. `key` signs their grants; `bundle` is the agent's, which judges them, `stamp` under what it acts, and `outgoing` carries what is told of them."""

    journal: Journal
    lane: ToolLane
    toolbox: Toolbox
    key: bytes
    bundle: Bundle | None = None
    stamp: Stamp | None = None
    outgoing: Outgoing | None = None

    async def act(self, call: Call, turn: ModelTurn, step: int, *, left: int, deadline: float) -> list[ToolTurn]:
        """What came of each use of `turn`, which is step number `step` of `call`; all at once, at most `left` of them for real.

        Raises `Parked` when some wait for a person, once the others have ended and are recorded.
        """
        checked = [self._check(use, turn.offered, index < left) for index, use in enumerate(turn.uses)]
        works = [
            self._use(call, use, fits, ToolCallId(stable_id(call.call_id, step, index)), deadline)
            for index, (use, fits) in enumerate(zip(turn.uses, checked, strict=True))
        ]
        return _results(await asyncio.gather(*works, return_exceptions=True))

    def _check(self, use: ToolUse, offered: Sequence[str], allowed: bool) -> Tool | Refusal:
        if use.tool not in offered:
            return Refusal(f"{use.tool!r} was not offered in this turn; answer without it")
        if use.problem:
            return Refusal(f"the arguments of {use.tool} cannot be read: {use.problem}")
        if not allowed:
            return Refusal("no tool call is left")
        return self.toolbox.check(use.tool, use.arguments)

    async def _use(
        self, call: Call, use: ToolUse, fits: Tool | Refusal, tool_call_id: ToolCallId, deadline: float
    ) -> ToolTurn:
        if isinstance(fits, Refusal):
            return _unmade(use, refused(fits.sentence))
        row = await self.journal.tools.get(tool_call_id) if call.attempt > 1 else None
        if row is None or row.result is None:
            permission = Permission(self.journal.approvals, self.bundle, self.stamp)
            found = await permission.of(call, fits, use.arguments, tool_call_id)
            if isinstance(found, ToolResult):
                return _unmade(use, found)
            row = await self.journal.tools.request(_row(call, use, found, tool_call_id))
            if row.result is None and digest_of(row.arguments) != digest_of(found):
                return _unmade(use, refused(_RULES_CHANGED))
        self._tell(tool_called(row))
        if row.result is not None:
            metrics.add(metrics.DUPLICATES, 1, {metrics.REASON: "tool_call"})
        else:
            row = await self._call(row, fits.spec, deadline)
        self._tell(tool_answered(row))
        made = _made(use, row)
        if made.result.gone:
            raise ToolGone(f"the tool {use.tool} of the agent {call.agent} is gone: {made.result.stderr}")
        return made

    def _tell(self, event: Envelope[Event]) -> None:
        if self.outgoing is not None:
            self.outgoing.tell(event)

    async def drain(self, limit_s: float) -> None:
        """Wait until what was told is out, at most so many seconds."""
        if self.outgoing is not None:
            await self.outgoing.drain(limit_s)

    async def _call(self, row: ToolCallRow, spec: ToolSpec, deadline: float) -> ToolCallRow:
        """Carry the call out and record its result; the first recorded result counts."""
        failpoint("tool.requested")
        with (
            telemetry.span(telemetry.execute_tool(row.tool), attributes=_attributes(row, spec, self.stamp)) as span,
            measuring.tool(row.tool) as measured,
        ):
            result = await until(deadline, f"the call of {row.tool}", lambda: self._send(row, spec, deadline, span))
            failpoint("tool.returned")
            span.set({telemetry.SANDBOX_STATUS: result.status, telemetry.SANDBOX_EXIT_CODE: result.exit_code})
            if not result.ok:
                span.fail(result.status)
                measured.failed = result.status
            return await self.journal.tools.finish(
                row.tool_call_id, result.model_dump(mode="json"), ok=result.ok, wall_ms=result.wall_ms
            )

    async def _send(self, row: ToolCallRow, spec: ToolSpec, deadline: float, span: telemetry.Span) -> ToolResult:
        ends = min(deadline, time.time() + spec.timeout_s + QUEUE_S)
        made = ToolCall(
            tool_call_id=row.tool_call_id,
            run_id=row.run_id,
            call_id=row.call_id,
            tool=row.tool,
            digest=spec.digest,
            arguments=row.arguments,
            hold=demand(self.bundle),
            deadline=ends,
            timeout_s=spec.timeout_s,
            grant="",
            stamp=self.stamp,
            traceparent=span.traceparent,
        )
        try:
            return await self.lane.call(grant.granted(self.key, made))
        except DeadlineMissed as error:
            if ends >= deadline:
                raise
            raise LaneGone(f"no runner took the call of {row.tool} in time") from error


_RULES_CHANGED = "the rules have changed while the call was made, so it was not made again; call it again"


def _row(call: Call, use: ToolUse, arguments: Arguments, tool_call_id: ToolCallId) -> ToolCallRow:
    return ToolCallRow(
        tool_call_id=tool_call_id,
        run_id=call.run_id,
        call_id=call.call_id,
        agent=call.agent,
        category=call.task.category,
        tool=use.tool,
        arguments=arguments,
    )


def _unmade(use: ToolUse, result: ToolResult) -> ToolTurn:
    return ToolTurn(use_id=use.id, tool=use.tool, result=result)


def _made(use: ToolUse, row: ToolCallRow) -> ToolTurn:
    """What the model reads of a call; also that it was made with other arguments than it chose."""
    result = ToolResult.model_validate(row.result)
    if digest_of(row.arguments) != digest_of(use.arguments):
        told = json.dumps(row.arguments, ensure_ascii=False)
        remark = f"[called with other arguments than yours: {told[:LONGEST_REMARK]}{'…' if len(told) > LONGEST_REMARK else ''}]"
        result = result.model_copy(update={"stdout": f"{result.stdout}\n{remark}"})
    return ToolTurn(use_id=use.id, tool=use.tool, result=result, tool_call_id=row.tool_call_id)


def _attributes(row: ToolCallRow, spec: ToolSpec, stamp: Stamp | None) -> dict[str, telemetry.Value | None]:
    return {
        telemetry.OPERATION: "execute_tool",
        telemetry.TOOL_NAME: row.tool,
        telemetry.TOOL_CALL_ID: row.tool_call_id,
        telemetry.TOOL_TYPE: spec.kind,
        telemetry.RUN_ID: row.run_id,
        telemetry.CALL_ID: row.call_id,
        **telemetry.stamped(stamp),
    }


def _results(found: Sequence[ToolTurn | BaseException]) -> list[ToolTurn]:
    """The results. What went wrong is raised before `Parked`: a call that fails anyhow need not wait."""
    errors = sorted((one for one in found if isinstance(one, BaseException)), key=lambda one: isinstance(one, Parked))
    for error in errors:
        raise error
    return [one for one in found if isinstance(one, ToolTurn)]
