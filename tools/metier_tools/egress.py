"""The only way out of a sandbox that has egress: an HTTP/1.1 forward proxy on a unix socket, with a list of hosts and a byte limit.

`boot` opens one for each container whose profile has `egress` and mounts its socket there, where `loopback` leads to it; `execution`
records what it reports. The container is hostile: heads, connections, attempts, bytes and waiting are all bounded.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import h11
import structlog

from metier_tools.egress_call import EgressCall
from metier_tools.egress_rules import Resolve, Target, Verdict, answer_to, forwarded, judge, look_up, target_of
from metier_tools.inside.loopback import CHUNK, Way, advance, wait, wanted
from metier_tools.profile import Attempt, Egress

log = structlog.get_logger()

HEAD_BYTES = 16 * 1024
"""The head of a request is no longer."""
_ADDRESSES_TRIED, _WAITING, _LINGER_S, _LINGER_READS = 4, 128, 1.0, 16


def addresses_of(host: str, port: int) -> Sequence[str]:
    """What this machine's resolver says."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class _Cut(Exception):
    """The connection's call is over, or has used up its bytes."""


_End = tuple[socket.socket, h11.Connection]


class _Metered(Way):
    """A direction of a tunnel: bytes as they are, counted."""

    def __init__(
        self, source: socket.socket, sink: socket.socket, pending: bytes, spend: Callable[[int], None]
    ) -> None:
        super().__init__(source, sink, pending)
        self._spend = spend

    def turn(self, data: bytes) -> bytes:
        self._spend(len(data))
        return data


class _Message(_Metered):
    """A direction of plain HTTP: read by h11 on one side and written anew by h11 on the other, so that both agree where it ends."""

    def __init__(self, source: _End, sink: _End, target: Target, spend: Callable[[int], None]) -> None:
        super().__init__(source[0], sink[0], b"", spend)
        self._reader, self._writer, self._target = source[1], sink[1], target

    def turn(self, data: bytes) -> bytes:
        self._reader.receive_data(super().turn(data))
        return self.carried()

    def carried(self) -> bytes:
        """What is to be written for what the reader holds."""
        parts = list[bytes]()
        while not isinstance(event := self._reader.next_event(), type | h11.ConnectionClosed):
            parts.append(self._writer.send(forwarded(event, self._target)) or b"")
            self.reading = self.reading and not isinstance(event, h11.EndOfMessage)
        return b"".join(parts)

    def finish(self) -> None:
        """Some servers take the end of the stream for a client that has left: it is not passed on."""


def pump(up: Way, down: Way, *, over: Callable[[], bool], idle_s: float) -> None:
    """Move bytes both ways until it is over, or nothing has moved for so long."""
    ways = [up, down]
    for way in ways:
        way.source.setblocking(False)
    while not over():
        ready = wait(wanted(ways), 1000 * idle_s)
        if not ready:
            return
        advance(ways, ready)


@dataclass(frozen=True)
class _Manner:
    rules: Egress
    resolve: Resolve
    idle_s: float
    connect_s: float


class _Connection:
    """One client, one request. Runs on a thread of its own."""

    def __init__(self, client: socket.socket, call: EgressCall, manner: _Manner) -> None:
        self._client, self._call, self._manner = client, call, manner
        self._near = h11.Connection(h11.SERVER)
        self._read = 0
        self._number: int | None = None

    def serve(self) -> None:
        """Answer the request, or refuse it. Whoever goes away or breaks the protocol in the middle is cut."""
        try:
            with suppress(OSError, _Cut):
                request = self._request()
                if request:
                    self._answer(request)
        except h11.RemoteProtocolError:
            with suppress(OSError):
                self._refuse("bad_request", None)
        finally:
            self._call.release(self._client)

    def _request(self) -> h11.Request | None:
        """The head of a request, within the idle time as a whole; None when the client left."""
        until = time.monotonic() + self._manner.idle_s
        while (event := self._near.next_event()) is h11.NEED_DATA:
            if self._read == HEAD_BYTES:
                raise h11.RemoteProtocolError("the head is too long")
            self._client.settimeout(max(0.001, until - time.monotonic()))
            data = self._client.recv(HEAD_BYTES - self._read)
            self._read += len(data)
            self._call.spend(len(data))
            self._near.receive_data(data)
        return event if isinstance(event, h11.Request) else None

    def _answer(self, request: h11.Request) -> None:
        rules, target = self._manner.rules, target_of(request)
        verdict = judge(rules, target)
        if target is None or verdict != "allowed":
            return self._refuse(verdict, target)
        if self._call.spent:
            return self._refuse("spent", target)
        verdict, addresses = look_up(rules, target, self._manner.resolve)
        if verdict != "allowed":
            return self._refuse(verdict, target)
        upstream = self._connect(addresses, target.port)
        if upstream is None:
            return self._refuse("unreachable", target)
        try:
            if self._call.spent:  # by another connection, meanwhile
                return self._refuse("spent", target)
            self._note("allowed", target)
            return self._exchange(request, target, upstream) if target.path else self._tunnel(upstream)
        finally:
            self._call.release(upstream)

    def _connect(self, addresses: Sequence[str], port: int) -> socket.socket | None:
        """A connection to one of the very addresses that were checked."""
        until = time.monotonic() + self._manner.connect_s
        for address in addresses[:_ADDRESSES_TRIED]:
            upstream = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
            if not self._call.hold(upstream):
                upstream.close()
                raise _Cut
            try:
                upstream.settimeout(max(0.001, until - time.monotonic()))
                upstream.connect((address, port))
                upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError:
                self._call.release(upstream)
            else:
                return upstream
        return None

    def _tunnel(self, upstream: socket.socket) -> None:
        early, _ = self._near.trailing_data
        up = _Metered(self._client, upstream, early, self._spend)
        down = _Metered(upstream, self._client, b"HTTP/1.1 200 Connection established\r\n\r\n", self._spend)
        pump(up, down, over=lambda: up.over and down.over, idle_s=self._manner.idle_s)

    def _exchange(self, request: h11.Request, target: Target, upstream: socket.socket) -> None:
        near, far = (self._client, self._near), (upstream, h11.Connection(h11.CLIENT))
        up = _Message(near, far, target, self._spend)
        down = _Message(far, near, target, self._spend)
        with suppress(h11.ProtocolError):
            up.pending = (far[1].send(forwarded(request, target)) or b"") + up.carried()
            pump(up, down, over=lambda: down.over, idle_s=self._manner.idle_s)
        if self._near.our_state is h11.SEND_RESPONSE:
            self._say("bad_request" if self._near.their_state is h11.ERROR else "unreachable", target)
        elif not up.over:
            self._part()

    def _spend(self, size: int) -> None:
        if not self._call.spend(size, self._number):
            raise _Cut

    def _note(self, verdict: Verdict, target: Target | None) -> Target:
        target = target or Target("", 0, b"")
        self._number = self._call.note(Attempt(target.host, target.port, verdict, self._read))
        return target

    def _refuse(self, verdict: Verdict, target: Target | None) -> None:
        target = self._note(verdict, target)
        log.warning("egress refused", action="refuse", host=target.host, port=target.port, reason=verdict)
        self._say(verdict, target)

    def _say(self, verdict: Verdict, target: Target) -> None:
        self._client.settimeout(_LINGER_S)
        self._client.sendall(answer_to(verdict, target.host, target.port))
        self._part()

    def _part(self) -> None:
        """Let the client read the answer to its end: one that still sends would meet an error instead."""
        self._client.shutdown(socket.SHUT_WR)
        until = time.monotonic() + _LINGER_S
        for _ in range(_LINGER_READS):
            self._client.settimeout(max(0.001, until - time.monotonic()))
            if not self._client.recv(CHUNK):
                return


