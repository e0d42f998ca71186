"""Who may run: limits of a tenant over all replicas, how many may wait, and what two requests of one name get. On real databases, and real Kafka where said.

Not here: the order of turns within one replica; `test_turns` has that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypedDict

import psycopg
import pytest
from langgraph.graph import END, START, StateGraph

from metier_infra.bus import Bus, Consumption, MemoryBus
from metier_infra.database import Row, migrate
from metier_infra.errors import NoTurn, QueueFull
from metier_infra.events import (
    EVENTS_TOPIC,
    REQUESTS,
    RUNS,
    Event,
    RequestRejected,
    RunAccepted,
    RunRequested,
    RunSucceeded,
)
from metier_infra.journal import Journal
from metier_infra.kafka_bus import KafkaBus
from metier_infra.messages import Delivery, Envelope, decode
from metier_infra.postgres_journal import PostgresDatabase
from metier_infra.rows import Run
from metier_infra.service import Ready, send
from metier_infra.settings import KafkaSettings
from metier_infra.sqlite_journal import SqliteDatabase
from metier_infra.words import Limits, RunId, stable_id
from metier_workflows.orchestrator import Orchestrator
from metier_workflows.tenants import Tenant, Tenants
from metier_workflows.workflow import Graph, Workflows, workflow

HUNG = 60


def run_of(name: str, tenant: str = "shop", **fields: Any) -> Run:
    run_id = RunId(stable_id("run", "/s", name))
    asked: dict[str, Any] = {
        "run_id": run_id, "source": "/s", "event_id": name, "workflow": "w", "version": None, "status": "accepted", "input": {}, "traceparent": "t"
    }  # fmt: skip
    return Run.model_validate(asked | {"tenant": tenant} | fields)


async def accepted(journal: Journal, *names: str, **fields: Any) -> list[RunId]:
    return [(await journal.runs.accept(run_of(name, **fields)))[0].run_id for name in names]


async def in_turn(journal: Journal, run_id: RunId, owner: str = "one", at_most: int = 2) -> bool:
    """Whether the run was taken; False where its tenant had no turn left."""
    try:
        return await journal.runs.lease_in_turn(run_id, owner, at_most) is not None
    except NoTurn:
        return False


async def test_a_tenant_has_as_many_runs_under_way_as_it_may_and_another_its_own(journal: Journal) -> None:
    shop = await accepted(journal, "a", "b", "c")
    (other,) = await accepted(journal, "d", tenant="other")
    assert [await in_turn(journal, one) for one in [*shop, other]] == [True, True, False, True]
    waiting = await journal.runs.get(shop[2])
    assert waiting is not None
    assert (waiting.status, waiting.epoch) == ("accepted", 0)


async def test_when_one_ends_or_parks_the_next_may_go(journal: Journal) -> None:
    a, b, c = await accepted(journal, "a", "b", "c")
    assert [await in_turn(journal, one) for one in (a, b, c)] == [True, True, False]
    await journal.runs.finish(a, 1, result={})
    assert await in_turn(journal, c)


async def test_replicas_that_try_at_the_same_time_never_pass_the_limit(journal: Journal) -> None:
    # Given forty runs of one tenant
    runs = await accepted(journal, *[f"r{n}" for n in range(40)])
    # When all are tried at once, by many replicas
    took = await asyncio.gather(*[in_turn(journal, one, f"replica{n % 5}", 3) for n, one in enumerate(runs)])
    # Then exactly so many run as may
    assert sum(took) == 3
    assert len(await journal.runs.recent(status="running")) == 3


async def test_who_counts_waits_for_who_counted_and_has_not_written_yet(postgres_url: str) -> None:
    # Given a replica that has counted, and writes: in the middle of its transaction
    db = await PostgresDatabase(postgres_url).open()
    journal = Journal(db, lease_s=600)
    first, second = await accepted(journal, "a", "b")
    other = await psycopg.AsyncConnection.connect(postgres_url)
    await other.execute("INSERT INTO tenant_locks (tenant) VALUES ('shop')")
    await other.execute("UPDATE runs SET status = 'running' WHERE run_id = %s", [first])
    # When another one counts meanwhile
    taking = asyncio.create_task(in_turn(journal, second, at_most=1))
    async with asyncio.timeout(HUNG):
        waits: Sequence[Row] = ()
        while not taking.done() and not waits:
            waits = await db.read(
                "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
    await other.commit()
    # Then it counts what the first one wrote
    assert not await taking
    await other.close()
    await db.close()


async def test_a_run_under_way_goes_on_though_the_limit_was_lowered(journal: Journal) -> None:
    runs = await accepted(journal, "a", "b", "c")
    assert [await in_turn(journal, one, at_most=3) for one in runs] == [True] * 3
    await journal.runs.release("one")
    assert [await in_turn(journal, one, "two", 1) for one in runs] == [True] * 3


async def test_a_run_under_another_and_one_that_is_given_up_need_no_turn(journal: Journal) -> None:
    parent, waiting = await accepted(journal, "a", "b")
    (child,) = await accepted(journal, "c", parent=parent)
    assert await in_turn(journal, parent, at_most=1)
    assert await in_turn(journal, child, at_most=1)
    assert not await in_turn(journal, waiting, at_most=1)
    await journal.runs.cancel(waiting, by="ann", note="")
    assert await in_turn(journal, waiting, at_most=1)


async def test_what_another_replica_holds_is_not_refused_but_taken(journal: Journal) -> None:
    (run_id,) = await accepted(journal, "a")
    assert await in_turn(journal, run_id, at_most=1)
    assert await journal.runs.lease_in_turn(run_id, "two", 1) is None


async def test_no_more_wait_than_may_and_a_duplicate_is_never_too_many(journal: Journal) -> None:
    for name in "ab":
        await journal.runs.accept(run_of(name), queued=2)
    with pytest.raises(QueueFull, match="2 runs of the tenant 'shop' wait"):
        await journal.runs.accept(run_of("c"), queued=2)
    assert await journal.runs.get(run_of("c").run_id) is None
    assert (await journal.runs.accept(run_of("a"), queued=2))[1] is False
    assert (await journal.runs.accept(run_of("d", tenant="other"), queued=2))[1] is True
    await journal.runs.lease(run_of("a").run_id, "one")
    assert (await journal.runs.accept(run_of("c"), queued=2))[1] is True


async def test_requests_that_come_at_the_same_time_never_pass_the_limit_of_those_that_wait(journal: Journal) -> None:
    async def ask(n: int) -> bool:
        with suppress(QueueFull):
            return (await journal.runs.accept(run_of(f"r{n}"), queued=5))[1]
        return False

    assert sum(await asyncio.gather(*[ask(n) for n in range(40)])) == 5


async def test_the_next_in_turn_is_the_first_of_the_highest_priority(journal: Journal) -> None:
    await accepted(journal, "a", priority=1)
    await accepted(journal, "b", "c", priority=7)
    found = await journal.runs.next_in_turn("shop")
    assert found is not None
    assert (found.event_id, await journal.runs.next_in_turn("other")) == ("b", None)


async def test_one_tenants_backlog_hides_nobody_elses_runs_from_who_attends(journal: Journal) -> None:
    # Given many runs of one tenant that never ran, and after them one of another, and one that a dead replica held
    await accepted(journal, *[f"r{n}" for n in range(30)])
    (small,) = await accepted(journal, "small", tenant="other")
    (begun,) = await accepted(journal, "begun")
    await journal.runs.lease(begun, "dead")
    await journal.runs.release("dead")
    # When the keeper looks at only a few; then both are among them
    found = [run.run_id for run in await journal.runs.unattended(limit=3)]
    assert found[0] == begun
    assert small in found


class State(TypedDict):
    """What the graphs of these tests hold."""

    text: str


class Site:
    """A workflow whose one node waits until it is let, and counts how many are in it; and replicas that serve it."""

    def __init__(self, bus: Bus, journal: Journal, **tenants: Tenant) -> None:
        self.bus, self.journal, self.tenants = bus, journal, Tenants(tenants=tenants)
        self.order: list[str] = []
        self.inside = self.most = 0
        self.changed = asyncio.Event()
        self.let = asyncio.Semaphore(0)
        self.stops: list[tuple[asyncio.Event, asyncio.Task[None]]] = []

    def graph(self) -> Graph:
        async def work(state: State) -> State:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.order.append(state["text"])
            self.changed.set()
            try:
                await self.let.acquire()
            finally:
                self.inside -= 1
            return state

        made = StateGraph(State)
        made.add_node("work", work)
        made.add_edge(START, "work")
        made.add_edge("work", END)
        return made

    async def replica(self, name: str, bus: Bus | None = None, limit: int = 100) -> None:
        stop, ready = asyncio.Event(), asyncio.Event()
        made = Orchestrator(
            bus or self.bus, self.journal, Workflows([workflow("w")(self.graph)]), {},
            instance=name, drain_s=0.1, limit=limit, tenants=self.tenants,
        )  # fmt: skip
        self.stops.append((stop, asyncio.create_task(made.run(stop, Ready(None, 2, ready.set)))))
        async with asyncio.timeout(HUNG):
            await ready.wait()

    async def ask(self, *names: str, tenant: str = "shop", **fields: Any) -> None:
        for name in names:
            asked = RunRequested.model_validate({"workflow": "w", "input": {"text": name}, "tenant": tenant} | fields)
            await send(self.bus, REQUESTS, Envelope(asked, name, "/s", name))

    async def at_work(self, count: int) -> None:
        """Wait until so many runs have come to their node."""
        async with asyncio.timeout(HUNG):
            while len(self.order) < count:
                self.changed.clear()
                await self.changed.wait()

    async def queued(self, count: int) -> None:
        """Wait until so many runs wait for their turn: one that needs none, and is announced after them, is at work."""
        await self.events(lambda seen: len(seen) >= count, RUNS)
        run, _ = await self.journal.runs.accept(run_of("marker", input={"text": "marker"}, parent=RunId("p")))
        told = RunAccepted(run_id=run.run_id, workflow="w", parent=run.parent)
        await send(self.bus, RUNS, Envelope(told, "marker", "/s", run.run_id))
        async with asyncio.timeout(HUNG):
            while "marker" not in self.order:
                self.changed.clear()
                await self.changed.wait()

    async def events(self, enough: Callable[[list[Event]], bool], topic: str = EVENTS_TOPIC) -> list[Event]:
        """What is told, from the beginning, until there is enough."""
        seen: list[Event] = []
        stop = asyncio.Event()

        async def keep(delivery: Delivery) -> None:
            seen.append(decode(delivery).data)
            if enough(seen):
                stop.set()

        async with asyncio.timeout(HUNG):
            await self.bus.consume(Consumption([topic], None), keep, stop)
        return seen

    async def ended(self, count: int) -> None:
        await self.events(lambda seen: len({one.run_id for one in seen if isinstance(one, RunSucceeded)}) >= count)


@asynccontextmanager
async def site_of(bus: Bus, journal: Journal, **tenants: Tenant) -> AsyncGenerator[Site]:
    site = Site(bus, journal, **tenants)
    yield site
    for stop, _ in site.stops:
        stop.set()
    async with asyncio.timeout(HUNG):
        await asyncio.gather(*[task for _, task in site.stops])


@pytest.fixture
async def memory() -> AsyncGenerator[Journal]:
    """A journal in memory, whose leases outlast the test."""
    db = SqliteDatabase(":memory:")
    await migrate(db)
    yield Journal(db, lease_s=600)
    await db.close()


async def test_one_tenants_runs_wait_for_each_other_and_anothers_do_not(memory: Journal) -> None:
    async with site_of(MemoryBus(), memory, shop=Tenant(runs=1)) as site:
        await site.replica("one")
        await site.ask("a", "b", "c")
        await site.ask("d", "e", tenant="other")
        await site.at_work(3)
        assert sorted(site.order) == ["a", "d", "e"]
        for _ in range(5):
            site.let.release()
        await site.ended(5)
        assert [one for one in site.order if one in "abc"] == ["a", "b", "c"]


async def test_what_is_urgent_goes_first_and_tenants_have_turns_alike(memory: Journal) -> None:
    async with site_of(MemoryBus(), memory) as site:
        await site.replica("one", limit=1)
        await site.ask("first")
        await site.at_work(1)
        await site.ask(*[f"big{n}" for n in range(20)], priority=3)
        await site.ask("small0", "small1", tenant="other")
        await site.ask("urgent", priority=9)
        await site.queued(24)
        for _ in range(25):
            site.let.release()
        await site.ended(25)
        assert site.order[:2] == ["first", "marker"]
        assert set(site.order[2:5]) == {"small0", "small1", "urgent"}
        assert [one for one in site.order if one.startswith("big")] == [f"big{n}" for n in range(20)]


async def test_a_tenants_limit_holds_over_two_replicas_on_kafka_and_all_its_runs_end(
    topics: KafkaSettings, postgres_url: str
) -> None:
    db = await PostgresDatabase(postgres_url).open()
    first, second = KafkaBus(topics, client="one"), KafkaBus(topics, client="two")
    try:
        async with site_of(first, Journal(db, lease_s=3), shop=Tenant(runs=2)) as site:
            await site.replica("one")
            await site.replica("two", second)
            names = [f"r{n}" for n in range(12)]
            await site.ask(*names)
            await site.at_work(2)
            for _ in names:
                site.let.release()
            await site.ended(12)
            assert (site.most, sorted(set(site.order))) == (2, sorted(names))
    finally:
        await first.close()
        await second.close()
        await db.close()


async def test_a_request_beyond_those_that_may_wait_is_rejected_with_the_reason(memory: Journal) -> None:
    async with site_of(MemoryBus(), memory, shop=Tenant(runs=1, queued=1)) as site:
        await site.replica("one")
        await site.ask("a")
        await site.at_work(1)
        await site.ask("b", "c")
        seen = await site.events(lambda seen: any(isinstance(one, RequestRejected) for one in seen))
        (told,) = [one for one in seen if isinstance(one, RequestRejected)]
        assert (told.request_id, told.request_source, told.request_type) == ("c", "/s", RunRequested.TYPE)
        assert (told.failure.code, told.run_id) == ("queue_full", stable_id("run", "/s", "c"))
        site.let.release()
        site.let.release()
        await site.ended(2)
        assert await memory.runs.get(stable_id("run", "/s", "c")) is None


@pytest.mark.parametrize(
    "other",
    [{"input": {"text": "b"}}, {"workflow": "x"}, {"version": "0123"}, {"tenant": "t"}, {"priority": 1}, {"limits": Limits(usd=1)}],
)  # fmt: skip
async def test_another_request_of_the_same_name_is_rejected_and_the_first_goes_on_untouched(
    memory: Journal, other: dict[str, Any]
) -> None:
    async with site_of(MemoryBus(), memory) as site:
        await site.replica("one")
        await site.ask("a")
        await site.at_work(1)
        before = await memory.runs.get(stable_id("run", "/s", "a"))
        await site.ask("a", **other)
        seen = await site.events(lambda seen: any(isinstance(one, RequestRejected) for one in seen))
        (told,) = [one for one in seen if isinstance(one, RequestRejected)]
        assert (told.failure.code, told.run_id) == ("duplicate_id", stable_id("run", "/s", "a"))
        assert "asked for something else" in told.failure.message
        assert await memory.runs.get(stable_id("run", "/s", "a")) == before
        site.let.release()
        await site.ended(1)
        assert site.order == ["a"]


async def test_the_same_request_again_is_no_other_one_though_its_version_is_pinned_by_now(memory: Journal) -> None:
    async with site_of(MemoryBus(), memory) as site:
        await site.replica("one")
        await site.ask("a")
        await site.at_work(1)
        await site.ask("a")
        await site.ask("b")
        await site.at_work(2)
        site.let.release()
        site.let.release()
        await site.ended(2)
        seen = await site.events(lambda seen: sum(isinstance(one, RunSucceeded) for one in seen) == 2)
        assert not any(isinstance(one, RequestRejected) for one in seen)
