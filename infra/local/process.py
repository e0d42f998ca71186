"""Start, recognise and end operating-system processes, each known by a pid file.

Called by `lifecycle` (services and roles), by `install`, `services` and `roles` (`run` a step to its end) and by
`engine` (leftovers); hands on to the kernel.
A pid file holds `PID BIRTH`: the birth time tells our process from a later one under the same number, and the
process state tells a running one from a zombie that nobody has reaped yet, which `kill -0` cannot.
"""

import os
import pwd
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from say import StackError, indent

POLL = 0.05
"""Seconds between two looks at a process or a service."""

_PROC = Path("/proc")


@dataclass(frozen=True)
class Seen:
    """What the kernel tells of a process: its state letter, its parent, and when it was born."""

    state: str
    parent: int
    born: str

    @property
    def ended(self) -> bool:
        """Whether it is a zombie or dead, though its number is still taken."""
        return self.state[:1] in ("Z", "X")


def look(pid: int) -> Seen | None:
    """Return what is under that process number, or None."""
    return _look_in_proc(pid) if (_PROC / "self/stat").exists() else _ask_ps(pid)


def _look_in_proc(pid: int) -> Seen | None:
    try:
        stat = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # what stands before may hold blanks: it is the program's name
    return Seen(state=fields[0], parent=int(fields[1]), born=fields[19])


def _ask_ps(pid: int) -> Seen | None:
    command = ["ps", "-o", "stat=", "-o", "ppid=", "-o", "lstart=", "-p", str(pid)]
    fields = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return Seen(state=fields[0], parent=int(fields[1]), born="_".join(fields[2:])) if len(fields) > 2 else None


def command_line(pid: int) -> str:
    """Return the command line of a process, or an empty text when it cannot be told."""
    try:
        return (_PROC / str(pid) / "cmdline").read_text(errors="replace").replace("\0", " ").strip()
    except OSError:
        command = ["ps", "-o", "command=", "-p", str(pid)]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def running(pidfile: Path) -> int | None:
    """Return the pid of the very process that a pid file names, if it still runs."""
    try:
        number, born = pidfile.read_text().split()
        pid = int(number)
    except (OSError, ValueError):
        return None
    seen = look(pid)
    return pid if seen and seen.born == born and not seen.ended else None


def start(
    command: Sequence[str],
    *,
    pidfile: Path,
    log: Path,
    environment: Mapping[str, str] | None = None,
    folder: Path = Path("/"),
    user: str | None = None,
) -> int:
    """Start a process in its own session, its output appended to a log, and write its pid file."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,
            user=user,
            group=_group_of(user),
            extra_groups=[] if user else None,
        )
    threading.Thread(target=process.wait, daemon=True).start()  # else, killed while we live, it stays as a zombie
    seen = look(process.pid)
    _write_whole(pidfile, f"{process.pid} {seen.born if seen else 'unseen'}\n")
    return process.pid


def run(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path = Path("/"),
    user: str | None = None,
    words: str = "",
) -> None:
    """Run a step to its end, with words on its standard input; on failure raise a sentence and its last lines."""
    done = subprocess.run(
        command,
        input=words,
        text=True,
        errors="replace",
        capture_output=True,
        check=False,
        cwd=folder,
        env=environment,
        user=user,
        group=_group_of(user),
        extra_groups=[] if user else None,
    )
    if done.returncode:
        step, lines = " ".join([Path(command[0]).name, *command[1:]])[:60], (done.stdout + done.stderr).splitlines()
        raise StackError(f"`{step} ...` failed with exit code {done.returncode}:{indent(lines[-8:])}")


def _group_of(user: str | None) -> int | None:
    return pwd.getpwnam(user).pw_gid if user else None


def _write_whole(path: Path, text: str) -> None:
    half = path.with_name(path.name + ".new")
    half.write_text(text)
    half.replace(path)


def stop(pidfile: Path, *, first: signal.Signals, grace: float) -> bool:
    """End what a pid file names: a signal, a grace in seconds, then SIGKILL. Say whether there was anything to end."""
    pid = running(pidfile)
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, first)
        if not wait_until(lambda: running(pidfile) is None, grace):
            _kill_family(pid)
            wait_until(lambda: running(pidfile) is None, 5)
        _kill_group(pid)
    pidfile.unlink(missing_ok=True)
    return pid is not None


def kill(pidfile: Path) -> bool:
    """End what a pid file names the hard way, as a crash would, and leave the pid file as a crash would."""
    pid = running(pidfile)
    if pid is not None:
        _kill_family(pid)
        wait_until(lambda: running(pidfile) is None, 5)
    return pid is not None


def _kill_family(pid: int) -> None:
    """SIGKILL a running process of ours with all its descendants, and its process group."""
    for one in families([pid]):
        with suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    _kill_group(pid)


def _kill_group(pid: int) -> None:
    """SIGKILL what is left of the process group that a process of ours leads or led (see `start`)."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def carry_out(name: str, work: Callable[[], int]) -> int:
    """Do a command's work; the exit code. A `StackError` is a sentence and 1. An interrupt or SIGTERM ends what was started, and a second SIGTERM does not cut that short."""
    told: list[int] = []

    def end(number: int, _: object) -> None:
        told.append(number)
        if len(told) == 1:
            sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        return work()
    except StackError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def wait_until(condition: Callable[[], bool], limit: float) -> bool:
    """Poll until a condition holds; say whether it did within the limit, in seconds."""
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(POLL)
    return True


def settle(pidfile: Path) -> None:
    """Wait until a zombie named by a program's own pid file is reaped: to that program it would look alive."""
    with suppress(OSError, ValueError, IndexError):
        pid = int(pidfile.read_text().split()[0])
        wait_until(lambda: not ((seen := look(pid)) and seen.ended), 10)


def matching(accepts: Callable[[str], bool]) -> list[int]:
    """Return every process whose command line a predicate accepts."""
    return [pid for pid in _everybody() if accepts(command_line(pid))]


def families(heads: Iterable[int]) -> list[int]:
    """Return these processes, as far as they are there, and all their descendants."""
    parents = {pid: seen.parent for pid in _everybody() if (seen := look(pid))}
    found = {pid for pid in heads if pid in parents}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


def _everybody() -> list[int]:
    return [int(entry.name) for entry in _PROC.glob("[0-9]*")]
