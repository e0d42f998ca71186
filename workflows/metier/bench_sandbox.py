"""`metier bench sandbox`: what a tool call costs, beside `docker exec`, `docker run` and no sandbox at all, in one run.

A shared machine drifts. So each round gives every way its turn, every answer is checked, and the ratios are what to trust;
`bench_figures` computes them.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from metier import configuration
from metier.bench_figures import Memory, Report, Spread, rate, report, spread
from metier.terminal import console
from metier_infra.errors import EngineGone
from metier_infra.settings import SandboxSettings
from metier_tools import limits
from metier_tools.profile import STRICT
from metier_tools.sandbox import Request, Sandbox

if TYPE_CHECKING:
    from metier_tools.docker_exec import Sleeper
    from metier_tools.docker_sandbox import DockerSandbox

PROGRAM, ANSWER = "print(6*7)", "42\n"
PYTHON = ("/usr/bin/python3", "-I", "-S", "-c", PROGRAM)
"""How the program is run where no fork server of ours runs it: the same words in a container and on the host."""
POOL = 8
CALLERS = (1, 8)
BURST = 25
"""Calls of each caller in a round, for the rates."""
PACE_S = 0.2
"""Five calls a second from the pool; in this time it boots another container."""
TIMES = 3
"""How often a pool is closed, and a call stopped."""
WAIT_S = 30.0
_REQUEST = Request("python", PROGRAM, 10.0)
_ENDLESS = Request("python", "import time; time.sleep(60)", 60.0)


@dataclass(frozen=True)
class Way:
    """One way to run the program. A turn is `times` calls, begun `every_s` apart: what one leaves behind is gone before the next."""

    call: Callable[[], str]
    times: int
    every_s: float = 0.0


@dataclass(frozen=True)
class Stage:
    """What is open while the ways take turns: a pool, a sandbox that keeps nothing warm, a container for `docker exec`."""

    settings: SandboxSettings
    image: str
    pooled: Sandbox
    unpooled: Sandbox
    sleeper: Sleeper


def command(
    rounds: Annotated[int, typer.Option(min=1, help="How often each way has its turn; a round takes about 2 s.")] = 20,
    check: Annotated[
        bool, typer.Option("--check", help="Exit 1 unless every target is met; for a quiet machine.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output, for machines.")
    ] = False,
) -> None:
    """Time a sandboxed call, warm, from the pool and cold, beside docker exec, docker run and a bare subprocess."""
    configuration.use_local_stack()
    config = configuration.configure()
    configuration.configure_logs("error")
    with Console(stderr=True).status("starting containers") as status:
        found = measure(config.sandbox, rounds, status.update)
    if as_json:
        typer.echo(json.dumps(asdict(found)))
    else:
        _show(found)
    if check and not found.met:
        raise typer.Exit(1)


def measure(settings: SandboxSettings, rounds: int, tell: Callable[[str], None]) -> Report:
    """All figures, from the real engine. Raises `MissingService` when there is none, `EngineGone` when a way does not give the answer."""
    with _stage(settings) as stage:
        machine = _machine(stage)
        others, missing = by_programs(stage.image, stage.settings)
        taken, rates = _in_turns(stage.pooled, _ways(stage) | others, rounds, tell)
        tell("what an idle container costs, and how soon a call can be stopped")
        memory = _memory(stage.pooled)
        stopped = [_cancel_ms(stage.pooled) for _ in range(TIMES)] if memory else []
    tell(f"closing a pool of {POOL}")
    closed = [_close_s(settings) for _ in range(TIMES)]
    spreads = {name: spread(times) for name, times in taken.items()}
    return report(machine, spreads, rates, memory, closed, stopped, missing)


@contextmanager
def _stage(settings: SandboxSettings) -> Generator[Stage]:
    from metier_tools.docker_exec import sleeper

    with ExitStack() as stack:
        pooled = stack.enter_context(closing(_open(settings, pool=POOL, limit=3 * POOL)))
        unpooled = stack.enter_context(closing(_open(settings, pool=0, limit=POOL)))
        asleep = stack.enter_context(sleeper(settings))
        yield Stage(settings, pooled.image, pooled, unpooled, asleep)


def _open(settings: SandboxSettings, *, pool: int, limit: int) -> DockerSandbox:
    from metier_tools.docker_sandbox import DockerSandbox

    return DockerSandbox(settings.model_copy(update={"pool": pool, "limit": limit, "idle_s": 600.0}))


def _machine(stage: Stage) -> dict[str, str | float]:
    return {
        "cpus": os.cpu_count() or 0,
        "load": round(os.getloadavg()[0], 2),
        "kernel": os.uname().release,
        "cgroup": 2 if Path("/sys/fs/cgroup/cgroup.controllers").exists() else 1,
        "engine": stage.sleeper.engine,
        "image": stage.image,
    }


def _ways(stage: Stage) -> dict[str, Way]:
    """Through our sandbox, and by the engine's own `exec`."""
    return {
        "warm": Way(lambda: _held(stage.pooled, "caller-0"), 20),
        "pooled": Way(lambda: _once(stage.pooled), 4, PACE_S),
        "cold": Way(lambda: _once(stage.unpooled), 1, 2 * PACE_S),
        "cold_and_gone": Way(lambda: _cold_and_gone(stage), 1),
        "docker_exec": Way(lambda: stage.sleeper.execute(PYTHON).decode(), 4),
    }


