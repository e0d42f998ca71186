"""Docker: what a program cannot do, what does not pass from call to call, and what becomes of containers when something dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import JsonValue

from metier_infra.errors import EngineGone, LaneGone, MissingService
from metier_infra.settings import SandboxSettings
from metier_tools import limits, owner, selftest
from metier_tools.docker_sandbox import DockerSandbox
from metier_tools.limits import Profile, host
from metier_tools.pool import Pool, Sizes, next_move, to_boot
from metier_tools.sandbox import Outcome, Request

IMAGE = os.environ.get("METIER_SANDBOX_IMAGE", "METIER_SANDBOX_IMAGE is not set")
ENGINE = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")


def settings(**change: object) -> SandboxSettings:
    return SandboxSettings.model_validate({"image": IMAGE, "pool": 0, "limit": 4} | change)


def containers() -> dict[str, str]:
    """Running or not: short id to owner."""
    line = ["docker", "ps", "-a", "--no-trunc", "--format", f'{{{{.ID}}}} {{{{.Label "{owner.LABEL}"}}}}']
    said = subprocess.run(line, check=True, capture_output=True, text=True).stdout
    return {one.split()[0][:12]: one.partition(" ")[2] for one in said.splitlines()}


def until(ready: Callable[[], bool], within_s: float) -> bool:
    end = time.monotonic() + within_s
    while not ready() and time.monotonic() < end:
        time.sleep(0.05)
    return ready()


@pytest.fixture(scope="module")
def box() -> Generator[DockerSandbox]:
    opened = DockerSandbox(settings())
    yield opened
    opened.close()


def python(box: DockerSandbox, source: str, timeout_s: float = 5.0, lease: str = "run") -> Outcome:
    with box.hold(lease, 20) as held:
        return held.run(Request("python", source, timeout_s))


def shell(box: DockerSandbox, script: str, timeout_s: float = 5.0, lease: str = "run") -> Outcome:
    with box.hold(lease, 20) as held:
        return held.run(Request("shell", script, timeout_s))


REFUSED = {
    "network": ("import socket; socket.create_connection(('1.1.1.1', 53), 2)", "Network is unreachable"),
    "vsock": ("import socket; socket.socket(40, socket.SOCK_STREAM)", "Operation not permitted"),
    "af_alg": ("import socket; socket.socket(38, socket.SOCK_SEQPACKET)", "Operation not permitted"),
    "netlink": ("import socket; socket.socket(16, socket.SOCK_RAW)", "Operation not permitted"),
    "raw socket": ("import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", "Operation not permitted"),
    "root file system": ("open('/etc/x', 'w')", "Read-only file system"),
    "device folder": ("open('/dev/x', 'w')", "Permission denied"),
    "becoming root": ("import os; os.setuid(0)", "Operation not permitted"),
    "exec from scratch": (
        "import os, shutil; os.chmod(shutil.copy('/usr/bin/env', '/tmp/e'), 0o755); os.execv('/tmp/e', ['e'])",
        "Permission denied",
    ),
    "memfd": ("import os; os.memfd_create('x')", "Operation not permitted"),
    "PID 1's memory": ("open('/proc/1/mem', 'rb')", "Permission denied"),
    "PID 1's output": ("open('/proc/1/fd/1', 'wb')", "Permission denied"),
    "PID 1's environment": ("open('/proc/1/environ', 'rb')", "Permission denied"),
    "big file": ("f = open('/tmp/f', 'wb')\nwhile True: f.write(bytes(1 << 20))", ""),
    "many files": ("for n in range(10000): open(f'/tmp/{n}', 'w').close()", "No space left on device"),
    "descriptors": ("import os\nwhile True: os.dup(0)", "Too many open files"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_program_is_refused(box: DockerSandbox, what: str) -> None:
    source, says = REFUSED[what]
    outcome = python(box, source)
    assert outcome.status == "error"
    assert says in outcome.stderr
    assert python(box, "print('unharmed')").stdout == "unharmed\n"


NUMBERS = {"x86_64": 0, "aarch64": 1}[os.uname().machine]
CALLS: dict[str, tuple[tuple[int, int], *tuple[int, ...]]] = {
    "ptrace": ((101, 117), 0),
    "io_uring_setup": ((425, 425), 1, 0),
    "bpf": ((321, 280), 0, 0, 0),
    "userfaultfd": ((323, 282), 0),
    "keyctl": ((250, 219), 0, 0, 0),
    "add_key": ((248, 217), 0, 0, 0, 0),
    "memfd_secret": ((447, 447), 0),
    "mount": ((165, 40), 0, 0, 0, 0, 0),
    "unshare": ((272, 97), 0x10000000),
    "setns": ((308, 268), 0, 0),
    "clone into a user namespace": ((56, 220), 0x10000000 | 17, 0, 0, 0, 0),
    "process_vm_readv": ((310, 270), 1, 0, 0, 0, 0, 0),
    "perf_event_open": ((298, 241), 0, 0, 0, 0, 0),
    "kexec_load": ((246, 104), 0, 0, 0, 0),
    "reboot": ((169, 142), 0, 0, 0, 0),
    "init_module": ((175, 105), 0, 0, 0),
    "open_by_handle_at": ((304, 265), 0, 0, 0),
    "shmget": ((29, 194), 0, 4096, 0o600),
    "personality": ((135, 92), 0x0040000),
}
"""Each call's number on x86_64 and on aarch64, and its arguments."""
if os.uname().machine == "x86_64":
    CALLS["modify_ldt"] = ((154, 0), 0, 0, 0)


