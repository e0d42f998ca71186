"""Which TCP port each service gets, and who holds one that is taken.

Called by `state` (assign), `lifecycle` (require) and `cluster` (draw); hands on to the kernel.
A service may use the port after its own too (Kafka's controller does), so ports are drawn in pairs.
"""

import random
import shutil
import socket
import subprocess
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

import process
from say import StackError

FIXED = {"kafka": 19092, "postgres": 15432, "redis": 16379}
"""The ports of `--ports fixed`. All lie below the range from which systems draw ports for outgoing connections."""

_DRAWN = range(20000, 32000, 2)


def variable(name: str) -> str:
    """Return the name of the environment variable that overrides a service's port."""
    return f"METIER_LOCAL_{name.upper()}_PORT"


def assign(
    kept: Mapping[str, int],
    *,
    mode: str | None,
    busy: Collection[str],
    environment: Mapping[str, str],
) -> dict[str, int]:
    """Decide every service's port: a running one keeps its own, then the variable, then what was kept, then the mode."""
    chosen: dict[str, int] = {}
    for name, fixed in FIXED.items():
        asked = environment.get(variable(name))
        if name in busy and name in kept:
            chosen[name] = kept[name]
        elif asked:
            chosen[name] = _number(name, asked)
        elif name in kept and mode != "fixed":
            chosen[name] = kept[name]
        else:
            chosen[name] = draw(chosen.values()) if mode == "auto" else fixed
    return chosen


def _number(name: str, text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 65535:
        raise StackError(f"{variable(name)} is {text!r}: give a port number.")
    return int(text)


def draw(taken: Collection[int]) -> int:
    """Return a port that is free now, and so is the one after it."""
    while True:
        port = random.choice(_DRAWN)
        if port not in taken and is_free(port) and is_free(port + 1):
            return port


def is_free(port: int) -> bool:
    """Say whether a server could listen on that port of 127.0.0.1 now."""
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def require(name: str, ports: Collection[int]) -> None:
    """Raise one sentence that names the port, its holder and the way out, if one of a service's ports is taken."""
    for port in ports:
        if not is_free(port):
            held = holder(port)
            by = f"pid {held} ({process.command_line(held)[:80]})" if held else "another process"
            raise StackError(f"Port {port} for {name} is in use by {by}: set {variable(name)} to another port.")


def holder(port: int) -> int | None:
    """Return the pid of the process that listens on a port, if it can be told."""
    inode = _listening_inode(port)
    if inode:
        return next((pid for pid in _pids() if _has_socket(pid, inode)), None)
    return _ask_lsof(port)


def _listening_inode(port: int) -> str | None:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[1].endswith(f":{port:04X}"):
                    return fields[9]
    return None


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def _has_socket(pid: int, inode: str) -> bool:
    with suppress(OSError):
        return any(_target(link) == f"socket:[{inode}]" for link in Path(f"/proc/{pid}/fd").iterdir())
    return False


def _target(link: Path) -> str:
    with suppress(OSError):
        return str(link.readlink())
    return ""


def _ask_lsof(port: int) -> int | None:
    if not shutil.which("lsof"):
        return None
    command = ["lsof", "-t", f"-iTCP:{port}", "-sTCP:LISTEN"]
    words = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return int(words[0]) if words else None
