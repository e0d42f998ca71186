"""Docker: programs run as they should, what is not enforced is named, and what becomes of containers when something dies.

Not here: what hostile programs try (tests/abuse), and the pool (test_pool).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import JsonValue

from metier_infra.errors import EngineGone, LaneGone, MissingService
from metier_infra.settings import SandboxSettings
from metier_tools import limits, owner, selftest
from metier_tools.boot import DOORS, sweep
from metier_tools.docker_engine import Engine
from metier_tools.docker_sandbox import DockerSandbox
from metier_tools.limits import Place, host
from metier_tools.profile import Profile
from metier_tools.sandbox import Outcome, Recipe, Request

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


def test_an_endless_loop_ends_on_time_with_what_it_printed(box: DockerSandbox) -> None:
    outcome = python(
        box,
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
        "print('before')\nwhile True: pass",
        0.5,
    )
    assert (outcome.status, outcome.stdout) == ("timeout", "before\n")
    assert 450 < outcome.wall_ms < 10_000


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


def test_every_wall_stands_whatever_the_profile(tmp_path: Path) -> None:
    options = host(Profile(cpus=0.5, memory_bytes=8 << 20, pids=4), Place())
    assert (options["ReadonlyRootfs"], options["NetworkMode"], options["CapDrop"]) == (True, "none", ["ALL"])
    assert (options["Memory"], options["MemorySwap"], options["PidsLimit"], options["NanoCpus"]) == (
        8 << 20,
        8 << 20,
        4,
        500_000_000,
    )


def test_what_is_not_enforced_is_named() -> None:
    lax = selftest.Seen(
        uid=0, gid=0, capabilities=1, no_new_privileges=0, seccomp=0, read_only=False, scratch=[], scratch_bytes=1 << 40, scratch_files=1 << 20,
        elsewhere=["/run"], interfaces=["eth0"],
        connect=0, vsock=0, io_uring=0, pids=-1, memory=-1, swap=-1,
    )  # fmt: skip
    found = selftest.judged(Outcome("ok", 0, lax.model_dump_json()), Profile())
    assert {one.name for one in found if one.holds} == set()
    assert {"memory limit", "no network", "seccomp filter"} <= {one.name for one in found}
    assert "the probe ended with died" in selftest.judged(Outcome("died"), Profile())[0].seen


def test_limits_that_do_not_hold_when_tried_are_named_although_they_read_well() -> None:
    def lax(request: Request) -> Outcome:
        return Outcome("ok", 0, WELL.model_dump_json() if request.source == selftest.PROBE else "80\n")

    missing = [one.name for one in selftest.findings(lax, Profile()) if not one.holds]
    assert missing == ["pids limit, when tried", "memory limit, when tried"]


WELL = selftest.Seen(
    uid=63000, gid=65534, capabilities=0, no_new_privileges=1, seccomp=2, read_only=True, scratch=["noexec", "nosuid", "nodev"],
    scratch_bytes=64 << 20, scratch_files=8192, elsewhere=[], interfaces=["lo"], connect=101, vsock=1, io_uring=1, pids=64, memory=256 << 20, swap=0,
)  # fmt: skip


def _scratch() -> str:
    """How the scratch folder is mounted."""
    mounted = host(Profile(), Place())["Tmpfs"]
    assert isinstance(mounted, dict)
    return str(mounted["/tmp"])


LAX: dict[str, tuple[dict[str, JsonValue], set[str]]] = {
    "pids": ({"PidsLimit": 0}, {"pids limit", "pids limit, when tried"}),
    "root": ({"ReadonlyRootfs": False}, {"read-only root"}),
    "memory": ({"Memory": 0, "MemorySwap": 0}, {"memory limit", "no swap", "memory limit, when tried"}),
    "swap": ({"MemorySwap": -1}, {"no swap"}),
    "scratch": (
        {"Tmpfs": {"/tmp": "rw,exec,mode=1777"}},
        {"scratch folder limited", "size of the scratch folder", "files in the scratch folder"},
    ),
    "files": (
        {"Tmpfs": {"/tmp": "rw,noexec,nosuid,nodev,size=64m,mode=1777"}},
        {"files in the scratch folder"},
    ),
    "elsewhere": (
        {"Tmpfs": {"/tmp": _scratch(), "/run": "rw,size=1m,mode=1777"}},
        {"nothing else can be written"},
    ),
    "capabilities": ({"CapDrop": []}, {"no capabilities"}),
    "privileges": ({"SecurityOpt": [f"seccomp={limits.seccomp()}"]}, {"no-new-privileges"}),
    "seccomp": (
        {"SecurityOpt": ["no-new-privileges:true", "seccomp=unconfined"]},
        {"seccomp filter", "system calls refused (io_uring)", "socket families refused (vsock)"},
    ),
}
"""Each wall, what takes it down, and what the self-test must then say."""


@pytest.mark.parametrize("wall", LAX)
def test_the_self_test_names_each_wall_that_is_not_there(wall: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, names = LAX[wall]

    def lax(profile: Profile, place: Place) -> dict[str, JsonValue]:
        return {**host(profile, place), **change}

    monkeypatch.setattr(limits, "host", lax)
    sandbox = DockerSandbox(settings())
    try:
        assert {one.name for one in sandbox.findings() if not one.holds} == names
        with pytest.raises(MissingService, match="this container engine does not enforce: "):
            sandbox.check()
    finally:
        sandbox.close()


def test_a_single_use_profile_gives_each_call_a_container_of_its_own() -> None:
    sandbox = DockerSandbox(settings())
    seen: list[str] = []
    try:
        for _ in range(2):
            with sandbox.hold("run", 20, Recipe(Profile(name="once", single_use=True))) as held:
                seen.append(held.container)
                assert held.run(Request("python", "print(1)", 5)).stdout == "1\n"
    finally:
        sandbox.close()
    assert len(set(seen)) == 2


def test_each_container_has_a_user_of_its_own_so_what_the_kernel_counts_by_user_is_not_shared() -> None:
    sandbox = DockerSandbox(settings())
    hog = (
        "import ctypes, os, time\nlibc, count = ctypes.CDLL(None), 0\n"
        "while count < 200 and libc.inotify_init1(0) >= 0: count += 1\nprint(os.getuid(), count, flush=True); time.sleep(2)"
    )

    def seen(lease: str) -> list[str]:
        with sandbox.hold(lease, 20) as held:
            return held.run(Request("python", hog, 10)).stdout.split()

    try:
        with ThreadPoolExecutor(2) as threads:
            first, second = threads.map(seen, ("a", "b"))
    finally:
        sandbox.close()
    assert first[0] != second[0]
    assert int(first[1]) == int(second[1]) > 50


def test_a_door_that_is_not_there_is_no_folder_made_by_the_engine(tmp_path: Path) -> None:
    door = tmp_path / "door"
    config = limits.container(Profile(), IMAGE, ["true"], {}, Place(door=str(door)))
    with pytest.raises(MissingService, match="refused: invalid mount config"):
        Engine(None).create(config)
    assert not door.exists()


def test_files_of_any_name_can_be_put(box: DockerSandbox) -> None:
    for name in (".stdin", ".script"):
        with box.hold("names", 20) as held:
            files = {name: b"x"}
            assert held.run(Request("shell", f"cat {name}; cat", 5, stdin=b"y", files=files)).stdout == "xy"
            long = f"cat {name}; cat #" + "x" * 110_000
            assert held.run(Request("shell", long, 5, stdin=b"y", files=files)).stdout == "xy"


def test_an_operator_chooses_runtime_and_cgroup() -> None:
    options = host(Profile(), Place(runtime="runsc", cgroup_parent="/sandboxes"))
    assert (options["Runtime"], options["CgroupParent"]) == ("runsc", "/sandboxes")


def test_an_image_that_is_not_there_is_said_so() -> None:
    with pytest.raises(MissingService, match="'no-such-image:1' is not in the container engine"):
        DockerSandbox(settings(image="no-such-image:1"))


def test_an_image_reference_that_is_none_is_said_so() -> None:
    with pytest.raises(MissingService, match="invalid reference format"):
        DockerSandbox(settings(image="Bad Image!!"))


def test_doors_of_dead_owners_are_swept_away_and_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name, bearer in (("dead", f"{HERE}|1|no-such-start"), ("mine", owner.me()), ("far", "another|pid|1|1")):
        (tmp_path / f"{DOORS}{name}").mkdir()
        (tmp_path / f"{DOORS}{name}" / "owner").write_text(bearer)
    sweep()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{DOORS}far", f"{DOORS}mine"]


def test_no_engine_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(MissingService, match="start Docker, or set DOCKER_HOST"):
        DockerSandbox(settings(), base_url=f"unix://{tmp_path}/none.sock")


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
from metier_tools.docker_engine import Engine
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
    here = owner.me().rsplit("|", 2)[0]
    labels = (f"{here}|{dead.pid}|1", f"another-{here}|1|1", owner.me())
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


HERE = owner.me().rsplit("|", 2)[0]


@pytest.mark.parametrize(
    ("bearer", "orphan"),
    [
        (f"{HERE}|1|no-such-start", True),
        ("another-host|1|1", False),
        ("nonsense", False),
        (f"{HERE}|x|1", False),
        (f"{HERE.replace('[', '[9')}|1|no-such-start", False),
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
        self._passing = asyncio.Event()
        self._passing.set()

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
                await self._passing.wait()
                writer.write(data)
            writer.write_eof()

    def freeze(self) -> None:
        """From now on nothing passes, and nothing is refused."""
        self._loop.call_soon_threadsafe(self._passing.clear)

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


def test_an_engine_that_says_nothing_holds_up_nobody(gate: Gate) -> None:
    sandbox = DockerSandbox(settings(limit=2), base_url=f"unix://{gate.path}")
    try:
        assert python(sandbox, "print(1)").stdout == "1\n"
        gate.freeze()
        began = time.monotonic()
        with pytest.raises(LaneGone), sandbox.hold("new", 1.0):
            pass
        assert time.monotonic() - began < 3.0
    finally:
        gate.shut()
        sandbox.close()


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
        with pytest.raises(EngineGone, match="no container engine answers at"):
            python(sandbox, "print(1)")
        gate.open()
        assert python(sandbox, "print(2)").stdout == "2\n"
    finally:
        sandbox.close()
    assert until(lambda: sandbox.owner not in containers().values(), 5)
