"""A small HTTP server on a thread of its own, through h11: one GET or HEAD a connection, and nothing that a client does keeps it from the next.

`health` has the answers. A request's head is bounded, and so is the time for it and for taking the answer. Where too many are connected, the one
that has been there longest goes: who only holds connections open cannot keep a probe out.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Protocol

import h11
import structlog

from metier_infra.errors import BadSettings
from metier_infra.health import Reply

log = structlog.get_logger()

HEAD_BYTES = 8 << 10
CHUNK = 4 << 10
WITHIN_S = 5.0
"""How long a client has for its request, and then for taking the answer; seconds."""
MOST_CLIENTS = 64


class Answers(Protocol):
    """Must not block for long."""

    def __call__(self, path: str, *, as_json: bool) -> Reply:
        """The answer for a path, as JSON where the client would rather have it and there is."""
        ...


class HealthServer:
    """Serves from its making until `close`. Port 0 takes any free port; `port` says which.

    Raises `BadSettings` where the address cannot be had.
    """

    def __init__(self, host: str, port: int, answers: Answers, *, within_s: float = WITHIN_S) -> None:
        self._answers, self._within_s = answers, within_s
        self._clients: dict[asyncio.Task[None], None] = {}
        self._listening = _listen(host, port)
        self.port: int = self._listening.getsockname()[1]
        self._loop, self._end = asyncio.new_event_loop(), asyncio.Event()
        self._thread = threading.Thread(target=self._live, name="health", daemon=True)
        self._thread.start()
        log.info("health and metrics", action="listen", host=host, port=self.port)

    @property
    def connected(self) -> int:
        """How many clients there are."""
        return len(self._clients)

    def close(self) -> None:
        """Hang up on everybody, and end the thread."""
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def _live(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._came, sock=self._listening, limit=HEAD_BYTES)
        await self._end.wait()
        server.close()

    def _came(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = self._loop.create_task(self._client(reader, writer))
        self._clients[client] = None
        client.add_done_callback(lambda _: self._clients.pop(client, None))
        if len(self._clients) > MOST_CLIENTS:
            longest = next(iter(self._clients))
            del self._clients[longest]
            longest.cancel()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        try:
            async with asyncio.timeout(self._within_s):
                reply, whole = await self._reply(parser, reader)
            async with asyncio.timeout(self._within_s):
                writer.write(_written(parser, reply, whole=whole))
                await writer.drain()
                writer.write_eof()
                await reader.read(CHUNK)  # until it hangs up: a connection that is cut at once can lose the answer
        except (OSError, TimeoutError, EOFError):
            pass
        finally:
            writer.transport.abort()

    async def _reply(self, parser: h11.Connection, reader: asyncio.StreamReader) -> tuple[Reply, bool]:
        """The answer, and whether its body goes with it. Raises `EOFError` where nothing was asked."""
        try:
            asked = await _request(parser, reader)
        except h11.RemoteProtocolError as error:
            return Reply(error.error_status_hint, f"{error}\n"), True
        if asked.method not in {b"GET", b"HEAD"}:
            return Reply(405, "GET and HEAD are answered\n"), True
        return self._answer(asked), asked.method == b"GET"

    def _answer(self, asked: h11.Request) -> Reply:
        path = asked.target.partition(b"?")[0].decode("ascii", "replace")
        wants_json = b"application/json" in dict(asked.headers).get(b"accept", b"")
        try:
            return self._answers(path, as_json=wants_json)
        except Exception:  # the next client's answer must not depend on this one
            log.exception("a defect of Métier", action="answer", path=path)
            return Reply(500, "a defect of Métier; its log says more\n")


def _listen(host: str, port: int) -> socket.socket:
    six = ":" in host
    family = socket.AF_INET6 if six else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, dualstack_ipv6=six and socket.has_dualstack_ipv6())
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (")[0]
        raise BadSettings(f"METIER_HTTP_PORT: nothing can listen at {host} port {port}: {why}") from error


async def _request(parser: h11.Connection, reader: asyncio.StreamReader) -> h11.Request:
    while True:
        event = parser.next_event()
        if isinstance(event, h11.Request):
            return event
        if event is not h11.NEED_DATA:
            raise EOFError
        parser.receive_data(await reader.read(CHUNK))


def _written(parser: h11.Connection, reply: Reply, *, whole: bool) -> bytes:
    body = reply.body.encode()
    about = {"content-type": reply.kind, "content-length": str(len(body)), "cache-control": "no-store"}
    head = h11.Response(status_code=reply.status, headers=list({**about, "connection": "close"}.items()))
    return b"".join([parser.send(head) or b"", body if whole else b""])
