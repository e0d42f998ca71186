"""Processes: bombs, daemons, the undead and those that will not die, and attempts to take more of the processor than is given."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from metier_tools.sandbox import Outcome

BOMBS = {
    "forks": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "forks in their own sessions": "import os\nwhile True:\n    try:\n        if not os.fork(): os.setsid()\n    except OSError: pass",
    "forks that ignore every signal": "import os, signal\nfor n in set(signal.Signals) - {9, 19}: signal.signal(n, signal.SIG_IGN)\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "threads": "import threading, time\nwhile True:\n    try: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n    except RuntimeError: pass",
    "short lives": "import os\nwhile True:\n    try:\n        if not os.fork(): os._exit(0)\n    except OSError: pass",
    "shells": "import subprocess\nwhile True:\n    try: subprocess.Popen(['sh', '-c', 'sleep 60 & sleep 60'])\n    except OSError: pass",
    "vforks": "import os\nwhile True:\n    try: os.posix_spawn('/bin/sh', ['sh', '-c', '$0 & $0 & wait', '/bin/sh'], {})\n    except OSError: pass",
}


@pytest.mark.parametrize("what", BOMBS)
def test_a_bomb_ends_on_time(python: Callable[..., Outcome], what: str) -> None:
    outcome = python(BOMBS[what], 0.5)
    assert (outcome.status, outcome.stdout) == ("timeout", "")


def test_the_classic_bomb_of_the_shell_ends(shell: Callable[..., Outcome]) -> None:
    assert shell("b() { b | b & }; b; sleep 60", 0.5).status in {"timeout", "error"}


def test_processes_and_threads_are_counted_together(refusal: Callable[[str], str]) -> None:
    assert refusal("for n in range(100):\n    if not os.fork(): time.sleep(60)") == "EAGAIN"
    threads = "import threading\ntry:\n    for n in range(100): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\nexcept RuntimeError: raise OSError(errno.EAGAIN, '')"
    assert refusal(threads) == "EAGAIN"


def test_the_dead_do_not_use_up_the_processes_of_a_call(shell: Callable[..., Outcome]) -> None:
    outcome = shell("for n in $(seq 200); do (true &); done; echo fine")
    assert (outcome.status, outcome.stdout, outcome.stderr) == ("ok", "fine\n", "")


LEAVERS = {
    "a daemon": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(600)\n    os._exit(0)\nos.wait()",
    "a daemon that holds the output": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    while True: time.sleep(1)",
    "a daemon that writes for ever": "import os\nif os.fork() == 0:\n    while True: os.write(1, b'still here ')",
    "a stopped process": "import os, signal\nif (pid := os.fork()) == 0:\n    while True: pass\nos.kill(pid, signal.SIGSTOP)",
    "a stopped group": "import os, signal\nfor n in range(20):\n    if os.fork() == 0: os.kill(os.getpid(), signal.SIGSTOP)",
    "zombies": "import os\nfor n in range(40):\n    if os.fork() == 0: os._exit(0)",
    "a deaf process": "import os, signal\nfor n in set(signal.Signals) - {9, 19}: signal.signal(n, signal.SIG_IGN)\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\nif os.fork() == 0:\n    while True: pass",
    "a process with another name": "import ctypes, os, time\nif os.fork() == 0:\n    ctypes.CDLL(None).prctl(15, b'python3', 0, 0, 0); time.sleep(600)",
    "a reaper of orphans": "import ctypes, os, time\nctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\nfor n in range(10):\n    if os.fork() == 0:\n        os.fork(); time.sleep(600)",
    "a chain of forks": "import os, time\nfor n in range(40):\n    if os.fork(): break\nif n: time.sleep(600)",
    "a sibling": "import ctypes, os, time\nif ctypes.CDLL(None).syscall({clone}, 0x8000 | 17, 0, 0, 0, 0) == 0: time.sleep(600)",
    "a child that sends no signal when it dies": "import ctypes, os, time\nif ctypes.CDLL(None).syscall({clone}, 0, 0, 0, 0, 0) == 0: time.sleep(600)",
    "a child that shares files and folders": "import ctypes, os, time\nif ctypes.CDLL(None).syscall({clone}, 0x400 | 0x200 | 17, 0, 0, 0, 0) == 0: time.sleep(600)",
    "one that waits for its own lock": "import os, fcntl\nf = open('l', 'w'); fcntl.flock(f, fcntl.LOCK_EX)\nif os.fork() == 0: fcntl.flock(open('l'), fcntl.LOCK_EX)",
    "one stuck in a fifo": "import os\nos.mkfifo('p')\nif os.fork() == 0: open('p')",
    "one stuck in a pipe": "import os\nr, w = os.pipe()\nif os.fork() == 0: os.write(w, bytes(1 << 20))",
    "one in a crash of its own": "import os, signal\nif os.fork() == 0:\n    signal.signal(11, lambda *_: None)\n    import ctypes; ctypes.string_at(0)",
}  # fmt: skip


@pytest.mark.parametrize("what", LEAVERS)
def test_what_a_program_leaves_running_ends_with_it(python: Callable[..., Outcome], what: str) -> None:
    clone = "(220 if os.uname().machine == 'aarch64' else 56)"
    outcome = python(LEAVERS[what].replace("{clone}", clone) + "\nos.write(1, b'gone')\nos._exit(3)", 20.0)
    assert (outcome.status, outcome.exit_code) == ("error", 3)
    assert "gone" in outcome.stdout


SHARES = {
    "a real-time class": ("os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))", "EPERM"),
    "round robin": ("os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(50))", "EPERM"),
    "a better nice": ("os.setpriority(os.PRIO_PROCESS, 0, -1)", "EACCES"),
    "more locked memory": ("resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 40, 1 << 40))", "EPERM"),
    "a better nice limit": ("resource.setrlimit(resource.RLIMIT_NICE, (40, 40))", "EPERM"),
    "a real-time limit": ("resource.setrlimit(resource.RLIMIT_RTPRIO, (99, 99))", "EPERM"),
    "a core file": ("resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))", "EPERM"),
    "more processor time": ("resource.setrlimit(resource.RLIMIT_CPU, (9999, 9999))", "EPERM"),
    "a real-time io class": ("syscall({'x86_64': 251, 'aarch64': 30}[os.uname().machine], 1, 0, 1 << 13)", "EPERM"),
    "no out-of-memory kill": ("os.write(os.open('/proc/self/oom_score_adj', os.O_WRONLY), b'-1')", "EACCES"),
}


@pytest.mark.parametrize("what", SHARES)
def test_a_larger_share_cannot_be_taken(refusal: Callable[[str], str], what: str) -> None:
    deed, says = SHARES[what]
    assert refusal(f"try: {deed}\nexcept ValueError: raise OSError(errno.EPERM, 'over the hard limit')") == says


def test_the_share_of_a_processor_is_kept_by_many_processes(python: Callable[..., Outcome]) -> None:
    burn = "import os, resource, time\nend = time.monotonic() + 1\nfor n in range(8):\n    if os.fork() == 0:\n        while time.monotonic() < end: pass\n        os._exit(0)\nfor n in range(8): os.wait()\nused = resource.getrusage(resource.RUSAGE_CHILDREN)\nprint(used.ru_utime + used.ru_stime < 1.6)"  # fmt: skip
    assert python(burn).stdout == "True\n"


CRASHES = {
    "a bad address": ("import ctypes; ctypes.string_at(0)", -11),
    "an abort": ("import os; os.abort()", -6),
    "a bad instruction": ("import os; os.kill(os.getpid(), 4)", -4),
    "the last signal": ("import os; os.kill(os.getpid(), 64)", -64),
    "an endless recursion in C": ("import sys; sys.setrecursionlimit(1 << 30)\nclass A:\n    def __repr__(self): return repr([self])\nimport ctypes\nF = ctypes.CFUNCTYPE(ctypes.c_int)\ndef down(): return F(down)()\ndown()", -11),
    "an exit that is out of range": ("import os; os._exit(1 << 20 | 7)", 7),
    "a negative exit": ("import sys; sys.exit(-1)", 255),
}  # fmt: skip


@pytest.mark.parametrize("what", CRASHES)
def test_a_crash_is_told_as_it_was_and_leaves_no_core(python: Callable[..., Outcome], what: str) -> None:
    source, code = CRASHES[what]
    outcome = python(source)
    assert (outcome.status, outcome.exit_code) == ("error", code)
