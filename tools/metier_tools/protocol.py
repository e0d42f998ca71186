"""The host's side of the sandbox protocol, pure: bytes from a container in, checked frames out.

`conversation` feeds it. The container is hostile: a length, kind or value that PID 1 would not send raises `Forged`, and nothing is
kept beyond one frame.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from metier_tools import pid1

_MUX = struct.Struct(">BxxxI")
_STDIN, _STDOUT, _STDERR = 0, 1, 2


class Forged(Exception):
    """Bytes that no PID 1 of ours sends: the container is not to be trusted any more."""


@dataclass(frozen=True)
class Pong:
    """PID 1 is there."""


@dataclass(frozen=True)
class Chunk:
    """Some output of the program; `stream` is `pid1.OUT` or `pid1.ERR`."""

    stream: int
    data: bytes


@dataclass(frozen=True)
class End:
    """The program has ended and its traces are wiped, unless `dirty` says why not. `code` is negative for a signal."""

    code: int
    timed_out: bool
    dirty: int
    oom_kills: int
    wall_s: float
    processor_s: float
    resident_kib: int


Frame = Pong | Chunk | End


def ask(kind: int, seconds: float = 0.0, source: bytes = b"") -> bytes:
    """A request on the wire."""
    return pid1.REQUEST.pack(kind, seconds, len(source)) + source


class Demux:
    """Undoes the engine's multiplexing of stdout and stderr, keeping nothing. What PID 1 says on its own stderr is dropped."""

    def __init__(self) -> None:
        self._head = b""
        self._stream = _STDOUT
        self._left = 0

    def feed(self, data: bytes) -> bytes:
        """The bytes of stdout in `data`, whatever the cuts."""
        view, found = memoryview(data), bytearray()
        while view:
            if self._left:
                part, view = view[: self._left], view[self._left :]
                self._left -= len(part)
                found += part if self._stream == _STDOUT else b""
            else:
                view = self._read_head(view)
        return bytes(found)

    def _read_head(self, view: memoryview) -> memoryview:
        missing = _MUX.size - len(self._head)
        self._head += view[:missing]
        if len(self._head) == _MUX.size:
            self._stream, self._left = _MUX.unpack(self._head)
            self._head = b""
            if self._stream not in {_STDIN, _STDOUT, _STDERR}:
                raise Forged(f"a stream numbered {self._stream}")
        return view[missing:]


class Frames:
    """Cuts a stream into frames, holding at most one that is not complete."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes. Raises `Forged`."""
        self._held += data
        found: list[Frame] = []
        at = 0
        while (size := self._size(at)) and len(self._held) >= at + size:
            body = bytes(self._held[at + pid1.FRAME.size : at + size])
            found.append(decode(self._held[at], body))
            at += size
        del self._held[:at]
        return found

    def _size(self, at: int) -> int:
        """The whole length of the frame that begins at `at`; 0 while its head is not complete."""
        if len(self._held) < at + pid1.FRAME.size:
            return 0
        kind, length = pid1.FRAME.unpack_from(self._held, at)
        least, most = _LENGTHS.get(kind, (1, 0))
        if not least <= length <= most:
            raise Forged(f"a frame of kind {kind} with {length} bytes")
        return pid1.FRAME.size + int(length)


_LENGTHS = {
    pid1.PONG: (0, 0),
    pid1.OUT: (1, pid1.CHUNK),
    pid1.ERR: (1, pid1.CHUNK),
    pid1.DONE: (pid1.END.size, pid1.END.size),
}


def decode(kind: int, body: bytes) -> Frame:
    """One frame whose kind and length are right. Raises `Forged` when what it says cannot be."""
    if kind == pid1.PONG:
        return Pong()
    if kind in {pid1.OUT, pid1.ERR}:
        return Chunk(kind, body)
    code, timed_out, dirty, oom_kills, wall, processor, resident = pid1.END.unpack(body)
    if not (-64 <= code <= 255 and timed_out in {0, 1} and 0 <= dirty <= 7 and _seconds(wall) and _seconds(processor)):
        raise Forged("an end that cannot be")
    return End(code, bool(timed_out), dirty, oom_kills, wall, processor, resident)


def _seconds(value: float) -> bool:
    return math.isfinite(value) and value >= 0
