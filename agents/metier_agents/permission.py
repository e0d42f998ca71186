"""Whether a tool call may be made, and with which arguments: what the safety bundle says, and where it asks for one, a person.

`hands` asks before a call is written down. Where nobody has decided yet, the wish is in the journal and `Parked` is raised: the worker lets the
call go, and whoever takes it up again, once it is decided, finds the decision here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from metier_agents.approval import Ask, Deny, Mutate, Proceed, Skip, Verdict, judge
from metier_agents.safety import Bundle
from metier_infra.approvals import Approvals
from metier_infra.rows import Approval, Call
from metier_infra.words import Stamp, ToolCallId
from metier_tools.tool import ToolResult, digest_of
from metier_tools.toolbox import Tool

LONGEST_ASKED = 256 << 10
"""Bytes of arguments, as JSON, that a person can be asked about."""
Arguments = dict[str, JsonValue]


class Parked(BaseException):
    """The call waits for a person. No error: nothing between `hands` and the worker may take it for one, so it is no `Exception`."""


@dataclass(frozen=True)
class Permission:
    """What an agent's bundle lets pass; None: everything. `stamp` stands on what people are asked."""

    approvals: Approvals
    bundle: Bundle | None
    stamp: Stamp | None

    async def of(
        self, call: Call, tool: Tool, arguments: Arguments, tool_call_id: ToolCallId
    ) -> Arguments | ToolResult:
        """The arguments to call the tool with, or what the model reads in place of a result. Raises `Parked`."""
        said = self._judge(tool, arguments)
        match said:
            case Proceed():
                return arguments
            case Mutate():
                return said.arguments
            case Ask():
                return await self._asked(call, tool, said, tool_call_id)
            case Skip() | Deny():
                return _stopped(said)

    def _judge(self, tool: Tool, arguments: Mapping[str, JsonValue]) -> Verdict:
        return judge(self.bundle, tool, arguments) if self.bundle else Proceed()

    async def _asked(self, call: Call, tool: Tool, said: Ask, tool_call_id: ToolCallId) -> Arguments | ToolResult:
        size = len(json.dumps(said.arguments))
        if size > LONGEST_ASKED:
            return refused(_TOO_LONG.format(size=size))
        wish = Approval(
            approval_id=tool_call_id,
            run_id=call.run_id,
            call_id=call.call_id,
            agent=call.agent,
            tool=tool.spec.name,
            digest=digest_of([tool.spec.digest, said.arguments]),
            arguments=said.arguments,
            why=said.why,
            stamp=self.stamp,
        )
        found = await self.approvals.want(wish, said.within_s)
        if found.digest != wish.digest:
            return refused(_OTHER)
        if found.granted is None:
            raise Parked
        return self._decided(tool, found)

    def _decided(self, tool: Tool, found: Approval) -> Arguments | ToolResult:
        """What was approved, exactly; what the one who approved it changed is judged as the agent's own."""
        if not found.granted:
            return refused(f"not approved ({found.decided_by})" + (f": {found.note}" if found.note else ""))
        if found.changed is None:
            return found.arguments
        if problem := tool.problem(found.changed):
            return refused(f"the arguments that were approved do not fit {tool.spec.name}: {problem}")
        said = self._judge(tool, found.changed)
        if isinstance(said, Skip | Deny):
            return _stopped(said)
        same = isinstance(said, Proceed) or digest_of(said.arguments) == digest_of(found.changed)
        return found.changed if same else refused(_CHANGED)


def refused(why: str) -> ToolResult:
    """What the model reads of a call that was not made."""
    return ToolResult(status="refused", stderr=why)


def _stopped(said: Skip | Deny) -> ToolResult:
    return ToolResult(status="ok", stdout=said.say) if isinstance(said, Skip) else refused(said.why)


_TOO_LONG = f"a person would have to approve this call, and its arguments are too long for that: {{size}} bytes of at most {LONGEST_ASKED}"
_OTHER = (
    "what was approved is not what would run now: the tool or the rules have changed since; call it again to ask again"
)
_CHANGED = "the rules would change the arguments that were approved, so the call was not made"
