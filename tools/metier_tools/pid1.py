"""The program that is PID 1 in a sandbox container. Standard library only: its source is sent to `python3 -I -S -c`.

`docker_sandbox` starts it, `conversation` talks to it over the container's standard streams, `protocol` shares its structs. It is silent
until spoken to. Each call is a fork; when it is over everything that it left is killed and wiped, and only then is the end told. The
parent reads nothing but a 9-byte header: the child reads the program, so that nothing of one call stays for the next.
"""

from __future__ import annotations

import builtins
import ctypes
import gc
import io
import os
import resource
import select
import signal
import struct
import sys
import time

REQUEST = struct.Struct(">BfI")
"""Kind, seconds, length of the program that follows."""
FRAME = struct.Struct(">BI")
"""Kind, length of the data that follows."""
END = struct.Struct(">iBBBffI")
"""Exit code (negative: signal), timed out, dirty (below), out-of-memory kills, wall seconds, processor seconds, resident KiB."""
LEFT, CHANGED, UNREAD = 1, 2, 4
"""Why a container is dirty: something of the call is left; this process was changed; the program was not read to its end."""
PING, PYTHON, SHELL = 0, 1, 2
PONG, OUT, ERR, DONE = 0, 1, 2, 9
CHUNK = 65536

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)
_OOM_FILES = ("/sys/fs/cgroup/memory/memory.oom_control", "/sys/fs/cgroup/memory.events")
_PR_SET_DUMPABLE = 4
_DEEPEST = 200
_RLIMITS = 16
_libc = ctypes.CDLL(None, use_errno=True)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn


def read_exactly(length: int) -> bytes:
    """Read from the host. When the host is gone this process ends; the kernel kills the rest, and the engine removes the container."""
    data = b""
    while len(data) < length:
        more = os.read(0, length - len(data))
        if not more:
            os._exit(0)
        data += more
    return data


def send(kind: int, data: bytes) -> None:
    """Write one frame to the host."""
    frame = FRAME.pack(kind, len(data)) + data
    while frame:
        frame = frame[os.write(1, frame) :]


def forward(fd: int, kind: int) -> bool:
    """Pass on what a stream holds; False at its end."""
    data = os.read(fd, CHUNK)
    if data:
        send(kind, data)
    return bool(data)


def slurp(path: str) -> bytes:
    """What a small file of the kernel says; nothing when it is not there."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(fd, CHUNK)
    finally:
        os.close(fd)


def oom_kills() -> int:
    """How many processes of this container the kernel has killed for memory (cgroup v1 or v2)."""
    lines = [line.split() for path in _OOM_FILES for line in slurp(path).splitlines()]
    return sum(int(words[1]) for words in lines if words[0] == b"oom_kill")


def own_limits() -> list[object]:
    """What another process of the same user could change about this one."""
    limits: list[object] = [resource.getrlimit(number) for number in range(_RLIMITS)]
    return [*limits, os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)]


def attempt(work: Callable[[], object]) -> bool:
    """Do what may fail, and say whether it went well."""
    try:
        work()
    except OSError:
        return False
    return True


def serve() -> None:
    """Answer requests, one at a time, for ever."""
    if os.getpid() != 1:
        sys.exit("this program must be PID 1 of its own pid namespace: it calls kill(-1)")
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    for name in ("exit", "quit"):
        setattr(builtins, name, sys.exit)
    limits = own_limits()
    gc.collect()
    gc.freeze()
    while True:
        kind, seconds, length = REQUEST.unpack(read_exactly(REQUEST.size))
        if kind == PING:
            send(PONG, b"")
        else:
            call(kind, seconds, length, limits)


def call(kind: int, seconds: float, length: int, limits: list[object]) -> None:
    """Run one program, pass on what it writes, leave nothing of it, tell how it ended."""
    ooms, began = oom_kills(), time.monotonic()
    (out, out_end), (err, err_end), (taken, taken_end) = os.pipe(), os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        child(kind, seconds, length, (out_end, err_end, taken_end))
    for fd in (out_end, err_end, taken_end):
        os.close(fd)
    streams = {out: OUT, err: ERR}
    timed_out, was_taken = oversee(pid, streams, taken, began + seconds)
    attempt(lambda: os.kill(-1, signal.SIGKILL))
    _, status, used = os.wait4(pid, 0)
    wall = time.monotonic() - began
    for fd, stream in streams.items():
        drain(fd, stream)
    was_taken = was_taken or bool(os.read(taken, 1))
    os.close(taken)
    dirty = (not attempt(reset)) * LEFT + (own_limits() != limits) * CHANGED + (not was_taken) * UNREAD
    code, processor = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
    send(DONE, END.pack(code, timed_out, dirty, min(255, oom_kills() - ooms), wall, processor, used.ru_maxrss))
    if not was_taken:
        os._exit(0)


def oversee(pid: int, streams: dict[int, int], taken: int, until: float) -> tuple[bool, bool]:
    """Forward output until the program ends or its time is up. Returns whether time ran out, and whether it was heard to take its source."""
    process = os.pidfd_open(pid)
    poll, was_taken = select.poll(), False
    for fd in (*streams, process, taken):
        poll.register(fd, select.POLLIN)
    try:
        while (left := until - time.monotonic()) > 0:
            for fd, _ in poll.poll(1000 * left):
                if fd == process:
                    return False, was_taken
                if fd == 0:
                    os._exit(0)
                if fd == taken:
                    was_taken = hear(poll, taken)
                elif not forward(fd, streams[fd]):
                    poll.unregister(fd)
        return True, was_taken
    finally:
        os.close(process)


def hear(poll: select.poll, taken: int) -> bool:
    """Whether the program was read. From then on a word of the host, or its end, is the end of this container too."""
    poll.unregister(taken)
    if not os.read(taken, 1):
        return False
    poll.register(0, select.POLLIN)
    return True


def drain(fd: int, stream: int) -> None:
    """Forward what is left in a pipe that nobody writes to any more."""
    while forward(fd, stream):
        pass
    os.close(fd)


def reset() -> None:
    """Reap and wipe all that can outlive the processes of a call. Raises `OSError` when something is left."""
    reap()
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
        if sum(entry.name.isdigit() for entry in os.scandir("/proc")) == 1:
            return
        attempt(lambda: os.kill(-1, signal.SIGKILL))
        time.sleep(0.001)
    raise OSError("a process is left")


def wipe(top: str) -> None:
    """Empty a folder: relative to open folders, following no link, to a depth that only a hostile tree passes."""
    folders = [os.open(top, os.O_RDONLY | os.O_DIRECTORY)]
    while folders:
        deeper = sweep(folders[-1])
        if deeper is None:
            os.close(folders.pop())
        elif len(folders) > _DEEPEST:
            raise OSError("too deep")
        else:
            folders.append(os.open(deeper, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folders[-1]))


def sweep(folder: int) -> str | None:
    """Remove a folder's files and empty folders; the name of one that is not empty, or None when nothing is left."""
    with os.scandir(folder) as entries:
        found = list(entries)
    for entry in found:
        if not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.name, dir_fd=folder)
        elif not removed(entry.name, folder):
            return entry.name
    return None


