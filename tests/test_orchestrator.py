"""The orchestrator over real journals and buses, with a small agent that answers: whatever dies or comes twice, each run ends once.

Not here: processes that are killed; the end-to-end tests do that. A crash here is the sudden end of every task of one replica.
"""

from __future__ import annotations

import asyncio
import operator
import secrets
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.types import RetryPolicy, Send, interrupt
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from pydantic import BaseModel

from metier_infra import metrics, telemetry
from metier_infra.bus import Bus, Consumption, MemoryBus, Revoked
from metier_infra.database import Database, Params, Row, Statement, migrate
from metier_infra.events import (
    DEAD_LETTERS,
    EVENTS_TOPIC,
    REQUESTS,
    RUNS,
    CallAnswered,
    CallRequested,
    Event,
    RunFailed,
    RunRequested,
    RunSucceeded,
    tasks_topic,
)
from metier_infra.journal import Journal
from metier_infra.kafka_bus import KafkaBus
from metier_infra.kafka_topics import Topic, apply
from metier_infra.messages import Delivery, Envelope, Record, decode, encode
from metier_infra.postgres_journal import PostgresDatabase
from metier_infra.progress_events import RunResumed
from metier_infra.service import Ready, contain_exits, send, serve
from metier_infra.settings import KafkaSettings
from metier_infra.sqlite_journal import SqliteDatabase
from metier_infra.testing import Process
from metier_infra.words import LONGEST_MESSAGE, AgentCard, Answer, CallId, Failure, RunId, Spent, Task, stable_id
from metier_workflows.node import Place, agent, agents, decide
from metier_workflows.orchestrator import Orchestrator
from metier_workflows.routing import choose
from metier_workflows.run_desk import RunDesk
from metier_workflows.workflow import Graph, Workflows, workflow

HUNG = 40
TASKS = tasks_topic("helper")
CARDS = {"helper": AgentCard(name="helper", model="m", policy="autonomous", skills={"general": 1.0})}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class State(TypedDict):
    """What the graphs of these tests share."""

    text: str
    said: Annotated[list[str], operator.add]


class Said(TypedDict):
    """What they give."""

    said: list[str]


class Text(BaseModel):
    """What they take."""

    text: str


class Errand(TypedDict):
    """What one branch gets."""

    text: str


async def say(text: str, timeout_s: float = 300) -> dict[str, list[str]]:
    return {"said": [(await agent("helper").ask(text, timeout_s=timeout_s)).text]}


def chain(*nodes: Any, retry: RetryPolicy | None = None) -> Graph:
    made = StateGraph(State, input_schema=State, output_schema=Said)
    names = [f"node{n}" for n in range(len(nodes))]
    for name, node in zip(names, nodes, strict=True):
        made.add_node(name, node, retry_policy=retry)
    for before, after in zip([START, *names], [*names, END], strict=True):
        made.add_edge(before, after)
    return made


async def first(state: State) -> dict[str, Any]:
    await decide(choose("general", agents(), size=1, reason="the only one"))
    return await say(f"{state['text']} one")


async def second(state: State) -> dict[str, Any]:
    return await say(f"{state['text']} two")


async def twice(state: State) -> dict[str, Any]:
    return {"said": [*(await say(state["text"]))["said"], *(await say(state["text"]))["said"]]}


async def hasty(state: State) -> dict[str, Any]:
    return await say(state["text"], timeout_s=0.05)


async def breaks(state: State) -> dict[str, Any]:
    raise ZeroDivisionError("by the author")


async def odd(state: State) -> dict[str, Any]:
    return {"said": [datetime.now(UTC)]}


async def nan(state: State) -> dict[str, Any]:
    return {"said": [float("nan")]}


async def half(state: State) -> dict[str, Any]:
    return {"said": ["half of a character: \ud83d"]}


async def torn(state: State) -> dict[str, Any]:
    raise ValueError("torn \ud83d" + "x" * LONGEST_MESSAGE)


async def leaves(state: State) -> dict[str, Any]:
    sys.exit(3)


class Mute(Exception):
    def __str__(self) -> str:
        raise TypeError("not even that")


async def mute(state: State) -> dict[str, Any]:
    raise Mute


async def waits(state: State) -> dict[str, Any]:
    return {"said": [interrupt("a person's word")]}


async def misspelt(state: State) -> dict[str, Any]:
    return {"said": [(await agent("helpr").ask(state["text"])).text]}


