"""The forked side of a call: takes what the host sends, gives up what PID 1 is, and becomes the program. Runs in the container."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

from metier_tools.inside.wire import (
    ARGUMENT,
    COMMAND,
    FILE,
    FRAME,
    NAME,
    PYTHON,
    SHELL,
    SOURCE,
    STDIN,
    VARIABLE,
    read_exactly,
    read_some,
)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)
"""What PID 1 ignores and a program must not."""
PR_SET_DUMPABLE = 4
_LONGEST_WORD = 100_000
_libc = ctypes.CDLL(None, use_errno=True)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def become_program(kind: int, seconds: float, length: int, ends: tuple[int, int, int]) -> NoReturn:
    """The forked side of a call: read the program, step into its place, run it, end."""
    code = 120
    try:
        os.chdir(os.environ["HOME"])
        given = Given(length)
        os.write(ends[2], b"1")
        os.dup2(given.stdin(), 0)
        os.dup2(ends[0], 1)
        os.dup2(ends[1], 2)
        confine()
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
        code = given.run(kind)
    finally:
        os._exit(code & 255)


def become_server(length: int) -> NoReturn:
    """The forked side of a server: standard input and output are the host's."""
    try:
        os.chdir(os.environ["HOME"])
        given = Given(length)
        confine()
        given.run(COMMAND)
    finally:
        os._exit(127)


class Given:
    """What the host sends of a call: read to its end whatever happens, so that the next request is found where it begins."""

    def __init__(self, length: int) -> None:
        self.source, self.words, self.fault = b"", list[bytes](), ""
        self._stdin = b""
        while length > 0:
            kind, size = FRAME.unpack(read_exactly(FRAME.size))
            length -= FRAME.size + size
            if kind == FILE:
                self._file(size)
            else:
                self._part(kind, read_exactly(size))

    def _part(self, kind: int, data: bytes) -> None:
        if kind == SOURCE:
            self.source = data
        elif kind == ARGUMENT:
            self.words.append(data)
        elif kind == STDIN:
            self._stdin = data
        elif kind == VARIABLE:
            name, _, value = data.partition(b"=")
            os.environb[name] = value

    def _file(self, left: int) -> None:
        (size,) = NAME.unpack(read_exactly(NAME.size))
        path = read_exactly(size)
        left -= NAME.size + size
        try:
            os.makedirs(os.path.dirname(path) or b".", exist_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except OSError as error:
            self.fault, fd = f"{error}", os.open(os.devnull, os.O_WRONLY)
        while left:
            data = read_some(left)
            left -= len(data)
            while data and not self.fault:
                data = self._written(fd, data)
        os.close(fd)

    def _written(self, fd: int, data: bytes) -> bytes:
        try:
            return data[os.write(fd, data) :]
        except OSError as error:
            self.fault = f"{error}"
            return b""

    def stdin(self) -> int:
        """What the program reads: a file without a name, or nothing."""
        if not self._stdin:
            return os.open(os.devnull, os.O_RDONLY)
        fd = nameless_file()
        while self._stdin and not self.fault:
            self._stdin = self._written(fd, self._stdin)
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    def run(self, kind: int) -> int:
        """Run the program; its exit code, if it is one that comes back."""
        if self.fault:
            os.write(2, f"the files of this call could not be put: {self.fault}\n".encode())
            return 1
        if kind == PYTHON:
            return run_python(self.source)
        words = self.words
        try:
            words = script_words(self.source) if kind == SHELL else words
            os.execvpe(words[0], words, os.environb)
        except (OSError, ValueError, IndexError) as error:
            name = words[0].decode(errors="replace") if words else "this"
            os.write(2, f"{name} cannot be run: {getattr(error, 'strerror', None) or error}\n".encode())
        return 127


def nameless_file() -> int:
    """A file in the scratch folder that no path leads to."""
    return os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600)


def script_words(script: bytes) -> list[bytes]:
    """What runs a script. One that is too long for a word of the command line is read from a file without a name."""
    if len(script) <= _LONGEST_WORD:
        return [b"/bin/sh", b"-c", b"--", script]
    fd = nameless_file()
    while script:
        script = script[os.write(fd, script) :]
    os.set_inheritable(fd, True)
    return [b"/bin/sh", b"/proc/self/fd/%d" % fd]


def confine() -> None:
    """Leave the parent's session, files, signals and privileges of memory; be the one whom the kernel kills when memory ends."""
    os.setsid()
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    _libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    score = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    os.write(score, b"1000")
    os.close(score)
    signal.set_wakeup_fd(-1)
    for number in (*SIGNALS, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)


def run_python(source: bytes) -> int:
    """Run a program as `__main__`; the exit code that Python would give."""
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    sys.stdin = open(0)
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
        except (AttributeError, OSError, ValueError):
            continue
