"""The signed permission that each tool call carries.

The agent worker signs when its policy lets a call go; the runner verifies before it runs anything. Whoever can write to the broker,
but has not the key, can make no runner do anything.
"""

from __future__ import annotations

import hmac
import math
import time

from metier_infra.errors import GrantRefused
from metier_tools.tool import ToolCall, digest_of

_FORM = "v2"
_NOT_COVERED = {"grant", "deadline", "traceparent"}
"""The deadline may be moved, but not beyond the grant; the trace decides nothing. Every other field of a call is signed."""


def granted(key: bytes, call: ToolCall, *, expires: float) -> ToolCall:
    """The call with a grant for exactly itself until `expires`, in seconds since the epoch: at least the call's deadline."""
    return call.model_copy(update={"grant": sign(key, call, expires=expires)})


def sign(key: bytes, call: ToolCall, *, expires: float) -> str:
    """The grant of a call: see `granted`."""
    until = repr(float(expires))
    signed = digest_of([call.model_dump(mode="json", exclude=_NOT_COVERED), until])
    return f"{_FORM}:{until}:{hmac.new(key, signed.encode(), 'sha256').hexdigest()}"


def verify(key: bytes, call: ToolCall, *, now: float | None = None) -> None:
    """Return if `call` carries a valid grant for exactly itself. Raises `GrantRefused` with the reason."""
    until = _until(call.grant)
    if until is None or not hmac.compare_digest(call.grant.encode(), sign(key, call, expires=until).encode()):
        raise GrantRefused(
            f"the grant of tool call {call.tool_call_id} is not for this call of {call.tool!r} with these arguments, or was signed with another key"
        )
    if until < (time.time() if now is None else now):
        raise GrantRefused(f"the grant of tool call {call.tool_call_id} has expired")
    if until < call.deadline:
        raise GrantRefused(f"the deadline of tool call {call.tool_call_id} lies beyond its grant")


def _until(grant: str) -> float | None:
    """When a grant says that it expires; None when it says nothing of the kind."""
    try:
        until = float(grant.split(":")[1])
    except (IndexError, ValueError):
        return None
    return until if math.isfinite(until) else None
