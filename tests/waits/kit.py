"""A bus, a journal, an agent that answers when it is let, and orchestrators that come, go and die: what the tests of waits and of sub-runs stand on."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import JsonValue

from metier_infra.bus import Bus, Consumption, MemoryBus
from metier_infra.database import Database, Params, Row, Statement, migrate
from metier_infra.errors import JournalGone
from metier_infra.events import (
    EVENTS_TOPIC,
    REQUESTS,
    RUNS,
    CallAnswered,
    CallRequested,
    CancelRequested,
    Event,
    RunCancelled,
    RunFailed,
    RunRequested,
    RunSucceeded,
    Signalled,
    tasks_topic,
)
from metier_infra.journal import Journal
from metier_infra.messages import Delivery, Envelope, decode, encode
from metier_infra.rows import Run
from metier_infra.service import Ready, send, serve
from metier_infra.sqlite_journal import SqliteDatabase
from metier_infra.testing import Process
from metier_infra.words import AgentCard, Answer, CallId, Failure, RunId, Spent, Task, stable_id
from metier_workflows.choosing.router import Routers
from metier_workflows.orchestrator import Orchestrator
from metier_workflows.workflow import Workflows

HUNG = 40
TASKS = tasks_topic("helper")
CARDS = {"helper": AgentCard(name="helper", model="m", policy="autonomous")}
T = TypeVar("T")


async def until(probe: Callable[[], Awaitable[T | None]]) -> T:
    """What a probe finds, once it finds something."""
    async with asyncio.timeout(HUNG):
        while True:
            found = await probe()
            if found is not None:
                return found
            await asyncio.sleep(0.01)


@dataclass
class Mortal:
    """A database whose process dies at its n-th write: before it, or after it was committed. The dead write and read no more."""

    inner: Database
    at: int | None = None
    committed: bool = False
    writes: int = 0
    died: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self, sql: str, params: Params | None = None) -> Sequence[Row]:
        if self.died.is_set():
            raise JournalGone("its process is dead")
        return await self.inner.read(sql, params)

    async def write(self, *statements: Statement) -> Sequence[Sequence[Row]]:
        if self.died.is_set():
            raise JournalGone("its process is dead")
        if any("lease_until = :now + :ttl WHERE owner" in one.sql for one in statements):
            return await self.inner.write(*statements)
        self.writes += 1
        dies = self.writes == self.at
        if dies and not self.committed:
            await self._end()
        rows = await self.inner.write(*statements)
        if dies:
            await self._end()
        return rows

    async def _end(self) -> None:
        self.died.set()
        await asyncio.Event().wait()

    async def close(self) -> None:
        await self.inner.close()


class Helper:
    """Agents that answer what they say, or `re: TEXT`, once they are let: if a word of `holds` is their name or in the text; the first `fails` times one is asked something, it fails."""

    def __init__(self, bus: Bus, journal: Journal, agents: Sequence[str] = ("helper",)) -> None:
        self.bus, self.journal = bus, journal
        self.asked: Counter[CallId] = Counter()
        self.tasks: list[tuple[str, Task]] = []
        self.says: dict[str, str] = {}
        self.holds: dict[str, asyncio.Event] = {}
        self.fails: Counter[str] = Counter()
        self.ready = asyncio.Event()
        what = Consumption([*map(tasks_topic, agents)], "metier.agents.helper", concurrency=2000, ready=self.ready.set)
        self.task = asyncio.create_task(serve(bus, what, {CallRequested: self._take}, asyncio.Event()))

    async def _take(self, envelope: Envelope[CallRequested], delivery: Delivery) -> None:
        asked = envelope.data
        self.asked[asked.call_id] += 1
        self.tasks.append((asked.agent, asked.task))
        for word, let in self.holds.items():
            if word == asked.agent or word in asked.task.text:
                await let.wait()
        await self.answer(asked)

    async def answer(self, asked: CallRequested) -> None:
        text, failure = asked.task.text, None
        for failing in [one for one in (text, asked.agent) if self.fails[one] > 0][:1]:
            self.fails[failing] -= 1
            failure = Failure(code="model_busy", message="overloaded")
        words = self.says.get(asked.agent, f"re: {text}")
        answer = None if failure else Answer(text=words, agent=asked.agent, model="m", policy="p")
        stored = await self.journal.calls.answer(asked.call_id, answer=answer, failure=failure, took=Spent(usd=0.25))
        said = CallAnswered(run_id=asked.run_id, call_id=asked.call_id, answer=stored.answer, failure=stored.failure)
        await send(self.bus, RUNS, Envelope(said, f"{asked.call_id}/answered", "/test", asked.run_id))


@dataclass
class House:
    """One journal and one bus. The leases outlast a test, so that only a replica of the same name takes a run up, unless it was parked."""

    bus: Bus
    db: Database
    workflows: Workflows
    helper: Helper
    lease_s: float = 600
    cards: Mapping[str, AgentCard] = field(default_factory=lambda: CARDS)
    routers: Routers | None = None

    @property
    def journal(self) -> Journal:
        return Journal(self.db, self.lease_s)

    @asynccontextmanager
    async def replica(self, *, db: Database | None = None, park_after_s: float = 60, name: str = "one") -> AsyncGenerator[None]:  # fmt: skip
        """An orchestrator, until the end of the block; then every task of it ends where it is, as when its process dies."""
        ready = asyncio.Event()
        role = Orchestrator(self.bus, Journal(db or self.db, self.lease_s), self.workflows, self.cards, instance=name,
                            drain_s=1, park_after_s=park_after_s, routers=self.routers)  # fmt: skip
        process = Process(role.run(asyncio.Event(), Ready(None, 2, ready.set)))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait([process.task, waiting], return_when=asyncio.FIRST_COMPLETED, timeout=HUNG)
        try:
            yield
        finally:
            waiting.cancel()
            await process.die()

    @asynccontextmanager
    async def moved(self) -> AsyncGenerator[None]:
        """Another bus, and another helper: what was on its way is lost."""
        self.helper.task.cancel()
        self.bus = MemoryBus()
        self.helper = await helper_on(self.bus, self.journal, [*self.cards])
        yield
        self.helper.task.cancel()

    async def request(self, name: str, event_id: str = "e", **value: JsonValue) -> RunId:
        event = RunRequested(workflow=name, input=value)
        await self.bus.publish(encode(REQUESTS, Envelope(event, event_id, "/shop", event_id)))
        return RunId(stable_id("run", "/shop", event_id))

    async def signal(self, run_id: RunId, event_id: str, name: str = "go", data: JsonValue = None) -> None:
        said = Signalled(run_id=run_id, name=name, data=data, by="ann")
        await self.bus.publish(encode(REQUESTS, Envelope(said, event_id, "/shop", run_id)))

    async def cancel(self, run_id: RunId) -> None:
        said = CancelRequested(run_id=run_id, by="ann")
        await self.bus.publish(encode(REQUESTS, Envelope(said, f"cancel {run_id}", "/shop", run_id)))

    async def parked(self, run_id: RunId) -> Run:
        """The run, once it is parked."""

        async def probe() -> Run | None:
            run = await self.journal.runs.get(run_id)
            return run if run and run.status == "parked" else None

        return await until(probe)

    async def ended(self, run_id: RunId) -> Run:
        """The run, once its end was told."""

        async def probe() -> Run | None:
            run = await self.journal.runs.get(run_id)
            return run if run and run.announced else None

        return await until(probe)

    async def recorded(self, run_id: RunId, waits: int) -> None:
        """Wait until the run's nodes have asked for so many times and signals."""

        async def probe() -> bool | None:
            return len(await self.journal.waits.of_run(run_id)) >= waits or None

        await until(probe)

    async def asked(self, calls: int) -> None:
        """Wait until the helper was asked so many calls."""

        async def probe() -> bool | None:
            return len(self.helper.asked) >= calls or None

        await until(probe)

    async def ends_told(self) -> set[str]:
        """The ids of the terminal events."""
        return {one.id for one in await self.told() if isinstance(one.data, RunSucceeded | RunFailed | RunCancelled)}

    async def told(self) -> list[Envelope[Event]]:
        """All that was told on the topic of events."""
        seen: list[Delivery] = []
        stop = asyncio.Event()

        async def keep(delivery: Delivery) -> None:
            seen.append(delivery)
            if delivery.key == b"mark":
                stop.set()

        await self.bus.publish(encode(EVENTS_TOPIC, Envelope(RunRequested(workflow="w", input={}), "m", "/m", "mark")))
        async with asyncio.timeout(HUNG):
            await self.bus.consume(Consumption([EVENTS_TOPIC], None), keep, stop)
        return [*map(decode, seen)]


