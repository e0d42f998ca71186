"""The loads of `metier bench orchestrator` on a system that is up: how long runs take, how many end in a second, and what was lost or done again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from metier import client
from metier.bench_orchestrator_cpu import cpu_s
from metier.configuration import System
from metier_infra.bus import Consumption
from metier_infra.database import Statement
from metier_infra.errors import DeadlineMissed
from metier_infra.events import DEAD_LETTERS, Event, RunSucceeded
from metier_infra.messages import Delivery, Envelope, Record

RUN_S = 180.0


@dataclass(frozen=True)
class Load:
    """How much: W1 runs one after another (`idle`) and at once (`burst`), W2 `fans` of `width` calls, W3 `many` runs at once; none of W3 for 0."""

    idle: int
    burst: int
    fans: int
    width: int
    many: int

    @property
    def calls(self) -> int:
        """All calls that are timed."""
        return 5 * (self.idle + self.burst) + self.fans * self.width + 3 * self.many


class Asking:
    """Asks for runs, and waits for their ends."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._ended: asyncio.Queue[str] = asyncio.Queue()

    def seen(self, event: Envelope[Event]) -> None:
        """An event of the system."""
        if isinstance(event.data, RunSucceeded):
            self._ended.put_nowait(event.data.run_id)

    async def runs(self, workflow: str, value: Mapping[str, JsonValue], times: int = 1) -> None:
        """So many runs at once, to their ends. Raises `DeadlineMissed`."""
        await asyncio.gather(*[client.publish(self._system.bus, workflow, value) for _ in range(times)])
        for _ in range(times):
            try:
                await asyncio.wait_for(self._ended.get(), RUN_S)
            except TimeoutError as error:
                raise DeadlineMissed(f"no run ended for {RUN_S:.0f} s; the roles' log is above") from error


@asynccontextmanager
async def ask_of(system: System) -> AsyncGenerator[Asking]:
    """Asks a system for runs inside the block."""
    asking = Asking(system)
    async with client.following(system.bus, asking.seen):
        yield asking


FIVE: Mapping[str, JsonValue] = {"question": "ping", "answers": []}


async def measure(system: System, load: Load, pids: Sequence[int]) -> dict[str, Any]:
    """Every load, one after another; with the CPU seconds of the processes `pids` and those under them, for 1,000 calls.

    A burst that is not timed goes first: the broker's JVM compiles what is called often, and a system that serves has that behind it.
    """
    async with ask_of(system) as asking:
        await asking.runs("five", FIVE, load.burst)
        before = cpu_s(pids)
        (burst_ms,) = await timed_ms(lambda: asking.runs("five", FIVE, load.burst), 1)
        wide: Mapping[str, JsonValue] = {"width": load.width, "answers": []}
        fans = await timed_ms(lambda: asking.runs("fan", wide), load.fans)
        slow = await timed_ms(lambda: asking.runs("three", {"answers": []}, load.many), int(load.many > 0))
        idle = await timed_ms(lambda: asking.runs("five", FIVE), load.idle)
    used = cpu_s(pids) - before
    return {
        "w1_p50_ms": at(idle, 50),
        "w1_p99_ms": at(idle, 99),
        "w1_steps_per_s": 5000 * load.burst / burst_ms,
        "w2_p50_ms": at(fans, 50),
        "w3_s": slow[0] / 1000 if slow else None,
        "cpu_s_per_1000_steps": 1000 * used / load.calls,
        **await _counted(system, load.calls + 5 * load.burst),
    }


async def _counted(system: System, calls: int) -> dict[str, int]:
    """What the journal says of it: calls that were asked and have no answer, and those that were worked on more than once."""
    rows = await system.journal.db.read("SELECT count(answered_at) AS answered, sum(attempt) AS attempts FROM calls")
    answered, attempts = int(rows[0]["answered"]), int(rows[0]["attempts"] or 0)
    return {"lost": calls - answered, "repeated": attempts - answered}


async def idle_ms(system: System, times: int) -> float:
    """The median of runs one after another, in milliseconds."""
    async with ask_of(system) as asking:
        return at(await timed_ms(lambda: asking.runs("five", FIVE), times), 50)


async def timed_ms(work: Callable[[], Awaitable[object]], times: int) -> list[float]:
    """Milliseconds of each of `times` turns, one after another."""
    taken: list[float] = []
    for _ in range(times):
        began = time.perf_counter()
        await work()
        taken.append(1000 * (time.perf_counter() - began))
    return taken


def at(values: Sequence[float], percent: int) -> float:
    """The value that so many percent of the others do not exceed."""
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


async def floors(system: System, *, kafka: bool) -> dict[str, float]:
    """What nothing on these services can be faster than: a commit of one row, and a record there and one back."""
    db = system.journal.db
    await db.write(Statement("CREATE TABLE IF NOT EXISTS bench_floor (n bigint)"))
    commits = await timed_ms(lambda: db.write(Statement("INSERT INTO bench_floor (n) VALUES (1)")), 200)
    return {"commit_ms": at(commits, 50), **({"round_trip_ms": await _round_trip_ms(system)} if kafka else {})}


async def _round_trip_ms(system: System) -> float:
    """Produce, consume, reply, consume: on the dead letters, which no role reads."""
    back: asyncio.Queue[bytes] = asyncio.Queue()
    ready, stop = asyncio.Event(), asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        if delivery.value == b"ping":
            await system.bus.publish(Record(DEAD_LETTERS, delivery.key, b"pong"))
        else:
            back.put_nowait(delivery.value)

    async def trip() -> None:
        await system.bus.publish(Record(DEAD_LETTERS, b"floor", b"ping"))
        await back.get()

    what = Consumption([DEAD_LETTERS], None, "latest", ready=ready.set)
    consuming = asyncio.create_task(system.bus.consume(what, handle, stop))
    await ready.wait()
    taken = await timed_ms(trip, 100)
    stop.set()
    await consuming
    return at(taken, 50)