def test_dangerous_system_calls_are_refused(box: DockerSandbox) -> None:
    calls = {name: (numbers[NUMBERS], *rest) for name, (numbers, *rest) in CALLS.items()}
    source = (
        "import ctypes, json\nlibc = ctypes.CDLL(None, use_errno=True)\nseen = {}\n"
        f"for name, call in {calls!r}.items():\n"
        "    ctypes.set_errno(0); seen[name] = (libc.syscall(*call), ctypes.get_errno())\nprint(json.dumps(seen))"
    )
    assert json.loads(python(box, source).stdout) == {name: [-1, 1] for name in CALLS}


def test_memory_is_limited_and_its_end_is_told(box: DockerSandbox) -> None:
    assert python(box, "x = bytearray(1 << 30)").status == "oom"
    assert shell(box, "python3 -c 'x = bytearray(1 << 30)'").status == "oom"
    assert python(box, "print('unharmed')").stdout == "unharmed\n"


def test_processes_are_limited_and_a_fork_bomb_is_cleared_away(box: DockerSandbox) -> None:
    outcome = python(box, "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", 1.0)
    assert outcome.status == "timeout"
    assert outcome.wall_ms < 10_000
    assert python(box, "print('unharmed')").stdout == "unharmed\n"


def test_an_endless_loop_ends_on_time_with_what_it_printed(box: DockerSandbox) -> None:
    outcome = python(
        box,
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
        "print('before')\nwhile True: pass",
        0.5,
    )
    assert (outcome.status, outcome.stdout) == ("timeout", "before\n")
    assert 450 < outcome.wall_ms < 10_000


def test_a_flood_is_cut_and_the_next_call_is_unharmed(box: DockerSandbox) -> None:
    outcome = shell(box, "yes")
    assert (outcome.status, outcome.truncated) == ("output_cut", True)
    assert len(outcome.stdout) == Profile().keep_bytes
    assert python(box, "print('unharmed')").stdout == "unharmed\n"


def test_nothing_passes_from_call_to_call(box: DockerSandbox) -> None:
    leave = shell(
        box,
        "echo secret > /tmp/file; mkdir -p /tmp/a/b; echo x > /tmp/a/b/.hidden; mkfifo /tmp/fifo;"
        "setsid sh -c 'trap \"\" TERM HUP INT; while :; do sleep 1; done' >/dev/null 2>&1 &",
    )
    assert leave.status == "ok"
    python(box, "import builtins, sys; builtins.leak = 1; sys.modules['leak'] = sys")
    seen = python(
        box,
        "import builtins, os, sys\nprint(os.listdir('/tmp'), [p for p in os.listdir('/proc') if p.isdigit() and int(p) != os.getpid()],"
        " hasattr(builtins, 'leak'), 'leak' in sys.modules)",
    )
    assert seen.stdout == "[] ['1'] False False\n"


