"""Exhaustion of the runner: sources of any size and shape, more leases than there is room for, and tenants who use up what all share."""

from __future__ import annotations

import os
import resource
import signal
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import pytest

from metier_infra.errors import LaneGone
from metier_tools.docker_sandbox import DockerSandbox
from metier_tools.sandbox import Outcome, Request

LIMIT = 6


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


BAD_PYTHON = {
    "nothing": ("", "ok", ""),
    "a NUL": ("print(1)\0", "error", "null bytes"),
    "a lone surrogate": ("print('\ud800')", "error", ""),
    "a half of a program": ("def f(", "error", "SyntaxError"),
    "a thousand brackets": ("(" * 1000 + ")" * 1000, "error", "too many nested parentheses"),
    "an endless sum": ("1" + "+1" * 100_000, "error", "Error"),
    "an unknown codec": ("# coding: no-such-codec\n1", "error", "SyntaxError"),
    "a wide indent": (" " * 100_000 + "x = 1", "error", "IndentationError"),
    "tabs and spaces": ("if 1:\n\tx = 1\n        y = 1", "error", "TabError"),
    "a mark of byte order": ("\ufeffprint(1)", "ok", ""),
    "old line ends": ("x = 1\r\nprint(x)\r", "ok", ""),
    "our own frame": ("\x09\x00\x00\x00\x13" + "\x00" * 19, "error", "null bytes"),
}


@pytest.mark.parametrize("what", BAD_PYTHON)
def test_a_source_of_any_shape_is_a_result(python: Callable[..., Outcome], what: str) -> None:
    source, status, says = BAD_PYTHON[what]
    outcome = python(source)
    assert outcome.status == status
    assert says in outcome.stderr


BAD_SHELL = {
    "nothing": ("", "ok", ""),
    "a NUL": ("echo 1\0echo 2", "error", "null"),
    "a lone surrogate": ("echo '\ud800'", "ok", ""),
    "an open quote": ("echo '", "error", "nterminated quoted string"),
    "a long line": (": " + "x" * 100_000, "ok", ""),
    "a long script": (": comment\n" * 30_000 + "exit 0", "ok", ""),
    "an option": ("-c 'echo x'", "error", "not found"),
}


@pytest.mark.parametrize("what", BAD_SHELL)
def test_a_script_of_any_shape_is_a_result_that_says_what_was_wrong(shell: Callable[..., Outcome], what: str) -> None:
    script, status, says = BAD_SHELL[what]
    outcome = shell(script)
    assert outcome.status == status
    assert says in outcome.stderr


def test_a_source_of_sixteen_megabytes_runs(python: Callable[..., Outcome]) -> None:
    outcome = python("#" * (16 << 20) + "\nprint('read')", 30.0)
    assert (outcome.status, outcome.stdout) == ("ok", "read\n")


def test_a_source_larger_than_the_containers_memory_ends_in_its_time(python: Callable[..., Outcome]) -> None:
    outcome = python("#" * (300 << 20), 3.0)
    assert outcome.status in {"oom", "died", "timeout", "error"}
    assert outcome.stdout == ""


def test_a_large_source_with_no_time_to_read_it_is_a_timeout(python: Callable[..., Outcome]) -> None:
    assert python("#" * (64 << 20), 0.05).status == "timeout"


def test_results_do_not_stay_in_the_runners_memory(python: Callable[..., Outcome]) -> None:
    for _ in range(3):
        python("import os\nos.write(1, bytes(4 << 20)); os.write(2, bytes(3 << 20))")
    before = resident()
    for _ in range(8):
        python("import os\nos.write(1, bytes(4 << 20)); os.write(2, bytes(3 << 20))")
    assert resident() - before < 16 << 20


def test_a_lease_beyond_the_limit_is_told_and_not_left_hanging(sandbox: DockerSandbox, unharmed: None) -> None:
    with ExitStack() as held:
        for n in range(LIMIT):
            held.enter_context(sandbox.hold(f"full-{n}", 30))
        with ThreadPoolExecutor(8) as threads:
            ends = [threads.submit(enter, sandbox, f"more-{n}") for n in range(8)]
            assert [type(end.exception(20)) for end in ends] == [LaneGone] * 8
    for n in range(LIMIT):
        sandbox.release(f"full-{n}")