async def big(state: State) -> dict[str, Any]:
    return {"said": ["x" * (33 << 20)]}


async def cross(state: State) -> dict[str, Any]:
    """Two chains side by side: what is asked second depends on whose answer came first."""

    async def pair(letter: str) -> str:
        await say(f"{state['text']} {letter}1")
        return (await say(f"{state['text']} {letter}2"))["said"][0]

    return {"said": list(await asyncio.gather(pair("a"), pair("b")))}


async def branch(state: Errand) -> dict[str, Any]:
    return await say(state["text"])


FLAKY: list[str] = []


async def flaky(state: State) -> dict[str, Any]:
    """Asks, and then raises the first time."""
    said = await say(state["text"])
    FLAKY.append("entered")
    if len(FLAKY) == 1:
        raise ConnectionError("something of the author's")
    return said


def fan() -> Graph:
    def spread(state: State) -> list[Send]:
        return [Send("branch", Errand(text=f"{state['text']} {n}")) for n in range(3)]

    made = StateGraph(State, output_schema=Said)
    made.add_node("branch", branch)
    made.add_conditional_edges(START, spread, ["branch"])
    made.add_edge("branch", END)
    return made


GRAPHS: Mapping[str, Callable[[], Graph]] = {
    "chain": lambda: chain(first, second),
    "twice": lambda: chain(twice),
    "fan": fan,
    "hasty": lambda: chain(hasty),
    "breaks": lambda: chain(first, breaks),
    "deep": lambda: chain(first, chain(breaks).compile()),
    "odd": lambda: chain(odd),
    "nan": lambda: chain(nan),
    "half": lambda: chain(half),
    "torn": lambda: chain(torn),
    "mute": lambda: chain(mute),
    "leaves": lambda: chain(leaves),
    "waits": lambda: chain(waits),
    "misspelt": lambda: chain(misspelt),
    "big": lambda: chain(big),
    "cross": lambda: chain(cross),
    "flaky": lambda: chain(flaky, retry=RetryPolicy(initial_interval=0.001, jitter=False)),
}
WORKFLOWS = Workflows([workflow(name, input=Text)(build) for name, build in GRAPHS.items()])


class Helper:
    """An agent that answers `re: TEXT` for 0.25 USD; what is asked with a word of `holds` waits until it is let."""

    def __init__(self, bus: Bus, journal: Journal) -> None:
        self.bus, self.journal = bus, journal
        self.worked: list[str] = []
        self.holds: dict[str, asyncio.Event] = {}
        self.changed = asyncio.Event()
        self.stop, self.ready = asyncio.Event(), asyncio.Event()
        what = Consumption([TASKS], "metier.agents.helper", ready=self.ready.set)
        self.task = asyncio.create_task(serve(bus, what, {CallRequested: self._take}, self.stop))

    async def _take(self, envelope: Envelope[CallRequested], delivery: Delivery) -> None:
        asked = envelope.data
        self.worked.append(asked.task.text)
        self.changed.set()
        for word, let in self.holds.items():
            if word in asked.task.text:
                await let.wait()
        failure = Failure(code="model_failed", message="no") if "fail" in asked.task.text else None
        answer = None if failure else Answer(text=f"re: {asked.task.text}", agent="helper", model="m", policy="p")
        stored = await self.journal.calls.answer(asked.call_id, answer=answer, failure=failure, took=Spent(usd=0.25))
        said = CallAnswered(run_id=asked.run_id, call_id=asked.call_id, answer=stored.answer, failure=stored.failure)
        await send(self.bus, RUNS, Envelope(said, f"{asked.call_id}/answered", "/test", asked.run_id))

    async def asked(self, text: str) -> None:
        """Wait until this was asked."""
        async with asyncio.timeout(HUNG):
            while text not in self.worked:
                self.changed.clear()
                await self.changed.wait()


class Replica:
    """One orchestrator, and every task that it starts, so that it can die as a process does."""

    def __init__(self, bus: Bus, journal: Journal, name: str, drain_s: float) -> None:
        self.name = name
        self.stop, self.ready = asyncio.Event(), asyncio.Event()
        replica = Orchestrator(bus, journal, WORKFLOWS, CARDS, instance=name, drain_s=drain_s)
        self._process = Process(replica.run(self.stop, Ready(None, 2, self.ready.set)))
        self.task = self._process.task

    async def crash(self) -> None:
        """Every task of it ends where it is."""
        await self._process.die()

    async def end(self) -> None:
        """It drains, as after SIGTERM."""
        self.stop.set()
        async with asyncio.timeout(HUNG):
            await self.task