def test_frames_in_the_output_are_output(box: DockerSandbox) -> None:
    forged = "import os, struct\nos.write(1, struct.pack('>BI', 9, 23) + struct.pack('>iBBBffI', 0, 0, 0, 0, 0, 0, 0)); raise SystemExit(7)"
    outcome = python(box, forged)
    assert (outcome.status, outcome.exit_code) == ("error", 7)


@pytest.mark.parametrize("code", [0, 1, 3, 255])
def test_exit_codes_come_back(box: DockerSandbox, code: int) -> None:
    assert python(box, f"exit({code})").exit_code == code
    assert shell(box, f"exit {code}").exit_code == code


def test_a_program_is_an_ordinary_python_program(box: DockerSandbox) -> None:
    outcome = python(
        box,
        "import pickle, threading, time, dataclasses, atexit\n"
        "@dataclasses.dataclass\nclass P:\n    n: int\n"
        "assert pickle.loads(pickle.dumps(P(1))) == P(1)\natexit.register(print, 'bye')\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()\nprint('é', __name__)",
    )
    assert (outcome.status, outcome.stdout, outcome.stderr) == ("ok", "é __main__\nlate\nbye\n", "")
    assert python(box, "a = 1\na.b").stderr == (
        'Traceback (most recent call last):\n  File "<tool>", line 2, in <module>\n    a.b\n'
        "AttributeError: 'int' object has no attribute 'b'\n"
    )


def test_the_standard_library_works(box: DockerSandbox) -> None:
    outcome = python(
        box,
        "import asyncio, concurrent.futures, sqlite3, subprocess, tempfile\n"
        "async def main():\n"
        "    child = await asyncio.create_subprocess_exec('echo', 'child', stdout=-1)\n"
        "    return (await child.communicate())[0]\n"
        "print(asyncio.run(main()), subprocess.run(['sh', '-c', 'echo $((6*7))'], capture_output=True, text=True).stdout)\n"
        "with concurrent.futures.ThreadPoolExecutor() as pool: print(sum(pool.map(abs, range(-3, 0))))\n"
        "with tempfile.NamedTemporaryFile() as file: print(sqlite3.connect(file.name).execute('select 6*7').fetchone())\n"
        "try: input()\nexcept EOFError: print('no input')",
    )
    assert (outcome.stderr, outcome.stdout) == ("", "b'child\\n' 42\n\n6\n(42,)\nno input\n")


@pytest.mark.parametrize(
    "attack",
    [
        "import os, signal\nfor n in (9, 15, 19, 2, 1): os.kill(1, n)",
        "import os; os.sched_setaffinity(1, {0})",
        "import resource; resource.prlimit(1, resource.RLIMIT_NOFILE, (20, 20))",
        "import os; os.setpriority(os.PRIO_PROCESS, 1, 19)",
        "import os; os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0))",
        "import os; os.kill(-1, 19)",
        "import os; os.kill(os.getppid(), 9); os.kill(os.getpid(), 9)",
        "import os\nfor n in range(300):\n    os.mkdir('d'); os.chdir('d')",
    ],
)
def test_an_attack_on_pid1_harms_no_later_call(box: DockerSandbox, attack: str) -> None:
    outcome = python(box, attack, 1.0)
    assert outcome.status in {"ok", "error", "timeout"}
    seen = python(
        box,
        "import os, resource; print(os.getpriority(0, 1), resource.prlimit(1, resource.RLIMIT_NOFILE), os.listdir('/tmp'))",
    )
    assert seen.stdout == "0 (256, 256) []\n"


def test_binary_output_and_closed_descriptors_are_results(box: DockerSandbox) -> None:
    assert python(box, "import os; os.write(1, bytes(range(256)))").stdout.startswith("�\x01\x02")
    assert python(box, "import os; os.closerange(0, 3)").status in {"ok", "error"}
    assert python(box, "print('unharmed')").stdout == "unharmed\n"


