"""What a runner answers, as it travels: sealed, so that whoever can write to Redis feeds no model a result of their own.

A runner answers whoever asks, also a forged call; so a reply names the exact call that it answers, and is none to any other.
`relay` seals replies in the runner's process, `celery_lane` unseals them at the caller. Errors travel as their code and are raised again
as the same class.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

import structlog

from metier_infra import errors
from metier_infra.errors import LaneGone, MetierError
from metier_infra.words import Failure, Word
from metier_tools.tool import ToolResult

log = structlog.get_logger()


class Reply(Word):
    """What came of a call: a result, or the error that the runner raised; or that it is in hand, and the answer will come.

    `call_digest` says which call: see the function of that name.
    """

    call_digest: str
    result: ToolResult | None = None
    failure: Failure | None = None
    in_hand: bool = False


_TRAVEL = {
    kind("").code: kind
    for kind in (
        errors.LaneGone,
        errors.EngineGone,
        errors.GrantRefused,
        errors.DeadlineMissed,
        errors.MissingService,
        errors.MissingBlob,
        errors.MissingPackage,
        errors.ServerBroken,
        errors.ToolCancelled,
    )
}


def call_digest(text: str) -> str:
    """SHA-256, in hex, of a call as it travels. A call that differs in anything, the deadline or the grant too, is another call."""
    return hashlib.sha256(text.encode()).hexdigest()


def reply_to(tool_call_id: str, digest: str, answer: Callable[[], ToolResult]) -> Reply:
    """What `answer` returns or raises, as a reply to the call of this digest; whatever happens is one."""
    try:
        return Reply(call_digest=digest, result=answer())
    except MetierError as error:
        failure = Failure(code=error.code, message=str(error))
    except Exception as error:  # a defect of ours: the caller may try again, and the log says what it was
        log.exception("runner broke", action="reply", tool_call_id=tool_call_id)
        failure = Failure(code="runner_broke", message=f"the tool runner broke: {type(error).__name__}: {error}")
    return Reply(call_digest=digest, failure=failure)


def result_of(reply: Reply) -> ToolResult:
    """The result, or the runner's error, raised again; one of an unknown code is a `LaneGone`."""
    if reply.result is not None:
        return reply.result
    failure = reply.failure or Failure(code="", message="the tool runner sent an empty reply")
    raise _TRAVEL.get(failure.code, LaneGone)(failure.message)


def seal(key: bytes, reply: Reply) -> bytes:
    """A reply as it travels: a signature over its exact text, which names the call, then the text."""
    text = reply.model_dump_json().encode()
    return _mac(key, text) + b":" + text


def unseal(key: bytes, sealed: bytes) -> Reply | None:
    """The reply, or None for what a holder of the key has not sealed."""
    mac, _, text = sealed.partition(b":")
    return Reply.model_validate_json(text) if hmac.compare_digest(mac, _mac(key, text)) else None


def _mac(key: bytes, text: bytes) -> bytes:
    return hmac.new(key, b"reply:" + text, "sha256").hexdigest().encode()
