"""The program that is PID 1 in a sandbox container. Standard library only: its source is sent to `python3 -I -S -c`.

`docker_sandbox` starts it, `conversation` talks to it over the container's standard streams, `protocol` shares its structs. It is silent
until spoken to. Each call is a fork; when it is over everything that it left is killed and wiped, and only then is the end told. The
parent reads nothing but a header and the names of the files that are wanted back: the child reads the program, its files and its
secrets, and what it writes passes through buffers that are cleared, so that nothing of one call stays for the next.

Where the network may be used, the first argument is the source of `loopback`, which serves a port of this container by the socket `DOOR`.
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
import sys
import time

from metier_tools.inside.child import PR_SET_DUMPABLE, SIGNALS, become_program, become_server
from metier_tools.inside.reset import reset
from metier_tools.inside.wire import (
    CHANGED,
    CHUNK,
    DONE,
    DOOR,
    END,
    ENDED,
    ERR,
    FLOOD,
    FRAME,
    LEFT,
    OUT,
    PING,
    PONG,
    PORT,
    REQUEST,
    SERVER,
    TIME,
    UNREAD,
    attempt,
    read_exactly,
    send,
    slurp,
    write,
)

_OOM_FILES = ("/sys/fs/cgroup/memory/memory.oom_control", "/sys/fs/cgroup/memory.events")
_RLIMITS = 16
_libc = ctypes.CDLL(None, use_errno=True)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import NoReturn


class Spool:
    """What a stream of the program holds and the host has not: one frame, sent when it is full, or with the end; then cleared."""

    clear = memoryview(bytes(CHUNK))

    def __init__(self, kind: int) -> None:
        self.kind = kind
        self.frame = memoryview(bytearray(FRAME.size + CHUNK))
        self.size = 0

    def take(self, fd: int) -> int | None:
        """Take up what a stream holds: how many bytes; 0 at its end, None when there is nothing after all."""
        begin = FRAME.size + self.size
        try:
            count = os.readv(fd, [self.frame[begin:]])
        except BlockingIOError:  # a program can read its own output back
            return None
        self.size += count
        if self.size == CHUNK:
            self.flush()
        return count

    def flush(self) -> None:
        """Send what is held."""
        if self.size:
            FRAME.pack_into(self.frame, 0, self.kind, self.size)
            write(self.frame[: FRAME.size + self.size])
            self.frame[FRAME.size : FRAME.size + self.size] = self.clear[: self.size]
            self.size = 0


def oom_kills() -> int:
    """How many processes of this container the kernel has killed for memory (cgroup v1 or v2)."""
    lines = [line.split() for path in _OOM_FILES for line in slurp(path).splitlines()]
    return sum(int(words[1]) for words in lines if words[0] == b"oom_kill")


class Home:
    """What PID 1 holds from call to call, and how it and the kernel stood before the first."""

    def __init__(self, relay: list[str]) -> None:
        self.spools = (Spool(OUT), Spool(ERR))
        self.deaths = listen_for_deaths()
        self.door = listen() if relay else None
        self._stood = self._standing()

    def _standing(self) -> list[object]:
        """What another process of the same user could change about this one; and sockets that hold each other, and so outlive all."""
        limits: list[object] = [resource.getrlimit(number) for number in range(_RLIMITS)]
        sockets = slurp("/proc/net/sockstat").partition(b"\n")[0] if self.door is None else b""
        return [*limits, os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0), sockets]

    def changed(self) -> bool:
        """Whether it is not as it was."""
        return self._standing() != self._stood


def serve(relay: list[str]) -> None:
    """Answer requests, one at a time, for ever; or serve one as long as it lasts."""
    if os.getpid() != 1:
        sys.exit("this program must be PID 1 of its own pid namespace: it calls kill(-1)")
    _libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    home = Home(relay)
    prepare()
    while True:
        ask = Ask()
        if ask.kind == PING:
            send(PONG, b"")
            continue
        if home.door is not None:
            open_door(home.door, relay[0])
        if ask.kind == SERVER:
            host_server(ask, home.deaths)
        call(ask, home)
        if home.door is not None:
            turn_away(home.door)


class Ask:
    """What the host asks, as far as PID 1 reads it."""

    def __init__(self) -> None:
        self.kind, self.seconds, self.flood, wish, self.length = REQUEST.unpack(read_exactly(REQUEST.size))
        self.names = read_exactly(wish)


def listen_for_deaths() -> int:
    """A descriptor that can be read when a child has died."""
    heard, told = os.pipe()
    for fd in (heard, told):
        os.set_blocking(fd, False)
    signal.signal(signal.SIGCHLD, heed)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    return heard


def heed(number: int, frame: object) -> None:
    """Let the kernel's signal wake the poll, which is all that is wanted of it."""


def bury(deaths: int, program: int) -> None:
    """Reap what died and was nobody's but ours, so that it does not count against the program, which is still there."""
    attempt(lambda: os.read(deaths, CHUNK))
    while attempt(lambda: bury_one(program)):
        pass


