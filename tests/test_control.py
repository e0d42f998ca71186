"""Runs that are cancelled, retried and redriven, by events, with a small agent that answers: each ends once, and nothing is asked twice that was answered.

Not here: that a cancel reaches the model request and the container; `tests/e2e/test_cancel.py` has that. Nor the commands; `test_control_commands.py` has them.
"""

from __future__ import annotations

import asyncio
import operator
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict, TypeVar

import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from pydantic import BaseModel

from metier_infra.bus import Bus, Consumption, Handler, MemoryBus
from metier_infra.database import Database, migrate
from metier_infra.events import (
    EVENTS_TOPIC,
    READERS,
    REQUESTS,
    RUNS,
    CallAnswered,
    CallRequested,
    CancelRequested,
    Event,
    RedriveRequested,
    RequestRejected,
    RetryRequested,
    RunAccepted,
    RunCancelled,
    RunFailed,
    RunRequested,
    RunSucceeded,
    Signalled,
    tasks_topic,
)
from metier_infra.journal import Journal
from metier_infra.messages import Delivery, Envelope, Record, decode, encode
from metier_infra.postgres_journal import PostgresDatabase
from metier_infra.rows import Call, Run
from metier_infra.service import Ready, send, serve
from metier_infra.sqlite_journal import SqliteDatabase
from metier_infra.words import AgentCard, Answer, CallId, Failure, Limits, RunId, Spent, Task, stable_id
from metier_workflows.node import agent, agents, decide, signal, subrun
from metier_workflows.orchestrator import Orchestrator
from metier_workflows.routing import choose
from metier_workflows.workflow import Graph, Workflows, workflow

T = TypeVar("T")
HUNG = 40
CARDS = {"helper": AgentCard(name="helper", model="m", policy="autonomous", skills={"general": 1.0})}
ENDS = RunSucceeded | RunFailed | RunCancelled
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class State(TypedDict):
    """What the graphs share."""

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


BROKEN: set[str] = set()
"""What a node breaks at, as long as it is in here."""
ENTERED: list[str] = []
LET = asyncio.Event()


async def ask(text: str) -> dict[str, Any]:
    ENTERED.append(text)
    said = (await agent("helper").ask(text)).text
    if text in BROKEN:
        raise ZeroDivisionError(text)
    return {"said": [said]}


async def first(state: State) -> dict[str, Any]:
    await decide(choose("general", agents(), size=1, reason=f"the only one, after {len(ENTERED)}"))
    return await ask(f"{state['text']} one")


async def second(state: State) -> dict[str, Any]:
    return await ask(f"{state['text']} two")


async def branch(state: Errand) -> dict[str, Any]:
    return await ask(state["text"])


async def stubborn(state: State) -> dict[str, Any]:
    """An author who takes every end for a failure, and goes on."""
    try:
        return await ask(f"{state['text']} one")
    except BaseException:  # what is tested: it swallows the cancel
        await asyncio.shield(LET.wait())
        return {"said": ["went on"]}


def chain(*nodes: Any) -> Graph:
    made = StateGraph(State, input_schema=State, output_schema=Said)
    names = [f"node{n}" for n in range(len(nodes))]
    for name, node in zip(names, nodes, strict=True):
        made.add_node(name, node)
    for before, after in zip([START, *names], [*names, END], strict=True):
        made.add_edge(before, after)
    return made


def fan() -> Graph:
    def spread(state: State) -> list[Send]:
        return [Send("branch", Errand(text=f"{state['text']} {n}")) for n in range(3)]

    made = StateGraph(State, output_schema=Said)
    made.add_node("branch", branch)
    made.add_conditional_edges(START, spread, ["branch"])
    made.add_edge("branch", END)
    return made


def nested() -> Graph:
    """The second node lies in a graph in a graph: it has a namespace of its own."""
    return chain(first, chain(first, second).compile())


async def patient(state: State) -> dict[str, Any]:
    """Waits for a word, then starts a run below, then asks."""
    word = await signal("word")
    below = await subrun("chain", {"text": f"{state['text']} below"})
    return {"said": [str(word), str(below["said"]), *(await ask(f"{state['text']} one"))["said"]]}


WORKFLOWS = Workflows(
    [
        workflow("chain", input=Text)(lambda: chain(first, second)),
        workflow("fan", input=Text)(fan),
        workflow("nested", input=Text)(nested),
        workflow("stubborn", input=Text)(lambda: chain(stubborn)),
        workflow("patient", input=Text)(lambda: chain(patient)),
    ]
)


