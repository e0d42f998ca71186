"""The signed permission that each tool call carries. It ends with the call's deadline, which it covers.

The agent worker signs when its policy lets a call go; the runner verifies before it runs anything. Whoever can write to the broker,
but has not the key, can make no runner do anything.
"""

from __future__ import annotations

import hmac
import secrets

from metier_infra.errors import GrantRefused
from metier_tools.tool import ToolCall, digest_of

_FORM = "v4"
_NOT_COVERED = {"grant", "traceparent"}
"""The trace decides nothing. Every other field of a call is signed."""


def granted(key: bytes, call: ToolCall) -> ToolCall:
    """The call with a grant for exactly itself. Each sending has a grant of its own, so that giving one up does not give up the next."""
    sent = call.model_copy(update={"nonce": secrets.token_hex(8)})
    return sent.model_copy(update={"grant": sign(key, sent)})


def sign(key: bytes, call: ToolCall) -> str:
    """The grant of a call: see `granted`."""
    signed = digest_of(call.model_dump(mode="json", exclude=_NOT_COVERED))
    return f"{_FORM}:{hmac.new(key, signed.encode(), 'sha256').hexdigest()}"


def verify(key: bytes, call: ToolCall) -> None:
    """Return if `call` carries a valid grant for exactly itself. Raises `GrantRefused`.

    It reads no clock: whoever runs the call keeps its deadline.
    """
    if not hmac.compare_digest(call.grant.encode(), sign(key, call).encode()):
        raise GrantRefused(
            f"the grant of tool call {call.tool_call_id} is not for this call of {call.tool!r} with these arguments, or was signed with another key"
        )
