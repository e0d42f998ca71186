"""The way from a Celery child to the one runner of its `metier tools` process: one line of JSON there, one back, on a local socket.

`serve` opens the server beside the runner, with the containers; each child of `celery_lane`'s worker holds a client. Errors travel as
their code and are raised again as the same class, here and on the way to the caller.
"""

from __future__ import annotations

import os
import socket
import socketserver
import struct
import threading
from collections.abc import Callable
from typing import cast

import structlog
from pydantic import ValidationError

from metier_infra import errors
from metier_infra.errors import LaneGone, MetierError
from metier_infra.messages import Failure, Word
from metier_tools.tool import ToolCall, ToolResult

log = structlog.get_logger()

LONGEST_LINE = 64 * 1024 * 1024
"""No call and no result is longer; bytes."""
Run = Callable[[ToolCall], ToolResult]


class Reply(Word):
    """What came of a call: a result, or the error that the runner raised."""

    tool_call_id: str
    result: ToolResult | None = None
    failure: Failure | None = None


_TRAVEL = {
    kind("").code: kind
    for kind in (
        errors.LaneGone,
        errors.EngineGone,
        errors.GrantRefused,
        errors.DeadlineMissed,
        errors.MissingService,
    )
}


def reply_to(call: ToolCall, run: Run) -> Reply:
    """Run a call; whatever happens is a reply."""
    try:
        return Reply(tool_call_id=call.tool_call_id, result=run(call))
    except MetierError as error:
        failure = Failure(code=error.code, message=str(error))
    except Exception as error:  # a defect of ours: the caller may try again, and the log says what it was
        log.exception("runner broke", action="reply", tool_call_id=call.tool_call_id)
        failure = Failure(code="runner_broke", message=f"the tool runner broke: {type(error).__name__}: {error}")
    return Reply(tool_call_id=call.tool_call_id, failure=failure)


def result_of(reply: Reply) -> ToolResult:
    """The result, or the runner's error, raised again; one of an unknown code is a `LaneGone`."""
    if reply.result is not None:
        return reply.result
    failure = reply.failure or Failure(code="", message="the tool runner sent an empty reply")
    raise _TRAVEL.get(failure.code, LaneGone)(failure.message)


class RelayServer:
    """Answers the children's calls, each connection on a thread of its own.

    The address is in Linux's abstract namespace: it leaves no file, and ends with this process. Only processes of our own user are heard.
    """

    def __init__(self, run: Run, ready: Callable[[], None]) -> None:
        self.address = f"\0metier-tools-{os.getpid()}-{os.urandom(8).hex()}"
        self._server = _Server(self.address, run, ready)
        self._thread = threading.Thread(target=self._server.serve_forever, name="relay", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more connections. Those that are open end when the children do."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: str, run: Run, ready: Callable[[], None]) -> None:
        self.run, self.ready = run, ready
        super().__init__(address, _Connection)

    def verify_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> bool:
        del client_address
        return isinstance(request, socket.socket) and _peer_uid(request) == os.getuid()


class _Connection(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server = cast("_Server", self.server)
        while line := self.rfile.readline(LONGEST_LINE):
            if line.strip() == READY:
                server.ready()
            else:
                self.wfile.write(answer(line, server.run) + b"\n")


READY = b"ready"
"""What the Celery process says instead of a call, once it consumes."""


def answer(line: bytes, run: Run) -> bytes:
    """The reply to one line, as bytes."""
    try:
        call = ToolCall.model_validate_json(line)
    except ValidationError as error:
        failure = Failure(code="lane_gone", message=f"not a tool call: {error.errors(include_url=False)[0]['msg']}")
        return Reply(tool_call_id="", failure=failure).model_dump_json().encode()
    return reply_to(call, run).model_dump_json().encode()


def _peer_uid(connection: socket.socket) -> int:
    size = struct.calcsize("3i")
    return int(struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[1])


class RelayClient:
    """One child's line to the runner. For one thread."""

    def __init__(self, address: str) -> None:
        self._line = socket.socket(socket.AF_UNIX)
        self._line.connect(address)
        self._file = self._line.makefile("rb")

    def say_ready(self) -> None:
        """Tell the runner's process that calls are consumed now."""
        self._line.sendall(READY + b"\n")

    def ask(self, call: bytes) -> bytes:
        """Send a call, one line of JSON, and wait for its reply. Raises `LaneGone` when the runner is gone."""
        self._line.sendall(call + b"\n")
        line = self._file.readline(LONGEST_LINE)
        if not line.endswith(b"\n"):
            raise LaneGone("the tool runner ended under the call")
        return line.rstrip(b"\n")

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self._line.close()
