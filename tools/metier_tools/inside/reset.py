"""The end of a call: nothing of it is left but the files that are wanted. Runs in the container, as PID 1, when all else is dead."""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import time

from metier_tools.inside.wire import ABSENT, CHUNK, IRREGULAR, NAME, TAKEN, TOO_LARGE, WISH, attempt, send, slurp

_DEEPEST = 200
_libc = ctypes.CDLL(None, use_errno=True)


def reset(names: bytes) -> None:
    """Reap, send the files that are wanted, and wipe all that can outlive the processes of a call. Raises `OSError` when something is left."""
    reap()
    if names:
        hand_out(names)
    for top in (os.environ["HOME"], "/dev/mqueue"):
        if os.path.isdir(top):
            wipe(top)
    for kind, remove in (("shm", "shmctl"), ("msg", "msgctl"), ("sem", "semctl")):
        for line in slurp(f"/proc/sysvipc/{kind}").splitlines()[1:]:
            getattr(_libc, remove)(int(line.split()[1]), 0, 0)


def reap() -> None:
    """Wait for all that was killed. The dying become our children only when their own parents are dead, hence the second look."""
    until = time.monotonic() + 1
    while time.monotonic() < until:
        while attempt(lambda: os.waitpid(-1, 0)):
            pass
        if not attempt(lambda: os.kill(-1, signal.SIGKILL)):
            return
        time.sleep(0.001)
    raise OSError("a process is left")


def hand_out(names: bytes) -> None:
    """Send the wanted files. A process of its own reads them, so that nothing of them stays here."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    try:
        (most,) = WISH.unpack_from(names)
        for number, path in enumerate(names[WISH.size :].split(b"\0")[:-1]):
            most -= hand_over(number, path, most)
    finally:
        os._exit(0)


def hand_over(number: int, path: bytes, most: int) -> int:
    """Send one file, or why it is not sent; how many bytes it took."""
    try:
        fd = open_below(path)
    except OSError:
        send(ABSENT, NAME.pack(number))
        return 0
    about = os.fstat(fd)
    if not stat.S_ISREG(about.st_mode):
        send(IRREGULAR, NAME.pack(number))
    elif about.st_size > most:
        send(TOO_LARGE, NAME.pack(number))
    else:
        send(TAKEN, NAME.pack(number))
        while data := os.read(fd, CHUNK - NAME.size):
            send(TAKEN, NAME.pack(number) + data)
        return about.st_size
    return 0


def open_below(path: bytes) -> int:
    """Open a path in the scratch folder, following no link on the way and waiting for no writer."""
    *folders, name = path.split(b"/")
    at = os.open(os.environ["HOME"], os.O_RDONLY | os.O_DIRECTORY)
    for folder in folders:
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
    return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)


def wipe(top: str) -> None:
    """Empty a folder: relative to open folders, following no link, to a depth that only a hostile tree passes. Each is read once."""
    folders = [Folder(os.open(top, os.O_RDONLY | os.O_DIRECTORY))]
    while folders:
        here = folders[-1]
        if not here.inner:
            folders.pop()
            os.close(here.fd)
            if folders:
                os.rmdir(folders[-1].inner.pop(), dir_fd=folders[-1].fd)
        elif removed(here.inner[-1], here.fd):
            here.inner.pop()
        elif len(folders) > _DEEPEST:
            raise OSError("too deep")
        else:
            folders.append(
                Folder(os.open(here.inner[-1], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here.fd))
            )


class Folder:
    """An open folder whose files are removed already, and the names of the folders in it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.inner: list[str] = []
        with os.scandir(fd) as entries:
            found = list(entries)
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                self.inner.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=fd)


def removed(name: str, folder: int) -> bool:
    """Remove a folder if it is empty; else make sure that it can be entered."""
    try:
        os.rmdir(name, dir_fd=folder)
    except OSError:
        os.chmod(name, 0o700, dir_fd=folder)
        return False
    return True