def test_every_wall_stands_whatever_the_profile(tmp_path: Path) -> None:
    options = host(Profile(cpus=0.5, memory_bytes=1, pids=2))
    assert (options["ReadonlyRootfs"], options["NetworkMode"], options["CapDrop"]) == (True, "none", ["ALL"])
    assert (options["Memory"], options["MemorySwap"], options["PidsLimit"], options["NanoCpus"]) == (
        1,
        1,
        2,
        500_000_000,
    )


def test_what_is_not_enforced_is_named() -> None:
    lax = selftest.Seen(
        uid=0, gid=0, capabilities=1, no_new_privileges=0, seccomp=0, read_only=False, scratch=[], interfaces=["eth0"],
        connect=0, vsock=0, io_uring=0, pids=-1, memory=-1, swap=-1,
    )  # fmt: skip
    named = selftest.weaknesses(Outcome("ok", 0, lax.model_dump_json()), Profile())
    assert len(named) == 12
    assert {"memory limit", "no network", "seccomp filter"} <= set(named)
    assert "the probe ended with died" in selftest.weaknesses(Outcome("died"), Profile())[0]


def test_the_self_test_names_a_limit_that_the_engine_does_not_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    def lax(profile: Profile, runtime: str | None = None) -> dict[str, JsonValue]:
        return {**host(profile, runtime), "PidsLimit": 0, "ReadonlyRootfs": False}

    monkeypatch.setattr(limits, "host", lax)
    sandbox = DockerSandbox(settings())
    try:
        with pytest.raises(MissingService, match="does not enforce: read-only root; pids limit"):
            sandbox.check()
    finally:
        sandbox.close()


def test_an_image_that_is_not_there_is_said_so() -> None:
    with pytest.raises(MissingService, match="'no-such-image:1' is not in the container engine"):
        DockerSandbox(settings(image="no-such-image:1"))


def test_no_engine_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(MissingService, match="start Docker, or set DOCKER_HOST"):
        DockerSandbox(settings(), base_url=f"unix://{tmp_path}/none.sock")


# --- the pool ---


@pytest.mark.parametrize(
    ("state", "move"),
    [
        ({"warm": 1, "alive": 4, "idle": 3}, "warm"),
        ({"warm": 0, "alive": 3, "idle": 3}, "boot"),
        ({"warm": 0, "alive": 4, "idle": 1}, "evict"),
        ({"warm": 0, "alive": 4, "idle": 1, "coming": 1}, "wait"),
        ({"warm": 0, "alive": 4, "idle": 1, "coming": 1, "seekers": 2}, "evict"),
        ({"warm": 0, "alive": 4, "idle": 0}, "wait"),
    ],
)
def test_how_a_lease_gets_a_container(state: dict[str, int], move: str) -> None:
    assert next_move(**({"limit": 4, "coming": 0, "seekers": 1} | state)) == move


@pytest.mark.parametrize(
    ("warm", "booting", "alive", "count"), [(0, 0, 0, 2), (1, 1, 2, 0), (0, 0, 3, 1), (0, 0, 9, 0)]
)
def test_how_many_are_booted_ahead(warm: int, booting: int, alive: int, count: int) -> None:
    assert to_boot(warm=warm, booting=booting, alive=alive, seekers=0, sizes=Sizes(warm=2, limit=4, idle_s=1)) == count


def test_none_is_booted_ahead_while_a_lease_seeks_one() -> None:
    assert to_boot(warm=0, booting=0, alive=3, seekers=1, sizes=Sizes(warm=2, limit=4, idle_s=1)) == 0


@dataclass
class Fake:
    n: int
    well: bool = True

    def alive(self) -> bool:
        return self.well


