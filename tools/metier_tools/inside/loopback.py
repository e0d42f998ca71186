"""The way to the egress proxy inside a container: a local port at one end, the proxy's unix socket at the other. Standard library only.

`docker_sandbox` sends its source; a process that PID 1 forks runs `relay`. `egress` moves its own bytes, outside, with the same `Way`.
"""

from __future__ import annotations

import os
import select
import socket

CHUNK = 65536
MOST = 32
"""Connections at one time. Further ones wait in the listener's queue."""
_SPARE_FILES = 8


class Way:
    """One direction between two non-blocking sockets. It reads only when all that it read before is written, so it holds one chunk at most."""

    def __init__(self, source: socket.socket, sink: socket.socket, pending: bytes = b"") -> None:
        self.source, self.sink = source, sink
        self.pending, self.reading = pending, True

    @property
    def over(self) -> bool:
        """Whether all is read and written, or can no more be."""
        return not self.reading and not self.pending

    def wants(self) -> tuple[int, int]:
        """What it waits for: a file descriptor and the event of `poll`; nothing, (-1, 0), when it is over."""
        if self.pending:
            return self.sink.fileno(), select.POLLOUT
        return (self.source.fileno(), select.POLLIN) if self.reading else (-1, 0)

    def move(self) -> None:
        """Write what is pending, or else read. A broken socket ends this direction; the other may still have something to deliver."""
        try:
            if self.pending:
                self.pending = self.pending[self.sink.send(self.pending) :]
            else:
                data = self.source.recv(CHUNK)
                self.reading = bool(data)
                self.pending = self.turn(data)
        except BlockingIOError:
            return
        except OSError:
            self.reading, self.pending = False, b""
        if self.over:
            self.finish()

    def turn(self, data: bytes) -> bytes:
        """What is written for what was read; nothing read means that the source has ended."""
        return data

    def finish(self) -> None:
        """Pass the end on."""
        try:
            self.sink.shutdown(socket.SHUT_WR)
        except OSError:
            return


def wanted(ways: list[Way]) -> dict[int, int]:
    """What some ways wait for: file descriptors and their events."""
    events: dict[int, int] = {}
    for fd, event in [way.wants() for way in ways if not way.over]:
        events[fd] = events.get(fd, 0) | event
    return events


def wait(events: dict[int, int], longest_ms: float | None = None) -> set[int]:
    """The file descriptors where something happened; none when the time is up."""
    poll = select.poll()
    for fd, event in events.items():
        poll.register(fd, event)
    return {fd for fd, _ in poll.poll(longest_ms)}


def advance(ways: list[Way], ready: set[int]) -> None:
    """Move those ways whose sockets are ready."""
    for way in ways:
        if way.wants()[0] in ready:
            way.move()


def relay(listener_fd: int, path: str) -> None:
    """Lead each connection to the unix socket at `path`, until killed."""
    listener = socket.socket(fileno=listener_fd)
    listener.setblocking(False)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    most, pairs = min(MOST, (os.sysconf("SC_OPEN_MAX") - _SPARE_FILES) // 2), list[list[Way]]()
    while True:
        events = wanted([way for pair in pairs for way in pair])
        if len(pairs) < most:
            events[listener_fd] = select.POLLIN
        ready = wait(events)
        pairs = [pair for pair in pairs if _goes_on(pair, ready)]
        if listener_fd in ready:
            pairs += _joined(listener, path)


def _goes_on(pair: list[Way], ready: set[int]) -> bool:
    advance(pair, ready)
    if any(not way.over for way in pair):
        return True
    for way in pair:
        way.source.close()
    return False


def _joined(listener: socket.socket, path: str) -> list[list[Way]]:
    """A new connection's two ways; none when it is gone already, or the proxy takes no more."""
    far = None
    try:
        near, _ = listener.accept()
    except OSError:
        wait({}, 20)
        return []
    try:
        near.setblocking(False)
        far = socket.socket(socket.AF_UNIX)
        far.setblocking(False)
        far.connect(path)
    except OSError:
        near.close()
        if far is not None:
            far.close()
        return []
    return [[Way(near, far), Way(far, near)]]
