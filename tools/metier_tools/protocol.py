"""The host's side of the sandbox protocol, pure: bytes from a container in, checked frames out.

`conversation` feeds it. The container is hostile: a length, kind or value that PID 1 would not send raises `Forged`, and nothing is
kept beyond one frame.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from metier_tools.inside import wire
from metier_tools.sandbox import Request

_MUX = struct.Struct(">BxxxI")


class Forged(Exception):
    """Bytes that no PID 1 of ours sends: the container is not to be trusted any more."""


@dataclass(frozen=True)
class Pong:
    """PID 1 is there."""


@dataclass(frozen=True)
class Chunk:
    """Some output of the program; `stream` is `wire.OUT` or `wire.ERR`."""

    stream: int
    data: bytes


@dataclass(frozen=True)
class Taken:
    """Some of a file that was wanted, by its number among those; the first piece of each is empty."""

    number: int
    data: bytes


@dataclass(frozen=True)
class LeftOut:
    """Why a file that was wanted does not come: `wire.ABSENT`, `wire.IRREGULAR` or `wire.TOO_LARGE`."""

    number: int
    reason: int


@dataclass(frozen=True)
class End:
    """The program has ended and its traces are wiped, unless `dirty` says why not. `code` is negative for a signal; `stopped` as in `wire`."""

    code: int
    stopped: int
    dirty: int
    oom_kills: int
    wall_s: float
    processor_s: float
    resident_kib: int


Frame = Pong | Chunk | Taken | LeftOut | End


def ping() -> bytes:
    """The question whether PID 1 is there, on the wire."""
    return wire.REQUEST.pack(wire.PING, 0.0, 0, 0, 0)


def ask(request: Request, seconds: float, *, flood: int, most: int) -> bytes:
    """A request on the wire. `flood`: the bytes that may be written in all; `most`: those that the files it wants may take."""
    names = [name.encode() + b"\0" for name in request.take]
    wish = b"".join([wire.WISH.pack(most), *names]) if names else b""
    body = b"".join(_parts(request))
    return wire.REQUEST.pack(_KINDS[request.runs], seconds, flood, len(wish), len(body)) + wish + body


def _parts(request: Request) -> Iterator[bytes]:
    if request.source:
        yield _part(wire.SOURCE, request.source.encode("utf-8", "surrogatepass"))
    for word in request.argv:
        yield _part(wire.ARGUMENT, word.encode())
    for name, value in request.environment.items():
        yield _part(wire.VARIABLE, f"{name}={value}".encode())
    if request.stdin:
        yield _part(wire.STDIN, request.stdin)
    for path, data in request.files.items():
        place = path.encode()
        yield _part(wire.FILE, wire.NAME.pack(len(place)) + place + data)


def _part(kind: int, data: bytes) -> bytes:
    return wire.FRAME.pack(kind, len(data)) + data


_KINDS = {"python": wire.PYTHON, "shell": wire.SHELL, "command": wire.COMMAND, "mcp": wire.SERVER}


class Demux:
    """Undoes the engine's multiplexing of stdout and stderr, keeping nothing."""

    def __init__(self) -> None:
        self._head = b""
        self._stream = wire.OUT
        self._left = 0

    def split(self, data: bytes) -> Iterator[Chunk]:
        """The pieces of both streams in `data`, whatever the cuts. Raises `Forged`."""
        view = memoryview(data)
        while view:
            if self._left:
                part, view = view[: self._left], view[self._left :]
                self._left -= len(part)
                yield Chunk(self._stream, bytes(part))
            else:
                view = self._read_head(view)

    def feed(self, data: bytes) -> bytes:
        """The bytes of stdout in `data`; what PID 1 says on its own stderr is dropped. Raises `Forged`."""
        return b"".join(piece.data for piece in self.split(data) if piece.stream == wire.OUT)

    def _read_head(self, view: memoryview) -> memoryview:
        missing = _MUX.size - len(self._head)
        self._head += view[:missing]
        if len(self._head) == _MUX.size:
            self._stream, self._left = _MUX.unpack(self._head)
            self._head = b""
            if self._stream not in {wire.OUT, wire.ERR}:
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
            body = bytes(self._held[at + wire.FRAME.size : at + size])
            found.append(decode(self._held[at], body))
            at += size
        del self._held[:at]
        return found

    def _size(self, at: int) -> int:
        """The whole length of the frame that begins at `at`; 0 while its head is not complete."""
        if len(self._held) < at + wire.FRAME.size:
            return 0
        kind, length = wire.FRAME.unpack_from(self._held, at)
        least, most = _LENGTHS.get(kind, (1, 0))
        if not least <= length <= most:
            raise Forged(f"a frame of kind {kind} with {length} bytes")
        return wire.FRAME.size + int(length)


_LENGTHS = {
    wire.PONG: (0, 0),
    wire.OUT: (1, wire.CHUNK),
    wire.ERR: (1, wire.CHUNK),
    wire.TAKEN: (wire.NAME.size, wire.CHUNK),
    wire.ABSENT: (wire.NAME.size, wire.NAME.size),
    wire.IRREGULAR: (wire.NAME.size, wire.NAME.size),
    wire.TOO_LARGE: (wire.NAME.size, wire.NAME.size),
    wire.DONE: (wire.END.size, wire.END.size),
}


def decode(kind: int, body: bytes) -> Frame:
    """One frame whose kind and length are right. Raises `Forged` when what it says cannot be."""
    if kind == wire.PONG:
        return Pong()
    if kind in {wire.OUT, wire.ERR}:
        return Chunk(kind, body)
    if kind != wire.DONE:
        (number,) = wire.NAME.unpack_from(body)
        return Taken(number, body[wire.NAME.size :]) if kind == wire.TAKEN else LeftOut(number, kind)
    code, stopped, dirty, oom_kills, wall, processor, resident = wire.END.unpack(body)
    if not (
        -64 <= code <= 255
        and stopped in {wire.ENDED, wire.TIME, wire.FLOOD}
        and 0 <= dirty <= 7
        and _seconds(wall)
        and _seconds(processor)
    ):
        raise Forged("an end that cannot be")
    return End(code, stopped, dirty, oom_kills, wall, processor, resident)


def _seconds(value: float) -> bool:
    return math.isfinite(value) and value >= 0