@dataclass
class House:
    """A bus and a journal, with the helper at work, and replicas that come and go."""

    bus: Bus
    journal: Journal
    helper: Helper
    replicas: list[Replica] = field(default_factory=list[Replica])

    async def replica(self, name: str = "one", *, drain_s: float = 10, bus: Bus | None = None) -> Replica:
        made = Replica(bus or self.bus, self.journal, name, drain_s)
        self.replicas.append(made)
        async with asyncio.timeout(HUNG):
            await made.ready.wait()
        return made

    async def request(self, name: str, event_id: str = "e", **value: Any) -> RunId:
        """Publish a request, as a backend does; the id of its run."""
        event = RunRequested(workflow=name, input=value or {"text": event_id})
        await self.bus.publish(encode(REQUESTS, Envelope(event, event_id, "/shop", event_id, traceparent=TRACE)))
        return RunId(stable_id("run", "/shop", event_id))

    async def read(self, topic: str, enough: Callable[[list[Delivery]], bool]) -> list[Delivery]:
        """A topic from its beginning, until there is enough."""
        seen: list[Delivery] = []
        stop = asyncio.Event()

        async def keep(delivery: Delivery) -> None:
            seen.append(delivery)
            if enough(seen):
                stop.set()

        async with asyncio.timeout(HUNG):
            await self.bus.consume(Consumption([topic], None), keep, stop)
        return seen

    async def all_of(self, topic: str) -> list[Envelope[Event]]:
        """All that a topic holds now."""
        last = Record(topic, secrets.token_bytes(8), b"")  # without headers: it is no event
        await self.bus.publish(last)
        return [decode(one) for one in await self.read(topic, lambda seen: seen[-1].key == last.key) if one.headers]

    async def ended(self, *run_ids: RunId) -> dict[RunId, RunSucceeded | RunFailed]:
        """The terminal events of these runs, when they are there."""

        def terminal(seen: list[Delivery]) -> dict[RunId, RunSucceeded | RunFailed]:
            found = [decode(one).data for one in seen if one.headers]
            return {event.run_id: event for event in found if isinstance(event, RunSucceeded | RunFailed)}

        return terminal(await self.read(EVENTS_TOPIC, lambda seen: terminal(seen).keys() >= set(run_ids)))

    async def terminal_ids(self) -> list[str]:
        """The ids of all terminal events, with repetitions."""
        return [one.id for one in await self.all_of(EVENTS_TOPIC) if isinstance(one.data, RunSucceeded | RunFailed)]

    async def calls(self) -> list[tuple[CallId, str]]:
        """Every call that was sent: its id and what it asks."""
        events = [one.data for one in await self.all_of(TASKS)]
        return [(event.call_id, event.task.text) for event in events if isinstance(event, CallRequested)]


@asynccontextmanager
async def house_of(bus: Bus, journal: Journal) -> AsyncGenerator[House]:
    house = House(bus, journal, Helper(bus, journal))
    async with asyncio.timeout(HUNG):
        await house.helper.ready.wait()
    yield house
    for replica in house.replicas:
        await replica.crash()
    house.helper.task.cancel()
    await asyncio.wait([house.helper.task])


@pytest.fixture
async def house() -> AsyncIterator[House]:
    """In memory. Leases outlast the test: only a replica of the same name may take its runs up."""
    db = SqliteDatabase(":memory:")
    await migrate(db)
    async with house_of(MemoryBus(), Journal(db, lease_s=600)) as made:
        yield made
    await db.close()


async def test_a_request_becomes_a_run_that_asks_and_ends_with_its_result_and_cost(house: House) -> None:
    await house.replica()
    run_id = await house.request("chain")
    found = (await house.ended(run_id))[run_id]
    assert found.spent.time_s > 0
    assert found == RunSucceeded(
        run_id=run_id,
        request_id="e",
        workflow="chain",
        result={"said": ["re: e one", "re: e two"]},
        cost_usd=0.5,
        spent=Spent(usd=0.5, time_s=found.spent.time_s),
    )
    events = await house.all_of(EVENTS_TOPIC)
    assert [type(one.data).__name__ for one in events] == [
        "RunStarted",
        *("NodeStarted", "DecisionMade", "AgentAsked", "AgentAnswered", "NodeEnded"),
        *("NodeStarted", "AgentAsked", "AgentAnswered", "NodeEnded"),
        "RunSucceeded",
    ]
    assert {one.key for one in events} == {run_id}
    assert (events[-1].id, events[-1].subject) == (f"{run_id}/ended", "e")
    assert {telemetry.trace_id(str(one.traceparent)) for one in events} == {telemetry.trace_id(TRACE)}


