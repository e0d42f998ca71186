"""An SSH server before the tests' own engine, as on a machine that runs sandboxes. Used by `test_role_images`."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

SSHD = Path(__file__).parents[2] / "infra/local/sshd.py"
PATIENCE_S = 60.0
USER = "nobody" if os.geteuid() == 0 else Path.home().owner()


@dataclass(frozen=True)
class Far:
    """Where the engine is, as `ssh://…`, and the folder with the key and the hosts that are known."""

    address: str
    keys: Path


@contextmanager
def far_engine(engine: Path) -> Generator[Far]:
    """That server, while the block lasts; its user, who has no rights, may open a socket that leads to `engine`."""
    folder = Path(tempfile.mkdtemp(prefix="metier-far-"))
    folder.chmod(0o755)
    keys, port = folder / "keys", _free_port()
    keys.mkdir()
    _pair(folder / "host")
    _pair(folder / "user")
    shutil.copy(folder / "user", keys / "id_ed25519")
    (keys / "id_ed25519").chmod(0o640)
    (keys / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    door = _Relay(folder / "engine.sock", engine)
    server = subprocess.Popen([sys.executable, str(SSHD), str(folder), str(port)])
    try:
        _await(port, server)
        yield Far(f"ssh://{USER}@127.0.0.1:{port}{door.path}", keys)
    finally:
        server.terminate()
        server.wait()
        door.close()
        shutil.rmtree(folder)


def _free_port() -> int:
    """One below those that systems draw for outgoing connections."""
    for port in random.sample(range(20000, 32000), 1000):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


def _pair(path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.chmod(0o600)
    path.with_suffix(".pub").write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n")


def _await(port: int, server: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + PATIENCE_S
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 2) as line:
            if line.recv(4) == b"SSH-":
                return
        assert server.poll() is None, "sshd ended"
        assert time.monotonic() < limit, "sshd does not listen"
        time.sleep(0.05)


class _Relay:
    """A socket that anybody may open, before one that only root may."""

    def __init__(self, path: Path, behind: Path) -> None:
        self.path, self._behind = path, behind
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        path.chmod(0o666)
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed: no more
            while True:
                here, _ = self._listener.accept()
                there = socket.socket(socket.AF_UNIX)
                there.connect(str(self._behind))
                for one, other in ((here, there), (there, here)):
                    threading.Thread(target=_pump, args=(one, other), daemon=True).start()

    def close(self) -> None:
        """Take no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _pump(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while piece := one.recv(65536):
            other.sendall(piece)
        other.shutdown(socket.SHUT_WR)