class Helper:
    """An agent that answers `re: TEXT` for 0.25 USD; what is asked with a word of `holds` waits until it is let."""

    def __init__(self, bus: Bus, journal: Journal) -> None:
        self.bus, self.journal = bus, journal
        self.worked: list[str] = []
        self.fails: set[str] = set()
        self.holds: dict[str, asyncio.Event] = {}
        self.stop, self.ready = asyncio.Event(), asyncio.Event()
        what = Consumption([tasks_topic("helper")], "metier.agents.helper", ready=self.ready.set)
        self.task = asyncio.create_task(serve(bus, what, {CallRequested: self._take}, self.stop))

    async def _take(self, envelope: Envelope[CallRequested], delivery: Delivery) -> None:
        asked = envelope.data
        self.worked.append(asked.task.text)
        for word in [word for word in self.holds if word in asked.task.text]:
            await self.holds[word].wait()
        failure = Failure(code="model_failed", message="no") if asked.task.text in self.fails else None
        answer = None if failure else Answer(text=f"re: {asked.task.text}", agent="helper", model="m", policy="p")
        stored = await self.journal.calls.answer(asked.call_id, answer=answer, failure=failure, took=Spent(usd=0.25))
        said = CallAnswered(run_id=asked.run_id, call_id=asked.call_id, answer=stored.answer, failure=stored.failure)
        await send(self.bus, RUNS, Envelope(said, f"{asked.call_id}/answered", "/test", asked.run_id))


@dataclass
class House:
    """A bus and a journal, with the helper at work, and replicas that come and go."""

    bus: Bus
    journal: Journal
    helper: Helper
    replicas: list[tuple[asyncio.Task[None], asyncio.Event]] = field(
        default_factory=list[tuple[asyncio.Task[None], asyncio.Event]]
    )

    async def replica(self, *, limit: int = 1000, bus: Bus | None = None, drain_s: float = 5) -> asyncio.Event:
        """Start one; what ends it."""
        stop, ready = asyncio.Event(), asyncio.Event()
        made = Orchestrator(
            bus or self.bus, self.journal, WORKFLOWS, CARDS, instance="one", drain_s=drain_s, limit=limit
        )
        self.replicas.append((asyncio.create_task(made.run(stop, Ready(None, 2, ready.set))), stop))
        async with asyncio.timeout(HUNG):
            await ready.wait()
        return stop

    async def gone(self) -> None:
        """Every replica drains, and is gone."""
        for task, stop in self.replicas:
            stop.set()
            async with asyncio.timeout(HUNG):
                await task
        self.replicas.clear()

    async def publish(self, event: Event, event_id: str, key: str) -> None:
        """As a backend does."""
        await self.bus.publish(encode(event.TOPIC, Envelope(event, event_id, "/shop", key, traceparent=TRACE)))

    async def request(self, name: str, event_id: str = "e", **more: Any) -> RunId:
        await self.publish(RunRequested(workflow=name, input={"text": event_id}, **more), event_id, event_id)
        return RunId(stable_id("run", "/shop", event_id))

    async def cancel(self, run_id: str, *, by: str = "ann", note: str = "", event_id: str = "cancel") -> None:
        await self.publish(CancelRequested(run_id=run_id, by=by, note=note), event_id, run_id)

    async def redrive(self, run_id: RunId, event_id: str = "redrive") -> RunId:
        await self.publish(RedriveRequested(run_id=run_id, by="ann"), event_id, run_id)
        return RunId(stable_id("run", "/shop", event_id))

    async def woken(self, run_id: RunId) -> None:
        """As the replica that took the cancel does."""
        await self.publish(RunAccepted(run_id=run_id, workflow="chain", cancelled=True), f"{run_id}/cancelled", run_id)

    async def run(self, run_id: RunId) -> Run:
        found = await self.journal.runs.get(run_id)
        assert found is not None
        return found

    async def held(self, text: str) -> None:
        """The helper works on this, and has no answer."""
        await until(lambda: _true(text in self.helper.worked), text)

    async def started(self, name: str = "chain", event_id: str = "e") -> RunId:
        """A run whose first call is being worked on."""
        self.helper.holds.setdefault(f"{event_id} one", asyncio.Event())
        run_id = await self.request(name, event_id)
        await self.held(f"{event_id} one")
        return run_id

    async def ended(self, run_id: RunId) -> Run:
        """The run once its end was told."""

        async def over() -> Run | None:
            run = await self.journal.runs.get(run_id)
            return run if run and run.announced else None

        return await until(over, f"the end of {run_id}")

    async def all_of(self, topic: str) -> list[Envelope[Event]]:
        """All that a topic holds now."""
        mark, stop, seen = Record(topic, b"mark", b""), asyncio.Event(), list[Delivery]()

        async def keep(delivery: Delivery) -> None:
            seen.append(delivery)
            if not delivery.headers:
                stop.set()

        await self.bus.publish(mark)
        async with asyncio.timeout(HUNG):
            await self.bus.consume(Consumption([topic], None), keep, stop)
        return [decode(one) for one in seen if one.headers]

    async def events(self, *kinds: type[Event]) -> list[Envelope[Event]]:
        return [one for one in await self.all_of(EVENTS_TOPIC) if isinstance(one.data, kinds)]

    async def ends(self) -> list[Event]:
        """Every terminal event, with repetitions."""
        return [one.data for one in await self.events(RunSucceeded, RunFailed, RunCancelled)]

    async def rejected(self, event_id: str) -> RequestRejected:
        """The rejection of a request, once it is told."""

        async def told() -> RequestRejected | None:
            found = [one for one in await self.events(RequestRejected) if one.subject == event_id]
            return found[0].data if found and isinstance(found[0].data, RequestRejected) else None

        return await until(told, f"the rejection of {event_id}")