async def test_the_journal_tells_the_same(house: House) -> None:
    one = await house.replica()
    run_id = await house.request("chain")
    await house.ended(run_id)
    await one.end()
    run = await house.journal.runs.get(run_id)
    assert run is not None
    assert (run.status, run.announced, run.cost_usd, run.epoch) == ("succeeded", True, 0.5, 1)
    assert run.version == WORKFLOWS.find("chain", None).version
    assert [call.task.text for call in await house.journal.calls.of_run(run_id)] == ["e one", "e two"]
    assert len(await house.journal.decisions.of_run(run_id)) == 1


async def test_a_duplicate_request_starts_nothing_before_while_and_after_its_run(house: House) -> None:
    house.helper.holds["two"] = asyncio.Event()
    run_id = await house.request("chain")
    await house.request("chain")
    one = await house.replica()
    await house.helper.asked("e two")
    await house.request("chain")
    house.helper.holds["two"].set()
    await house.ended(run_id)
    await house.request("chain")
    await house.ended(await house.request("chain", "another"))
    await one.end()
    assert await house.terminal_ids() == [f"{run_id}/ended", f"{stable_id('run', '/shop', 'another')}/ended"]
    assert [text for _, text in await house.calls()] == ["e one", "e two", "another one", "another two"]


@pytest.mark.parametrize(
    ("name", "value", "code", "sentence"),
    [
        ("nothing", {"text": "x"}, "unknown_workflow", "no workflow is called 'nothing'"),
        ("chain", {"wrong": 1}, "bad_input", "text: Field required"),
        (
            "breaks",
            {"text": "x"},
            "workflow_broken",
            "the node 'node1' of 'breaks' raised ZeroDivisionError: by the author",
        ),
        ("deep", {"text": "x"}, "workflow_broken", "the node 'node1/node0' of 'deep' raised ZeroDivisionError"),
        ("chain", {"text": "fail"}, "call_failed", "the agent 'helper' failed: no"),
        ("odd", {"text": "x"}, "workflow_broken", "JSON"),
        ("nan", {"text": "x"}, "workflow_broken", "JSON"),
        ("half", {"text": "x"}, "workflow_broken", "JSON"),
        ("torn", {"text": "x"}, "workflow_broken", r"raised ValueError: torn \ud83dxxx"),
        ("mute", {"text": "x"}, "workflow_broken", "raised Mute: it cannot say what is wrong: TypeError"),
        (
            "leaves",
            {"text": "x"},
            "workflow_broken",
            "it asked for the end of the process, which goes on: SystemExit(3)",
        ),
        ("waits", {"text": "x"}, "workflow_broken", "interrupt"),
    ],
)
async def test_what_cannot_succeed_ends_failed_with_a_reason_and_the_replica_lives_on(
    house: House, name: str, value: dict[str, Any], code: str, sentence: str
) -> None:
    await house.replica()
    contain_exits()  # as `run_role` does
    run_id = await house.request(name, **value)
    found = (await house.ended(run_id))[run_id]
    assert isinstance(found, RunFailed)
    assert (found.failure.code, found.request_id, found.workflow) == (code, "e", name)
    assert sentence in found.failure.message
    after = await house.request("chain", "after")
    assert isinstance((await house.ended(after))[after], RunSucceeded)


async def test_a_run_that_is_pinned_to_another_version_says_so(house: House) -> None:
    await house.replica()
    event = RunRequested(workflow="chain", input={"text": "x"}, version="0123")
    await house.bus.publish(encode(REQUESTS, Envelope(event, "e", "/shop", "e")))
    run_id = RunId(stable_id("run", "/shop", "e"))
    found = (await house.ended(run_id))[run_id]
    assert isinstance(found, RunFailed)
    assert found.failure.code == "unknown_workflow"
    assert "pinned to version 0123" in found.failure.message


