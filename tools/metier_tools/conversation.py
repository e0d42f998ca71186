"""One container's end of the line: ask PID 1 to run a program, and judge what comes back.

`docker_sandbox` opens it on the attach stream. Every byte is bounded and every wait has an end: whatever the container does, `run`
returns an outcome at most `GRACE_S` after the program's time. After a `broken` one the container is not to be used again.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog

from metier_tools.inside import wire
from metier_tools.profile import Profile
from metier_tools.protocol import Chunk, Demux, End, Forged, Frame, Frames, LeftOut, Pong, Taken, ask, ping
from metier_tools.sandbox import Outcome, Request, Verdict
from metier_tools.tool import ToolSpec

log = structlog.get_logger()

GRACE_S = 1.5
"""What the end of a call may take beyond its time: killing, wiping, telling. Seconds."""
SLACK = 4 * wire.CHUNK
"""What may still come of a program that PID 1 stopped because it wrote too much; bytes. More than that, and the container is a liar."""
_READ = 65536


class Flood(Exception):
    """The program wrote more than it may in all."""


class Output:
    """What a program wrote, as far as it is kept, and the files that were taken."""

    def __init__(self, keep: int, flood: int, *, take: Sequence[str] = (), most: int = 0) -> None:
        self._keep, self._flood = keep, flood
        self._take, self._room = take, most
        self._files: dict[str, bytearray] = {}
        self.left_out: dict[str, str] = {}
        self._kept = {wire.OUT: bytearray(), wire.ERR: bytearray()}
        self._written = 0
        self.truncated = False

    def add(self, chunk: Chunk) -> None:
        """Keep what there is room for. Raises `Flood`."""
        kept = self._kept[chunk.stream]
        room = self._keep - len(kept)
        kept += chunk.data[:room]
        self.truncated = self.truncated or len(chunk.data) > room
        self._written += len(chunk.data)
        if self._written > self._flood:
            raise Flood

    def keep(self, frame: Taken | LeftOut) -> None:
        """Keep a piece of a file. Raises `Forged` for what nobody wanted, or more than was allowed."""
        if frame.number >= len(self._take):
            raise Forged("a file that nobody wanted")
        name = self._take[frame.number]
        if isinstance(frame, LeftOut):
            self.left_out[name] = _REASONS[frame.reason]
            return
        self._room -= len(frame.data)
        if self._room < 0:
            raise Forged("more of files than was allowed")
        kept = self._files.setdefault(name, bytearray())
        kept += frame.data

    @property
    def files(self) -> dict[str, bytes]:
        """The files that were taken, whole."""
        return {name: bytes(data) for name, data in self._files.items()}

    def text(self, stream: int) -> str:
        """A stream as text that any store can hold: bytes that are not UTF-8, and NUL, become U+FFFD."""
        return self._kept[stream].decode("utf-8", "replace").replace("\0", "\ufffd")


_REASONS = {
    wire.ABSENT: "it is not there, or its path leads over a link",
    wire.IRREGULAR: "it is not a regular file",
    wire.TOO_LARGE: "it is too large",
}


@dataclass(frozen=True)
class Said:
    """How a program ended: PID 1's own word, or what broke off the conversation."""

    end: End | None
    broken: Verdict | None = None


class Conversation:
    """Speaks with PID 1 over a connected socket that carries the engine's multiplexed stream. One call at a time."""

    def __init__(self, line: socket.socket, profile: Profile) -> None:
        self._line = line
        self._profile = profile
        self._demux, self._frames = Demux(), Frames()
        self._in_use = threading.Lock()
        self.broken = False

    def greet(self, within_s: float) -> bool:
        """Whether PID 1 answers in time."""
        until = time.monotonic() + within_s
        try:
            self._send(ping(), until)
            while not (frames := self._receive(until)):
                pass
        except (OSError, EOFError, Forged):
            return False
        return frames == [Pong()]

    definitions: tuple[ToolSpec, ...] = ()
    """See `Line.definitions`."""

    def alive(self) -> bool:
        """Whether the line is open and silent, as it must be between calls."""
        with self._in_use:
            return not self.broken and self._silent()

    def _silent(self) -> bool:
        self._line.settimeout(0)
        try:
            self._line.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def run(self, request: Request) -> Outcome:
        """Run one program to its end."""
        began = time.monotonic()
        timeout_s = min(request.timeout_s, self._profile.longest_s) if request.timeout_s > 0 else 0.0
        most = self._profile.take_bytes
        output = Output(self._profile.keep_bytes, self._profile.flood_bytes + SLACK, take=request.take, most=most)
        with self._in_use:
            was_broken, self.broken = self.broken, True  # and so it stays if anything is raised in the middle
            said = self._speak(request, timeout_s, output)
            self.broken = was_broken or said.end is None or said.end.dirty > 0
        if self.broken:
            log.info("container spoilt", action="drop", reason=said.broken, dirty=said.end.dirty if said.end else None)
        return outcome(said, output, 1000 * (time.monotonic() - began))

    def _speak(self, request: Request, timeout_s: float, output: Output) -> Said:
        until = time.monotonic() + timeout_s + GRACE_S
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # PID 1 may have said why before it ended
                self._send(
                    ask(request, timeout_s, flood=self._profile.flood_bytes, most=self._profile.take_bytes), until
                )
            while (end := _take(self._receive(until), output)) is None:
                pass
        except TimeoutError:
            return Said(None, "timeout")
        except Flood:
            return Said(None, "output_cut")
        except (OSError, EOFError, Forged):
            return Said(None, "died")
        return Said(end)

    def _send(self, data: bytes, until: float) -> None:
        self._line.settimeout(max(0.001, until - time.monotonic()))
        self._line.sendall(data)

    def _receive(self, until: float) -> list[Frame]:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._line.settimeout(left)
        data = self._line.recv(_READ)
        if not data:
            raise EOFError
        return self._frames.feed(self._demux.feed(data))

    def hang_up(self) -> None:
        """End of stdin: PID 1 ends, and with it all that runs in the container. From any thread; a call in hand ends as `died`.

        The socket is closed only when no thread is in it, since its number is given to the next one at once.
        """
        self.broken = True
        with suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)
        with self._in_use:
            self._line.close()


def _take(frames: list[Frame], output: Output) -> End | None:
    """Keep the output among the frames; the end, if it is the last of them. Raises `Forged` and `Flood`."""
    for position, frame in enumerate(frames, 1):
        if isinstance(frame, Chunk):
            output.add(frame)
        elif isinstance(frame, Taken | LeftOut):
            output.keep(frame)
        elif isinstance(frame, End) and position == len(frames):
            return frame
        else:
            raise Forged(f"{type(frame).__name__} out of turn")
    return None


def outcome(said: Said, output: Output, wall_ms: float) -> Outcome:
    """What a caller is told."""
    status, code = verdict(said), said.end.code if said.end else None
    return Outcome(
        status,
        code,
        output.text(wire.OUT),
        output.text(wire.ERR),
        output.truncated or status == "output_cut",
        round(wall_ms, 3),
        output.files,
        output.left_out,
    )


def verdict(said: Said) -> Verdict:
    """One word for how it ended. A process killed for memory explains a failure; a program that survived it is judged by its own end."""
    end = said.end
    if end is None:
        return said.broken or "died"
    if end.stopped:
        return "timeout" if end.stopped == wire.TIME else "output_cut"
    if end.code == 0:
        return "ok"
    return "oom" if end.oom_kills else "error"
