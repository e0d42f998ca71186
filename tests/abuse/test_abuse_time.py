"""Time: programs that will not end, tamper with clocks and timers, or make the one who looks at the clock late."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from metier_tools.sandbox import Outcome

ENDLESS = {
    "a loop": "while True: pass",
    "a sleep": "import time; time.sleep(600)",
    "a call in C": "import ctypes; ctypes.CDLL(None).pause()",
    "a regular expression": "import re; re.match(r'(a+)+$', 'a' * 40 + 'b')",
    "a power": "10 ** 10 ** 9",
    "every signal ignored": "import signal\nfor n in set(signal.Signals) - {9, 19}: signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
    "every signal caught": "import signal\nfor n in set(signal.Signals) - {9, 19}: signal.signal(n, lambda *_: None)\nwhile True: pass",
    "every signal blocked": "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\nwhile True: pass",
    "no exception lets it go": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "at exit": "import atexit, time\natexit.register(time.sleep, 600)",
    "a thread that is not a daemon": "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()",
    "itself stopped": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "all stopped": "import os, signal\nos.fork(); os.kill(-1, signal.SIGSTOP); os.kill(os.getpid(), signal.SIGSTOP)",
    "another alarm every millisecond": "import signal\nsignal.signal(14, lambda *_: None); signal.setitimer(0, 0.001, 0.001)\nwhile True: pass",
    "in a finalizer": "class A:\n    def __del__(self):\n        while True: pass\nA()",
    "in the import of a codec": "# -*- coding: utf-7 -*-\nwhile True: pass",
    "with the output closed": "import os\nos.closerange(0, 3)\nwhile True: pass",
    "as another program": "import os; os.execv('/bin/sh', ['sh', '-c', 'while :; do :; done'])",
    "a drip of output": "import os, time\nwhile True: os.write(1, b'.'); time.sleep(0.01)",
}


@pytest.mark.parametrize("what", ENDLESS)
def test_what_does_not_end_is_ended_on_time_by_the_container_itself(python: Callable[..., Outcome], what: str) -> None:
    outcome = python(ENDLESS[what], 0.3)
    assert (outcome.status, outcome.exit_code, outcome.stderr) == ("timeout", -9, "")
    assert outcome.stdout.strip(".") == ""
    assert outcome.wall_ms >= 300


def test_a_shell_that_traps_everything_ends(shell: Callable[..., Outcome]) -> None:
    outcome = shell("trap '' HUP INT QUIT TERM PIPE ALRM USR1 USR2 XCPU; while :; do :; done", 0.3)
    assert (outcome.status, outcome.exit_code) == ("timeout", -9)


SLOW_PID1 = "import os, resource\ntry: {slow}\nexcept OSError: pass\nfor n in range(40):\n    if os.fork() == 0: break\nwhile True: pass"
SLOWERS = {
    "nice": "os.setpriority(os.PRIO_PROCESS, 1, 19)",
    "idle": "os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0))",
    "all of the user": "os.setpriority(os.PRIO_USER, os.getuid(), 19)",
    "one processor": "os.sched_setaffinity(1, {min(os.sched_getaffinity(0))}); os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})",
    "batch": "os.sched_setscheduler(1, os.SCHED_BATCH, os.sched_param(0)); os.setpriority(os.PRIO_PROCESS, 1, 19)",
}  # fmt: skip


@pytest.mark.parametrize("how", SLOWERS)
def test_who_would_make_pid1_slow_is_ended_on_time_by_the_container_itself(
    python: Callable[..., Outcome], how: str
) -> None:
    outcome = python(SLOW_PID1.format(slow=SLOWERS[how]), 0.5)
    assert (outcome.status, outcome.exit_code, outcome.stdout) == ("timeout", -9, "")


THIEF = """
import os, random, time
mine = os.open('/proc/self/fd/1', os.O_RDONLY | os.O_NONBLOCK)
end = time.monotonic() + 0.5
while time.monotonic() < end:
    os.write(1, b'x')
    time.sleep(random.random() * 3e-5)
    try: os.read(mine, 1 << 16)
    except BlockingIOError: time.sleep(3e-4)
    else: break
time.sleep(60)
"""


def test_who_steals_his_own_output_back_does_not_make_pid1_miss_the_deadline(python: Callable[..., Outcome]) -> None:
    ends = [python(THIEF, 0.6) for _ in range(4)]
    assert [(end.status, end.exit_code) for end in ends] == [("timeout", -9)] * 4


def test_clocks_cannot_be_set(refusal: Callable[[str], str]) -> None:
    assert refusal("time.clock_settime(time.CLOCK_REALTIME, 0)") == "EPERM"
    assert (
        refusal(
            "if ctypes.CDLL(None, use_errno=True).settimeofday(bytes(16), None): raise OSError(ctypes.get_errno(), '')"
        )
        == "EPERM"
    )


def test_a_limit_on_processor_time_that_is_lowered_hurts_only_its_owner(python: Callable[..., Outcome]) -> None:
    outcome = python("import resource\nresource.setrlimit(resource.RLIMIT_CPU, (0, 1))\nwhile True: pass", 20.0)
    assert (outcome.status, outcome.exit_code) in {("error", -24), ("error", -9)}


def test_processor_time_of_pid1_cannot_be_cut_for_later_calls(python: Callable[..., Outcome]) -> None:
    outcome = python(
        "import resource\ntry: resource.prlimit(1, resource.RLIMIT_CPU, (0, 0))\nexcept OSError: pass\nwhile True: pass",
        1.0,
    )
    assert outcome.status in {"timeout", "died"}


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), 1e-9])
def test_no_time_at_all_is_a_timeout(python: Callable[..., Outcome], timeout_s: float) -> None:
    assert [python("print(1)", timeout_s).status for _ in range(3)] == ["timeout"] * 3


@pytest.mark.parametrize("timeout_s", [1e30, float("inf")])
def test_all_time_is_as_much_as_a_profile_gives(python: Callable[..., Outcome], timeout_s: float) -> None:
    outcome = python("import resource; print(resource.getrlimit(resource.RLIMIT_CPU)[1] < 1000)", timeout_s)
    assert (outcome.status, outcome.stdout) == ("ok", "True\n")