async def test_after_a_crash_the_run_goes_on_and_what_was_answered_is_not_asked_again(house: House) -> None:
    house.helper.holds["two"] = asyncio.Event()
    one = await house.replica()
    run_id = await house.request("chain")
    await house.helper.asked("e two")
    await one.crash()
    assert await house.terminal_ids() == []
    again = await house.replica()
    house.helper.holds["two"].set()
    found = (await house.ended(run_id))[run_id]
    await again.end()
    assert isinstance(found, RunSucceeded)
    assert (found.result, found.cost_usd) == ({"said": ["re: e one", "re: e two"]}, 0.5)
    calls = await house.calls()
    assert [text for _, text in calls].count("e one") == 1
    assert len({call_id for call_id, _ in calls}) == 2
    assert len(await house.journal.calls.of_run(run_id)) == 2
    assert await house.terminal_ids() == [f"{run_id}/ended"]
    decisions = [one.id for one in await house.all_of(EVENTS_TOPIC) if type(one.data).__name__ == "DecisionMade"]
    assert len(set(decisions)) == 1


async def test_an_answer_that_came_while_nobody_ran_is_found_and_a_decision_keeps_its_id(house: House) -> None:
    house.helper.holds["one"] = asyncio.Event()
    one = await house.replica()
    run_id = await house.request("chain")
    await house.helper.asked("e one")
    await one.crash()
    house.helper.holds["one"].set()
    await house.read(RUNS, lambda seen: b"/answered" in dict(seen[-1].headers)["ce_id"])
    await house.replica()
    await house.ended(run_id)
    assert house.helper.worked.count("e one") == 1
    told = [one for one in await house.all_of(EVENTS_TOPIC) if type(one.data).__name__ == "DecisionMade"]
    assert len(told) == 2
    assert len({one.id for one in told}) == 1
    assert len(await house.journal.decisions.of_run(run_id)) == 1


async def test_another_replica_takes_over_when_the_lease_of_a_dead_one_is_over(house: House) -> None:
    house.journal = house.helper.journal = Journal(house.journal.db, lease_s=0.6)
    house.helper.holds["e 1"] = asyncio.Event()
    one = await house.replica("one")
    run_id = await house.request("fan")
    for n in range(3):
        await house.helper.asked(f"e {n}")
    for answered in range(2):
        await house.read(
            RUNS, lambda seen, n=answered + 1: sum(b"/answered" in dict(one.headers)["ce_id"] for one in seen) >= n
        )
    await one.crash()
    two = await house.replica("two")
    house.helper.holds["e 1"].set()
    found = (await house.ended(run_id))[run_id]
    await two.end()
    assert isinstance(found, RunSucceeded)
    assert found.result == {"said": ["re: e 0", "re: e 1", "re: e 2"]}
    assert found.cost_usd == 0.75
    assert len(await house.journal.calls.of_run(run_id)) == 3
    texts = [text for _, text in await house.calls()]
    assert (texts.count("e 0"), texts.count("e 2")) == (1, 1)
    assert await house.terminal_ids() == [f"{run_id}/ended"]


class DeafBus(MemoryBus):
    """Takes no terminal event: whoever publishes one waits for ever."""

    def __init__(self, inner: Bus) -> None:
        super().__init__()
        self.inner = inner
        self.refused = asyncio.Event()
        self.revoked: dict[str, Revoked] = {}

    async def publish(self, *records: Record) -> None:
        if any(b"/ended" in dict(record.headers)["ce_id"] for record in records):
            self.refused.set()
            await asyncio.Event().wait()
        await self.inner.publish(*records)

    async def consume(self, what: Consumption, handle: Any, stop: asyncio.Event) -> None:
        self.revoked |= dict.fromkeys(what.topics, what.revoked)
        await self.inner.consume(what, handle, stop)


async def test_a_run_that_has_ended_stays_with_its_replica_until_it_is_told_though_its_partition_moves(
    house: House,
) -> None:
    # Given a run whose end is on its way, and one that goes on
    house.helper.holds["other one"] = asyncio.Event()
    deaf = DeafBus(house.bus)
    await house.replica(bus=deaf)
    ended = await house.request("chain")
    async with asyncio.timeout(HUNG):
        await deaf.refused.wait()
    other = await house.request("chain", "other")
    await house.helper.asked("other one")
    # When their partitions move away and back, so that what goes on is let go and taken up again
    deaf.revoked[RUNS](RUNS, frozenset(range(MemoryBus.PARTITIONS)))
    await house.read(
        EVENTS_TOPIC, lambda seen: any(isinstance(decode(one).data, RunResumed) for one in seen if one.headers)
    )
    # Then nobody else may tell the end, which could overtake what was told of the run here
    assert await house.journal.runs.held_by("one") == {ended: 1, other: 2}