async def _true(value: bool) -> bool:
    return value


async def until(found: Callable[[], Awaitable[T | None]], what: str) -> T:
    """Look again and again: what is waited for is in the journal, which tells nobody."""
    limit = time.monotonic() + HUNG
    while not (there := await found()):
        assert time.monotonic() < limit, what
        await asyncio.sleep(0.01)
    return there


@asynccontextmanager
async def house_of(db: Database) -> AsyncGenerator[House]:
    bus, journal = MemoryBus(), Journal(db, lease_s=600)
    made = House(bus, journal, Helper(bus, journal))
    async with asyncio.timeout(HUNG):
        await made.helper.ready.wait()
    yield made
    for task, _ in made.replicas:
        task.cancel()
    made.helper.task.cancel()
    await asyncio.wait([made.helper.task, *[task for task, _ in made.replicas]])


@pytest.fixture
async def house() -> AsyncIterator[House]:
    """In memory. Leases outlast the test, so that no keeper helps."""
    BROKEN.clear()
    ENTERED.clear()
    db = SqliteDatabase(":memory:")
    await migrate(db)
    async with house_of(db) as made:
        yield made
    await db.close()


async def test_a_run_that_is_cancelled_ends_at_once_with_one_event_and_asks_nothing_more(house: House) -> None:
    await house.replica()
    run_id = await house.started()
    # When
    await house.cancel(run_id, note="the customer left")
    # Then
    run = await house.ended(run_id)
    assert (run.status, run.cancelled_by, run.cancel_note, run.result, run.failure) == (
        "cancelled", "ann", "the customer left", None, None,
    )  # fmt: skip
    (call,) = await house.journal.calls.of_run(run_id)
    assert (call.answered_at, call.cancelled) == (None, "its run was given up by ann: the customer left")
    # and what comes too late changes nothing
    house.helper.holds["e one"].set()
    await house.gone()
    (end,) = await house.ends()
    assert isinstance(end, RunCancelled)
    assert (end.run_id, end.request_id, end.workflow, end.by, end.note) == (
        run_id, "e", "chain", "ann", "the customer left",
    )  # fmt: skip
    assert house.helper.worked == ["e one"]


class Behind:
    """A bus on which requests lie, for those who take them in their order, until they are let."""

    def __init__(self, inner: Bus) -> None:
        self.inner, self.let = inner, asyncio.Event()
        self.let.set()

    async def publish(self, *records: Record) -> None:
        await self.inner.publish(*records)

    async def consume(self, what: Consumption, handle: Handler, stop: asyncio.Event) -> None:
        async def later(delivery: Delivery) -> None:
            if what.group == READERS[REQUESTS]:
                await self.let.wait()
            await handle(delivery)

        await self.inner.consume(what, later, stop)

    async def close(self) -> None:
        await self.inner.close()


async def test_a_cancel_does_not_wait_behind_other_requests_and_counts_once(house: House) -> None:
    # Given a run at work, and requests that lie before whatever comes
    behind = Behind(house.bus)
    await house.replica(bus=behind)
    run_id = await house.started()
    behind.let.clear()
    later = await house.request("chain", "later")
    # When it is cancelled, and one that nobody knows
    await house.cancel(run_id)
    await house.cancel("nobody", event_id="nobody")
    # Then it ends, while they still lie there
    assert (await house.ended(run_id)).status == "cancelled"
    assert await house.journal.runs.get(later) is None
    # and when it is its turn, nothing more comes of it; what cannot be done is told once
    behind.let.set()
    assert (await house.ended(later)).status == "succeeded"
    await house.rejected("nobody")
    assert [one.subject for one in await house.events(RequestRejected)] == ["nobody"]
    assert [one.run_id for one in await house.ends() if isinstance(one, RunCancelled)] == [run_id]


