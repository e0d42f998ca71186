"""A container engine on another machine, as a unix socket here, over SSH: the one module that names AsyncSSH. `engine_tunnel` opens it.

No program `ssh` is needed. The key, the hosts that are known and `config` are those of OpenSSH's client, in `~/.ssh`; nothing is
ever asked. When this process dies its connection closes, and with it each that went through it.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import asyncssh

from metier_infra.errors import EngineGone, MissingService
from metier_tools.tunnel import OPENS_S, private_folder

SOCKET = "/var/run/docker.sock"
"""Where the engine listens, unless the address ends with another path."""
_ALIVE_S, _MISSED = 15, 3


class SshTunnel:
    """`ssh://user@host:port`, with the engine's socket behind it as a path if it is not the usual one."""

    def __init__(self, address: str) -> None:
        self._place = urlsplit(address)
        self._path = private_folder(self) / "engine.sock"
        self._lock = threading.Lock()
        self._laid: list[asyncssh.SSHClientConnection] = []
        runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = runner.get_loop()
        threading.Thread(target=_run, args=(runner,), name="engine-tunnel", daemon=True).start()
        weakref.finalize(self, self._loop.call_soon_threadsafe, _end, self._loop, self._laid)

    def url(self) -> str:
        """See `Tunnel.url`."""
        with self._lock:
            if not self._laid or self._laid[-1].is_closed():
                self._laid[:] = [self._open()]
        return f"unix://{self._path}"

    def _open(self) -> asyncssh.SSHClientConnection:
        work = asyncio.run_coroutine_threadsafe(_lay(self._place, self._path), self._loop)
        there = f"ssh does not reach {self._place.netloc}"
        try:
            return work.result(OPENS_S)
        except asyncssh.HostKeyNotVerifiable as error:
            raise MissingService(f"{there}: its host key is not the one in ~/.ssh/known_hosts") from error
        except asyncssh.PermissionDenied as error:
            raise MissingService(f"{there}: permission denied: see the user, and the key in ~/.ssh") from error
        except ValueError as error:
            raise MissingService(f"{there}: what is in ~/.ssh cannot be used: {error}") from error
        except (asyncssh.Error, OSError) as error:
            raise EngineGone(f"{there}: {str(error) or 'it does not answer in time'}") from error
        finally:
            work.cancel()


def _run(runner: asyncio.Runner) -> None:
    with runner:
        runner.get_loop().run_forever()


def _end(loop: asyncio.AbstractEventLoop, laid: list[asyncssh.SSHClientConnection]) -> None:
    for connection in laid:
        connection.abort()
    loop.stop()


async def _lay(place: SplitResult, path: Path) -> asyncssh.SSHClientConnection:
    given = {"port": place.port, "username": place.username}
    connection = await asyncssh.connect(
        place.hostname or "", **{name: value for name, value in given.items() if value}, keepalive_interval=_ALIVE_S, keepalive_count_max=_MISSED,
    )  # fmt: skip
    try:
        path.unlink(missing_ok=True)
        await connection.forward_local_path(str(path), place.path or SOCKET)
    except BaseException:
        connection.abort()
        raise
    return connection
