"""One command in an image that has no Python for our PID 1: a container to a call, parked until it is told the command.

`docker_sandbox` opens it. The engine's own streams are all there is, so there are no files, no secrets and no network, and the
command's time is kept from outside alone.
"""

from __future__ import annotations

import shlex
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from metier_tools.conversation import Flood, Output
from metier_tools.inside import wire
from metier_tools.profile import Profile
from metier_tools.protocol import Demux, Forged
from metier_tools.sandbox import Outcome, Request, Verdict
from metier_tools.tool import ToolSpec

PARKED = ("/bin/sh", "-c", "n='\n'; IFS= read -r line; eval \"$line\"")
"""What waits in the container: one line, which becomes the command."""
LACKS = "the image of this tool has no /usr/bin/python3, and without it a call can have no program, files, secrets or network"
_READ = 65536


class Ended(Protocol):
    """How a container ended."""

    @property
    def exit_code(self) -> int:
        """The command's exit code; above 128 a signal."""
        ...

    @property
    def out_of_memory(self) -> bool:
        """Whether the kernel killed it for memory."""
        ...


class BareLine:
    """See `line.Line`. `ended` asks the engine how the container ended; it serves one call."""

    def __init__(self, line: socket.socket, profile: Profile, ended: Callable[[], Ended | None]) -> None:
        self._line, self._profile, self._ended = line, profile, ended
        self._demux = Demux()
        self._in_use = threading.Lock()
        self._used = False

    definitions: tuple[ToolSpec, ...] = ()
    """See `Line.definitions`."""

    def alive(self) -> bool:
        """See `Line.alive`: until it has served."""
        return not self._used

    def run(self, request: Request) -> Outcome:
        """See `Line.run`."""
        began = time.monotonic()
        output = Output(self._profile.keep_bytes, self._profile.flood_bytes)
        with self._in_use:
            if self._used or request.files or request.take or request.environment or request.runs == "python":
                return Outcome("died" if self._used else "refused", stderr=LACKS)
            self._used = True
            until = began + min(request.timeout_s, self._profile.longest_s)
            status, code = self._speak(spoken(request), until, output)
        wall_ms = round(1000 * (time.monotonic() - began), 3)
        return Outcome(status, code, output.text(wire.OUT), output.text(wire.ERR), output.truncated, wall_ms)

    def _speak(self, words: bytes, until: float, output: Output) -> tuple[Verdict, int | None]:
        try:
            self._line.settimeout(max(0.001, until - time.monotonic()))
            self._line.sendall(words)
            self._line.shutdown(socket.SHUT_WR)
            while data := self._receive(until):
                for chunk in self._demux.split(data):
                    output.add(chunk)
            return judge(self._ended())
        except TimeoutError:
            return "timeout", None
        except Flood:
            return "output_cut", None
        except (OSError, Forged):
            return "died", None

    def _receive(self, until: float) -> bytes:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._line.settimeout(left)
        return self._line.recv(_READ)

    def hang_up(self) -> None:
        """See `Line.hang_up`."""
        self._used = True
        with suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)
        with self._in_use:
            self._line.close()


def spoken(request: Request) -> bytes:
    """The line that becomes the command, and what the command reads."""
    words = ("/bin/sh", "-c", "--", request.source) if request.runs == "shell" else request.argv
    quoted = " ".join(shlex.quote(word).replace("\n", "'\"$n\"'") for word in words)
    return f"exec {quoted}\n".encode() + request.stdin


def judge(ended: Ended | None) -> tuple[Verdict, int | None]:
    """One word for how the command ended, and its exit code, negative for a signal. None: its streams ended, and it did not."""
    if ended is None:
        return "died", None
    code = ended.exit_code if ended.exit_code <= 128 else 128 - ended.exit_code
    if code == 0:
        return "ok", 0
    return ("oom" if ended.out_of_memory else "error"), code