async def test_the_first_who_cancels_counts_and_a_second_is_not_told_off(house: House) -> None:
    await house.replica()
    run_id = await house.started()
    await house.cancel(run_id, by="ann", event_id="a")
    await house.cancel(run_id, by="bob", event_id="b")
    await house.ended(run_id)
    await house.cancel(run_id, by="cid", event_id="c")
    await house.gone()
    assert (await house.run(run_id)).cancelled_by == "ann"
    assert [one for one in await house.ends() if isinstance(one, RunCancelled) and one.by != "ann"] == []
    assert await house.events(RequestRejected) == []


async def test_a_run_that_was_accepted_and_not_started_never_starts_a_node(house: House) -> None:
    # Given a run that no replica has taken up
    run_id = RunId(stable_id("run", "/shop", "e"))
    await house.journal.runs.accept(a_run(run_id))
    await house.cancel(run_id)
    # When one comes
    await house.replica()
    # Then
    run = await house.ended(run_id)
    assert (run.status, ENTERED, await house.journal.calls.of_run(run_id)) == ("cancelled", [], [])


async def test_a_run_that_waits_for_its_turn_ends_without_one(house: House) -> None:
    await house.replica(limit=1)
    first = await house.started(event_id="busy")
    waits = await house.request("chain", "waits")
    await until(lambda: house.journal.runs.get(waits), "accepted")
    await house.cancel(waits)
    assert ((await house.ended(waits)).status, ENTERED) == ("cancelled", ["busy one"])
    house.helper.holds["busy one"].set()
    assert (await house.ended(first)).status == "succeeded"


async def test_a_turn_that_a_cancelled_run_had_is_free_for_the_next(house: House) -> None:
    await house.replica(limit=1)
    run_id = await house.started()
    after = await house.request("chain", "after")
    await house.cancel(run_id)
    assert (await house.ended(after)).status == "succeeded"


async def test_a_node_that_swallows_the_cancel_does_not_keep_its_run(house: House) -> None:
    LET.clear()
    await house.replica()
    run_id = await house.started("stubborn")
    await house.cancel(run_id)
    assert (await house.ended(run_id)).status == "cancelled"
    LET.set()
    await house.gone()
    assert len(await house.ends()) == 1


async def test_a_cancel_that_was_written_and_not_told_is_told_when_the_request_comes_again(house: House) -> None:
    # Given an orchestrator that died between the two
    await house.replica()
    run_id = await house.started()
    await house.journal.runs.cancel(run_id, by="ann", note="")
    # When the request comes again
    await house.cancel(run_id)
    # Then
    assert (await house.ended(run_id)).status == "cancelled"


async def test_an_end_whose_telling_was_stopped_by_the_cancel_is_told(house: House) -> None:
    bus = Slow(house.bus)
    await house.replica(bus=bus)
    # Given a run that was given up, and whose graph returned before its wake-up came: its end is about to be told
    run_id = await house.started()
    await house.journal.runs.cancel(run_id, by="ann", note="")
    house.helper.holds["e one"].set()
    async with asyncio.timeout(HUNG):
        await bus.telling.wait()
    # When that comes
    await house.woken(run_id)
    # Then
    assert (await house.ended(run_id)).status == "cancelled"


@dataclass
class Slow:
    """A bus on which the first terminal event never gets through."""

    inner: Bus
    telling: asyncio.Event = field(default_factory=asyncio.Event)

    async def publish(self, *records: Record) -> None:
        ends = any(dict(one.headers).get("ce_id", b"").endswith(b"/ended") for one in records)
        if ends and not self.telling.is_set():
            self.telling.set()
            await asyncio.Event().wait()
        await self.inner.publish(*records)

    async def consume(self, what: Consumption, handle: Any, stop: asyncio.Event) -> None:
        await self.inner.consume(what, handle, stop)

    async def close(self) -> None:
        await self.inner.close()


async def test_a_replica_that_drains_ends_what_is_cancelled_meanwhile(house: House) -> None:
    stop = await house.replica(drain_s=HUNG)
    run_id = await house.started()
    stop.set()
    # When another replica takes the request: this one reads none any more
    await house.journal.runs.cancel(run_id, by="ann", note="")
    await house.woken(run_id)
    assert (await house.ended(run_id)).status == "cancelled"
    await house.gone()


