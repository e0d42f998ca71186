"""A run that takes one process after the other with it: it ends failed, and no run beside it does."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.graph import END, START, StateGraph

from metier_infra.bus import Consumption, MemoryBus
from metier_infra.database import Database
from metier_infra.events import (
    EVENTS_TOPIC,
    REQUESTS,
    CallRequested,
    Event,
    RunFailed,
    RunRequested,
    RunSucceeded,
    tasks_topic,
)
from metier_infra.journal import Journal
from metier_infra.messages import Delivery, Envelope, decode, encode
from metier_infra.rows import Call, Run
from metier_infra.service import Ready
from metier_infra.testing import Process
from metier_infra.words import AgentCard, CallId, RunId, Task, stable_id
from metier_workflows import suspects
from metier_workflows.checkpoint import JournalSaver
from metier_workflows.node import agent
from metier_workflows.orchestrator import Orchestrator
from metier_workflows.suspects import LOST_AT_MOST, SUSPECTED, Suspects
from metier_workflows.workflow import Workflows, workflow

HUNG = 60
BUSY_S = 0.5
"""Longer than a process lives that runs the deadly node too."""
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CARDS = {"helper": AgentCard(name="helper", model="m", policy="autonomous", skills={"general": 1.0})}


def run(event: str) -> Run:
    return Run(
        run_id=RunId(stable_id("run", "/shop", event)),
        source="/shop",
        event_id=event,
        workflow="w",
        version=None,
        status="accepted",
        input={},
        traceparent=TRACE,
    )


async def leased(journal: Journal, event: str = "e", owner: str = "one") -> Run:
    stored, _ = await journal.runs.accept(run(event))
    held = await journal.runs.lease(stored.run_id, owner)
    assert held is not None
    return held


@pytest.fixture
def brief(database: Database) -> Journal:
    """A journal whose leases are over at once."""
    return Journal(database, lease_s=-1)


async def test_a_holder_that_fell_silent_while_it_ran_nodes_is_counted(brief: Journal) -> None:
    held = await leased(brief)
    assert held.lost == 0
    for n, owner in enumerate(("two", "one", "two"), start=1):
        taken = await brief.runs.lease(held.run_id, owner)
        assert taken is not None
        assert taken.lost == n


async def test_a_holder_that_died_and_comes_back_under_its_name_is_counted(journal: Journal) -> None:
    held = await leased(journal)
    other = await leased(journal, "other", "two")
    await journal.runs.recover("one")
    taken = await journal.runs.lease(held.run_id, "two")
    assert taken is not None
    assert taken.lost == 1
    kept = await journal.runs.get(other.run_id)
    assert kept is not None
    assert kept.lost == 0


@pytest.mark.parametrize("how", ["released", "given back", "taken again"])
async def test_a_holder_that_let_it_go_is_not_counted(brief: Journal, how: str) -> None:
    held = await leased(brief)
    if how == "released":
        await brief.runs.release("one")
    elif how == "given back":
        await brief.runs.give_back(held.run_id, held.epoch)
    taken = await brief.runs.lease(held.run_id, "one" if how == "taken again" else "two")
    assert taken is not None
    assert taken.lost == 0


async def test_a_holder_that_broke_at_it_is_counted(journal: Journal) -> None:
    held = await leased(journal)
    await journal.runs.give_back(held.run_id, held.epoch, broke=True)
    taken = await journal.runs.lease(held.run_id, "two")
    assert taken is not None
    assert taken.lost == 1


async def test_a_run_that_waited_for_a_call_has_no_part_in_the_death_of_its_process(brief: Journal) -> None:
    held = await leased(brief)
    call_id = CallId(stable_id("call", held.run_id, 1))
    await brief.calls.request(
        Call(call_id=call_id, run_id=held.run_id, agent="helper", task=Task(text="q"), deadline=2e9)
    )
    taken = await brief.runs.lease(held.run_id, "two")
    assert taken is not None
    assert taken.lost == 0
    await brief.runs.recover("two")
    again = await brief.runs.get(held.run_id)
    assert again is not None
    assert again.lost == 0


async def test_a_checkpoint_begins_the_count_anew(brief: Journal) -> None:
    held = await leased(brief)
    taken = await brief.runs.lease(held.run_id, "two")
    assert taken is not None
    saver = JournalSaver(brief.db, taken.epoch)
    made = StateGraph(State)
    made.add_node("one", nothing)
    made.add_edge(START, "one")
    await made.compile(checkpointer=saver).ainvoke({"said": []}, {"configurable": {"thread_id": held.run_id}})
    kept = await brief.runs.get(held.run_id)
    assert kept is not None
    assert (taken.lost, kept.lost) == (1, 0)


async def test_a_run_that_was_parked_begins_the_count_anew(brief: Journal) -> None:
    held = await leased(brief)
    taken = await brief.runs.lease(held.run_id, "two")
    assert taken is not None
    await brief.runs.park(taken.run_id, taken.epoch, {})
    parked = await brief.runs.get(held.run_id)
    assert parked is not None
    assert (taken.lost, parked.status, parked.lost) == (1, "parked", 0)


class State(TypedDict):
    """What the graphs of these tests hold."""

    said: Annotated[list[str], operator.add]


async def nothing(state: State) -> dict[str, Any]:
    return {}


class Land:
    """Replicas that die where the `deadly` node stands, one after the other."""

    def __init__(self, journal: Journal) -> None:
        self.journal, self.bus = journal, MemoryBus()
        self.entered = asyncio.Event()
        self.entries = 0
        graphs = {"deadly": self._deadly, "patient": self._patient, "busy": self._busy}
        self._workflows = Workflows([workflow(name)(graph) for name, graph in graphs.items()])
        self.process: Process | None = None

    def _deadly(self) -> StateGraph[State, Any, State, State]:
        async def node(state: State) -> dict[str, Any]:
            self.entries += 1
            self.entered.set()
            await asyncio.Event().wait()
            return {}

        return _chain(node)

    def _patient(self) -> StateGraph[State, Any, State, State]:
        async def node(state: State) -> dict[str, Any]:
            return {"said": [(await agent("helper").ask("q")).text]}

        return _chain(node)

    def _busy(self) -> StateGraph[State, Any, State, State]:
        async def node(state: State) -> dict[str, Any]:
            await asyncio.sleep(BUSY_S)
            return {"said": ["done"]}

        return _chain(node)

    async def up(self) -> None:
        ready = asyncio.Event()
        replica = Orchestrator(self.bus, self.journal, self._workflows, CARDS, instance="one", drain_s=1)
        self.process = Process(replica.run(asyncio.Event(), Ready(None, 2, ready.set)))
        async with asyncio.timeout(HUNG):
            await ready.wait()

    async def die(self) -> None:
        assert self.process is not None
        await self.process.die()

    async def fall(self) -> None:
        """One process after the other dies at the deadly node."""
        for _ in range(LOST_AT_MOST):
            await self.deadly()
            await self.die()
            await self.up()

    async def ask(self, name: str, key: str | None = None) -> RunId:
        event, key = RunRequested(workflow=name, input={"said": []}), key or name
        await self.bus.publish(encode(REQUESTS, Envelope(event, key, "/shop", key, traceparent=TRACE)))
        return RunId(stable_id("run", "/shop", key))

    async def first(self, topic: str, wanted: type[Event], run_id: RunId) -> Event:
        """The first event of this kind about the run."""
        found: list[Event] = []
        stop = asyncio.Event()

        async def keep(delivery: Delivery) -> None:
            event: Event = decode(delivery).data
            if isinstance(event, wanted) and getattr(event, "run_id", None) == run_id:
                found.append(event)
                stop.set()

        async with asyncio.timeout(HUNG):
            await self.bus.consume(Consumption([topic], None), keep, stop)
        return found[0]

    async def deadly(self) -> None:
        async with asyncio.timeout(HUNG):
            await self.entered.wait()
        self.entered.clear()


def _chain(node: Any) -> StateGraph[State, Any, State, State]:
    made = StateGraph(State)
    made.add_node("node", node)
    made.add_edge(START, "node")
    made.add_edge("node", END)
    return made


@pytest.fixture
async def land(journal: Journal) -> AsyncIterator[Land]:
    made = Land(Journal(journal.db, lease_s=0.6))
    yield made
    await made.die()


async def test_a_run_that_takes_each_of_its_processes_with_it_ends_failed_and_those_beside_it_go_on(land: Land) -> None:
    # Given a run that waits for an agent, and one whose node ends the process that runs it
    await land.up()
    patient = await land.ask("patient")
    await land.first(tasks_topic("helper"), CallRequested, patient)
    deadly = await land.ask("deadly")
    # When one process after the other dies at it
    await land.fall()
    # Then it ends, and says why and what to do
    ended = await land.first(EVENTS_TOPIC, RunFailed, deadly)
    assert isinstance(ended, RunFailed)
    assert ended.failure.code == "process_lost"
    assert f"{LOST_AT_MOST} processes died" in ended.failure.message
    assert "metier runs retry" in ended.failure.message
    assert land.entries == LOST_AT_MOST
    # And the other one goes on waiting
    kept = await land.journal.runs.get(patient)
    assert kept is not None
    assert (kept.status, kept.lost) == ("running", 0)


async def test_a_run_that_was_in_the_middle_of_something_each_time_is_not_taken_for_the_deadly_one(land: Land) -> None:
    # Given a run whose node ends its process at once, and others that are not so soon done
    await land.up()
    deadly = await land.ask("deadly")
    busy = [await land.ask("busy", f"busy{n}") for n in range(3)]
    # When the deadly one takes one process after the other with it
    await land.fall()
    # Then it ends failed, and the others come to their end
    ended = await land.first(EVENTS_TOPIC, RunFailed, deadly)
    assert isinstance(ended, RunFailed)
    assert ended.failure.code == "process_lost"
    for run_id in busy:
        done = await land.first(EVENTS_TOPIC, RunSucceeded, run_id)
        assert isinstance(done, RunSucceeded)
        assert done.result["said"] == ["done"]


async def suspected(journal: Journal, event: str) -> Run:
    """A run that processes died of, or beside, in the middle of something."""
    held = await leased(journal, event)
    for _ in range(SUSPECTED):
        await journal.runs.give_back(held.run_id, held.epoch, broke=True)
        taken = await journal.runs.lease(held.run_id, "one")
        assert taken is not None
        held = taken
    await journal.runs.give_back(held.run_id, held.epoch)
    return held


async def test_beside_a_suspect_that_never_gets_past_its_place_the_next_one_has_its_turn_after_a_while(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suspects, "APART_S", 0.2)
    turns = Suspects(journal)
    stuck, patient = [(await suspected(journal, event)).run_id for event in ("stuck", "patient")]
    # Given a suspect that has its turn, and stays where it was lost
    async with turns.leased(partial(journal.runs.lease, stuck, "one")) as first:
        assert first is not None
        # When another one wants its turn, then it has it once the first had its time
        async with asyncio.timeout(HUNG), turns.leased(partial(journal.runs.lease, patient, "one")) as second:
            assert second is not None
            assert second.run_id == patient
            assert await journal.runs.at_risk(stuck)
            assert await journal.runs.at_risk(patient)
