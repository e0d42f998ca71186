"""Several versions of a workflow at once: which one runs what, who leaves a run to whom, and what becomes of a run that nobody can go on with.

Not here: what a version is made of beyond graphs inside, joins and channels; `test_workflow` has that.
"""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.graph import END, START, StateGraph
from pydantic import JsonValue

from metier.cli_schedules import table_of
from metier_infra.bus import Bus, Consumption, Handler, MemoryBus
from metier_infra.database import Statement, migrate
from metier_infra.errors import NotServedHere, UnknownWorkflow
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
    tasks_topic,
)
from metier_infra.journal import Journal
from metier_infra.messages import Delivery, Envelope, Record, decode
from metier_infra.rows import Run
from metier_infra.service import Ready, send, serve
from metier_infra.serving import Served, Version
from metier_infra.sqlite_journal import SqliteDatabase
from metier_infra.words import AgentCard, Answer, RunId, stable_id
from metier_workflows.node import agent
from metier_workflows.orchestrator import Orchestrator
from metier_workflows.versions import Versions
from metier_workflows.workflow import Graph, Workflow, Workflows, shape, workflow

HUNG = 40
CARDS = {"helper": AgentCard(name="helper", model="m", policy="autonomous")}


class State(TypedDict):
    """What the graphs of these tests hold."""

    said: Annotated[list[str], operator.add]


async def same(state: State) -> State:
    return State(said=[])


async def anything(state: Any) -> Any:
    return state


async def ask(state: State) -> State:
    return State(said=[(await agent("helper").ask("what?")).text])


def chain(*names: str, node: Any = same) -> Graph:
    made = StateGraph(State)
    for name in names:
        made.add_node(name, node)
    for before, after in zip([START, *names], [*names, END], strict=True):
        made.add_edge(before, after)
    return made


OLD = workflow("w")(lambda: chain("ask", node=ask))
NEW = workflow("w")(lambda: chain("ask", "more", node=ask))


def outer(inner: Graph, *, called: bool = False) -> Graph:
    """A graph with another inside: as a node, or called by one."""
    compiled = inner.compile()

    async def call(state: State) -> Any:
        return await compiled.ainvoke(state)

    return chain("inner", node=call if called else compiled)


@pytest.mark.parametrize("called", [False, True])
def test_what_a_graph_inside_looks_like_is_part_of_the_version(called: bool) -> None:
    one, two = (shape(outer(chain(*names), called=called)) for names in (("a", "b"), ("a", "c")))
    assert one != two
    assert one == shape(outer(chain("a", "b"), called=called))


def test_so_is_what_is_inside_of_that() -> None:
    one, two = (shape(outer(outer(chain(*names)))) for names in (("a", "b"), ("a", "c")))
    assert one != two


def test_a_join_is_part_of_the_version() -> None:
    shapes = set[str]()
    for edges in ([("a", "c"), ("b", "c")], [(["a", "b"], "c")], [(["a"], "c")]):
        made = StateGraph(State)
        for name in "abc":
            made.add_node(name, same)
        made.add_edge(START, "a")
        made.add_edge(START, "b")
        for starts, end in edges:
            made.add_edge(starts, end)
        shapes.add(shape(made))
    assert len(shapes) == 3


def test_how_a_channel_keeps_its_values_is_part_of_the_version() -> None:
    last = StateGraph(TypedDict("State", {"said": list[str]}))
    last.add_node("a", anything)
    last.add_edge(START, "a")
    kept = StateGraph(State)
    kept.add_node("a", anything)
    kept.add_edge(START, "a")
    assert shape(last) != shape(kept)


def test_of_several_versions_the_last_declared_is_the_newest_and_each_is_found() -> None:
    served = Workflows([OLD, NEW])
    assert served.find("w", None) is NEW
    assert served.find("w", OLD.version) is OLD
    assert served.versions == [Version("w", OLD.version, newest=False), Version("w", NEW.version, newest=True)]
    assert Workflows([NEW, OLD, NEW]).find("w", None) is NEW
    with pytest.raises(UnknownWorkflow, match=f"serves {OLD.version}, {NEW.version}"):
        served.find("w", "0123")


def run_of(version: str | None = None, name: str = "a") -> Run:
    run_id = RunId(stable_id("run", "/s", name))
    return Run(run_id=run_id, source="/s", event_id=name, workflow="w", version=version, status="accepted", input={}, traceparent="t")  # fmt: skip


def versions(journal: Journal, instance: str, *served: Workflow, grace_s: float = 100) -> Versions:
    return Versions(journal, Workflows(served), instance=instance, grace_s=grace_s)


async def silent(journal: Journal, instance: str, for_s: float) -> None:
    """It said nothing for so long."""
    sql = "UPDATE serving SET seen_at = seen_at - :for_s WHERE instance = :instance"
    await journal.db.write(Statement(sql, {"for_s": for_s, "instance": instance}))