def a_run(run_id: RunId, **more: Any) -> Run:
    asked = {"source": "/shop", "event_id": run_id, "workflow": "chain", "version": None, "status": "accepted"}
    return Run.model_validate({"run_id": run_id, **asked, "input": {"text": "x"}, "traceparent": TRACE, **more})


def a_call(run_id: RunId, n: int = 0) -> Call:
    call_id = CallId(stable_id("call", run_id, n))
    return Call(call_id=call_id, run_id=run_id, agent="helper", task=Task(text="?"), deadline=9e9)


R, S, U = (RunId(letter * 32) for letter in "abc")


async def test_the_runs_under_a_run_are_cancelled_with_it_and_those_beside_it_are_not(journal: Journal) -> None:
    # Given a tree of three, and another run
    for run_id, parent in ((R, None), (S, R), (U, S)):
        await journal.runs.accept(a_run(run_id, parent=parent))
        await journal.calls.request(a_call(run_id))
    other = RunId("d" * 32)
    await journal.runs.accept(a_run(other))
    await journal.calls.request(a_call(other))
    # When
    left = await journal.runs.cancel(R, by="ann", note="no")
    # Then
    assert {run.run_id for run in left} == {R, S, U}
    assert {run.cancelled_by for run in left} == {"ann"}
    assert [await cancelled(journal, one) for one in (R, S, U, other)] == [True, True, True, False]
    assert (await found(journal, other)).cancelled_at is None
    # and once the middle one has ended, the others are still to be woken
    await end(journal, S)
    assert {run.run_id for run in await journal.runs.cancel(R, by="bob", note="")} == {R, U}
    assert (await found(journal, U)).cancelled_by == "ann"


async def found(journal: Journal, run_id: RunId) -> Run:
    run = await journal.runs.get(run_id)
    assert run is not None
    return run


async def cancelled(journal: Journal, run_id: RunId) -> bool:
    (call,) = await journal.calls.of_run(run_id)
    return call.cancelled is not None


async def end(journal: Journal, run_id: RunId, failure: Failure | None = None) -> Run:
    """Its graph returns, or fails."""
    held = await journal.runs.lease(run_id, "somebody")
    assert held is not None
    result: dict[str, object] | None = None if failure else {"said": ["x"]}
    return await journal.runs.finish(run_id, held.epoch, result=result, failure=failure)


async def test_a_run_that_succeeded_before_the_cancel_stays_as_it_is_with_its_calls(journal: Journal) -> None:
    await journal.runs.accept(a_run(R))
    await journal.calls.request(a_call(R))
    await end(journal, R)
    assert await journal.runs.cancel(R, by="ann", note="") == []
    run = await found(journal, R)
    assert (run.status, run.result, run.cancelled_at) == ("succeeded", {"said": ["x"]}, None)
    assert not await cancelled(journal, R)


@pytest.mark.parametrize("failure", [None, Failure(code="x", message="y")])
async def test_a_run_whose_graph_returns_after_the_cancel_is_cancelled(
    journal: Journal, failure: Failure | None
) -> None:
    await journal.runs.accept(a_run(R))
    held = await journal.runs.lease(R, "somebody")
    assert held is not None
    await journal.runs.cancel(R, by="ann", note="no")
    run = await journal.runs.finish(R, held.epoch, result=None if failure else {"said": ["x"]}, failure=failure)
    assert (run.status, run.result, run.failure) == ("cancelled", None, None)
    assert isinstance(run.end, RunCancelled)
    assert (run.end.by, run.end.note) == ("ann", "no")


async def test_whichever_of_end_and_cancel_is_first_the_run_ends_once(postgres_url: str) -> None:
    db = await PostgresDatabase(postgres_url).open()
    journal = Journal(db, lease_s=600)
    seen = set[str]()
    for n in range(30):
        run_id = RunId(stable_id("race", n))
        await journal.runs.accept(a_run(run_id))
        held = await journal.runs.lease(run_id, "somebody")
        assert held is not None
        ended, left = await asyncio.gather(
            journal.runs.finish(run_id, held.epoch, result={}), journal.runs.cancel(run_id, by="ann", note="")
        )
        run = await found(journal, run_id)
        assert run.status == ended.status
        assert (run.status == "cancelled") == (run.cancelled_at is not None)
        assert left == [] or run.status == "cancelled"
        seen.add(run.status)
    await db.close()
    assert seen <= {"succeeded", "cancelled"}


