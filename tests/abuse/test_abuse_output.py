"""Output: floods, drips, noise, and streams that are closed, shared, stolen or left in a state that hurts the next writer."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from metier_tools.sandbox import Outcome

KEPT = 256 * 1024
FLOODS = {
    "yes": "yes",
    "on both streams": "yes & yes >&2",
    "on the second stream only": "yes >&2",
    "one endless line": "exec tr '\\0' x </dev/zero",
    "zeros": "exec cat /dev/zero",
    "noise": "exec cat /dev/urandom",
    "sixty writers": "for n in $(seq 50); do yes $n & done; wait",
    "fifty megabytes": "exec head -c 50000000 /dev/zero",
}


@pytest.mark.parametrize("what", FLOODS)
def test_a_flood_is_cut(shell: Callable[..., Outcome], what: str) -> None:
    outcome = shell(FLOODS[what], 20.0)
    assert (outcome.status, outcome.truncated) == ("output_cut", True)
    assert max(len(outcome.stdout), len(outcome.stderr)) == KEPT or what == "noise"
    assert len(outcome.stdout) <= KEPT
    assert len(outcome.stderr) <= KEPT


def test_floods_take_no_memory_of_the_runner(shell: Callable[..., Outcome]) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    shell("exec head -c 50000000 /dev/zero", 20.0)
    before = resident()
    for _ in range(4):
        assert shell("exec head -c 50000000 /dev/zero", 20.0).status == "output_cut"
    assert resident() - before < 16 << 20


def test_output_up_to_the_limit_is_kept_whole_and_one_byte_more_is_said(python: Callable[..., Outcome]) -> None:
    whole, cut = (python(f"import os\nos.write(1, b'x' * {size})") for size in (KEPT, KEPT + 1))
    assert (whole.status, len(whole.stdout), whole.truncated) == ("ok", KEPT, False)
    assert (cut.status, len(cut.stdout), cut.truncated) == ("ok", KEPT, True)


def test_two_thousand_tiny_writes_are_all_there(python: Callable[..., Outcome]) -> None:
    outcome = python("import os\nfor n in range(2000): os.write(1 + n % 2, b'%d ' % n)")
    assert sorted(map(int, (outcome.stdout + outcome.stderr).split())) == [*range(2000)]


NOISE = {
    "every byte": ("bytes(range(256))", "\ufffd" + bytes(range(1, 128)).decode() + "\ufffd" * 128),
    "NULs": ("b'a\\0b'", "a\ufffdb"),
    "a cut character": ("'é'.encode()[:1]", "\ufffd"),
    "surrogates": ("b'\\xed\\xa0\\x80'", "\ufffd\ufffd\ufffd"),
    "overlong": ("b'\\xc0\\xaf'", "\ufffd\ufffd"),
    "control sequences": ("b'\\x1b]0;x\\x07\\x1b[2J'", "\x1b]0;x\x07\x1b[2J"),
    "a mark of byte order": ("b'\\xef\\xbb\\xbfx'", "\ufeffx"),
}


@pytest.mark.parametrize("what", NOISE)
def test_bytes_that_are_no_text_become_text_that_any_store_can_hold(python: Callable[..., Outcome], what: str) -> None:
    written, told = NOISE[what]
    outcome = python(f"import os\nos.write(1, {written}); os.write(2, {written})")
    assert (outcome.status, outcome.stdout, outcome.stderr) == ("ok", told, told)


BROKEN_STREAMS: dict[str, tuple[str, set[tuple[str, int | None]]]] = {
    "all closed": ("import os; os.closerange(0, 256)", {("ok", 0), ("error", 1)}),
    "closed by the shell": ("import os; os.execv('/bin/sh', ['sh', '-c', 'exec 0<&- 1>&- 2>&-; sleep 0.1; exit 5'])", {("error", 5)}),
    "exit after all is closed": ("import os; os.closerange(0, 3); os._exit(9)", {("error", 9)}),
    "the first replaced": ("import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1); os.write(1, b'x')", {("error", 1)}),
    "without blocking": ("import os\nos.set_blocking(1, False)\ntry:\n    while True: os.write(1, bytes(4096))\nexcept BlockingIOError: os._exit(4)", {("error", 4), ("output_cut", None), ("output_cut", -9)}),
    "a pipe made small": ("import fcntl, os; fcntl.fcntl(1, 1031, 4096); os.write(1, b'x' * 100_000)", {("ok", 0)}),
    "a pipe made large": ("import fcntl, os; fcntl.fcntl(1, 1031, 1 << 20); os.write(1, b'x' * 1_000_000)", {("ok", 0)}),
    "in packets": ("import fcntl, os; fcntl.fcntl(1, fcntl.F_SETFL, os.O_DIRECT | os.O_WRONLY); [os.write(1, b'x') for _ in range(500)]", {("ok", 0)}),
    "owned by another": ("import fcntl, os; fcntl.fcntl(1, fcntl.F_SETOWN, 1); fcntl.fcntl(1, 10, 9); fcntl.fcntl(1, fcntl.F_SETFL, os.O_ASYNC | os.O_WRONLY); os.write(1, b'x')", {("ok", 0)}),
    "locked": ("import fcntl, os; fcntl.flock(1, fcntl.LOCK_EX); os.write(1, b'x')", {("ok", 0)}),
    "another sys.stdout": ("import sys; sys.stdout = sys.stderr = None", {("ok", 0)}),
    "a sys.stdout that fails": ("import sys\nclass Bad:\n    def write(self, *_): raise OSError\n    def flush(self): raise KeyboardInterrupt\nsys.stdout = Bad()", {("error", 120), ("error", 1), ("ok", 0)}),
    "a broken pipe": ("import os\nr, w = os.pipe(); os.close(r)\nos.write(w, b'x')", {("error", 1), ("error", -13)}),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN_STREAMS)
def test_a_program_that_breaks_its_streams_harms_itself(python: Callable[..., Outcome], what: str) -> None:
    source, ends = BROKEN_STREAMS[what]
    outcome = python(source)
    assert (outcome.status, outcome.exit_code) in ends


def test_output_hidden_in_a_ring_of_sockets_does_not_hold_up_the_end(python: Callable[..., Outcome]) -> None:
    ring = (
        "import array, os, socket\na, b = socket.socketpair()\nc, d = socket.socketpair()\n"
        "def post(end, *fds): end.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', fds))])\n"
        "post(a, c.fileno(), d.fileno(), 1, 2); post(c, a.fileno(), b.fileno(), 1, 2)\nos.write(1, b'hidden'); os._exit(0)"
    )
    assert [(end.status, end.stdout) for end in (python(ring), python(ring))] == [("ok", "hidden")] * 2


def test_output_after_the_program_has_ended_is_not_awaited(shell: Callable[..., Outcome]) -> None:
    outcome = shell("(sleep 30; echo late) & echo early", 20.0)
    assert (outcome.status, outcome.stdout) == ("ok", "early\n")


def test_standard_input_is_empty_and_not_the_hosts(python: Callable[..., Outcome]) -> None:
    assert (
        python("import os, sys; print(repr(sys.stdin.read()), os.readlink('/proc/self/fd/0'))").stdout
        == "'' /dev/null\n"
    )


def test_a_traceback_of_hostile_length_is_cut(python: Callable[..., Outcome]) -> None:
    outcome = python("raise Exception('x' * 5_000_000)")
    assert (outcome.status, outcome.exit_code, outcome.truncated, len(outcome.stderr)) == ("error", 1, True, KEPT)


def test_an_error_that_cannot_be_printed_is_still_an_error(python: Callable[..., Outcome]) -> None:
    outcome = python("class E(Exception):\n    def __str__(self): import os; os._exit(0)\nraise E")
    assert outcome.status in {"ok", "error"}
    outcome = python(
        "import sys\nsys.excepthook = sys.stderr = None\nclass E(Exception):\n    def __str__(self): raise self\nraise E"
    )
    assert outcome.status == "error"