async def test_a_run_is_left_to_who_serves_its_version_and_ends_once_nobody_has_for_the_grace(journal: Journal) -> None:
    old, new = versions(journal, "old", OLD), versions(journal, "new", NEW)
    await old.refresh()
    await new.refresh()
    run = run_of(OLD.version)
    assert await old.find(run) is OLD
    with pytest.raises(NotServedHere):
        await new.find(run)
    await silent(journal, "old", 99)
    with pytest.raises(NotServedHere):
        await new.find(run)
    await silent(journal, "old", 2)
    with pytest.raises(
        UnknownWorkflow, match=f"pinned to version {OLD.version} of 'w', which no orchestrator serves any more"
    ):
        await new.find(run)


async def test_a_version_that_nobody_ever_served_is_unknown_at_once(journal: Journal) -> None:
    new = versions(journal, "new", NEW)
    await new.refresh()
    with pytest.raises(UnknownWorkflow, match="pinned to version 0123 of 'w'; this orchestrator serves"):
        await new.find(run_of("0123"))


async def test_who_attends_knows_what_to_wake_to_take_and_to_leave(journal: Journal) -> None:
    old, new = versions(journal, "old", OLD), versions(journal, "new", NEW)
    for one in (old, new, old):
        await one.refresh()
    pinned, fresh = run_of(OLD.version), run_of()
    assert [(one.here(run), one.everywhere(run)) for one in (old, new) for run in (pinned, fresh)] == [
        (True, False), (True, True), (False, False), (True, True)
    ]  # fmt: skip
    await silent(journal, "new", journal.lease_s + 1)
    await old.refresh()
    assert old.everywhere(pinned)
    await silent(journal, "old", 101)
    await versions(journal, "new", NEW).refresh()
    await new.refresh()
    assert (new.here(pinned), new.everywhere(pinned)) == (True, False)


async def test_the_journal_tells_who_serves_what_and_what_is_open(journal: Journal) -> None:
    await versions(journal, "one", OLD, NEW).refresh()
    await versions(journal, "two", NEW).refresh()
    told = [(one.instance, one.version.version, one.version.newest) for one in await journal.serving.all()]
    assert sorted(told) == sorted([("one", OLD.version, False), ("one", NEW.version, True), ("two", NEW.version, True)])
    for name, version in (("a", OLD.version), ("b", OLD.version), ("c", None)):
        await journal.runs.accept(run_of(version, name))
    assert sorted(await journal.serving.open_runs(), key=str) == sorted(
        [("w", OLD.version, 2), ("w", None, 1)], key=str
    )
    await silent(journal, "two", 8 * 86_400)
    await versions(journal, "one", NEW).refresh()
    assert {one.instance for one in await journal.serving.all()} == {"one"}


class Deaf:
    """The bus of a replica that was given no partition."""

    def __init__(self, inner: Bus) -> None:
        self._inner = inner

    async def publish(self, *records: Record) -> None:
        await self._inner.publish(*records)

    async def consume(self, what: Consumption, handle: Handler, stop: asyncio.Event) -> None:
        del handle
        what.ready()
        await stop.wait()

    async def close(self) -> None:
        """Nothing is held."""


class House:
    """A bus, a journal, an agent that answers once it is let, and replicas that serve what they are given."""

    def __init__(self, bus: Bus, journal: Journal) -> None:
        self.bus, self.journal = bus, journal
        self.asked, self.let, self.stop = asyncio.Event(), asyncio.Event(), asyncio.Event()
        what = Consumption([tasks_topic("helper")], "helper")
        self.helper = asyncio.create_task(serve(bus, what, {CallRequested: self._answer}, self.stop))
        self.replicas: dict[str, tuple[asyncio.Event, asyncio.Task[None]]] = {}

    async def _answer(self, envelope: Envelope[CallRequested], delivery: Delivery) -> None:
        self.asked.set()
        await self.let.wait()
        answer = Answer(text="that", agent="helper", model="m", policy="p")
        asked = envelope.data
        await self.journal.calls.answer(asked.call_id, answer=answer)
        said = CallAnswered(run_id=asked.run_id, call_id=asked.call_id, answer=answer)
        await send(self.bus, RUNS, Envelope(said, f"{asked.call_id}/answered", "/test", asked.run_id))

    async def replica(self, name: str, *served: Workflow, grace_s: float = 100, bus: Bus | None = None) -> None:
        stop, ready = asyncio.Event(), asyncio.Event()
        made = Orchestrator(bus or self.bus, self.journal, Workflows(served), CARDS, instance=name, drain_s=0.1, version_grace_s=grace_s)  # fmt: skip
        self.replicas[name] = stop, asyncio.create_task(made.run(stop, Ready(None, 2, ready.set)))
        async with asyncio.timeout(HUNG):
            await ready.wait()

    async def end(self, name: str) -> None:
        stop, task = self.replicas.pop(name)
        stop.set()
        async with asyncio.timeout(HUNG):
            await task

    async def request(self, name: str, version: str | None = None) -> RunId:
        asked = RunRequested(workflow="w", input={"said": []}, version=version)
        await send(self.bus, REQUESTS, Envelope(asked, name, "/s", name))
        return RunId(stable_id("run", "/s", name))

    async def said(self, run_id: RunId) -> JsonValue:
        """What a run gave that succeeded."""
        end = await self.ended(run_id)
        assert isinstance(end, RunSucceeded)
        return end.result["said"]

    async def ended(self, run_id: RunId) -> RunSucceeded | RunFailed | RunCancelled:
        """How the run ended."""
        stop, found = asyncio.Event(), list[RunSucceeded | RunFailed | RunCancelled]()

        def look(event: Event) -> None:
            if isinstance(event, RunSucceeded | RunFailed | RunCancelled) and event.run_id == run_id:
                found.append(event)
                stop.set()

        async def keep(delivery: Delivery) -> None:
            look(decode(delivery).data)

        async with asyncio.timeout(HUNG):
            await self.bus.consume(Consumption([EVENTS_TOPIC], None), keep, stop)
        return found[0]