async def test_an_end_that_was_not_told_is_told_after_a_restart_under_the_same_id(house: House) -> None:
    deaf = DeafBus(house.bus)
    one = await house.replica(bus=deaf)
    run_id = await house.request("chain")
    async with asyncio.timeout(HUNG):
        await deaf.refused.wait()
    await one.crash()
    run = await house.journal.runs.get(run_id)
    assert run is not None
    assert (run.status, run.announced) == ("succeeded", False)
    assert await house.terminal_ids() == []
    again = await house.replica()
    await house.ended(run_id)
    await again.end()
    assert await house.terminal_ids() == [f"{run_id}/ended"]
    assert house.helper.worked == ["e one", "e two"]


async def test_leases_are_kept_while_the_broker_takes_no_ends(house: House) -> None:
    """One end that cannot be told must not cost the replica the runs that it is at work on."""
    house.journal = house.helper.journal = Journal(house.journal.db, lease_s=0.6)
    house.helper.holds["other two"] = asyncio.Event()
    deaf = DeafBus(house.bus)
    one = await house.replica(bus=deaf)
    await house.request("chain")
    async with asyncio.timeout(HUNG):
        await deaf.refused.wait()
    await one.crash()
    deaf.refused.clear()
    await house.replica("one", bus=deaf)
    other = await house.request("chain", "other")
    await house.helper.asked("other two")
    async with asyncio.timeout(HUNG):
        await deaf.refused.wait()
    await asyncio.sleep(1.0)  # longer than a lease
    assert await house.journal.runs.lease(other, "thief") is None


async def test_a_record_that_is_no_event_goes_to_the_dead_letters_and_the_next_request_is_served(house: House) -> None:
    await house.replica()
    await house.bus.publish(Record(REQUESTS, b"k", b"\xff\x00", (("ce_id", b"x"),)))
    run_id = await house.request("chain")
    await house.ended(run_id)
    (dead,) = await house.read(DEAD_LETTERS, lambda seen: len(seen) == 1)
    assert (dead.key, dead.value) == (b"k", b"\xff\x00")
    assert dict(dead.headers)["metier-dead-reason"] == b"undecodable"


async def test_after_stop_a_run_that_can_end_in_time_ends(house: House) -> None:
    house.helper.holds["two"] = asyncio.Event()
    one = await house.replica()
    run_id = await house.request("chain")
    await house.helper.asked("e two")
    one.stop.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not one.task.done()
    house.helper.holds["two"].set()
    await one.end()
    assert await house.terminal_ids() == [f"{run_id}/ended"]


async def test_after_stop_a_run_that_does_not_end_in_time_is_let_go_for_another_replica(house: House) -> None:
    house.helper.holds["two"] = asyncio.Event()
    one = await house.replica(drain_s=0.05)
    run_id = await house.request("chain")
    await house.helper.asked("e two")
    await one.end()
    assert await house.terminal_ids() == []
    await house.replica("two")
    house.helper.holds["two"].set()
    assert isinstance((await house.ended(run_id))[run_id], RunSucceeded)
    assert house.helper.worked.count("e one") == 1


async def test_a_request_that_comes_while_a_replica_drains_waits_for_the_next(house: House) -> None:
    house.helper.holds["two"] = asyncio.Event()
    one = await house.replica()
    await house.request("chain", "before")
    await house.helper.asked("before two")
    one.stop.set()
    late = await house.request("chain", "late")
    house.helper.holds["two"].set()
    await one.end()
    await house.replica("two")
    assert isinstance((await house.ended(late))[late], RunSucceeded)


async def test_a_call_without_an_answer_fails_at_its_deadline_and_a_late_answer_changes_nothing(house: House) -> None:
    house.helper.holds["e"] = asyncio.Event()
    one = await house.replica()
    run_id = await house.request("hasty")
    found = (await house.ended(run_id))[run_id]
    assert isinstance(found, RunFailed)
    assert found.failure.code == "deadline_missed"
    house.helper.holds["e"].set()
    await house.read(RUNS, lambda seen: b"/answered" in dict(seen[-1].headers)["ce_id"])
    await one.end()
    (call,) = await house.journal.calls.of_run(run_id)
    assert call.answer is None
    assert call.failure is not None
    assert call.failure.code == "deadline_missed"
    assert await house.terminal_ids() == [f"{run_id}/ended"]


