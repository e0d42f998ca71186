"""Memory: every way to take more than is given, and whom the kernel kills for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from metier_tools.sandbox import Outcome

USAGE = """
import os
def usage():
    for path in ('/sys/fs/cgroup/memory/memory.usage_in_bytes', '/sys/fs/cgroup/memory.current'):
        if os.path.exists(path): return int(open(path).read())
"""
HOGS = {
    "one block": "x = bytearray(1 << 30)",
    "many blocks": "x = []\nwhile True: x.append(bytearray(1 << 20))",
    "small objects": "x = []\nwhile True: x.append([object() for _ in range(1000)])",
    "an integer": "x = 1 << (1 << 33)\nx += 1",
    "a string": "x = 'x' * (1 << 30)",
    "a shared mapping": "import mmap\nx = mmap.mmap(-1, 1 << 30)\nfor n in range(0, 1 << 30, 4096): x[n] = 1",
    "page tables": "import mmap\nx = []\nfor n in range(400):\n    x.append(mmap.mmap(-1, 1 << 30, mmap.MAP_PRIVATE | 0x4000))\n    for at in range(0, 1 << 30, 1 << 21): x[n][at] = 1",
    "locked memory and files together": "f = open('/tmp/f', 'wb')\nfor n in range(60): f.write(bytes(1 << 20))\nx = []\nwhile True: x.append(bytearray(1 << 20))",
    "a list in a parser": "eval('[' + '0,' * 100_000_000 + ']')",
}  # fmt: skip


@pytest.mark.parametrize("what", HOGS)
def test_a_program_that_takes_too_much_memory_is_told_so(python: Callable[..., Outcome], what: str) -> None:
    outcome = python(HOGS[what], 60.0)
    assert (outcome.status, outcome.exit_code) == ("oom", -9)


def test_a_child_that_takes_too_much_is_killed_and_its_parent_hears_of_it(python: Callable[..., Outcome]) -> None:
    outcome = python(
        "import subprocess, sys\nsys.exit(subprocess.run(['python3', '-c', 'x = bytearray(1 << 30)']).returncode == -9)"
    )
    assert (outcome.status, outcome.exit_code) == ("oom", 1)


def test_a_child_that_is_killed_does_not_spoil_what_its_parent_made_of_it(python: Callable[..., Outcome]) -> None:
    outcome = python("import subprocess\nprint(subprocess.run(['python3', '-c', 'x = bytearray(1 << 30)']).returncode)")
    assert (outcome.status, outcome.stdout) == ("ok", "-9\n")


def test_many_children_share_one_limit(python: Callable[..., Outcome]) -> None:
    share = "import os, time\nfor n in range(40):\n    if os.fork() == 0:\n        x = bytearray(b'x') * (20 << 20); time.sleep(60)\n"
    outcome = python(share + "ends = [os.wait() for n in range(40)]", 1.5)
    assert outcome.status in {"timeout", "oom"}


def test_a_shell_that_takes_too_much_is_told_so(shell: Callable[..., Outcome]) -> None:
    outcome = shell("x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done", 20.0)
    assert outcome.status in {"oom", "error"}
    assert outcome.exit_code in {-9, 2}


def test_a_program_that_spares_itself_is_killed_all_the_same(python: Callable[..., Outcome]) -> None:
    outcome = python(
        "open('/proc/self/oom_score_adj', 'w').write('0')\nx = []\nwhile True: x.append(bytearray(1 << 20))", 20.0
    )
    assert (outcome.status, outcome.exit_code) == ("oom", -9)


def test_small_processes_with_much_in_their_pipes_are_bounded(python: Callable[..., Outcome]) -> None:
    pipes = (
        "import fcntl, os, time\nopen('/proc/self/oom_score_adj', 'w').write('0')\nfor n in range(50):\n    if os.fork() == 0:\n"
        "        for n in range(60):\n            r, w = os.pipe(); os.set_blocking(w, False)\n"
        "            try: fcntl.fcntl(w, 1031, 1 << 20)\n            except OSError: pass\n"
        "            try:\n                while True: os.write(w, bytes(65536))\n            except OSError: pass\n"
        "        time.sleep(60)\ntime.sleep(60)"
    )
    assert python(pipes, 2.0).status in {"timeout", "oom", "died"}


def test_what_lies_in_pipes_counts_as_the_containers_memory(python: Callable[..., Outcome]) -> None:
    pipes = "before, put = usage(), 0\nkeep = [os.pipe() for _ in range(100)]\nfor _, w in keep: put += os.write(w, bytes(os.fpathconf(w, 'PC_PIPE_BUF')))\nprint(put - (usage() - before) <= 1 << 20)"
    assert python(USAGE + pipes).stdout == "True\n"


def test_what_lies_in_unix_sockets_counts_as_the_containers_memory(python: Callable[..., Outcome]) -> None:
    sockets = (
        "import socket\nbefore, put = usage(), 0\nkeep = [socket.socketpair() for _ in range(100)]\nfor end, _ in keep:\n    end.setblocking(False)\n"
        "    try:\n        while True: put += end.send(bytes(8000))\n    except OSError: pass\nprint(put > 1 << 20, put - (usage() - before) <= 4 << 20)"
    )
    assert python(USAGE + sockets).stdout == "True True\n"


LOOPBACK = """
import socket
before, put, keep = usage(), 0, []
try:
    {make}
    for n in range(64):
        {one}
        end.setblocking(False)
        keep.append((end, other))
        try:
            for _ in range(3): put += end.send(bytes(60_000))
        except OSError: pass
except OSError: pass
print(put - (usage() - before) <= 8 << 20)
"""
KINDS = {
    "TCP": (
        "ear = socket.create_server(('127.0.0.1', 0), backlog=64)",
        "end = socket.create_connection(ear.getsockname()); other, _ = ear.accept()",
    ),
    "UDP": (
        "pass",
        "other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); other.bind(('127.0.0.1', 0)); end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); end.connect(other.getsockname())",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_in_loopback_sockets_counts_as_the_containers_memory_or_is_refused(
    python: Callable[..., Outcome], kind: str
) -> None:
    make, one = KINDS[kind]
    assert python(USAGE + LOOPBACK.format(make=make, one=one)).stdout == "True\n"


def test_swap_is_no_way_out(python: Callable[..., Outcome]) -> None:
    both = "('/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes', '/sys/fs/cgroup/memory.swap.max')"
    assert (
        python(f"import os\nprint([int(open(p).read()) in (0, 256 << 20) for p in {both} if os.path.exists(p)])").stdout
        == "[True]\n"
    )