async def test_a_parked_run_that_was_cancelled_is_found_by_the_keeper(journal: Journal) -> None:
    await journal.runs.accept(a_run(R))
    held = await journal.runs.lease(R, "somebody")
    call = await journal.calls.request(a_call(R))
    await journal.calls.claim(call.call_id, "w")
    await journal.calls.park(call.call_id, "w")
    assert held is not None
    assert await journal.runs.park(R, held.epoch, {call.call_id: "call"})
    assert await journal.runs.unattended() == []
    await journal.runs.cancel(R, by="ann", note="")
    assert [run.run_id for run in await journal.runs.unattended()] == [R]


async def test_a_parked_run_that_is_cancelled_ends(house: House) -> None:
    await house.journal.runs.accept(a_run(R))
    held = await house.journal.runs.lease(R, "somebody")
    call = await house.journal.calls.request(a_call(R))
    await house.journal.calls.claim(call.call_id, "w")
    await house.journal.calls.park(call.call_id, "w")
    assert held is not None
    assert await house.journal.runs.park(R, held.epoch, {call.call_id: "call"})
    await house.replica()
    await house.cancel(R)
    assert ((await house.ended(R)).status, ENTERED) == ("cancelled", [])


async def test_what_a_run_began_while_it_was_given_up_is_given_up_too(house: House) -> None:
    # Given a run that was given up, which asked and started another run at that moment
    await house.journal.runs.accept(a_run(R))
    await house.journal.runs.cancel(R, by="ann", note="")
    await house.journal.calls.request(a_call(R))
    await house.journal.runs.accept(a_run(S, parent=R))
    house.helper.holds["x one"] = asyncio.Event()
    # When a replica finds it
    await house.replica()
    # Then
    assert {(await house.ended(one)).status for one in (R, S)} == {"cancelled"}
    assert await cancelled(house.journal, R)


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (CancelRequested(run_id="nobody", by="ann"), "unknown_run"),
        (RetryRequested(run_id="nobody", by="ann"), "unknown_run"),
        (RedriveRequested(run_id="nobody", by="ann"), "unknown_run"),
        (Signalled(run_id="nobody", name="word"), "unknown_run"),
        (Signalled(run_id=R, name="word"), "run_ended"),
        (CancelRequested(run_id=R[:8], by="ann"), "unknown_run"),
        (CancelRequested(run_id=R, by="ann"), "run_ended"),
        (RedriveRequested(run_id=R, by="ann"), "run_ended"),
        (RetryRequested(run_id=S, by="ann"), "run_not_ended"),
        (RedriveRequested(run_id=S, by="ann"), "run_not_ended"),
    ],
    ids=lambda value: value.TYPE if isinstance(value, Event) else value,
)
async def test_what_cannot_be_done_is_rejected_with_a_reason_and_starts_nothing(
    house: House, event: CancelRequested | RetryRequested | RedriveRequested | Signalled, code: str
) -> None:
    # Given a run that succeeded, and one that goes on
    await house.journal.runs.accept(a_run(R))
    await end(house.journal, R)
    await house.journal.runs.accept(a_run(S))
    await house.journal.runs.lease(S, "somebody")
    await house.replica()
    # When
    await house.publish(event, "asked", event.run_id)
    # Then
    told = await house.rejected("asked")
    assert (told.request_id, told.request_source, told.request_type) == ("asked", "/shop", event.TYPE)
    assert (told.failure.code, told.run_id) == (code, event.run_id)
    assert await house.journal.runs.get(stable_id("run", "/shop", "asked")) is None
    assert (await found(house.journal, S)).cancelled_at is None


@pytest.mark.parametrize(
    "kind", [CancelRequested, RetryRequested, RedriveRequested, Signalled], ids=lambda one: one.TYPE
)
async def test_where_a_tenant_is_named_the_run_of_another_is_as_if_it_were_not_there(
    house: House, kind: type[CancelRequested | RetryRequested | RedriveRequested | Signalled]
) -> None:
    # Given a run of one tenant that goes on, or has failed
    await house.journal.runs.accept(a_run(R, tenant="shop"))
    if kind in {RetryRequested, RedriveRequested}:
        await end(house.journal, R, failure=Failure(code="bad_input", message="?"))
    else:
        await house.journal.runs.lease(R, "somebody")
    await house.replica()
    more = {"name": "word"} if kind is Signalled else {}
    # When somebody asks for it as another tenant
    await house.publish(kind.model_validate({"run_id": R, "by": "bob", "tenant": "bank", **more}), "stranger", R)
    # Then there is no such run, and nothing is done
    told = await house.rejected("stranger")
    assert told.failure.code == "unknown_run"
    assert told.failure.message == f"no run {R!r} was ever accepted for the tenant 'bank'"
    assert (await found(house.journal, R)).cancelled_at is None
    assert await house.journal.signals.of_run(R) == []
    assert await house.journal.runs.get(stable_id("run", "/shop", "stranger")) is None
    # And the tenant itself may
    await house.publish(kind.model_validate({"run_id": R, "by": "ann", "tenant": "shop", **more}), "owner", R)

    async def taken() -> bool:
        run = await found(house.journal, R)
        again = await house.journal.runs.get(stable_id("run", "/shop", "owner"))
        return run.cancelled_at is not None or again is not None or bool(await house.journal.signals.of_run(R))

    await until(taken, "what its own tenant asked")


