"""The state folder of one stack: where everything of it lives, its ports, its lock, its env file.

Called by `stack`, `services`, `roles`; hands on to `ports`. Layout: `run/` pid and ready files, `log/`, one data folder
per service, `ports.json`, `env`, `lock`. What cannot live there (a socket's path is limited to 107 bytes, and Postgres
under another user must reach its data) lives in an annex, a short private folder recorded in `annex`.
"""

import fcntl
import hashlib
import json
import os
import secrets
import shlex
import shutil
import tempfile
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ports
from say import say

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = REPOSITORY / ".metier" / "cache"

_SOCKET_PATH_LIMIT = 107
_LONGEST_SOCKET = "/exec/containerd/containerd-debug.sock"
_OWN = ("run", "log", "kafka", "postgres", "redis", "docker")


class State:
    """One stack's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def folder(self, name: str) -> Path:
        """Return a folder inside, made if it is not there."""
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def pidfile(self, name: str) -> Path:
        """Return where the pid file of a service or role is."""
        return self.folder("run") / f"{name}.pid"

    def log(self, name: str) -> Path:
        """Return where the log of a service or role is."""
        return self.folder("log") / f"{name}.log"

    @property
    def sockets(self) -> Path:
        """A folder whose path is short enough for every Unix socket in it."""
        inside = self.root / "run"
        fits = len(os.fsencode(inside)) + len(_LONGEST_SOCKET) <= _SOCKET_PATH_LIMIT
        return self.folder("run") if fits else self._annex()

    def data_for_other_user(self, name: str) -> Path:
        """Return a data folder that a process under another user can reach."""
        open_to_all = all(folder.stat().st_mode & 0o001 for folder in self.folder(name).parents)
        if open_to_all:
            return self.root / name
        path = self._annex() / name
        path.mkdir(exist_ok=True)
        return path

    def _annex(self) -> Path:
        record = self.root / "annex"
        if record.exists():
            path = Path(record.read_text().strip())
        else:
            path = _lasting_temporary_folder() / f"metier-{hashlib.sha256(os.fsencode(self.root)).hexdigest()[:8]}"
            record.write_text(f"{path}\n")
        path.mkdir(mode=0o711, exist_ok=True)
        return path

    def ports(self) -> dict[str, int]:
        """Return the ports chosen at the last `up`, or the fixed ones."""
        record = self.root / "ports.json"
        return dict(json.loads(record.read_text())) if record.exists() else dict(ports.FIXED)

    def assign_ports(self, mode: str | None, busy: Collection[str], environment: Mapping[str, str]) -> None:
        """Choose the ports anew, under the rules of `ports.assign`, and keep them."""
        kept = self.ports() if (self.root / "ports.json").exists() else {}
        chosen = ports.assign(kept, mode=mode, busy=busy, environment=environment)
        (self.root / "ports.json").write_text(json.dumps(chosen) + "\n")

    @property
    def env_file(self) -> Path:
        """The file of `export NAME=value` lines that a shell can source."""
        return self.root / "env"

    def write_env(self, values: Mapping[str, str]) -> None:
        """Write the env file, or remove it when nothing is up."""
        self.env_file.unlink(missing_ok=True)
        if values:
            self.env_file.touch(mode=0o600)
            self.env_file.write_text("".join(f"export {name}={shlex.quote(text)}\n" for name, text in values.items()))

    def secret(self) -> str:
        """Return this stack's secret, drawn once and kept where only its owner reads it."""
        record = self.root / "secret"
        if not record.exists():
            record.touch(mode=0o600)
            record.write_text(secrets.token_hex(32))
        return record.read_text()

    @contextmanager
    def locked(self) -> Generator[None]:
        """Let one command at a time change this stack; the kernel frees the lock when its holder dies."""
        self.root.mkdir(parents=True, exist_ok=True)
        with only_one(self.root / "lock"):
            yield

    def wipe(self) -> None:
        """Remove all data; whatever else is in the folder (the cache, other stacks) stays."""
        record = self.root / "annex"
        if record.exists():
            shutil.rmtree(record.read_text().strip(), ignore_errors=True)
        for name in _OWN:
            shutil.rmtree(self.root / name, ignore_errors=True)
        for name in ("annex", "ports.json", "secret", "env", "lock"):
            (self.root / name).unlink(missing_ok=True)
        if not any(self.root.iterdir()):
            self.root.rmdir()


def _lasting_temporary_folder() -> Path:
    """Prefer the temporary folder that is kept over a restart of the machine: the annex may hold data."""
    lasting = Path("/var/tmp")
    return lasting if os.access(lasting, os.W_OK) else Path(tempfile.gettempdir())


@contextmanager
def only_one(lock: Path) -> Generator[None]:
    """Hold an exclusive file lock, saying so when another process makes us wait."""
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("stack", f"waiting for another command to let go of {lock}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
