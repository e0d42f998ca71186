"""What one call has used of the network, and the sockets that it has open: counted, and cut when it has used too much or is over.

`egress` makes one for each call.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from dataclasses import replace

from metier_tools.profile import Attempt

MOST_ATTEMPTS = 1000
"""Connections of one call; further ones wait for the next, which closes them."""


class EgressCall:
    """One call's share. May be used from any thread. `limit`: bytes, both ways."""

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()
        self._left, self._came, self._over = limit, 0, False
        self._open: set[socket.socket] = set()
        self._attempts: list[Attempt] = []

    @property
    def spent(self) -> bool:
        """Whether it may use no more."""
        return self._left < 0

    @property
    def admits(self) -> bool:
        """Whether it may have one more connection."""
        return not self._over and self._came < MOST_ATTEMPTS

    def admit(self, client: socket.socket) -> None:
        """Hold a new connection. For the thread that accepts."""
        self._came += 1
        self.hold(client)

    def hold(self, opened: socket.socket) -> bool:
        """Keep a socket, to cut it with the others; False when the call is over."""
        with self._lock:
            if not self._over:
                self._open.add(opened)
            return not self._over

    def release(self, opened: socket.socket) -> None:
        """Close a socket."""
        with self._lock:
            self._open.discard(opened)
        opened.close()

    def note(self, attempt: Attempt) -> int:
        """Add an attempt; its number."""
        with self._lock:
            self._attempts.append(attempt)
            return len(self._attempts) - 1

    def spend(self, size: int, number: int | None = None) -> bool:
        """Count bytes, for an attempt if there is one yet. The moment the limit is passed all is cut; False from then on."""
        with self._lock:
            before, self._left = self._left, self._left - size
            if number is not None:
                was = self._attempts[number]
                self._attempts[number] = replace(was, bytes=was.bytes + size)
            if before >= 0 > self._left:
                self._shut()
            return self._left >= 0

    def cut(self) -> None:
        """End it: all is cut, and nothing more is held."""
        with self._lock:
            self._over = True
            self._shut()

    def _shut(self) -> None:
        for opened in self._open:
            with suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)

    def report(self) -> tuple[Attempt, ...]:
        """The attempts so far."""
        with self._lock:
            return tuple(self._attempts)
