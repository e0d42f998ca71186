"""The way of a call from a Celery child to the one runner of its `metier tools` process, and of its reply, signed, to the caller.

`serve` opens the server beside the runner, with the containers; each child of `celery_worker` holds a client, which hears when its copy
of a call is done with. Replies go out from here, by `redis_line`: a child may die, and never holds the key.
"""

from __future__ import annotations

import os
import socket
import socketserver
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import structlog
from pydantic import ValidationError

from metier_infra.errors import LaneGone
from metier_infra.failpoints import failpoint
from metier_infra.words import Word
from metier_tools.reply import Reply, call_digest, reply_to, seal
from metier_tools.runner import Runner
from metier_tools.tool import ToolCall

log = structlog.get_logger()

LONGEST_LINE = 64 * 1024 * 1024
"""No call is longer; bytes."""


class Order(Word):
    """What a child brings: a call as it came in, and the list on which its caller waits."""

    call: str
    reply_list: str


class Desk:
    """Where calls come in at the runner's process, and replies go out. `push` puts a sealed reply on a caller's list.

    A copy of a call that is in hand is told so at once; the answer then goes to every list that asked.
    """

    def __init__(self, runner: Runner, key: bytes, push: Callable[[str, bytes], None]) -> None:
        self._runner, self._key, self._push = runner, key, push

    def take(self, line: bytes) -> None:
        """See one copy of a call through. Returns when its child is free."""
        try:
            order = Order.model_validate_json(line)
            call = ToolCall.model_validate_json(order.call)
        except ValidationError as error:
            log.warning("not a tool call", action="drop", error=error.errors(include_url=False)[0]["msg"])
            return
        taken, digest, to = self._runner.take(call), call_digest(order.call), order.reply_list
        taken.answer.add_done_callback(
            lambda answer: self._send(to, reply_to(call.tool_call_id, digest, answer.result))
        )
        if taken.work is not None:
            taken.work()
        elif not taken.answer.done():
            self.say_in_hand(digest, to)

    def say_in_hand(self, digest: str, reply_list: str) -> None:
        """Tell who waits on this list that somebody is at the call of this digest."""
        self._send(reply_list, Reply(call_digest=digest, in_hand=True))

    def _send(self, reply_list: str, reply: Reply) -> None:
        self._push(reply_list, seal(self._key, reply))


class RelayServer:
    """Hears the children, each connection on a thread of its own: hands their lines to `take`, and says when it is done.

    The address is in Linux's abstract namespace: it leaves no file, and ends with this process. Only processes of our own user are heard.
    """

    def __init__(self, take: Callable[[bytes], None], ready: Callable[[], None]) -> None:
        self.address = f"\0metier-tools-{os.getpid()}-{os.urandom(8).hex()}"
        self._server = _Server(self.address, take, ready)
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

    def __init__(self, address: str, take: Callable[[bytes], None], ready: Callable[[], None]) -> None:
        self.take, self.ready = take, ready
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
                server.take(line)
                failpoint("tool.replied")
                with suppress(OSError):  # a child that died meanwhile needs no more; its copy comes again
                    self.wfile.write(DONE + b"\n")


READY = b"ready"
"""What the Celery process says instead of a call, once it consumes."""
DONE = b"done"
"""What a child hears when it is free."""


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

    def bring(self, order: Order) -> None:
        """Hand over a call, and wait until it is seen through. Raises `LaneGone` when the runner is gone."""
        self._line.sendall(order.model_dump_json().encode() + b"\n")
        if self._file.readline().strip() != DONE:
            raise LaneGone("the tool runner ended under the call")

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self._line.close()
