"""The signed permission that each tool call carries.

The agent worker signs when its policy lets a call go; the runner verifies before it runs anything. Whoever can write to the broker,
but has not the key, can make no runner do anything.
"""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from metier_infra.errors import GrantRefused
from metier_tools.tool import FileRef, ToolCall, digest_of

_FORM = "v2"


def sign(
    key: bytes,
    *,
    run_id: str,
    call_id: str,
    tool_call_id: str,
    tool: str,
    digest: str,
    arguments: Mapping[str, JsonValue],
    expires: float,
    files: Mapping[str, FileRef] | None = None,
    take: Sequence[str] = (),
) -> str:
    """The grant for one call until `expires`, in seconds since the epoch: at least the call's deadline."""
    until = repr(float(expires))
    with_it = digest_of([{name: file.sha256 for name, file in (files or {}).items()}, *take])
    return f"{_FORM}:{until}:{_mac(key, run_id, call_id, tool_call_id, tool, digest, digest_of(arguments), with_it, until)}"


def verify(key: bytes, call: ToolCall, *, now: float | None = None) -> None:
    """Return if `call` carries a valid grant for exactly itself. Raises `GrantRefused` with the reason."""
    form, _, rest = call.grant.partition(":")
    until = rest.partition(":")[0]
    if form != _FORM or not _is_time(until) or not hmac.compare_digest(call.grant.encode(), _wanted(key, call, until)):
        raise GrantRefused(
            f"the grant of tool call {call.tool_call_id} is not for this call of {call.tool!r} with these arguments, or was signed with another key"
        )
    if float(until) < (time.time() if now is None else now):
        raise GrantRefused(f"the grant of tool call {call.tool_call_id} has expired")
    if float(until) < call.deadline:
        raise GrantRefused(f"the deadline of tool call {call.tool_call_id} lies beyond its grant")


def _is_time(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _wanted(key: bytes, call: ToolCall, until: str) -> bytes:
    return sign(
        key,
        run_id=call.run_id,
        call_id=call.call_id,
        tool_call_id=call.tool_call_id,
        tool=call.tool,
        digest=call.digest,
        arguments=call.arguments,
        expires=float(until),
        files=call.files,
        take=call.take,
    ).encode()


def _mac(key: bytes, *fields: str) -> str:
    return hmac.new(key, digest_of(fields).encode(), "sha256").hexdigest()
