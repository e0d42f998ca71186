"""A container engine on another machine, as a unix socket here: over TLS, or over SSH by `ssh_tunnel`. `docker_engine` opens it where DOCKER_HOST names such a one.

Attach streams are raw sockets, half of what the sandbox's safety rests on; here they stay so, whatever lies between. When this process
dies its ends of all connections close, so that the containers on the other machine lose their standard input and end.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from metier_infra.errors import EngineGone, MissingPackage, MissingService
from metier_tools.tunnel import OPENS_S, Tunnel, private_folder

TLS_PORT = 2376
_PIECE = 65536


class TlsTunnel:
    """Over TCP with TLS, both sides known by certificate. `certificates` is the folder with `ca.pem`, `cert.pem` and `key.pem`, as Docker's own client has it."""

    def __init__(self, address: str, certificates: Path) -> None:
        place = urlsplit(address)
        self._host, self._port = place.hostname or "", place.port or TLS_PORT
        self._context = _context(certificates)
        self._path = private_folder(self) / "engine.sock"
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


def tunnel_to(address: str | None, certificates: Path | None) -> Tunnel | None:
    """What leads to an engine elsewhere; None where docker-py reaches it by itself."""
    if address is None:
        return None
    if address.startswith("ssh://"):
        return _over_ssh(address)
    if certificates is not None and address.startswith(("tcp://", "https://")):
        return TlsTunnel(address, certificates)
    return None


def _over_ssh(address: str) -> Tunnel:
    try:
        from metier_tools.ssh_tunnel import SshTunnel
    except ImportError as error:
        raise MissingPackage("an engine over SSH needs the extra: pip install 'metier[ssh]'") from error
    return SshTunnel(address)