def by_programs(image: str, settings: SandboxSettings) -> tuple[dict[str, Way], dict[str, str]]:
    """The ways that are programs of this host, and why another is not among them."""
    programs = {"docker_run": (strict_run(image, settings), 1), "subprocess": ([*PYTHON], 8)}
    missing = {
        name: f"there is no program {words[0]!r} on this host"
        for name, (words, _) in programs.items()
        if shutil.which(words[0]) is None
    }
    ways = {name: Way(partial(_printed, words), n) for name, (words, n) in programs.items() if name not in missing}
    return ways, missing


def _held(sandbox: Sandbox, lease: str) -> str:
    with sandbox.hold(lease, WAIT_S) as held:
        return held.run(_REQUEST).stdout


def _once(sandbox: Sandbox) -> str:
    """A call in a container that serves no other; its end is not waited for."""
    answer = _held(sandbox, "once")
    sandbox.release("once")
    return answer


def _cold_and_gone(stage: Stage) -> str:
    """As `docker run --rm` does, wait until the engine has removed the container."""
    with stage.unpooled.hold("gone", WAIT_S) as held:
        answer, container = held.run(_REQUEST).stdout, held.container
    stage.unpooled.release("gone")
    if not stage.sleeper.await_gone(container, int(WAIT_S)):
        raise EngineGone(f"the container {container} was not removed within {WAIT_S:.0f} s")
    return answer


def _printed(words: Sequence[str]) -> str:
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done.stdout or done.stderr


def strict_run(image: str, settings: SandboxSettings) -> list[str]:
    """`docker run --rm` with our limits, as far as its flags go: of a network it knows none, but not how to disable it."""
    tmpfs = f"rw,noexec,nosuid,nodev,size={STRICT.tmp_bytes},nr_inodes={STRICT.tmp_inodes},mode=1777"
    seccomp = Path(limits.__file__).with_name("seccomp.json")
    place = {"runtime": settings.runtime, "cgroup-parent": settings.cgroup_parent}
    return [
        *("docker", "run", "--rm", "--network=none", "--ipc=none", "--read-only", "--cap-drop=ALL"),
        *("--security-opt=no-new-privileges:true", f"--security-opt=seccomp={seccomp}", "--log-driver=none"),
        *(f"--user={limits.NOBODY}:{limits.NOBODY}", f"--workdir={limits.SCRATCH}"),
        *(f"--tmpfs={limits.SCRATCH}:{tmpfs}", f"--pids-limit={STRICT.pids}", f"--cpus={STRICT.cpus}"),
        *(f"--memory={STRICT.memory_bytes}", f"--memory-swap={STRICT.memory_bytes}"),
        *(f"--ulimit=nofile={STRICT.open_files}", f"--ulimit=fsize={STRICT.file_bytes}", "--ulimit=core=0"),
        *(f"--{name}={value}" for name, value in place.items() if value),
        *(f"--env={variable}" for variable in limits.ENVIRONMENT),
        *("--no-healthcheck", f"--entrypoint={PYTHON[0]}", image, *PYTHON[1:]),
    ]


def turn(name: str, way: Way) -> list[float]:
    """Seconds of each call of one turn. Raises `EngineGone` when one does not give the answer."""
    taken: list[float] = []
    for _ in range(way.times):
        began = time.perf_counter()
        answer = way.call()
        taken.append(time.perf_counter() - began)
        if answer != ANSWER:
            raise EngineGone(f"{name.replace('_', ' ')} printed {answer[:200]!r} where {ANSWER!r} is right")
        time.sleep(max(0.0, way.every_s - taken[-1]))
    return taken