async def test_a_second_answer_to_a_call_is_dropped(house: House) -> None:
    house.helper.holds["q"] = asyncio.Event()
    desk = RunDesk(RunId("r"), house.bus, house.journal, CARDS)
    asking = asyncio.create_task(desk.ask(Place("node", 1), "helper", Task(text="q"), 60))
    await house.helper.asked("q")
    ((call_id, _),) = await house.calls()
    said = [Answer(text=text, agent="helper", model="m", policy="p") for text in ("first", "second")]
    for answer in said:
        desk.waiting.deliver(CallAnswered(run_id=desk.run_id, call_id=call_id, answer=answer))
    async with asyncio.timeout(HUNG):
        assert await asking == said[0]
    desk.waiting.deliver(CallAnswered(run_id=desk.run_id, call_id=call_id, answer=said[1]))


async def test_a_node_that_is_tried_again_asks_under_the_same_id(house: House) -> None:
    FLAKY.clear()
    await house.replica()
    run_id = await house.request("flaky")
    found = (await house.ended(run_id))[run_id]
    assert isinstance(found, RunSucceeded)
    assert found.result == {"said": ["re: e"]}
    assert FLAKY == ["entered", "entered"]
    assert len(await house.calls()) == 1


async def test_the_same_question_twice_in_one_node_is_two_calls(house: House) -> None:
    await house.replica()
    run_id = await house.request("twice")
    found = (await house.ended(run_id))[run_id]
    assert isinstance(found, RunSucceeded)
    assert found.cost_usd == 0.5
    assert len({call_id for call_id, _ in await house.calls()}) == 2


@pytest.fixture
def counted() -> Iterator[InMemoryMetricReader]:
    """What is counted in the test."""
    reader = InMemoryMetricReader()
    metrics.stop()
    metrics.start("tests", "one", reader)
    yield reader
    metrics.stop()


async def test_a_replica_that_lost_its_run_stops_and_says_nothing_and_that_is_counted(
    house: House, counted: InMemoryMetricReader
) -> None:
    house.helper.holds["one"] = asyncio.Event()
    one = await house.replica()
    run_id = await house.request("chain")
    await house.helper.asked("e one")
    await house.journal.runs.release("one")
    thief = await house.journal.runs.lease(run_id, "thief")
    assert thief is not None
    house.helper.holds["one"].set()
    await house.read(RUNS, lambda seen: b"/answered" in dict(seen[-1].headers)["ce_id"])
    await one.end()
    run = await house.journal.runs.get(run_id)
    assert run is not None
    assert (run.status, run.epoch) == ("running", thief.epoch)
    assert await house.terminal_ids() == []
    assert "e two" not in house.helper.worked
    data = counted.get_metrics_data()
    assert data is not None
    found = {
        one.name: one.data for part in data.resource_metrics for scope in part.scope_metrics for one in scope.metrics
    }
    assert [point.value for point in found[metrics.FENCED.name].data_points if isinstance(point, NumberDataPoint)] == [
        1
    ]


@asynccontextmanager
async def real_house(kafka: KafkaSettings, postgres_url: str) -> AsyncGenerator[House]:
    """On Kafka and Postgres; one partition where the whole log is read, four where replicas share."""
    quick = kafka.model_copy(update={"session_timeout_ms": 3_000})
    shared = [Topic(name, 4, 1) for name in (REQUESTS, RUNS)]
    apply(quick, [*shared, *[Topic(name, 1, 1) for name in (EVENTS_TOPIC, DEAD_LETTERS, TASKS)]])
    db = await PostgresDatabase(postgres_url).open()
    bus = KafkaBus(quick, client="tests")
    async with house_of(bus, Journal(db, lease_s=3)) as made:
        yield made
    await bus.close()
    await db.close()


async def test_on_real_services_two_replicas_share_the_runs_and_each_ends_once_though_one_leaves(
    kafka: KafkaSettings, postgres_url: str
) -> None:
    async with real_house(kafka, postgres_url) as house:
        house.helper.holds["two"] = asyncio.Event()
        leaves, stays = await asyncio.gather(house.replica("leaves", drain_s=0.05), house.replica("stays"))
        runs = [await house.request("chain", f"e{n}") for n in range(12)]
        for n in range(12):
            await house.helper.asked(f"e{n} two")
        await leaves.end()
        house.helper.holds["two"].set()
        found = await house.ended(*runs)
        await stays.end()
        assert all(isinstance(event, RunSucceeded) for event in found.values())
        assert {run_id: event.cost_usd for run_id, event in found.items()} == dict.fromkeys(runs, 0.5)
        assert sorted(set(await house.terminal_ids())) == sorted(f"{run_id}/ended" for run_id in runs)
        assert len({call_id for call_id, _ in await house.calls()}) == 24
        texts = [text for _, text in await house.calls()]
        assert [texts.count(f"e{n} one") for n in range(12)] == [1] * 12


