"""Leftovers between calls of one lease. What each case leaves, `unharmed` looks for; here are the traces that need a look of their own."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from metier_tools.sandbox import Outcome

OWN, NOBODY, NOTHING = ["own"] * 4, ["65534"] * 4, "0000000000000000"


def test_what_all_others_are_compared_with_is_as_it_should_be(pristine: dict[str, object]) -> None:
    assert pristine["files"] == [[], [], ["ptmx"]]
    assert (pristine["processes"], pristine["tasks"], pristine["threads"]) == (2, [2], [["1"], ["1"]])
    assert (pristine["descriptors"], pristine["more_descriptors"]) == (["null", "pipe", "pipe"], [])
    assert (pristine["folder"], pristine["mask"], pristine["leader"]) == ("/tmp", 0o22, True)
    assert pristine["identity"] == [
        OWN,
        NOBODY,
        ["65534"],
        [NOTHING],
        [NOTHING],
        ["1"],
        ["2"],
        OWN,
        [NOTHING],
        ["2"],
    ]
    assert (pristine["oom"], pristine["timers"], pristine["secrets_of_pid1"]) == (
        [["1000"], ["0"]],
        [[0.0, 0.0]] * 3,
        "PermissionError",
    )
    assert (pristine["sockets"], pristine["ipc"]) == ([1, 1, 1, 1], [1, 1, 1])


TRACES = {
    "a module": "import sys, types; sys.modules['json'] = types.ModuleType('json'); sys.modules['leak'] = sys",
    "another print": "import builtins; builtins.print = lambda *a: None; builtins.leak = 1; del builtins.sum",
    "another import": "import builtins; builtins.__import__ = lambda *a, **k: 1 / 0",
    "another interpreter path": "import sys; sys.path.insert(0, '/tmp'); open('/tmp/json.py', 'w').write('leak = 1')",
    "files that Python reads at start": "import os\nfor name in ('sitecustomize.py', 'usercustomize.py', '.pythonrc', '.profile', '.bashrc', '.pdbrc'): open('/tmp/' + name, 'w').write('print(666)')",
    "a compiled module": "import os; os.makedirs('/tmp/__pycache__'); open('/tmp/__pycache__/os.cpython-311.pyc', 'wb').write(b'x')",
    "the environment": "import os; os.environ.update(PATH='/tmp', LD_PRELOAD='/tmp/x.so', PYTHONSTARTUP='/tmp/x', HOME='/proc', ENV='/tmp/x'); os.putenv('LEAK', '1')",
    "the mask and the folder": "import os; os.umask(0o777); os.chdir('/proc')",
    "signals": "import signal\nfor n in set(signal.Signals) - {9, 19}: signal.signal(n, signal.SIG_IGN)\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
    "timers": "import signal, time\nsignal.signal(14, lambda *_: 0); signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05); signal.setitimer(signal.ITIMER_PROF, 0.05, 0.05)",
    "limits": "import resource\nfor n in range(16): resource.setrlimit(n, (0, 0)) if n not in (2, 9) else None",
    "niceness and class": "import os; os.nice(19); os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0)); os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})",
    "a seed": "import random; random.seed(1); random.random()",
    "a locale": "import locale; locale.setlocale(locale.LC_ALL, 'C')",
    "trace and profile hooks": "import sys, threading; sys.settrace(lambda *a: None); sys.setprofile(lambda *a: None); threading.settrace(lambda *a: None)",
    "audit hooks": "import sys; sys.addaudithook(lambda *a: None)",
    "exit handlers": "import atexit, os; atexit.register(lambda: open('/tmp/late', 'w').write('x'))",
    "exit handlers that exit": "import atexit, os; atexit.register(os._exit, 0)",
    "a switched off collector": "import gc, sys; gc.disable(); gc.set_threshold(0); sys.setswitchinterval(100); sys.setrecursionlimit(50)",
    "no dump": "import ctypes; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)",
    "a filter": "import ctypes, struct\np = ctypes.create_string_buffer(struct.pack('<HBBI', 6, 0, 0, 0x7FFF0000)); f = ctypes.create_string_buffer(struct.pack('<HxxxxxxQ', 1, ctypes.addressof(p)))\nctypes.CDLL(None).prctl(22, 2, ctypes.c_long(ctypes.addressof(f)), 0, 0)",
    "a message queue's folder": "import os\ntry: open('/dev/mqueue/left', 'w').write('x')\nexcept OSError: pass",
    "shared memory": "import mmap, os\nm = mmap.mmap(-1, 1 << 20); m[:4] = b'left'\nif os.fork() == 0:\n    import time; time.sleep(600)",
    "terminals": "import os\nfor _ in range(50): os.openpty()",
    "watches": "import ctypes, os\nl = ctypes.CDLL(None); fd = l.inotify_init()\nfor path in (b'/tmp', b'/etc', b'/usr/bin/python3', b'/proc/self/exe'): l.inotify_add_watch(fd, path, 0xFFF)",
    "a lease on a file": "import fcntl, os; fd = os.open('/tmp/f', os.O_CREAT | os.O_RDONLY); fcntl.fcntl(fd, 1024, 0)",
    "landlock": "import ctypes, struct\nl = ctypes.CDLL(None); r = ctypes.create_string_buffer(struct.pack('<Q', 0x1FFF)); fd = l.syscall(444, r, 8, 0)\nif fd >= 0: l.syscall(446, fd, 0)",
}  # fmt: skip


@pytest.mark.parametrize("what", TRACES)
def test_a_trace_is_gone(python: Callable[..., Outcome], what: str) -> None:
    outcome = python(TRACES[what])
    assert (outcome.status, outcome.stderr) == ("ok", "")


def test_what_a_shell_leaves_is_gone(shell: Callable[..., Outcome]) -> None:
    outcome = shell(
        "umask 777; cd /proc; export LEAK=1 PATH=/tmp; ulimit -n 5 -f 1; set -m; trap '' TERM; alias ls=false; sleep 99 & exit 0"
    )
    assert outcome.status == "ok"


def test_a_function_that_pid1_needs_is_not_what_a_program_made_of_it(python: Callable[..., Outcome]) -> None:
    broken = "import os, signal, select, struct, time\nfor module in (os, signal, select, struct, time):\n    for name in list(vars(module)):\n        if callable(getattr(module, name)) and not name.startswith('_'): setattr(module, name, None)"  # fmt: skip
    assert python(broken).status in {"ok", "error"}


def test_the_order_of_a_set_is_no_message_between_leases(python: Callable[..., Outcome]) -> None:
    first, second = (python("print(hash('a'), hash(b'a'))").stdout for _ in range(2))
    assert first == second != ""


def test_many_calls_leave_pid1_as_small_as_it_was(python: Callable[..., Outcome]) -> None:
    size = "print(open('/proc/1/statm').read().split()[1])"
    for source, _ in itertools.product(("import os\nos.write(1, bytes(200_000))", "raise ValueError", "1"), range(3)):
        python(source)
    before = int(python(size).stdout)
    for n in range(60):
        python(
            f"import os\nos.write(1 + {n} % 2, bytes(200_000))\nif os.fork() == 0: os.pause() if hasattr(os, 'pause') else __import__('signal').pause()"
        )
    assert int(python(size).stdout) - before < 64


def test_a_container_dropped_for_its_leftovers_is_not_that_of_the_next_call(
    python: Callable[..., Outcome], shell: Callable[..., Outcome]
) -> None:
    before = shell("cat /etc/hostname").stdout
    deep = "import os\nfor n in range(1000): os.mkdir('d'); os.chdir('d')"
    assert python(deep).status == "ok"
    assert shell("cat /etc/hostname").stdout != before
