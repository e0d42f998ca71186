"""A way to a container engine on another machine: what each kind of tunnel is, and has. Used by `engine_tunnel` and `ssh_tunnel`."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from typing import IO, Protocol

OPENS_S = 15.0
"""How long the other machine may take until it can be spoken to; seconds."""

PREFIX, LOCK = "metier-engine-", "owner"
"""What a tunnel's folder is called, and the file in it that its process has locked as long as it lives."""


class Tunnel(Protocol):
    """A way to an engine elsewhere."""

    def url(self) -> str:
        """Where it begins on this machine, `unix://…`, open now. Raises `EngineGone`, and `MissingService` where a person must act."""
        ...


def private_folder(owner: object) -> Path:
    """A folder of one tunnel's own, which nobody else may enter; it goes with the tunnel. Those of processes that were killed go now."""
    _sweep(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = (folder / "new").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    (folder / "new").rename(folder / LOCK)  # locked before anybody can find it
    weakref.finalize(owner, _end, folder, lock)
    return folder


def _end(folder: Path, lock: IO[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    lock.close()


def _sweep(folder: Path) -> None:
    """Remove what has a lock that nobody holds any more."""
    for left in folder.glob(f"{PREFIX}*/{LOCK}"):
        with suppress(OSError), left.open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left.parent, ignore_errors=True)