def _in_turns(
    sandbox: Sandbox, ways: Mapping[str, Way], rounds: int, tell: Callable[[str], None]
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each call of every way, and calls a second at each number of callers."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    bursts: dict[int, list[float]] = {callers: [] for callers in CALLERS}
    with ThreadPoolExecutor(max(CALLERS)) as threads:
        _warm_up(threads, sandbox, ways)
        for number in range(1, rounds + 1):
            tell(f"round {number} of {rounds}")
            for name, way in ways.items():
                taken[name] += turn(name, way)
            for callers, times in bursts.items():
                times.append(_burst(threads, sandbox, callers))
    return taken, {f"calls_per_s_{callers}": rate(callers * BURST, times) for callers, times in bursts.items()}


def _warm_up(threads: ThreadPoolExecutor, sandbox: Sandbox, ways: Mapping[str, Way]) -> None:
    """Each way once, and every caller's lease: connections are open and caches are full before the clock counts."""
    _burst(threads, sandbox, max(CALLERS))
    for name, way in ways.items():
        turn(name, replace(way, times=1))


def _burst(threads: ThreadPoolExecutor, sandbox: Sandbox, callers: int) -> float:
    """Seconds until so many callers, each with a lease of its own, have had their calls."""

    def caller(number: int) -> None:
        turn("warm", Way(lambda: _held(sandbox, f"caller-{number}"), BURST))

    began = time.perf_counter()
    list(threads.map(caller, range(callers)))
    return time.perf_counter() - began


def _close_s(settings: SandboxSettings) -> float:
    """Seconds to end a pool of containers that have all booted."""
    with closing(_open(settings, pool=POOL, limit=POOL)) as sandbox:
        with ExitStack() as held:
            for number in range(POOL):
                held.enter_context(sandbox.hold(f"closed-{number}", WAIT_S))
        began = time.perf_counter()
        sandbox.close()
        return round(time.perf_counter() - began, 3)


def _cancel_ms(sandbox: Sandbox) -> float:
    """Milliseconds from the wish to stop a call until PID 1 of its container, and with it all others there, is dead."""
    with ThreadPoolExecutor(1) as thread, sandbox.hold("stopped", WAIT_S) as held:
        process = os.pidfd_open(int(_first_process(held.container).name))
        running = thread.submit(held.run, _ENDLESS)
        time.sleep(PACE_S)
        began = time.perf_counter()
        held.stop()
        ended, _, _ = select.select([process], [], [], WAIT_S)
        taken = time.perf_counter() - began
        os.close(process)
        running.result()
    if not ended:
        raise EngineGone(f"a container lived on for {WAIT_S:.0f} s after its call was stopped")
    return round(1000 * taken, 1)


def _memory(sandbox: Sandbox) -> Memory | None:
    """Of a container between two calls; None where the engine's processes cannot be seen."""
    with sandbox.hold("caller-0", WAIT_S) as held, suppress(LookupError):
        process = _first_process(held.container)
        shim = Path("/proc", *_line(process / "status", "PPid"))
        return Memory(
            _rollup_mb(process, "Pss"),
            _rollup_mb(process, "Private_Clean", "Private_Dirty"),
            _rollup_mb(shim, "Pss"),
            _cgroup_mb(process),
        )
    return None


def _first_process(container: str) -> Path:
    """The folder in /proc of a container's PID 1: a process in its cgroup that a namespace calls 1. Raises `LookupError`."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if container in (process / "cgroup").read_text() and _line(process / "status", "NSpid")[-1:] == ["1"]:
                return process
    raise LookupError(container)


def _line(path: Path, name: str) -> list[str]:
    """The words of the line that begins with a name, in one of the kernel's files; none when there is no such line."""
    lines = (line.partition(":") for line in path.read_text().splitlines())
    return next((words.split() for key, _, words in lines if key == name), list[str]())


def _rollup_mb(process: Path, *names: str) -> float | None:
    """The sum of some lines of `smaps_rollup`, which only root may read of others' processes."""
    try:
        kib = sum(int(_line(process / "smaps_rollup", name)[0]) for name in names)
    except OSError:
        return None
    return round(kib * 1024 / 1e6, 2)


def _cgroup_mb(process: Path) -> float | None:
    """Cgroup v2 has one group for everything, v1 one for memory."""
    for line in (process / "cgroup").read_text().splitlines():
        _, controllers, place = line.split(":", 2)
        folder, file = ("memory", "memory.usage_in_bytes") if controllers == "memory" else ("", "memory.current")
        with suppress(OSError):
            return round(int(Path("/sys/fs/cgroup", folder, place.strip("/"), file).read_text()) / 1e6, 2)
    return None


def _show(found: Report) -> None:
    out = console()
    out.print(_ways_table(found.ways))
    out.print(_targets_table(found))
    if found.memory:
        known = {name: value for name, value in asdict(found.memory).items() if value is not None}
        out.print("an idle container:", ", ".join(f"{name.replace('_', ' ')} {known[name]}" for name in known))
    for name, why in found.not_measured.items():
        out.print(f"not measured: {name.replace('_', ' ')}: {why}")


def _ways_table(ways: Mapping[str, Spread]) -> Table:
    table = Table("one call of print(6*7)", "p50 ms", "p95 ms", "p99 ms", "calls")
    for name, one in ways.items():
        figures = (f"{value:.2f}" for value in (one.p50_ms, one.p95_ms, one.p99_ms))
        table.add_row(name.replace("_", " "), *figures, str(one.n))
    return table


def _targets_table(found: Report) -> Table:
    table = Table("target", "measured", "bound", "")
    words = {True: "met", False: "not met", None: "not measured"}
    for target in found.targets:
        value = "-" if target.value is None else f"{target.value:.4g}"
        table.add_row(target.name.replace("_", " "), value, f"{target.sense} {target.bound:.4g}", words[target.met])
    return table
