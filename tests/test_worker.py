"""The worker over the in-memory bus and a real SQLite journal: calls in, exactly one answer each out, whatever comes twice or breaks.

Not here: a killed process and real Kafka; the end-to-end tests do that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from metier_agents.model import Model, ScriptedModel
from metier_agents.spec import AgentSpec
from metier_agents.stamp import stamp
from metier_agents.testing import ScriptedLane
from metier_agents.turns import ModelTurn, ToolUse
from metier_agents.worker import AgentWorker
from metier_infra import telemetry
from metier_infra.bus import Consumption, MemoryBus
from metier_infra.database import Params, Row, Statement, migrate
from metier_infra.errors import BadSettings, BadSpec, GrantRefused, JournalGone, ModelFailed
from metier_infra.events import DEAD_LETTERS, EVENTS_TOPIC, RUNS, CallAnswered, CallRequested, RunAccepted, tasks_topic
from metier_infra.journal import Journal
from metier_infra.messages import Delivery, Envelope, decode, encode
from metier_infra.progress_events import TextWritten
from metier_infra.rows import Call
from metier_infra.sqlite_journal import SqliteDatabase
from metier_infra.words import Answer, CallId, RunId, Task, stable_id
from metier_tools.builtin import BUILTIN
from metier_tools.tool import ToolCall, ToolResult

RUN = RunId("r" * 32)
ANSWER = ModelTurn(text="ANSWER: 42\nCONFIDENCE: 0.9", cost_usd=0.01)
CALLS_PYTHON = ModelTurn(uses=(ToolUse(id="u", tool="python", arguments={"code": "1"}),), cost_usd=0.01)
AGENT = AgentSpec.model_validate(
    {"name": "solver", "model": "scripted:x", "policy": {"kind": "autonomous"}, "tools": [{"name": "python"}]}
)


class SlowModel(ScriptedModel):
    """Says when it was asked, and answers when it is let."""

    def __init__(self) -> None:
        super().__init__([ANSWER])
        self.started = asyncio.Event()
        self.go = asyncio.Event()

    async def ask(
        self, messages: Any, *, tools: Any, tool_choice: Any, deadline: float, options: Any = None
    ) -> ModelTurn:
        self.started.set()
        await self.go.wait()
        return await super().ask(messages, tools=tools, tool_choice=tool_choice, deadline=deadline)


class BrokenModel(ScriptedModel):
    """Has a defect."""

    async def ask(
        self, messages: Any, *, tools: Any, tool_choice: Any, deadline: float, options: Any = None
    ) -> ModelTurn:
        raise ZeroDivisionError("a defect")


def refuse_to_open(spec: AgentSpec) -> Model:
    raise BadSettings(f"the model {spec.model} needs a key: set SOME_KEY")


@dataclass
class House:
    """A bus and a journal, and whoever works on them."""

    journal: Journal
    bus: MemoryBus = field(default_factory=MemoryBus)
    lane: ScriptedLane = field(default_factory=lambda: ScriptedLane(lambda _: ToolResult(status="ok", stdout="42")))

    def worker(
        self,
        model: Model | Callable[[AgentSpec], Model],
        *,
        spec: AgentSpec = AGENT,
        instance: str = "one",
        drain_s: float = 5.0,
    ) -> AgentWorker:
        return AgentWorker(
            bus=self.bus,
            journal=self.journal,
            lane=self.lane,
            toolbox=BUILTIN,
            agents={spec.name: spec},
            open_model=model if callable(model) else lambda _: model,
            grant_key=b"k" * 32,
            instance=instance,
            drain_s=drain_s,
        )

    async def ask(self, n: int = 1, *, agent: str = "solver", seconds: float = 30.0, recorded: bool = True) -> CallId:
        """Record a call and publish it, as a run does."""
        call_id, task, until = CallId(stable_id("call", n)), Task(text="6*7?"), time.time() + seconds
        if recorded:
            await self.journal.calls.request(Call(call_id=call_id, run_id=RUN, agent=agent, task=task, deadline=until))
        asked = CallRequested(run_id=RUN, call_id=call_id, agent=agent, task=task, deadline=until)
        await self.bus.publish(encode(tasks_topic("solver"), Envelope(asked, f"{call_id}/asked", "/test", RUN)))
        return call_id

    async def read(self, topic: str, count: int, seconds: float = 5.0) -> list[Delivery]:
        """The first `count` records of a topic, and any that came with them."""
        found: list[Delivery] = []
        enough = asyncio.Event()

        async def keep(delivery: Delivery) -> None:
            found.append(delivery)
            if len(found) >= count:
                enough.set()

        await asyncio.wait_for(self.bus.consume(Consumption([topic], None), keep, enough), seconds)
        return found

    async def answers(self, count: int) -> list[Envelope[CallAnswered]]:
        return [answered(delivery) for delivery in await self.read(RUNS, count)]


def answered(delivery: Delivery) -> Envelope[CallAnswered]:
    envelope = decode(delivery)
    assert isinstance(envelope.data, CallAnswered)
    return Envelope(envelope.data, envelope.id, envelope.source, envelope.key, None, envelope.traceparent)


@asynccontextmanager
async def working(worker: AgentWorker) -> AsyncGenerator[asyncio.Event]:
    """The worker serves inside the block, and has drained after it."""
    stop, ready = asyncio.Event(), asyncio.Event()
    role = asyncio.create_task(worker.run(stop, ready.set))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait([role, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    try:
        yield stop
    finally:
        stop.set()
        await role


@pytest.fixture
async def house() -> AsyncIterator[House]:
    db = SqliteDatabase(":memory:")
    await migrate(db)
    yield House(Journal(db, lease_s=0.6))
    await db.close()


async def test_a_call_is_answered_once_and_told_to_the_run(house: House) -> None:
    call_id = await house.ask()
    async with working(house.worker(ScriptedModel([ANSWER]))):
        (event,) = await house.answers(1)
    assert (event.id, event.source, event.key) == (f"{call_id}/answered", "/metier/agents/solver", RUN)
    assert event.traceparent
    assert event.data.failure is None
    assert event.data.answer is not None
    assert (event.data.answer.text, event.data.answer.cost_usd) == ("42", 0.01)
    stored = await house.journal.calls.get(call_id)
    assert stored is not None
    assert (stored.answer, stored.cost_usd, stored.attempt) == (event.data.answer, 0.01, 1)


@pytest.mark.usefixtures("spans")
async def test_one_trace_goes_from_the_ask_through_the_tool_to_the_answer(house: House) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    until = time.time() + 30
    call = Call(call_id=CallId("c"), run_id=RUN, agent="solver", task=Task(text="q"), deadline=until)
    await house.journal.calls.request(call)
    asked = CallRequested(run_id=RUN, call_id=call.call_id, agent="solver", task=call.task, deadline=until)
    sent = Envelope(asked, "c/asked", "/test", RUN, traceparent=f"00-{trace}-b7ad6b7169203331-01")
    await house.bus.publish(encode(tasks_topic("solver"), sent))
    unsure = ModelTurn(text="ANSWER: 41\nCONFIDENCE: 0.1")
    async with working(house.worker(ScriptedModel([unsure, CALLS_PYTHON, ANSWER]))):
        (event,) = await house.answers(1)
    (tool,) = house.lane.calls
    carried = {str(one) for one in (sent.traceparent, tool.traceparent, event.traceparent)}
    assert len(carried) == 3
    assert {telemetry.trace_id(one) for one in carried} == {trace}


@dataclass
class Flickering:
    """A database that does not answer its n-th write, once."""

    inner: SqliteDatabase
    at: int
    writes: int = 0

    async def read(self, sql: str, params: Params | None = None) -> Sequence[Row]:
        return await self.inner.read(sql, params)

    async def write(self, *statements: Statement) -> Sequence[Sequence[Row]]:
        self.writes += 1
        if self.writes == self.at:
            raise JournalGone("the database restarts", after_s=0.0)
        return await self.inner.write(*statements)

    async def close(self) -> None:
        await self.inner.close()


@pytest.mark.parametrize("at", range(2, 9))
async def test_a_journal_that_is_away_for_a_moment_costs_no_call_and_no_second_result(at: int) -> None:
    inner = SqliteDatabase(":memory:")
    await migrate(inner)
    db = Flickering(inner, at + 1)  # the first write records the call, the second releases old claims
    house = House(Journal(db))
    await house.ask()
    unsure = ModelTurn(text="ANSWER: 41\nCONFIDENCE: 0.1", cost_usd=0.01)
    async with working(house.worker(ScriptedModel([unsure, CALLS_PYTHON, ANSWER]))):
        (event,) = await house.answers(1)
    await db.close()
    assert db.writes > at + 1
    assert event.data.answer is not None
    assert (event.data.answer.model_turns, event.data.answer.tool_calls) == (3, 1)
    assert len({call.tool_call_id for call in house.lane.calls}) == 1


async def test_a_call_that_comes_twice_is_worked_on_once_and_answered_with_the_same_words(house: House) -> None:
    model = ScriptedModel([ANSWER])
    await house.ask()
    await house.ask()
    async with working(house.worker(model)):
        first, second = await house.answers(2)
    assert (first.id, first.data) == (second.id, second.data)
    assert len(model.asked) == 1


async def test_a_call_that_another_worker_holds_is_waited_for(house: House) -> None:
    call_id = await house.ask()
    assert await house.journal.calls.claim(call_id, "another")
    model = ScriptedModel([ANSWER])
    async with working(house.worker(model)):
        await asyncio.sleep(0.2)
        assert model.asked == []
        (event,) = await house.answers(1)
    assert event.data.answer is not None
    stored = await house.journal.calls.get(call_id)
    assert stored is not None
    assert stored.attempt == 2


async def test_a_worker_of_the_same_name_takes_its_calls_up_at_once(house: House) -> None:
    house.journal = Journal(house.journal.db, lease_s=600)
    call_id = await house.ask()
    slow = SlowModel()
    role = asyncio.create_task(house.worker(slow).run(asyncio.Event(), lambda: None))
    await slow.started.wait()
    held = await house.journal.calls.claim(call_id, "another")
    role.cancel()
    await asyncio.wait([role])
    assert held is None
    async with working(house.worker(ScriptedModel([ANSWER]))):
        (event,) = await house.answers(1)
    assert event.data.answer is not None


async def test_a_worker_whose_call_was_taken_over_while_it_was_away_records_nothing_more_and_tells_the_others_answer(
    house: House,
) -> None:
    call_id, slow = await house.ask(), SlowModel()
    async with working(house.worker(slow)):
        await slow.started.wait()
        # When the worker stands still past its lease, and another takes the call and answers it
        await house.journal.calls.release("one/solver")
        taken = await house.journal.calls.claim(call_id, "another")
        assert taken is not None
        others = Answer(text="of another", agent="solver", model="m", policy="autonomous")
        await house.journal.calls.answer(call_id, answer=others)
        slow.go.set()
        (event,) = await house.answers(1)
    # Then what the first did meanwhile is in nobody's record, and it asked for no more
    assert event.data.answer == others
    assert await house.journal.steps.of_call(call_id) == []
    assert len(slow.asked) == 1


async def test_claims_are_kept_alive_while_a_model_thinks(house: House) -> None:
    call_id = await house.ask()
    slow = SlowModel()
    async with working(house.worker(slow)):
        await slow.started.wait()
        await asyncio.sleep(1.0)  # longer than the lease
        assert await house.journal.calls.claim(call_id, "another") is None
        slow.go.set()
        await house.answers(1)


@pytest.mark.parametrize(
    ("model", "code"),
    [
        (ScriptedModel([], errors=[ModelFailed("refused")]), "model_failed"),
        (ScriptedModel([], errors=[BadSettings("the key is wrong")]), "bad_settings"),
        (ScriptedModel([]), "model_failed"),
        (BrokenModel([]), "agent_broken"),
    ],
    ids=["refused", "wrong key", "script ends", "defect"],
)
async def test_what_breaks_is_a_typed_failure_and_the_worker_lives_on(house: House, model: Model, code: str) -> None:
    await house.ask(1)
    async with working(house.worker(model)):
        (event,) = await house.answers(1)
        assert event.data.failure is not None
        assert (event.data.failure.code, event.data.answer) == (code, None)
        await house.ask(2)
        assert len(await house.answers(2)) == 2


async def test_a_failure_costs_what_was_spent_before_it(house: House) -> None:
    call_id = await house.ask()
    house.lane = ScriptedLane(lambda _: GrantRefused("forged"))
    unsure = ModelTurn(text="ANSWER: 41\nCONFIDENCE: 0.1", cost_usd=0.01)
    async with working(house.worker(ScriptedModel([unsure, CALLS_PYTHON]))):
        (event,) = await house.answers(1)
    assert event.data.failure is not None
    assert event.data.failure.code == "grant_refused"
    stored = await house.journal.calls.get(call_id)
    assert stored is not None
    assert stored.cost_usd == 0.02


async def test_a_call_after_its_deadline_fails_so(house: House) -> None:
    await house.ask(seconds=-1)
    async with working(house.worker(ScriptedModel([ANSWER]))):
        (event,) = await house.answers(1)
    assert event.data.failure is not None
    assert event.data.failure.code == "deadline_missed"


async def test_the_agents_own_time_limit_holds(house: House) -> None:
    await house.ask()
    impatient = AgentSpec.model_validate({**AGENT.model_dump(), "limits": {"timeout_s": 0.2}})
    async with working(house.worker(SlowModel(), spec=impatient)):
        (event,) = await house.answers(1)
    assert event.data.failure is not None
    assert event.data.failure.code == "deadline_missed"


async def test_after_stop_the_calls_in_hand_end(house: House) -> None:
    await house.ask()
    slow = SlowModel()
    async with working(house.worker(slow)) as stop:
        await slow.started.wait()
        stop.set()
        await asyncio.sleep(0.05)
        slow.go.set()
    (event,) = await house.answers(1)
    assert event.data.answer is not None


async def test_a_call_that_does_not_end_in_time_is_given_up_for_another_worker(house: House) -> None:
    house.journal = Journal(house.journal.db, lease_s=600)
    call_id = await house.ask()
    slow = SlowModel()
    async with working(house.worker(slow, drain_s=0.1)) as stop:
        await slow.started.wait()
        stop.set()
    assert await house.journal.calls.claim(call_id, "another") is not None
    await house.journal.calls.release("another")
    async with working(house.worker(ScriptedModel([ANSWER]), instance="two")):
        (event,) = await house.answers(1)
    assert event.data.answer is not None


async def test_calls_run_at_the_same_time(house: House) -> None:
    slow = SlowModel()
    ids = [CallId(stable_id("call", n)) for n in range(5)]
    for n, call_id in enumerate(ids):
        until = time.time() + 30
        call = Call(call_id=call_id, run_id=RunId(f"run{n}"), agent="solver", task=Task(text="q"), deadline=until)
        await house.journal.calls.request(call)
        asked = CallRequested(run_id=call.run_id, call_id=call_id, agent="solver", task=call.task, deadline=until)
        await house.bus.publish(encode(tasks_topic("solver"), Envelope(asked, f"{n}", "/test", call.run_id)))
    async with working(house.worker(slow)):
        await slow.started.wait()
        await asyncio.sleep(0.1)
        claimed = [await house.journal.calls.get(call_id) for call_id in ids]
        assert all(call is not None and call.claimed_at for call in claimed)
        slow.go.set()
        assert len(await house.answers(5)) == 5


async def test_records_that_nobody_waits_for_are_buried(house: House) -> None:
    await house.ask(1, recorded=False)
    await house.ask(2, agent="somebody")
    accepted = RunAccepted(run_id=RUN, workflow="w")
    await house.bus.publish(encode(tasks_topic("solver"), Envelope(accepted, "x", "/test", RUN)))
    async with working(house.worker(ScriptedModel([ANSWER]))):
        dead = await house.read(DEAD_LETTERS, 3)
        await house.ask(3)
        assert len(await house.answers(1)) == 1
    reasons = [dict(delivery.headers)["metier-dead-reason"] for delivery in dead]
    assert reasons == [b"unknown_call", b"unknown_event", b"unknown_event"]


async def test_a_missing_key_ends_the_role_at_its_start(house: House) -> None:
    with pytest.raises(BadSettings, match="needs a key"):
        await house.worker(refuse_to_open).run(asyncio.Event(), lambda: None)


async def test_a_retriever_that_cannot_be_made_ends_the_role_at_its_start(house: House) -> None:
    wanted = {"strategy": "synthesise", "from": {"kind": "langchain", "factory": "no.such.module:make"}}
    spec = AgentSpec.model_validate({**AGENT.model_dump(), "retrieval": wanted})
    with pytest.raises(BadSpec, match=r"the retriever no\.such\.module:make cannot be made"):
        await house.worker(ScriptedModel([]), spec=spec).run(asyncio.Event(), lambda: None)


async def test_a_tool_that_does_not_exist_ends_the_role_at_its_start(house: House) -> None:
    spec = AgentSpec.model_validate({**AGENT.model_dump(), "tools": [{"name": "telepathy"}]})
    with pytest.raises(BadSpec, match="the agent solver names a tool 'telepathy'"):
        await house.worker(ScriptedModel([]), spec=spec).run(asyncio.Event(), lambda: None)


class HangingModel(ScriptedModel):
    """Never answers, and says when its request is ended."""

    def __init__(self) -> None:
        super().__init__([ANSWER])
        self.started, self.ended = asyncio.Event(), asyncio.Event()

    async def ask(
        self, messages: Any, *, tools: Any, tool_choice: Any, deadline: float, options: Any = None
    ) -> ModelTurn:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()
        raise AssertionError


async def test_a_cancel_reaches_the_running_model_request_and_the_call_ends_typed(house: House) -> None:
    call_id, model = await house.ask(1), HangingModel()
    async with working(house.worker(model)):
        await model.started.wait()
        assert await house.journal.calls.cancel(call_id, "the user closed the page")
        (event,) = await house.answers(1)
    assert model.ended.is_set()
    assert event.data.failure is not None
    assert (event.data.failure.code, event.data.answer) == ("cancelled", None)
    assert "the user closed the page" in event.data.failure.message


async def test_a_cancel_reaches_the_running_tool_call(house: House) -> None:
    lane = house.lane = HangingLane()
    call_id = await house.ask(1)
    unsure = ModelTurn(text="ANSWER: 41\nCONFIDENCE: 0.1", cost_usd=0.01)
    async with working(house.worker(ScriptedModel([unsure, CALLS_PYTHON]))):
        await lane.started.wait()
        await house.journal.calls.cancel(call_id, "too dear")
        (event,) = await house.answers(1)
    assert lane.ended.is_set()
    assert event.data.failure is not None
    assert event.data.failure.code == "cancelled"
    stored = await house.journal.calls.get(call_id)
    assert stored is not None
    assert stored.cost_usd == 0.02


class HangingLane(ScriptedLane):
    """Never returns a result, and says when its call is ended."""

    def __init__(self) -> None:
        super().__init__(lambda _: ToolResult(status="ok"))
        self.started, self.ended = asyncio.Event(), asyncio.Event()

    async def call(self, call: ToolCall) -> ToolResult:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()
        raise AssertionError


async def test_a_call_that_was_cancelled_before_anybody_took_it_asks_no_model(house: House) -> None:
    call_id, model = await house.ask(1), ScriptedModel([ANSWER])
    await house.journal.calls.cancel(call_id, "changed my mind")
    async with working(house.worker(model)):
        (event,) = await house.answers(1)
    assert event.data.failure is not None
    assert (event.data.failure.code, model.asked) == ("cancelled", [])


async def test_a_call_that_is_answered_can_no_longer_be_cancelled(house: House) -> None:
    call_id = await house.ask(1)
    async with working(house.worker(ScriptedModel([ANSWER]))):
        await house.answers(1)
    assert not await house.journal.calls.cancel(call_id, "late")


async def test_a_cancel_ends_one_call_and_no_other(house: House) -> None:
    first, model = await house.ask(1), SlowModel()
    async with working(house.worker(model)):
        await model.started.wait()
        await house.ask(2)
        await house.journal.calls.cancel(first, "just this one")
        await house.answers(1)
        model.go.set()
        ended = await house.answers(2)
    assert [event.data.failure.code if event.data.failure else "answered" for event in ended] == [
        "cancelled",
        "answered",
    ]


async def test_the_stamp_of_the_agent_is_on_the_answer_and_on_the_call(house: House) -> None:
    call_id = await house.ask(1)
    async with working(house.worker(ScriptedModel([ANSWER]))):
        (event,) = await house.answers(1)
    assert event.data.stamp == stamp(AGENT)
    stored = await house.journal.calls.get(call_id)
    assert stored is not None
    assert stored.stamp == stamp(AGENT)


async def test_an_agent_that_streams_tells_what_its_model_writes_before_the_answer(house: House) -> None:
    await house.ask(1)
    streams = AgentSpec.model_validate({**AGENT.model_dump(), "stream": True})
    async with working(house.worker(ScriptedModel([ANSWER]), spec=streams)):
        (told,) = await house.read(EVENTS_TOPIC, 1)
        (event,) = await house.answers(1)
    data = decode(told).data
    assert isinstance(data, TextWritten)
    assert (data.text, data.piece, data.stamp) == (ANSWER.text, -1, stamp(streams))
    assert event.data.answer is not None


async def test_an_agent_that_does_not_stream_tells_nothing(house: House) -> None:
    await house.ask(1)
    model = ScriptedModel([ANSWER])
    async with working(house.worker(model)):
        await house.answers(1)
    assert model.asked[0].options.on_text is None


async def test_an_answer_is_too_large_by_what_it_takes_in_an_event_and_not_by_its_characters(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metier_agents.worker.LARGEST", 1500)
    long, short = (ModelTurn(text=f"ANSWER: {'界' * count}\nCONFIDENCE: 0.9") for count in (250, 100))
    await house.ask(1)
    async with working(house.worker(ScriptedModel([long]))):
        (told,) = await house.answers(1)
    await house.ask(2)
    async with working(house.worker(ScriptedModel([short]))):
        *_, other = await house.answers(2)
    assert told.data.failure is not None
    assert told.data.failure.code == "too_large"
    assert other.data.answer is not None
