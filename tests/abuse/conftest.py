"""What stands behind every case of abuse: a lease of a real sandbox, and the proof, after the case, that nothing was harmed.

A case asks for `python`, `shell` or `refusal`, all of one lease. When it is over, `unharmed` takes the portrait of the next call on that
lease and compares it with that of a call in a new container; then it looks at the host. A case that ends its container is no exception:
the next call is in another one.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import re
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from metier_infra.settings import SandboxSettings
from metier_tools.docker_engine import Engine, Listed
from metier_tools.docker_sandbox import DockerSandbox
from metier_tools.sandbox import Outcome, Request

IMAGE = os.environ.get("METIER_SANDBOX_IMAGE", "METIER_SANDBOX_IMAGE is not set")
LIMIT = 6
NOBODY = "65534"
GROWTH = 64
"""Descriptors and threads that the runner may have beyond those at first: its pool's threads and their clients. Hundreds of cases go on: a leak shows."""

PORTRAIT = r"""
import builtins, json, os, random, resource, signal, sys
def lines(path):
    try: return open(path).read().splitlines()
    except OSError as error: return type(error).__name__
def number(*paths):
    return [int(open(path).read()) for path in paths if os.path.exists(path)]
def status(pid, *names):
    said = dict(line.split(':', 1) for line in lines(f'/proc/{pid}/status'))
    return [said[name].split() for name in names]
def stops(folder):
    return os.statvfs(folder).f_bfree, os.statvfs(folder).f_ffree
print(json.dumps({
    'files': [os.listdir(folder) for folder in ('/tmp', '/dev/mqueue', '/dev/pts') if os.path.isdir(folder)], 'room': stops('/tmp'),
    'processes': sum(name.isdigit() for name in os.listdir('/proc')),
    'tasks': number('/sys/fs/cgroup/pids/pids.current', '/sys/fs/cgroup/pids.current'),
    'threads': status('self', 'Threads') + status(1, 'Threads'),
    'descriptors': [os.path.basename(os.readlink(f'/proc/self/fd/{n}')).partition(':')[0] for n in range(3)],
    'more_descriptors': os.listdir('/proc/self/fd')[3:-1],
    'environment': {name: value for name, value in os.environ.items() if name != 'HOSTNAME'},
    'folder': os.getcwd(), 'mask': os.umask(0), 'leader': os.getsid(0) == os.getpid(),
    'identity': [[word.replace(str(os.getuid()), 'own') for word in words] for words in status('self', 'Uid', 'Gid', 'Groups', 'CapEff', 'CapBnd', 'NoNewPrivs', 'Seccomp') + status(1, 'Uid', 'CapEff', 'Seccomp')],
    'signals': status('self', 'SigBlk', 'SigIgn', 'SigCgt', 'SigPnd', 'ShdPnd') + status(1, 'SigBlk', 'SigIgn', 'SigCgt', 'SigPnd', 'ShdPnd'),
    'timers': [signal.getitimer(kind) for kind in range(3)],
    'limits': [(resource.getrlimit(n), resource.prlimit(1, n)) for n in range(16)],
    'shares': [(sorted(os.sched_getaffinity(pid)), os.getpriority(0, pid), os.sched_getscheduler(pid)) for pid in (0, 1)],
    'oom': [lines(f'/proc/{pid}/oom_score_adj') for pid in ('self', 1)],
    'builtins': [sorted(vars(builtins)), print.__class__.__name__, open.__module__], 'modules': sorted(sys.modules),
    'sockets': [len(lines(f'/proc/net/{kind}')) for kind in ('unix', 'tcp', 'udp', 'raw')],
    'ipc': [len(lines(f'/proc/sysvipc/{kind}')) for kind in ('shm', 'sem', 'msg')],
    'mounts': len(lines('/proc/self/mounts')), 'secrets_of_pid1': lines('/proc/1/environ'),
}))
print(os.urandom(16).hex(), random.random())
"""
"""All that one call could leave for the next, as the next one sees it; and two draws, which must never come twice."""

PRELUDE = """
import ctypes, errno, fcntl, mmap, os, pathlib, resource, signal, socket, struct, sys, termios, time
def syscall(*call):
    libc = ctypes.CDLL(None, use_errno=True)
    ctypes.set_errno(0)
    if libc.syscall(*map(ctypes.c_long, call)) == -1:
        raise OSError(ctypes.get_errno(), 'refused')
try:
"""
VERDICT = """
except OSError as error: print(errno.errorcode[error.errno])
else: print('allowed')
"""


