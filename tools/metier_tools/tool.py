"""The words of the tool lane: what a tool is, one call of it, and what came of the call.

Agents offer specs to models and make calls; lanes carry both words as JSON; the runner turns a call into a result.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from metier_infra.words import CallId, RunId, Stamp, ToolCallId, Word

Kind = Literal["code", "command", "mcp", "function"]
Language = Literal["python", "shell"]
Risk = Literal["read", "write", "execute", "network", "destructive"]
"""What a call can do at worst: look only; change what can be changed back; run code in a sandbox; reach beyond this machine; do what nobody can take back."""
Status = Literal["ok", "error", "timeout", "oom", "output_cut", "refused", "died"]


ProfileRef = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?(@[1-9][0-9]{0,8})?$")]
"""A profile's `NAME`, which means its newest version, or `NAME@VERSION`."""
Host = Annotated[str, Field(pattern=r"^(\*\.)?[a-z0-9]([a-z0-9.-]{0,252}[a-z0-9])?(:[0-9]{1,5})?$")]


def digest_of(value: object) -> str:
    """SHA-256, in hex, of a JSON value in its one canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class ToolSpec(Word):
    """A tool as a model sees it. `timeout_s` is what one call may take unless the call says otherwise, in seconds.

    `risk` is what its author says a call can do at worst: safety bundles decide by it, no model is told, and no MCP server is asked.
    `also` is what else an MCP server says of its tool: the schema of what it returns, and hints, which nothing here relies on.
    """

    name: str
    description: str
    parameters: dict[str, JsonValue]
    kind: Kind
    timeout_s: float = 10.0
    risk: Risk = "destructive"
    also: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])

    @property
    def digest(self) -> str:
        """What pins the tool: SHA-256 over all that a model is told of it, and its kind."""
        return digest_of([self.name, self.description, self.parameters, self.kind, self.also])


class FileRef(Word):
    """A file that goes with a call or a result: small ones inside, in base64, large ones as a claim on the blob store by their SHA-256."""

    sha256: str
    size: int
    inline: str | None = None

    @classmethod
    def holding(cls, data: bytes) -> FileRef:
        """A file that travels inside."""
        return cls(sha256=hashlib.sha256(data).hexdigest(), size=len(data), inline=base64.b64encode(data).decode())


class Hold(Word):
    """What an agent's safety bundle demands of where its calls run, beside what each tool's own profile says; the stricter of both holds.

    `profile` is a profile, or empty for none. `egress` are the only hosts that may be reached, if the tool's profile lets them through. `functions`: whether
    trusted functions may be called, although nothing can be held where they run.
    """

    profile: ProfileRef | Literal[""] = ""
    egress: tuple[Host, ...] = ()
    functions: bool = False


class ToolCall(Word):
    """One call. `deadline` is seconds since the epoch, `timeout_s` what the tool itself may take; `run_id` is the key of the sandbox lease.

    `stamp` is under what the agent acts that makes it. `tool_call_id` is the idempotency key: the same call sent again is the same work, under whatever `nonce`. `digest` is that of the spec which the model was
    shown. `hold` is what the agent's safety bundle demands of the sandbox. `files` are put into the scratch folder before the program starts, and `take` are read from there when it has ended.
    """

    tool_call_id: ToolCallId
    run_id: RunId
    call_id: CallId
    tool: str
    digest: str
    arguments: dict[str, JsonValue]
    files: dict[str, FileRef] = Field(default_factory=dict[str, FileRef])
    take: tuple[str, ...] = ()
    hold: Hold | None = None
    deadline: float
    timeout_s: float
    nonce: str = ""
    grant: str
    stamp: Stamp | None = None
    traceparent: str | None = None


class ToolResult(Word):
    """What came of a call, good or bad, as a model may read it. Times are milliseconds.

    `refused`: an unknown or drifted tool (`gone`), or arguments that do not fit; `stderr` says why. `died`: the sandbox ended under the call.
    `truncated`: more was written than is kept; `output_cut`: so much that the call was stopped. `container` is a short id or
    empty, `image` a content digest, `profile` the limits that held, `cold` says that a container had to be booted for this call.
    `files` are those that were taken out, `left_out` says of each other one that was wanted why it was not.
    """

    status: Status
    gone: bool = False
    exit_code: int | None = None
    stdout: str = ""
    stderr: str = ""
    truncated: bool = False
    files: dict[str, FileRef] = Field(default_factory=dict[str, FileRef])
    left_out: dict[str, str] = Field(default_factory=dict[str, str])
    container: str = ""
    image: str = ""
    profile: str = ""
    cold: bool = False
    wait_ms: float = 0.0
    boot_ms: float = 0.0
    wall_ms: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the tool did what it was asked."""
        return self.status == "ok"
