"""A container engine on another machine, as a unix socket here: over TLS or over SSH. `docker_engine` opens it where DOCKER_HOST names such a one.

Attach streams are raw sockets, half of what the sandbox's safety rests on; here they stay so, whatever lies between. When this process
dies its ends of all connections close, so that the containers on the other machine lose their standard input and end.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Protocol
from urllib.parse import SplitResult, urlsplit

from metier_infra.errors import EngineGone, MissingService

OPENS_S = 15.0
"""How long the other machine may take until it can be spoken to; seconds."""
TLS_PORT = 2376
SOCKET = "/var/run/docker.sock"
"""Where the engine listens on a machine that is reached over SSH, unless the address ends with another path."""
_PIECE = 65536
_TETHER = 'exec 3<&0; "$@" </dev/null 3<&- & p=$!; { cat <&3; kill $p; } >/dev/null 2>&1 & wait $p'
"""Runs a program, and ends it when our end of its standard input closes, however we end."""
_SSH = (
    "-N", "-T", "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3",
    "-o", "ConnectTimeout=10",
)  # fmt: skip


class Tunnel(Protocol):
    """A way to an engine elsewhere."""

    def url(self) -> str:
        """Where it begins on this machine, `unix://…`, open now. Raises `EngineGone`, and `MissingService` where a person must act."""
        ...


class TlsTunnel:
    """Over TCP with TLS, both sides known by certificate. `certificates` is the folder with `ca.pem`, `cert.pem` and `key.pem`, as Docker's own client has it."""

    def __init__(self, address: str, certificates: Path) -> None:
        place = urlsplit(address)
        self._host, self._port = place.hostname or "", place.port or TLS_PORT
        self._context = _context(certificates)
        self._folder = _folder(self)
        self._path = self._folder / "engine.sock"
        self._lock = threading.Lock()
        self._open = False

    def url(self) -> str:
        """See `Tunnel.url`."""
        with self._lock:
            self._greet()
            if not self._open:
                self._serve()
                self._open = True
        return f"unix://{self._path}"

    def _greet(self) -> None:
        """Come in once, so that a certificate that is not taken is told as such and not as an engine that hangs up."""
        try:
            with socket.create_connection((self._host, self._port), OPENS_S) as plain:
                line = self._context.wrap_socket(plain, server_hostname=self._host)
                line.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                line.recv(1)
        except ssl.SSLCertVerificationError as error:
            raise MissingService(f"the container engine at {self._host}:{self._port} shows a certificate that is not trusted ({error.verify_message}): see ca.pem in DOCKER_CERT_PATH") from error  # fmt: skip
        except ssl.SSLError as error:
            raise MissingService(f"the container engine at {self._host}:{self._port} does not take our certificate ({error.reason}): see cert.pem and key.pem in DOCKER_CERT_PATH") from error  # fmt: skip
        except OSError as error:
            raise EngineGone(f"no container engine answers at {self._host}:{self._port}: {error.strerror or error}") from error  # fmt: skip

    def _serve(self) -> None:
        listening = threading.Event()
        threading.Thread(
            target=lambda: asyncio.run(self._forward(listening)), name="engine-tunnel", daemon=True
        ).start()
        if not listening.wait(OPENS_S):
            raise EngineGone(f"the way to the container engine at {self._host}:{self._port} did not open")

    async def _forward(self, listening: threading.Event) -> None:
        server = await asyncio.start_unix_server(self._connection, self._path, limit=_PIECE)
        listening.set()
        async with server:
            await server.serve_forever()

    async def _connection(self, here: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        there: asyncio.StreamWriter | None = None
        try:
            answers, there = await asyncio.open_connection(self._host, self._port, ssl=self._context, limit=_PIECE)
            _keep_alive(there)
            ways = [asyncio.create_task(_pump(here, there)), asyncio.create_task(_pump(answers, back))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
        except OSError:
            return  # the engine is away: who asked sees it hang up
        finally:
            for writer in (back, there):
                if writer is not None:
                    writer.close()


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    line: socket.socket | None = writer.get_extra_info("socket")
    if line is not None:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry what comes until there is no more. An end of one way is the end of both: TLS knows no half."""
    with suppress(OSError):
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()


def _context(certificates: Path) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=certificates / "ca.pem")
        context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem", password=lambda: "")
    except OSError as error:
        why = getattr(error, "reason", None) or error.strerror or str(error)
        raise MissingService(f"DOCKER_CERT_PATH={certificates}: ca.pem, cert.pem and key.pem cannot be used: {why}") from error  # fmt: skip
    return context


class SshTunnel:
    """Over the machine's own `ssh`: `ssh://user@host:port`, with the engine's socket behind it as a path if it is not the usual one. The key and the host's are ssh's own business, as `~/.ssh/config` says."""

    def __init__(self, address: str) -> None:
        self._place = urlsplit(address)
        self._folder = _folder(self)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def url(self) -> str:
        """See `Tunnel.url`."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = self._open()
        return f"unix://{self._folder / 'engine.sock'}"

    def _open(self) -> subprocess.Popen[bytes]:
        if shutil.which("ssh") is None:
            raise MissingService(
                "DOCKER_HOST begins with ssh://, and there is no program ssh: install OpenSSH's client"
            )
        path = self._folder / "engine.sock"
        path.unlink(missing_ok=True)
        log = (self._folder / "ssh.log").open("wb")
        with log:
            process = subprocess.Popen(["sh", "-c", _TETHER, "tether", *words(self._place, path)], stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)  # fmt: skip
        weakref.finalize(self, _close, process)
        until = time.monotonic() + OPENS_S
        while not path.exists():
            if process.poll() is not None or time.monotonic() > until:
                _close(process)
                raise EngineGone(f"ssh does not reach {self._place.netloc}: {self._said()}")
            time.sleep(0.02)
        return process

    def _said(self) -> str:
        lines = (self._folder / "ssh.log").read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "it says nothing"


def words(place: SplitResult, here: Path) -> list[str]:
    """The command that lays the tunnel."""
    user = f"{place.username}@" if place.username else ""
    port = ["-p", str(place.port)] if place.port else []
    return ["ssh", *_SSH, *port, "-L", f"{here}:{place.path or SOCKET}", "--", f"{user}{place.hostname}"]


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    process.wait()


def _folder(owner: object) -> Path:
    """A folder of one tunnel's own, which nobody else may enter; it goes with the tunnel."""
    folder = tempfile.mkdtemp(prefix="metier-engine-")
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def tunnel_to(address: str | None, certificates: Path | None) -> Tunnel | None:
    """What leads to an engine elsewhere; None where docker-py reaches it by itself."""
    if address is None:
        return None
    if address.startswith("ssh://"):
        return SshTunnel(address)
    if certificates is not None and address.startswith(("tcp://", "https://")):
        return TlsTunnel(address, certificates)
    return None