@dataclass
class Yard:
    """Counts what a pool boots and buries."""

    booted: list[Fake] = field(default_factory=list[Fake])
    buried: list[int] = field(default_factory=list[int])
    most: int = 0

    def boot(self) -> Fake:
        box = Fake(len(self.booted))
        self.booted.append(box)
        self.most = max(self.most, len(self.booted) - len(self.buried))
        time.sleep(0.01)
        return box

    def bury(self, box: Fake) -> None:
        time.sleep(0.01)
        self.buried.append(box.n)

    @contextlib.contextmanager
    def pool(self, **sizes: float) -> Generator[Pool[Fake]]:
        made = {"warm": 0, "limit": 2, "idle_s": 60} | sizes
        pool = Pool(self.boot, self.bury, Sizes(int(made["warm"]), int(made["limit"]), made["idle_s"]))
        pool.start()
        try:
            yield pool
        finally:
            pool.close()
        assert sorted(self.buried) == [box.n for box in self.booted]


def use(pool: Pool[Fake], lease: str, wait_s: float = 5.0) -> int:
    with pool.hold(lease, wait_s) as taken:
        return taken.box.n


def test_at_the_limit_the_lease_unused_for_longest_gives_way() -> None:
    yard = Yard()
    with yard.pool() as pool:
        assert [use(pool, lease) for lease in ("a", "b", "a")] == [0, 1, 0]
        assert use(pool, "c") == 2
        assert yard.buried == [1]
        assert use(pool, "a") == 0
    assert yard.most == 2


def test_at_the_limit_with_none_idle_a_call_waits_and_then_gives_up() -> None:
    with Yard().pool() as pool, pool.hold("a", 1), pool.hold("b", 1):
        began = time.monotonic()
        with pytest.raises(LaneGone, match="all are in use"):
            use(pool, "c", 0.2)
        assert 0.15 < time.monotonic() - began < 10


def test_a_call_that_waits_gets_the_first_container_that_becomes_free() -> None:
    with Yard().pool() as pool, ThreadPoolExecutor() as threads:
        with pool.hold("a", 1), pool.hold("b", 1):
            waiting = threads.submit(use, pool, "c")
            time.sleep(0.05)
            assert not waiting.done()
        assert waiting.result(2) == 2


def test_a_container_that_is_not_well_is_not_used_again() -> None:
    yard = Yard()
    with yard.pool() as pool:
        with pool.hold("a", 1) as taken:
            taken.box.well = False
        assert use(pool, "a") == 1
        yard.booted[1].well = False
        assert use(pool, "a") == 2
        assert until(lambda: yard.buried == [0, 1], 2)


def test_an_idle_lease_is_ended_and_the_pool_is_kept_warm() -> None:
    yard = Yard()
    with yard.pool(warm=1, limit=3, idle_s=0.2) as pool:
        assert until(lambda: len(yard.booted) == 1, 2)
        time.sleep(0.2)
        with pool.hold("a", 1) as taken:
            assert not taken.cold
        assert until(lambda: yard.buried == [0], 2)
        assert len(yard.booted) == 2


def test_many_callers_never_exceed_the_limit() -> None:
    yard = Yard()
    with yard.pool(limit=3, warm=1) as pool, ThreadPoolExecutor(12) as threads:
        list(threads.map(use, [pool] * 150, [f"lease-{n % 7}" for n in range(150)]))
    assert yard.most <= 3


def test_a_boot_that_fails_is_told_and_leaves_room() -> None:
    yard = Yard()

    def boot() -> Fake:
        if not yard.booted:
            yard.booted.append(Fake(0))
            yard.buried.append(0)
            raise EngineGone("not yet")
        return yard.boot()

    pool = Pool(boot, yard.bury, Sizes(warm=0, limit=1, idle_s=60))
    pool.start()
    with pytest.raises(EngineGone):
        use(pool, "a")
    assert use(pool, "a") == 1
    pool.close()


# --- what dies ---


def test_closing_a_pool_of_eight_is_quick_and_leaves_nothing() -> None:
    sandbox = DockerSandbox(settings(pool=8, limit=8))
    assert until(lambda: list(containers().values()).count(sandbox.owner) == 8, 15)
    time.sleep(0.5)
    began = time.monotonic()
    sandbox.close()
    took = time.monotonic() - began
    assert sandbox.owner not in containers().values()
    assert took < 8.0  # an engine that waits politely takes 10 s for each; how quick it is, a benchmark says


