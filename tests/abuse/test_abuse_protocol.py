"""Protocol forgery and attacks on PID 1: frames of our own, its descriptors, its signals, its limits, and the moment when a call ends."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from metier_tools.sandbox import Outcome

FORGE = """
import os, struct
END = struct.pack('>BI', 9, 19) + struct.pack('>iBBBffI', 0, 0, 0, 0, 0.0, 0.0, 0)
OUT = struct.pack('>BI', 1, 6) + b'forged'
MUX = lambda data: struct.pack('>BxxxI', 1, len(data)) + data
"""
"""A whole end, some output, and the engine's own envelope, as our source has them."""


def test_the_forgery_is_what_pid1_would_say() -> None:
    assert struct.calcsize(">iBBBffI") == 19


PLACES = {
    "the first stream": "os.write(1, {frame})",
    "the second stream": "os.write(2, {frame})",
    "/dev/stdout": "os.write(os.open('/dev/stdout', os.O_WRONLY), {frame})",
    "its own descriptor, opened again": "os.write(os.open('/proc/self/fd/1', os.O_WRONLY), {frame})",
    "its thread's descriptor": "os.write(os.open('/proc/thread-self/fd/2', os.O_WRONLY), {frame})",
    "its standard input": "os.write(os.open('/proc/self/fd/0', os.O_WRONLY), {frame})",
}
FRAMES = {
    "an end": "END",
    "output and an end": "OUT + END",
    "in the engine's envelope": "MUX(OUT + END)",
    "half an end": "END[:9]",
}


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("place", PLACES)
def test_a_forged_frame_is_no_more_than_output(python: Callable[..., Outcome], place: str, frame: str) -> None:
    outcome = python(FORGE + PLACES[place].format(frame=FRAMES[frame]) + "\nraise SystemExit(7)")
    assert (outcome.status, outcome.exit_code) == ("error", 7)
    assert "forged" not in outcome.stdout or outcome.stdout.rstrip("\0")[0] in "\x01\ufffd"


def test_no_descriptor_leads_to_the_host(python: Callable[..., Outcome]) -> None:
    guess = "taken = []\nfor fd in range(3, 4096):\n    try: os.write(fd, MUX(OUT + END)); taken.append(fd)\n    except OSError: pass\nprint(taken)"
    outcome = python(FORGE + guess + "\nraise SystemExit(7)")
    assert (outcome.status, outcome.exit_code, outcome.stdout) == ("error", 7, "[]\n")


@pytest.mark.parametrize(
    "path", ["/proc/1/fd/0", "/proc/1/fd/1", "/proc/1/fd/2", "/proc/1/task/1/fd/1", "/proc/1/root/dev/stdout/../fd/1"]
)
@pytest.mark.parametrize("how", ["O_WRONLY", "O_RDONLY", "O_RDWR", "O_PATH"])
def test_pid1s_line_to_the_host_cannot_be_opened(refusal: Callable[[str], str], path: str, how: str) -> None:
    assert refusal(f"os.open({path!r}, os.{how})") in {"EACCES", "EPERM"}


def test_pid1s_descriptors_cannot_be_taken_by_its_pidfd(refusal: Callable[[str], str]) -> None:
    for fd in range(6):
        assert refusal(f"pid1 = os.pidfd_open(1)\nsyscall(438, pid1, {fd}, 0)") == "EPERM"


def test_a_program_that_takes_its_source_apart_finds_no_more_of_the_hosts_words(python: Callable[..., Outcome]) -> None:
    assert python("import os; print(os.read(0, 100), os.readlink('/proc/self/fd/0'))").stdout == "b'' /dev/null\n"


def test_every_signal_to_pid1_is_lost(python: Callable[..., Outcome]) -> None:
    fire = "import os, signal\nfor n in signal.valid_signals():\n    for _ in range(20): os.kill(1, n)\n    os.kill(os.getppid(), n)\nprint('alive')"
    outcome = python(fire)
    assert (outcome.status, outcome.stdout) == ("ok", "alive\n")


def test_signals_by_every_other_door_are_lost_too(python: Callable[..., Outcome]) -> None:
    doors = (
        "import ctypes, os, signal\nl = ctypes.CDLL(None)\npid1 = os.pidfd_open(1)\nfor n in (9, 19, 11, 6, 34, 64):\n"
        "    l.sigqueue(1, n, 0); l.syscall({'x86_64': 200, 'aarch64': 130}[os.uname().machine], 1, n)\n"
        "    l.syscall({'x86_64': 234, 'aarch64': 131}[os.uname().machine], 1, 1, n); signal.pidfd_send_signal(pid1, n)\n"
        "print('alive')"
    )
    assert python(doors).stdout == "alive\n"


def test_all_processes_killed_at_once_ends_only_the_call(python: Callable[..., Outcome]) -> None:
    outcome = python("import os\nfor _ in range(5): os.fork()\nos.kill(-1, 9); os.kill(os.getpid(), 9)")
    assert (outcome.status, outcome.exit_code) == ("error", -9)


