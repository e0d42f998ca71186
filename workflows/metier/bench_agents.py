"""`metier bench agents`: what the agent worker itself costs, beside a model that takes no time and tools that run in no container.

CPU of this whole process (all threads) for each model turn, through the real worker on a bus that keeps nothing and a journal in a file; the
worker's import in a process of its own; and what it holds after thousands of calls, fifty at a time.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from metier import configuration
from metier.bench_figures import Sense, Target, judge
from metier.terminal import console
from metier_infra.bus import Consumption, Handler, Lanes
from metier_infra.database import migrate
from metier_infra.events import RUNS, CallRequested, tasks_topic
from metier_infra.journal import Journal
from metier_infra.messages import Delivery, Envelope, Record, encode
from metier_infra.rows import Call
from metier_infra.words import CallId, RunId, Task

TARGETS: Mapping[str, tuple[Sense, float]] = {
    "cpu_ms_per_turn": ("<=", 3.0),
    "import_s": ("<=", 1.0),
    "growth_kb_per_call": ("<=", 0.5),
}
"""The last one says "none": a call that left anything behind would leave its message list, which takes some 10 kB."""
TURNS = 2
AT_ONCE = 50
IMPORTS = 5
_SPEC: Mapping[str, Any] = {
    "name": "bench",
    "model": "scripted:bench",
    "policy": {"kind": "collaborative"},
    "tools": [{"name": "python"}],
}


@dataclass(frozen=True)
class Measured:
    """CPU and wall time in milliseconds a model turn, one call at a time and fifty at once; import in seconds; memory in MB and kB."""

    calls: int
    turns_per_call: int
    cpu_ms_per_turn: float
    wall_ms_per_turn: float
    cpu_ms_per_turn_at_50: float
    calls_per_s_at_50: float
    import_s: float
    imported_providers: list[str]
    rss_mb: float
    growth_kb_per_call: float


def command(
    calls: Annotated[int, typer.Option(min=100, help="Calls, fifty at a time, over which memory is watched.")] = 2000,
    check: Annotated[bool, typer.Option("--check", help="Exit code 1 when a target is missed.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output, for machines.")
    ] = False,
) -> None:
    """Time the agent worker with a scripted model: CPU for each model turn, import, memory over thousands of calls."""
    configuration.configure_logs("error")
    import_s, providers = _imported()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(_measure(Path(folder), calls, import_s, providers))
    targets = judge(asdict(found), TARGETS)
    if as_json:
        typer.echo(json.dumps({**asdict(found), "targets": [asdict(target) for target in targets]}))
    else:
        _show(targets)
    if check and not all(target.met for target in targets):
        raise typer.Exit(1)


def _imported() -> tuple[float, list[str]]:
    """Seconds that a new interpreter takes to import the worker, the median of five; and the provider packages that came with it."""
    program = (
        "import sys, time; began = time.perf_counter(); import metier_agents.worker;"
        " print(time.perf_counter() - began, *(name for name in ('openai', 'anthropic', 'langchain') if name in sys.modules))"
    )
    said = [
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
        for _ in range(IMPORTS)
    ]
    return statistics.median(float(words[0]) for words in said), said[0][1:]


class _Feed:
    """A bus that hands calls to the worker and counts its answers, and keeps neither."""

    def __init__(self) -> None:
        self._asked: asyncio.Queue[Delivery] = asyncio.Queue()
        self._answered = asyncio.Semaphore(0)

    async def publish(self, *records: Record) -> None:
        for record in records:
            if record.topic == RUNS:
                self._answered.release()
            else:
                self._asked.put_nowait(Delivery(record.topic, 0, 0, record.key, record.value, record.headers))

    async def answered(self) -> None:
        """Wait for one more answer."""
        await self._answered.acquire()

    async def consume(self, what: Consumption, handle: Handler, stop: asyncio.Event) -> None:
        lanes = Lanes(handle, what.concurrency)
        what.ready()
        stopping = asyncio.create_task(stop.wait())
        while not stop.is_set():
            asked = asyncio.create_task(self._asked.get())
            await asyncio.wait([asked, stopping], return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                await lanes.admit(asked.result(), lambda: None)
            asked.cancel()
        await lanes.drain()
        await lanes.cancel()

    async def close(self) -> None:
        """Nothing is held."""


async def _measure(folder: Path, calls: int, import_s: float, providers: list[str]) -> Measured:
    from metier_infra.sqlite_journal import SqliteDatabase

    db = SqliteDatabase(folder / "bench.db")
    await migrate(db)
    journal, feed, stop = Journal(db), _Feed(), asyncio.Event()
    serving = asyncio.create_task(_serve(feed, journal, stop))
    await _calls(feed, journal, "warm", 1000, AT_ONCE)
    cpu_ms, wall_ms = await _timed(feed, journal, "one", 200, 1)
    before = await _settled()
    cpu_50_ms, wall_50_ms = await _timed(feed, journal, "fifty", calls, AT_ONCE)
    after = await _settled()
    stop.set()
    await serving
    await db.close()
    return Measured(
        calls=calls,
        turns_per_call=TURNS,
        cpu_ms_per_turn=cpu_ms,
        wall_ms_per_turn=wall_ms,
        cpu_ms_per_turn_at_50=cpu_50_ms,
        calls_per_s_at_50=1000 / (wall_50_ms * TURNS),
        import_s=import_s,
        imported_providers=providers,
        rss_mb=after / 1e6,
        growth_kb_per_call=(after - before) / 1e3 / calls,
    )


async def _serve(feed: _Feed, journal: Journal, stop: asyncio.Event) -> None:
    from metier_agents.model import ScriptedModel
    from metier_agents.spec import AgentSpec
    from metier_agents.testing import ScriptedLane
    from metier_agents.turns import ModelTurn, ToolUse
    from metier_agents.worker import AgentWorker
    from metier_tools.builtin import BUILTIN
    from metier_tools.tool import ToolResult

    class Forgetful(ScriptedModel):
        async def ask(self, *args: Any, **asked: Any) -> ModelTurn:
            turn = await super().ask(*args, **asked)
            self.asked.clear()
            return turn

    class ForgetfulLane(ScriptedLane):
        async def call(self, call: Any) -> ToolResult:
            result = await super().call(call)
            self.calls.clear()
            return result

    spec = AgentSpec.model_validate(_SPEC)
    use = ToolUse(id="u", tool="python", arguments={"code": "print(6*7)"})
    script = [ModelTurn(uses=(use,), cost_usd=0.0), ModelTurn(text="ANSWER: 42\nCONFIDENCE: 0.9", cost_usd=0.0)]
    worker = AgentWorker(
        bus=feed,
        journal=journal,
        lane=ForgetfulLane(lambda _: ToolResult(status="ok", stdout="42\n")),
        toolbox=BUILTIN,
        agents={spec.name: spec},
        open_model=lambda _: Forgetful(script),
        grant_key=b"k" * 32,
        instance="bench",
        concurrency=AT_ONCE,
    )
    await worker.run(stop, lambda: None)


async def _timed(feed: _Feed, journal: Journal, name: str, calls: int, at_once: int) -> tuple[float, float]:
    """Milliseconds of CPU and of wall time for each model turn."""
    cpu, wall = time.process_time(), time.perf_counter()
    await _calls(feed, journal, name, calls, at_once)
    turns = calls * TURNS
    return 1000 * (time.process_time() - cpu) / turns, 1000 * (time.perf_counter() - wall) / turns


async def _calls(feed: _Feed, journal: Journal, name: str, calls: int, at_once: int) -> None:
    """Ask for so many calls, at most `at_once` of them open, and wait for their answers."""
    for n in range(calls):
        if n >= at_once:
            await feed.answered()
        call = Call(
            call_id=CallId(f"{name}-{n}"),
            run_id=RunId(name),
            agent="bench",
            task=Task(text="What is 6*7?", category="code"),
            deadline=time.time() + 60,
        )
        await journal.calls.request(call)
        asked = CallRequested(**call.model_dump(include={"run_id", "call_id", "agent", "task", "deadline"}))
        await feed.publish(encode(tasks_topic("bench"), Envelope(asked, call.call_id, "/bench", call.call_id)))
    for _ in range(min(calls, at_once)):
        await feed.answered()


async def _settled() -> int:
    """This process's resident memory when nothing is under way, in bytes."""
    await asyncio.sleep(0.2)
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _show(targets: list[Target]) -> None:
    table = Table("the agent worker, with a scripted model", "measured", "aim", "met")
    for target in targets:
        value = "-" if target.value is None else f"{target.value:.2f}"
        table.add_row(
            target.name.replace("_", " "), value, f"{target.sense} {target.bound:g}", "yes" if target.met else "no"
        )
    console().print(table)