def bury_one(program: int) -> None:
    """Reap one process that is not the program. Raises `OSError` when there is none."""
    found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if found is None or found.si_pid == program:
        raise ChildProcessError
    os.waitpid(found.si_pid, 0)


def prepare() -> None:
    """Do once what each fork would have to do: a program finds the interpreter as it would at the start of a process of its own."""
    for name in ("exit", "quit"):
        setattr(builtins, name, sys.exit)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    compile(b"", "<tool>", "exec")  # the first one in a process takes a millisecond
    gc.collect()
    gc.freeze()


def listen() -> int:
    """A port of this container's own loopback device, where programs find the proxy."""
    import socket

    door = socket.create_server(("127.0.0.1", PORT), backlog=64)
    door.setblocking(False)
    return door.detach()


def open_door(door: int, source: str) -> None:
    """Start the relay from the port to the proxy's socket; it ends with the call, like all that runs."""
    if os.fork() == 0:
        try:
            apart(door)
            loopback = type(sys)("loopback")
            exec(source, loopback.__dict__)
            loopback.relay(door, DOOR)
        finally:
            os._exit(0)


def apart(door: int) -> None:
    """Let go of the host's line and of all else but the door."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    os.closerange(3, door)
    os.closerange(door + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def turn_away(door: int) -> None:
    """Close connections that a call made and nobody accepted."""
    import socket

    waiting = socket.socket(fileno=os.dup(door))
    with waiting:
        while attempt(lambda: one_less(waiting)):
            pass


def one_less(waiting: socket.socket) -> None:
    """Accept one connection and close it. Raises `OSError` when there is none."""
    waiting.accept()[0].close()


def host_server(ask: Ask, deaths: int) -> NoReturn:
    """Give standard input and output to one long-lived program. When it ends, or the host is gone, so does this container."""
    pid = os.fork()
    if pid == 0:
        become_server(ask.length)
    poll = select.poll()
    poll.register(os.pidfd_open(pid), select.POLLIN)
    poll.register(0, 0)  # its end is always told
    poll.register(deaths, select.POLLIN)
    while [fd for fd, _ in poll.poll()] == [deaths]:
        bury(deaths, pid)
    os._exit(0)


def call(ask: Ask, home: Home) -> None:
    """Run one program, pass on what it writes and the files that are wanted, leave nothing of it, tell how it ended."""
    ooms, began = oom_kills(), time.monotonic()
    (out, out_end), (err, err_end), (taken, taken_end) = os.pipe(), os.pipe(), os.pipe()
    for fd in (out, err):
        os.set_blocking(fd, False)
    pid = os.fork()
    if pid == 0:
        become_program(ask.kind, ask.seconds, ask.length, (out_end, err_end, taken_end))
    for fd in (out_end, err_end, taken_end):
        os.close(fd)
    streams = dict(zip((out, err), home.spools, strict=True))
    stopped, was_taken = oversee(pid, streams, taken, home.deaths, began + ask.seconds, ask.flood)
    attempt(lambda: os.kill(-1, signal.SIGKILL))
    _, status, used = os.wait4(pid, 0)
    wall = time.monotonic() - began
    for fd, spool in streams.items():
        drain(fd, spool)
    was_taken = was_taken or bool(os.read(taken, 1))
    os.close(taken)
    left = not attempt(lambda: reset(ask.names))
    dirty = left * LEFT + home.changed() * CHANGED + (not was_taken) * UNREAD
    code, processor = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
    send(DONE, END.pack(code, stopped, dirty, min(255, oom_kills() - ooms), wall, processor, used.ru_maxrss))
    if not was_taken:
        os._exit(0)


def oversee(pid: int, streams: dict[int, Spool], taken: int, deaths: int, until: float, flood: int) -> tuple[int, bool]:
    """Take up output until the program ends or is stopped. Returns why it was stopped, and whether it was heard to take its source."""
    process = os.pidfd_open(pid)
    poll, was_taken = select.poll(), False
    for fd in (*streams, process, taken, deaths):
        poll.register(fd, select.POLLIN)
    try:
        while (left := until - time.monotonic()) > 0:
            for fd, _ in poll.poll(1000 * left):
                if fd == process:
                    return ENDED, was_taken
                if fd == 0:
                    os._exit(0)
                if fd == taken:
                    was_taken = hear(poll, taken)
                elif fd == deaths:
                    bury(deaths, pid)
                elif (count := streams[fd].take(fd)) == 0:
                    poll.unregister(fd)
                elif (flood := flood - (count or 0)) < 0:
                    return FLOOD, was_taken
        return TIME, was_taken
    finally:
        os.close(process)


def hear(poll: select.poll, taken: int) -> bool:
    """Whether the program was read. From then on a word of the host, or its end, is the end of this container too."""
    poll.unregister(taken)
    if not os.read(taken, 1):
        return False
    poll.register(0, select.POLLIN)
    return True


def drain(fd: int, spool: Spool) -> None:
    """Take up what is left in a pipe that nobody writes to any more, and send it."""
    while spool.take(fd):
        pass
    spool.flush()
    os.close(fd)
