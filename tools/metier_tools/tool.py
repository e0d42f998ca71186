"""The words of the tool lane: what a tool is, one call of it, and what came of the call.

Agents offer specs to models and make calls; lanes carry both words as JSON; the runner turns a call into a result.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import JsonValue

from metier_infra.messages import CallId, RunId, ToolCallId, Word

Kind = Literal["code", "command", "mcp", "function"]
Language = Literal["python", "shell"]
Status = Literal["ok", "error", "timeout", "oom", "output_cut", "refused", "died"]


def digest_of(value: object) -> str:
    """SHA-256, in hex, of a JSON value in its one canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Program(Word):
    """How a `code` tool runs: which argument holds the program, and what reads it."""

    language: Language
    argument: str


class ToolSpec(Word):
    """A tool as a model sees it, and how it runs. `timeout_s` is what one call may take unless the call says otherwise, in seconds."""

    name: str
    description: str
    parameters: dict[str, JsonValue]
    kind: Kind
    runs: Program | None = None
    timeout_s: float = 10.0

    @property
    def digest(self) -> str:
        """What pins the tool: SHA-256 over all that a model is told of it, and its kind."""
        return digest_of([self.name, self.description, self.parameters, self.kind])


class ToolCall(Word):
    """One call. `deadline` is seconds since the epoch, `timeout_s` what the tool itself may take; `run_id` is the key of the sandbox lease.

    `tool_call_id` is the idempotency key: the same call sent again is the same work.
    """

    tool_call_id: ToolCallId
    run_id: RunId
    call_id: CallId
    tool: str
    arguments: dict[str, JsonValue]
    deadline: float
    timeout_s: float
    grant: str
    traceparent: str | None = None


class ToolResult(Word):
    """What came of a call, good or bad, as a model may read it. Times are milliseconds.

    `refused`: an unknown tool or arguments that do not fit; `stderr` says why. `died`: the sandbox ended under the call.
    `truncated`: more was written than is kept; `output_cut`: so much that the call was stopped. `container` is a short id or
    empty, `image` a content digest, `cold` says that a container had to be booted for this call.
    """

    status: Status
    exit_code: int | None = None
    stdout: str = ""
    stderr: str = ""
    truncated: bool = False
    container: str = ""
    image: str = ""
    cold: bool = False
    wait_ms: float = 0.0
    boot_ms: float = 0.0
    wall_ms: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the tool did what it was asked."""
        return self.status == "ok"