async def test_a_retry_asks_for_the_same_as_a_new_run_and_a_duplicate_starts_nothing(house: House) -> None:
    await house.replica()
    limits = Limits(usd=3)
    run_id = await house.request("chain", tenant="shop", priority=7, limits=limits)
    await house.ended(run_id)
    # When it is retried, twice by the same event
    for _ in range(2):
        await house.publish(RetryRequested(run_id=run_id, by="ann"), "again", run_id)
    again = await house.ended(RunId(stable_id("run", "/shop", "again")))
    # Then all of it is done again, as the request asked
    assert (again.origin, again.tenant, again.priority, again.limits) == (run_id, "shop", 7, limits)
    assert (again.input, again.event_id, again.source) == ({"text": "e"}, "again", "/shop")
    assert again.result == {"said": ["re: e one", "re: e two"]}
    assert house.helper.worked == ["e one", "e two"] * 2
    await house.gone()
    assert len(await house.ends()) == 2


async def test_a_retry_runs_the_newest_version_and_a_redrive_the_runs_own(house: House) -> None:
    old = await house.journal.runs.accept(a_run(R, version="old"))
    await house.journal.runs.cancel(R, by="ann", note="")
    await house.replica()
    await house.ended(old[0].run_id)
    await house.publish(RetryRequested(run_id=R, by="ann"), "retry", R)
    assert (await house.ended(RunId(stable_id("run", "/shop", "retry")))).status == "succeeded"
    redriven = await house.ended(await house.redrive(R))
    assert redriven.failure is not None
    assert (redriven.version, redriven.failure.code) == ("old", "unknown_workflow")


async def test_a_redrive_goes_on_from_the_last_superstep_and_pays_nothing_twice(house: House) -> None:
    await house.replica()
    BROKEN.add("e two")
    run_id = await house.request("chain")
    failed = await house.ended(run_id)
    assert (failed.status, failed.cost_usd) == ("failed", 0.5)
    # When
    BROKEN.clear()
    ENTERED.clear()
    again = await house.ended(await house.redrive(run_id))
    # Then the first node did not run again, and the second found its answer
    assert (again.status, again.result, again.cost_usd) == ("succeeded", {"said": ["re: e one", "re: e two"]}, 0)
    assert (again.origin, again.version) == (run_id, failed.version)
    assert (ENTERED, house.helper.worked) == (["e two"], ["e one", "e two"])
    # whose cost is known: an account that waited for it would never settle
    calls = await house.journal.db.read("SELECT tokens FROM calls WHERE run_id = :id", {"id": again.run_id})
    assert [one["tokens"] for one in calls] == [0, 0]
    # and the run that failed is as it was
    assert (await house.run(run_id)) == failed


async def test_a_redrive_asks_anew_what_failed_and_only_that(house: House) -> None:
    await house.replica()
    house.helper.fails.add("e 1")
    house.helper.holds["e 1"] = asyncio.Event()
    run_id = await house.request("fan")
    await until(lambda: answered(house, run_id, 2), "two of three answered")
    house.helper.holds["e 1"].set()
    assert (await house.ended(run_id)).status == "failed"
    house.helper.fails.clear()
    house.helper.worked.clear()
    ENTERED.clear()
    # When
    again = await house.ended(await house.redrive(run_id))
    # Then
    assert (again.result, again.cost_usd) == ({"said": ["re: e 0", "re: e 1", "re: e 2"]}, 0.25)
    assert (house.helper.worked, ENTERED) == (["e 1"], ["e 1"])


async def answered(house: House, run_id: RunId, count: int) -> bool:
    return sum(call.answer is not None for call in await house.journal.calls.of_run(run_id)) == count


