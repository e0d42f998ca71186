"""What these tests stand on: `metier` as a process whose progress is read, and a door before a service that is shut, mute or open."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Self

HUNG_S = 120
"""To tell an end from a hang."""


class Door:
    """A port of 127.0.0.1 that refuses until it is opened to `target`; a mute one accepts, and says nothing."""

    def __init__(self, target: int = 0) -> None:
        self._target = target
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._open: list[socket.socket] = []

    def __enter__(self) -> Self:
        return self

    def mute(self) -> Self:
        self._socket.listen(64)
        return self

    def open(self) -> None:
        self._socket.listen(64)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self._socket.accept()
                there = socket.create_connection(("127.0.0.1", self._target))
                self._open += [here, there]
                for one, other in ((here, there), (there, here)):
                    threading.Thread(target=_pump, args=(one, other), daemon=True).start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in (self._socket, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def _pump(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)


class Command:
    """`metier WORDS` as a process of its own, with nothing of `METIER_` in its environment but what is given."""

    def __init__(self, *words: str, env: Mapping[str, str]) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("METIER_", "OTEL_"))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "metier", *words],
            env=clean | dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def await_progress(self, says: str) -> str:
        """The next line of standard error that says so."""
        assert self._process.stderr is not None
        while line := self._process.stderr.readline():
            if says in line:
                return line
        return "it ended without saying so"

    def end(self) -> tuple[int, str, str]:
        """Exit code, standard output, and standard error where nothing of it was read before."""
        out, err = self._process.communicate(timeout=HUNG_S)
        return self._process.returncode, out, err


def run(*words: str, env: Mapping[str, str]) -> tuple[int, str, str]:
    with Command(*words, env=env) as command:
        return command.end()