@asynccontextmanager
async def house_of(journal: Journal) -> AsyncGenerator[House]:
    house = House(MemoryBus(), journal)
    yield house
    house.let.set()
    for name in list(house.replicas):
        await house.end(name)
    house.stop.set()
    async with asyncio.timeout(HUNG):
        await house.helper


@pytest.fixture
async def house() -> AsyncGenerator[House]:
    """In memory; leases are short, so that keepers look often."""
    db = SqliteDatabase(":memory:")
    await migrate(db)
    async with house_of(Journal(db, lease_s=0.6)) as made:
        yield made
    await db.close()


async def test_old_and_new_runs_end_side_by_side_each_in_its_version(house: House) -> None:
    await house.replica("one", OLD)
    old = await house.request("old")
    async with asyncio.timeout(HUNG):
        await house.asked.wait()
    await house.end("one")
    await house.replica("two", OLD, NEW)
    house.let.set()
    new = await house.request("new")
    assert [await house.said(one) for one in (old, new)] == [["that"], ["that", "that"]]
    runs = [await house.journal.runs.get(one) for one in (old, new)]
    assert [run.version for run in runs if run] == [OLD.version, NEW.version]


async def test_a_run_that_its_partitions_owner_does_not_serve_is_taken_by_who_does_and_hears_its_answers(
    house: House,
) -> None:
    await house.replica("new", NEW)
    await house.replica("old", OLD, bus=Deaf(house.bus))
    run_id = await house.request("old", OLD.version)
    async with asyncio.timeout(HUNG):
        await house.asked.wait()
    house.let.set()
    assert await house.said(run_id) == ["that"]


async def test_such_a_run_can_be_cancelled_too(house: House) -> None:
    await house.replica("new", NEW)
    await house.replica("old", OLD, bus=Deaf(house.bus))
    run_id = await house.request("old", OLD.version)
    async with asyncio.timeout(HUNG):
        await house.asked.wait()
    await send(house.bus, REQUESTS, Envelope(CancelRequested(run_id=run_id, by="ann"), "c", "/s", run_id))
    assert isinstance(await house.ended(run_id), RunCancelled)


async def test_a_run_whose_version_is_gone_for_the_grace_ends_with_a_sentence_that_says_so(house: House) -> None:
    await house.replica("one", OLD)
    run_id = await house.request("old")
    async with asyncio.timeout(HUNG):
        await house.asked.wait()
    await house.end("one")
    await house.replica("two", NEW, grace_s=1)
    end = await house.ended(run_id)
    assert isinstance(end, RunFailed)
    assert end.failure.code == "unknown_workflow"
    assert f"pinned to version {OLD.version} of 'w', which no orchestrator serves any more" in end.failure.message


async def test_a_run_that_stands_before_a_node_that_is_gone_ends_with_a_sentence_that_names_it(house: House) -> None:
    """A version cannot hide that; a hand that writes versions can."""
    await house.replica("one", Workflow("w", lambda: chain("first", "second", node=ask), None, "v"))
    run_id = await house.request("a")
    async with asyncio.timeout(HUNG):
        await house.asked.wait()
    await house.end("one")
    await house.replica("two", Workflow("w", lambda: chain("other", node=ask), None, "v"))
    end = await house.ended(run_id)
    assert isinstance(end, RunFailed)
    assert (end.failure.code, "stands before first" in end.failure.message) == ("workflow_broken", True)


def test_operators_see_who_serves_what_and_what_is_drained() -> None:
    live = [Served("one", Version("w", "v1", newest=False), 1), Served("one", Version("w", "v2", newest=True), 1),
            Served("two", Version("w", "v1", newest=True), 1)]  # fmt: skip
    found = table_of(live, {("w", "v1"): 3, ("w", None): 1, ("gone", "v9"): 2})
    assert [tuple(one.values()) for one in found] == [
        ("gone", "v9", 0, 0, 2), ("w", None, 0, 0, 1), ("w", "v1", 2, 1, 3), ("w", "v2", 1, 1, 0)
    ]  # fmt: skip