class EgressProxy:
    """The proxy of one container. Between `report` and the next `start_call` it is shut: whoever connects then waits, and is closed.

    What the container does before its first call, while it boots, counts to that call.

    Args:
        path: where its socket is made, connectable by every user: in a folder that only this container has.
        rules: hosts, bytes of one call, and whether a name may lead to a private address.
        resolve: looks names up; asked once for each request that the rules allow, and for no other.
        idle_s: how long a head may take in all, and how long an open connection may rest, in seconds.
        connect_s: how long a host may take to be reached, in seconds.
        connections: how many are served at one time; further ones wait.

    Raises:
        OSError: when the socket cannot be made.
    """

    def __init__(
        self,
        path: Path,
        rules: Egress,
        *,
        resolve: Resolve = addresses_of,
        idle_s: float = 30.0,
        connect_s: float = 10.0,
        connections: int = 32,
    ) -> None:
        self.path, self._manner = path, _Manner(rules, resolve, idle_s, connect_s)
        self._call, self._booting = EgressCall(rules.bytes), True
        self._gate, self._closed, self._slots = threading.Lock(), threading.Event(), threading.Semaphore(connections)
        self._admits = threading.Event()
        self._admits.set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        path.chmod(0o666)
        self._listener.listen(_WAITING)
        self._listener.setblocking(False)
        self._threads = list[threading.Thread]()
        self._acceptor = threading.Thread(target=self._accept, name="egress", daemon=True)
        self._acceptor.start()

    def start_call(self) -> None:
        """A new call: all bytes are there again, and nothing that came since the last one, or is left of it, reaches anything."""
        with self._gate:
            if not self._booting:
                self._renew()
            self._booting = False

    def _renew(self) -> None:
        self._call.cut()
        with suppress(OSError):
            for _ in range(_WAITING + 1):  # as many as wait; those that come meanwhile are of this call
                self._listener.accept()[0].close()
        self._call = EgressCall(self._manner.rules.bytes)
        self._admits.set()

    def report(self) -> tuple[Attempt, ...]:
        """End the call: cut what is open, and tell its attempts; at most `MOST_ATTEMPTS`."""
        with self._gate:
            self._booting = False
            self._call.cut()
        return self._call.report()

    def close(self) -> None:
        """Cut all, end the threads, remove the socket. One that waits for the system's resolver ends when that answers."""
        self._closed.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        with self._gate:
            self._call.cut()
            self._admits.set()
        until = time.monotonic() + 5.0
        self._acceptor.join(5.0)
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while self._slots.acquire() and not self._closed.is_set():
            if not self._took():
                self._slots.release()

    def _took(self) -> bool:
        """Wait for one connection, and serve it; False when there was none after all."""
        self._admits.wait()
        wait({self._listener.fileno(): select.POLLIN})
        try:
            with self._gate:
                call = self._call
                if not call.admits:
                    self._admits.clear()
                    return False
                client, _ = self._listener.accept()
                call.admit(client)
        except BlockingIOError:
            return False
        except OSError:  # closed, or this process has no file descriptor left just now
            self._closed.wait(0.1)
            return False
        return self._started(client, call)

    def _started(self, client: socket.socket, call: EgressCall) -> bool:
        """Give a connection its thread; False when this machine has none left just now."""
        thread = threading.Thread(target=self._serve, args=(client, call), name="egress", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            call.release(client)
            return False
        self._threads = [*(one for one in self._threads if one.is_alive()), thread]
        return True

    def _serve(self, client: socket.socket, call: EgressCall) -> None:
        try:
            _Connection(client, call, self._manner).serve()
        finally:
            self._slots.release()