async def test_on_real_services_a_request_that_the_database_cannot_hold_blocks_nobody(
    kafka: KafkaSettings, postgres_url: str
) -> None:
    """Postgres keeps no NUL in a text: such a request can never be accepted."""
    async with real_house(kafka, postgres_url) as house:
        await house.replica()
        well = encode(REQUESTS, Envelope(RunRequested(workflow="chain", input={}), "poison", "/shop", "k"))
        await house.bus.publish(replace(well, value=well.value.replace(b"chain", b"nul\\u0000")))
        await house.request("chain", "also\x00poison")
        run_id = await house.request("chain", "good")
        assert isinstance((await house.ended(run_id))[run_id], RunSucceeded)
        dead = await house.read(DEAD_LETTERS, lambda seen: len(seen) == 2)
        assert {dict(one.headers)["ce_id"] for one in dead} == {b"poison", b"also\x00poison"}
        assert {dict(one.headers)["metier-dead-reason"] for one in dead} == {b"undecodable"}


class Slow:
    """A database that takes its time to store a checkpoint, and notes in which order things were stored."""

    def __init__(self, inner: Database) -> None:
        self._inner = inner
        self.stored: list[str] = []

    async def read(self, sql: str, params: Params | None = None) -> Sequence[Row]:
        return await self._inner.read(sql, params)

    async def write(self, *statements: Statement) -> Sequence[Sequence[Row]]:
        tables = [one.sql.split()[2] for one in statements if one.sql.startswith("INSERT")]
        if "checkpoints" in tables:
            await asyncio.sleep(0.3)
        rows = await self._inner.write(*statements)
        self.stored += [table for table in tables if table in {"checkpoints", "decisions", "calls"}]
        return rows

    async def close(self) -> None:
        await self._inner.close()


async def test_nothing_is_asked_before_the_checkpoint_that_its_id_hangs_on_is_stored(house: House) -> None:
    # Given a journal that is slow to store checkpoints
    slow = Slow(house.journal.db)
    house.journal = house.helper.journal = Journal(slow, house.journal.lease_s)
    await house.replica()
    # When a run's first node starts beside the storing of its input
    run_id = await house.request("chain")
    assert isinstance((await house.ended(run_id))[run_id], RunSucceeded)
    # Then what it decides and asks waits for that
    assert slow.stored[0] == "checkpoints"
    assert {"decisions", "calls"} <= set(slow.stored)


@pytest.mark.parametrize(("name", "says"), [("misspelt", "no agent is called 'helpr'"), ("big", "an event carries")])
async def test_what_an_author_gets_wrong_ends_the_run_and_not_the_replica(house: House, name: str, says: str) -> None:
    replica = await house.replica()
    bad, good = await house.request(name, "bad"), await house.request("chain", "good")
    found = await house.ended(bad, good)
    failed = found[bad]
    assert isinstance(failed, RunFailed)
    assert failed.failure.code == "workflow_broken"
    assert says in failed.failure.message
    assert isinstance(found[good], RunSucceeded)
    assert not replica.task.done()


async def test_after_a_crash_each_question_finds_its_own_answer_in_whatever_order_they_came(house: House) -> None:
    # Given two chains side by side, of which the second got its first answer first
    for word in ("e a1", "e a2"):
        house.helper.holds[word] = asyncio.Event()
    one = await house.replica()
    run_id = await house.request("cross")
    await house.helper.asked("e b2")
    house.helper.holds["e a1"].set()
    await house.helper.asked("e a2")
    # When the replica dies before the last answer, and another goes on
    await one.crash()
    await house.replica()
    house.helper.holds["e a2"].set()
    # Then no question gets the answer to another, and none was asked again under a new id
    found = (await house.ended(run_id))[run_id]
    assert isinstance(found, RunSucceeded)
    assert found.result == {"said": ["re: e a2", "re: e b2"]}
    assert len(await house.journal.calls.of_run(run_id)) == 4
