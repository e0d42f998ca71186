"""A relay between a role and a service that a test can cut: the service goes on, the role sees it gone."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path


class Relay:
    """Listens at a unix socket and passes bytes to another one, until it is cut; mended, it passes them again."""

    def __init__(self, listen: Path, target: str) -> None:
        self._target = target
        self._pairs: list[socket.socket] = []
        self._whole = True
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(listen))
        self._server.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                if not self._whole:
                    near.close()
                    continue
                far = socket.socket(socket.AF_UNIX)
                far.connect(self._target)
                self._pairs += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=_pass, args=(source, sink), daemon=True).start()

    def cut(self) -> None:
        """End every connection, and refuse new ones."""
        self._whole = False
        for one in self._pairs:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def mend(self) -> None:
        """Pass bytes again."""
        self._whole = True

    def close(self) -> None:
        """End for good."""
        self.cut()
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


def _pass(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