async def helper_on(bus: Bus, journal: Journal, agents: Sequence[str] = ("helper",)) -> Helper:
    helper = Helper(bus, journal, agents)
    async with asyncio.timeout(HUNG):
        await helper.ready.wait()
    return helper


@asynccontextmanager
async def house_of(workflows: Workflows, cards: Mapping[str, AgentCard] = CARDS) -> AsyncGenerator[House]:
    db = SqliteDatabase(":memory:")
    await migrate(db)
    bus = MemoryBus()
    house = House(bus, db, workflows, await helper_on(bus, Journal(db), [*cards]), cards=cards)
    yield house
    house.helper.task.cancel()
    await asyncio.wait([house.helper.task])
    await db.close()


async def through_every_death(workflows: Workflows, work: Callable[[House], Coroutine[None, None, None]], *, committed: bool, park_after_s: float, cards: Mapping[str, AgentCard] = CARDS) -> int:  # fmt: skip
    """Do `work` in one house after the other while an orchestrator dies at its first write, its second, and so on, and another goes on; how often one died."""
    at = 0
    while True:
        at += 1
        async with house_of(workflows, cards) as house:
            house.lease_s = 0.6  # the keeper of parked timers looks at a third of it
            mortal = Mortal(house.db, at, committed, writes=-1)  # its start is not counted
            working = asyncio.create_task(work(house))
            death = asyncio.create_task(mortal.died.wait())
            async with house.replica(db=mortal, park_after_s=park_after_s):
                await asyncio.wait([working, death], return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                async with house.replica(park_after_s=park_after_s):
                    await working
            death.cancel()
            working.result()
            if not mortal.died.is_set():
                return at - 1