async def test_a_redrive_of_a_redrive_still_has_what_the_first_run_paid_for(house: House) -> None:
    await house.replica()
    BROKEN.add("e two")
    run_id = await house.request("chain")
    await house.ended(run_id)
    once = await house.ended(await house.redrive(run_id, "once"))
    assert once.status == "failed"
    BROKEN.clear()
    again = await house.ended(await house.redrive(once.run_id, "twice"))
    assert (again.status, again.origin, house.helper.worked) == ("succeeded", once.run_id, ["e one", "e two"])


async def test_a_cancelled_run_goes_on_where_it_was_given_up_also_inside_a_subgraph(house: House) -> None:
    await house.replica()
    house.helper.holds["e two"] = asyncio.Event()
    run_id = await house.request("nested")
    await house.held("e two")
    await house.cancel(run_id)
    await house.ended(run_id)
    house.helper.holds.clear()
    ENTERED.clear()
    again = await house.ended(await house.redrive(run_id))
    assert (again.status, ENTERED) == ("succeeded", ["e two"])
    assert house.helper.worked == ["e one", "e one", "e two", "e two"]


async def test_a_redrive_keeps_what_was_decided(house: House) -> None:
    await house.replica()
    house.helper.holds["e one"] = asyncio.Event()
    run_id = await house.request("chain")
    await house.held("e one")
    await house.cancel(run_id)
    await house.ended(run_id)
    house.helper.holds.clear()
    before = await house.journal.decisions.of_run(run_id)
    again = await house.ended(await house.redrive(run_id))
    assert len(before) == 1
    assert await house.journal.decisions.of_run(again.run_id) == before


async def test_a_redrive_that_comes_twice_starts_one_run(house: House) -> None:
    await house.replica()
    BROKEN.add("e two")
    run_id = await house.request("chain")
    await house.ended(run_id)
    BROKEN.clear()
    again = await house.redrive(run_id)
    await house.ended(again)
    await house.redrive(run_id)
    await house.gone()
    assert sorted(one.run_id for one in await house.ends() if isinstance(one, ENDS)) == sorted([run_id, again])


async def test_a_signal_reaches_the_node_that_waits_for_it_once(house: House) -> None:
    await house.replica()
    run_id = await house.request("patient")
    await until(lambda: house.journal.waits.of_run(run_id), "the node waits")
    for _ in range(2):
        await house.publish(Signalled(run_id=run_id, name="word", data="go", by="ann"), "told", run_id)
    ended = await house.ended(run_id)
    assert ended.result == {"said": ["go", "['re: e below one', 're: e below two']", "re: e one"]}
    assert len(await house.journal.signals.of_run(run_id)) == 1


async def test_a_cancel_ends_the_runs_below_with_the_run(house: House) -> None:
    await house.replica()
    house.helper.holds["below"] = asyncio.Event()
    run_id = await house.request("patient")
    await until(lambda: house.journal.waits.of_run(run_id), "the node waits")
    await house.publish(Signalled(run_id=run_id, name="word"), "told", run_id)
    await house.held("e below one")
    await house.cancel(run_id)
    asked = await the_call(house, "e below one")
    assert {(await house.ended(one)).status for one in (run_id, asked.run_id)} == {"cancelled"}
    call = await house.journal.calls.get(asked.call_id)
    assert call is not None
    assert call.cancelled is not None


async def the_call(house: House, text: str) -> CallRequested:
    events = [one.data for one in await house.all_of(tasks_topic("helper"))]
    return next(one for one in events if isinstance(one, CallRequested) and one.task.text == text)


async def test_a_redrive_has_its_signals_and_the_runs_below_that_ended_well(house: House) -> None:
    await house.replica()
    BROKEN.add("e one")
    run_id = await house.request("patient")
    await until(lambda: house.journal.waits.of_run(run_id), "the node waits")
    await house.publish(Signalled(run_id=run_id, name="word", data="go"), "told", run_id)
    failed = await house.ended(run_id)
    assert failed.status == "failed"
    BROKEN.clear()
    asked = [*house.helper.worked]
    # When
    again = await house.ended(await house.redrive(run_id))
    # Then
    assert again.result == {"said": ["go", "['re: e below one', 're: e below two']", "re: e one"]}
    assert (house.helper.worked, again.cost_usd) == (asked, 0)
    below = await house.journal.db.read("SELECT announced, cost_usd FROM runs WHERE parent = :id", {"id": again.run_id})
    assert [(one["announced"], one["cost_usd"]) for one in below] == [(1, 0)]
    assert len(await house.ends()) == 3