def enter(sandbox: DockerSandbox, lease: str) -> None:
    with sandbox.hold(lease, 0.2):
        pass


def test_a_second_call_of_a_busy_lease_waits_no_longer_than_it_may(sandbox: DockerSandbox, unharmed: None) -> None:
    lease = f"busy-{uuid.uuid4()}"
    with sandbox.hold(lease, 30), pytest.raises(LaneGone), sandbox.hold(lease, 0.1):
        pass
    sandbox.release(lease)


def test_a_storm_of_hostile_leases_ends_and_leaves_room(sandbox: DockerSandbox, unharmed: None) -> None:
    attacks = [
        ("import os\nwhile True: os.write(1, bytes(1 << 20))", 60.0),
        ("import os\nwhile True: os.fork()", 0.5),
        ("x = bytearray(1 << 30)", 60.0),
        ("while True: pass", 0.5),
        ("import os; os.kill(os.getpid(), 9)", 60.0),
    ]

    def attack(n: int) -> str:
        with sandbox.hold(f"storm-{n}", 30) as held:
            return held.run(Request("python", *attacks[n % len(attacks)])).status

    with ThreadPoolExecutor(6) as threads:
        ends = list(threads.map(attack, range(10)))
    for n in range(10):
        sandbox.release(f"storm-{n}")
    floods, bombs, hogs, loops, suicides = ({*ends[kind::5]} for kind in range(5))
    assert (floods, hogs, loops, suicides) == ({"output_cut"}, {"oom"}, {"timeout"}, {"error"})
    assert bombs <= {"error", "timeout"}


class Interrupted(Exception):
    """What a signal's handler raises in the middle of a call, as Celery's soft limit does."""


def test_a_call_that_is_interrupted_in_the_runner_is_not_the_next_ones_answer(
    sandbox: DockerSandbox, lease: str, unharmed: None
) -> None:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    with pytest.raises(Interrupted), sandbox.hold(lease, 30) as held:
        held.run(Request("python", "import time; time.sleep(1); print('old')", 5.0))
    signal.signal(signal.SIGUSR1, before)
    for _ in range(3):
        with sandbox.hold(lease, 30) as held:
            outcome = held.run(Request("python", "print('new')", 5.0))
        assert (outcome.status, outcome.stdout) == ("ok", "new\n")


SHARED = {
    "watches": "l = ctypes.CDLL(None)\nwhile l.inotify_init() >= 0: pass",
    "pending signals": "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [34])\nl = ctypes.CDLL(None)\nend = time.monotonic() + 1\nwhile time.monotonic() < end:\n    if l.sigqueue(os.getpid(), 34, 0): break",
    "pages in pipes": "keep = []\ntry:\n    while True: keep.append(os.pipe()); fcntl.fcntl(keep[-1][1], 1031, 1 << 20)\nexcept OSError: pass",
    "timers": "l = ctypes.CDLL(None)\nend = time.monotonic() + 1\nwhile time.monotonic() < end:\n    if l.timer_create(1, None, ctypes.byref(ctypes.c_void_p())): break",
    "terminals": "try:\n    while True: os.openpty()\nexcept OSError: pass",
    "descriptors in flight": "import array, socket\na, b = socket.socketpair()\ntry:\n    while True: a.sendmsg([b'x'], [(1, 1, array.array('i', [0] * 200))], socket.MSG_DONTWAIT)\nexcept OSError: pass",
}  # fmt: skip


@pytest.mark.parametrize("what", SHARED)
def test_a_tenant_who_uses_up_what_the_user_has_in_all_harms_no_other(
    sandbox: DockerSandbox, python: Callable[..., Outcome], what: str
) -> None:
    greedy = f"greedy-{uuid.uuid4()}"
    use_up = f"import ctypes, fcntl, os, time\n{SHARED[what]}\nos.write(1, b'used up')\ntime.sleep(0.7)\n"

    def use() -> Outcome:
        with sandbox.hold(greedy, 30) as held:
            return held.run(Request("python", use_up, 4.0))

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(use)
        while not running.done():
            outcome = python(
                "import subprocess; print(subprocess.run(['echo', 'served'], capture_output=True, text=True).stdout, end='')"
            )
            assert (outcome.status, outcome.stdout, outcome.stderr) == ("ok", "served\n", "")
        assert running.result().stdout == "used up"
    sandbox.release(greedy)