def removed(name: str, folder: int) -> bool:
    """Remove a folder if it is empty; else make sure that it can be entered."""
    try:
        os.rmdir(name, dir_fd=folder)
    except OSError:
        os.chmod(name, 0o700, dir_fd=folder)
        return False
    return True


def child(kind: int, seconds: float, length: int, ends: tuple[int, int, int]) -> NoReturn:
    """The forked side of a call: read the program, step into its place, run it, end."""
    code = 120
    try:
        program = read_exactly(length)
        os.write(ends[2], b"1")
        confine(seconds, ends)
        code = run_shell(program) if kind == SHELL else run_python(program)
    finally:
        os._exit(code & 255)


def confine(seconds: float, ends: tuple[int, int, int]) -> None:
    """Leave the parent's session, files, signals and privileges of memory; be the one whom the kernel kills when memory ends."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(ends[0], 1)
    os.dup2(ends[1], 2)
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
    score = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    os.write(score, b"1000")
    os.close(score)
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    os.chdir(os.environ["HOME"])


def run_shell(script: bytes) -> NoReturn:
    """Become the shell."""
    os.execve("/bin/sh", [b"sh", b"-c", script], os.environ)


def run_python(source: bytes) -> int:
    """Run a program as `__main__`; the exit code that Python would give."""
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    sys.stdin = open(0)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        exec(compile(source, "<tool>", "exec"), module.__dict__)
        code = 0
    except SystemExit as ending:
        code = exit_code(ending.code)
    except BaseException as error:
        explain(error, source)
        code = 1
    finish()
    return code


def exit_code(given: object) -> int:
    """What `sys.exit(given)` means: a number is the code; anything else is printed and means failure."""
    if given is None or isinstance(given, int):
        return given or 0
    sys.stderr.write(f"{given}\n")
    return 1


def explain(error: BaseException, source: bytes) -> None:
    """Print the traceback as Python does, with the program's own lines and without ours."""
    try:
        import linecache
        import traceback
    except (ImportError, OSError):  # no descriptor or memory is left to read these modules
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return
    lines = source.decode("utf-8", "replace").splitlines(keepends=True)
    linecache.cache["<tool>"] = (len(source), None, lines, "<tool>")
    trace = error.__traceback__.tb_next if error.__traceback__ else None
    traceback.print_exception(type(error), error, trace)


def finish() -> None:
    """What Python does before it ends: wait for threads, run what was registered, flush. A program may have broken any of it."""
    ends = (("threading", "_shutdown"), ("atexit", "_run_exitfuncs"))
    for name, function in ends:
        if name in sys.modules:
            getattr(sys.modules[name], function)()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue


if __name__ == "__main__":
    serve()