LIMITS = ["RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_FSIZE", "RLIMIT_CPU", "RLIMIT_AS", "RLIMIT_DATA", "RLIMIT_STACK", "RLIMIT_CORE", "RLIMIT_MEMLOCK", "RLIMIT_SIGPENDING", "RLIMIT_MSGQUEUE"]  # fmt: skip


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_of_pid1_that_is_cut_harms_no_later_call(python: Callable[..., Outcome], limit: str) -> None:
    outcome = python(
        f"import resource, time\nresource.prlimit(1, resource.{limit}, (0, 0))\ntime.sleep(0.05)\nprint('cut')", 1.0
    )
    assert outcome.status in {"ok", "error", "timeout", "died", "oom"}
    assert outcome.stdout in {"", "cut\n"}


def test_a_limit_of_pid1_cannot_be_raised(refusal: Callable[[str], str]) -> None:
    for limit in ("NOFILE", "FSIZE", "CORE", "MEMLOCK"):
        raised = f"try: resource.prlimit(1, resource.RLIMIT_{limit}, (1 << 40, 1 << 40))\nexcept ValueError: raise OSError(errno.EPERM, '')"
        assert refusal(raised) == "EPERM"


CHANGES = {
    "priority": "os.setpriority(os.PRIO_PROCESS, 1, 19)",
    "priority by user": "os.setpriority(os.PRIO_USER, 0, 19)",
    "priority by group": "os.setpriority(os.PRIO_PGRP, 1, 19)",
    "class": "os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0))",
    "class that its children do not have": "os.sched_setscheduler(1, os.SCHED_BATCH | os.SCHED_RESET_ON_FORK, os.sched_param(0))",
    "processors": "os.sched_setaffinity(1, {max(os.sched_getaffinity(0))})",
    "process group": "os.setpgid(1, 1)",
    "capabilities": "import ctypes; ctypes.CDLL(None).capset(ctypes.byref((ctypes.c_uint32 * 2)(0x20080522, 1)), ctypes.byref((ctypes.c_uint32 * 6)()))",
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_pid1_that_was_changed_serves_no_later_call(python: Callable[..., Outcome], what: str) -> None:
    outcome = python(f"import os\ntry: {CHANGES[what]}\nexcept OSError: pass\nprint('tried')")
    assert (outcome.status, outcome.stdout) == ("ok", "tried\n")


LAST_MOMENTS = {
    "no process is left to fork": "for n in range(70):\n    try:\n        if os.fork() == 0: time.sleep(60)\n    except OSError: break",
    "no memory is left": "x = bytearray(180 << 20)\nfor n in range(0, len(x), 4096): x[n] = 1",
    "no inode is left": "try:\n    for n in range(9000): os.mkdir(f'/tmp/{n}')\nexcept OSError: pass",
    "no room is left": "f = os.open('/tmp/f', os.O_CREAT | os.O_WRONLY)\ntry:\n    while True: os.write(f, bytes(1 << 20))\nexcept OSError: pass",
    "no descriptor is left": "try:\n    while True: os.dup(0)\nexcept OSError: pass",
    "the pipes are full": "os.set_blocking(2, False)\ntry:\n    while True: os.write(2, bytes(4096))\nexcept OSError: pass",
    "the processors are busy": "for n in range(30):\n    if os.fork() == 0:\n        while True: pass",
    "everything is sleeping in the kernel": "for n in range(30):\n    if os.fork() == 0: os.read(os.pipe()[0], 1)",
    "a signal is pending for everyone": "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\nfor n in range(20):\n    if os.fork() == 0: time.sleep(60)\nos.kill(-1, 15)",
    "forks race with the end": "for n in range(20):\n    try:\n        if os.fork(): continue\n    except OSError: break\n    while True:\n        try: os.fork()\n        except OSError: pass",
}  # fmt: skip


@pytest.mark.parametrize("when", LAST_MOMENTS)
def test_the_end_is_told_when(python: Callable[..., Outcome], when: str) -> None:
    outcome = python(f"import os, time\n{LAST_MOMENTS[when]}\nos._exit(5)", 10.0)
    assert (outcome.status, outcome.exit_code) == ("error", 5) or (
        when == "the pipes are full" and outcome.status == "output_cut"
    )


def test_the_word_that_the_source_was_taken_cannot_be_withheld_or_said_twice(python: Callable[..., Outcome]) -> None:
    outcome = python(
        "import os\nfor fd in range(3, 256):\n    try: os.write(fd, b'1' * 100)\n    except OSError: pass\nos.kill(os.getpid(), 9)"
    )
    assert (outcome.status, outcome.exit_code) == ("error", -9)


def test_the_functions_of_pid1_in_the_programs_memory_are_a_copy(python: Callable[..., Outcome]) -> None:
    patch = (
        "import gc, types\nfor f in gc.get_objects():\n    if isinstance(f, types.FunctionType) and f.__name__ in ('send', 'call', 'reset', 'wipe', 'own_limits', 'finish', 'oversee'):\n"
        "        f.__code__ = (lambda *a, **k: None).__code__"
    )
    assert python(patch).status in {"ok", "error"}


def test_the_programs_own_caller_cannot_be_made_to_answer_for_it(python: Callable[..., Outcome]) -> None:
    climb = (
        "import sys\nframe = sys._getframe()\nwhile frame.f_back: frame = frame.f_back\nnames = frame.f_globals\n"
        "send = names.get('send') or next((f.f_globals['send'] for f in [sys._getframe(n) for n in range(3)] if 'send' in f.f_globals), None)\n"
        "if send: send(9, bytes(19)); send(1, b'forged')\nraise SystemExit(7)"
    )
    outcome = python(climb)
    assert (outcome.status, outcome.exit_code) == ("error", 7)