def settled(look: Callable[[], list[str]], within_s: float = 10.0) -> list[str]:
    """What is still there when there should be nothing: looks until it has gone, or time is up."""
    end = time.monotonic() + within_s
    while (found := look()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def processes() -> dict[str, tuple[str, bool]]:
    """This host's processes of group 65534: the container by whose cgroup each is counted ("" when by none), and whether it is a PID 1."""
    found: dict[str, tuple[str, bool]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status, cgroup = (entry / "status").read_text(), (entry / "cgroup").read_text()
            except OSError:
                continue
            if re.search(rf"^Gid:\t{NOBODY}\b", status, re.MULTILINE):
                container = re.search(r"[0-9a-f]{64}", cgroup)
                first = re.search(r"^NSpid:.*\s1$", status, re.MULTILINE)
                found[entry.name] = (container[0] if container else "", first is not None)
    return found


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@dataclass
class Host:
    """The engine and the machine, as they were before the first case and as they must be after each."""

    sandbox: DockerSandbox
    engine: Engine = field(default_factory=lambda: Engine(None))

    def __post_init__(self) -> None:
        self.others = {one for one, bearer in self.containers().items() if bearer != self.sandbox.owner}
        self.strangers = {pid for pid, (container, _) in processes().items() if not container}
        self.draws: set[str] = set()
        self.pristine = self.portrait(f"pristine-{uuid.uuid4()}")
        self.descriptors, self.threads = open_descriptors(), threading.active_count()

    def containers(self) -> dict[str, str]:
        """Running or not: id to owner."""
        listed = self.engine.ask(lambda client: client.containers(all=True, filters={}))
        return {one.id: one.owner for one in map(Listed.model_validate, listed)}

    def portrait(self, lease: str) -> dict[str, object]:
        """The next call on a lease. What it draws must be new."""
        with self.sandbox.hold(lease, 30) as held:
            outcome = held.run(Request("python", PORTRAIT, 5.0))
        assert (outcome.status, outcome.stderr) == ("ok", "")
        seen, drawn = outcome.stdout.splitlines()
        assert not self.draws.intersection(drawn.split())
        self.draws.update(drawn.split())
        found: dict[str, object] = json.loads(seen)
        return found

    def prove_unharmed(self) -> None:
        """Wait for what the sandbox throws away to be gone, then look. Nothing here depends on how busy the machine is."""
        assert settled(self.strays) == []
        if self.growth() > GROWTH:
            gc.collect()
        assert self.growth() <= GROWTH

    def growth(self) -> int:
        """How many descriptors or threads more this process has than before the first case."""
        return max(open_descriptors() - self.descriptors, threading.active_count() - self.threads)

    def strays(self) -> list[str]:
        """What should not be: containers of nobody, or too many; processes outside all containers, or in one of ours but not its PID 1."""
        new = {one: bearer for one, bearer in self.containers().items() if one not in self.others}
        ours = {one for one, bearer in new.items() if bearer == self.sandbox.owner}
        return [one for one in new if one not in ours or len(ours) > LIMIT] + [
            pid
            for pid, (container, first) in processes().items()
            if (container in ours and not first) or not (container or pid in self.strangers)
        ]


@pytest.fixture(scope="session")
def host() -> Generator[Host]:
    sandbox = DockerSandbox(SandboxSettings.model_validate({"image": IMAGE, "pool": 2, "limit": LIMIT}))
    yield Host(sandbox)
    sandbox.close()


@pytest.fixture(scope="session")
def sandbox(host: Host) -> DockerSandbox:
    return host.sandbox


@pytest.fixture(scope="session")
def pristine(host: Host) -> dict[str, object]:
    """The portrait of the first call in a new container, with which all others are compared."""
    return host.pristine


@pytest.fixture(scope="module")
def lease() -> str:
    return f"abuse-{uuid.uuid4()}"


@pytest.fixture
def unharmed(host: Host, lease: str) -> Generator[None]:
    """Whatever the case did: the next call on its lease finds what the first call in a new container finds, and so does the host."""
    yield
    assert host.portrait(lease) == host.pristine
    with host.sandbox.hold(lease, 30) as held:
        assert held.run(Request("shell", "echo unharmed; ls -A", 5.0)).stdout == "unharmed\n"
    host.prove_unharmed()


@pytest.fixture
def python(sandbox: DockerSandbox, lease: str, unharmed: None) -> Callable[..., Outcome]:
    """Run a Python program on the case's lease: source, and seconds that it may take."""

    def run(source: str, timeout_s: float = 5.0) -> Outcome:
        with sandbox.hold(lease, 30) as held:
            return held.run(Request("python", source, timeout_s))

    return run


@pytest.fixture
def shell(sandbox: DockerSandbox, lease: str, unharmed: None) -> Callable[..., Outcome]:
    """The same for a shell script."""

    def run(script: str, timeout_s: float = 5.0) -> Outcome:
        with sandbox.hold(lease, 30) as held:
            return held.run(Request("shell", script, timeout_s))

    return run


@pytest.fixture
def refusal(python: Callable[..., Outcome]) -> Callable[[str], str]:
    """Do something in the sandbox, and say by which errno it was refused: its name, or `allowed`."""

    def ask(deed: str) -> str:
        outcome = python(PRELUDE + textwrap.indent(deed, "    ") + VERDICT)
        said = outcome.stdout.strip() or f"{outcome.status} {outcome.exit_code} {outcome.stderr[-300:]}"
        assert said == "allowed" or said in errno.errorcode.values(), said
        return said

    return ask