def test_a_call_in_hand_ends_when_the_sandbox_is_closed() -> None:
    sandbox = DockerSandbox(settings())
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(python, sandbox, "import time; time.sleep(30)", 40.0)
        assert until(lambda: sandbox.owner in containers().values(), 5)
        time.sleep(0.5)
        sandbox.close()
        with pytest.raises(LaneGone):
            running.result(5)


HOLDER = """
import sys, threading, time
from metier_infra.settings import SandboxSettings
from metier_tools.docker_sandbox import DockerSandbox
from metier_tools.sandbox import Request
box = DockerSandbox(SandboxSettings(image=sys.argv[1], pool=2, limit=4))
def busy():
    with box.hold("busy", 10) as held:
        print(held.container, box.owner, flush=True)
        held.run(Request("shell", "trap '' TERM HUP INT PIPE; while :; do :; done", 60))
busy()
"""


def test_containers_end_with_the_process_that_holds_them_even_busy_ones() -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, IMAGE], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    busy, bearer = holder.stdout.readline().split(maxsplit=1)
    assert until(lambda: sum(one == bearer.strip() for one in containers().values()) == 3, 10)
    assert busy in containers()
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert until(lambda: bearer.strip() not in containers().values(), 5)


def test_orphans_of_dead_owners_are_removed_and_nobody_elses() -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    host_name = os.uname().nodename
    labels = (f"{host_name}|{dead.pid}|1", f"another-{host_name}|1|1", owner.me())
    made = [
        subprocess.run(
            ["docker", "create", "--network", "none", "--label", f"{owner.LABEL}={label}", IMAGE, "true"], check=True, capture_output=True, text=True
        ).stdout[:12]
        for label in labels
    ]  # fmt: skip
    sandbox = DockerSandbox(settings())
    try:
        left = containers()
        assert [one in left for one in made] == [False, True, True]
    finally:
        sandbox.close()
        subprocess.run(["docker", "rm", "-f", *made[1:]], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("bearer", "orphan"),
    [
        (f"{os.uname().nodename}|1|no-such-start", True),
        ("another-host|1|1", False),
        ("nonsense", False),
        (f"{os.uname().nodename}|x|1", False),
        (owner.me(), False),
    ],
)
def test_whose_container_is_an_orphan(bearer: str, orphan: bool) -> None:
    assert owner.is_orphan(bearer) is orphan


class Gate:
    """A socket in front of the engine's, which can be shut: to its clients the engine has died."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        self._do(self._open())

    async def _open(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine_reader, engine_writer = await asyncio.open_unix_connection(ENGINE.removeprefix("unix://"))
        self._writers |= {writer, engine_writer}
        await asyncio.gather(self._pump(reader, engine_writer), self._pump(engine_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
            writer.write_eof()

    def shut(self) -> None:
        self._do(self._shut())

    async def _shut(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        self.path.unlink(missing_ok=True)

    def _do(self, work: asyncio.Future[None] | object) -> None:
        assert asyncio.iscoroutine(work)
        asyncio.run_coroutine_threadsafe(work, self._loop).result(5)

    def end(self) -> None:
        self.shut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()


@pytest.fixture
def gate(tmp_path: Path) -> Generator[Gate]:
    made = Gate(tmp_path / "engine.sock")
    made.open()
    yield made
    made.end()


def test_an_engine_that_dies_is_retriable_and_found_again_when_it_is_back(gate: Gate) -> None:
    sandbox = DockerSandbox(settings(pool=1, limit=2), base_url=f"unix://{gate.path}")
    try:
        assert python(sandbox, "print(1)").stdout == "1\n"
        with ThreadPoolExecutor(1) as threads:
            running = threads.submit(python, sandbox, "import time; time.sleep(30)", 40.0)
            time.sleep(0.5)
            gate.shut()
            with pytest.raises(EngineGone):
                running.result(5)
        with pytest.raises(EngineGone, match="does not answer"):
            python(sandbox, "print(1)")
        gate.open()
        assert python(sandbox, "print(2)").stdout == "2\n"
    finally:
        sandbox.close()
    assert until(lambda: sandbox.owner not in containers().values(), 5)
