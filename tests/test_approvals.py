"""Tool calls that wait for a person, through the real worker and orchestrator: nothing is held meanwhile, only what was approved runs, whatever dies or comes twice.

Not here: killed processes, and what a bundle says of a call; `test_safety` has that.
"""

from __future__ import annotations

import asyncio
import gc
import operator
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypedDict, TypeVar, cast

import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from pydantic import BaseModel, JsonValue
from typer.testing import CliRunner, Result

from metier.cli import app
from metier.trace import gather, tree
from metier.trace_tree import render
from metier_agents.attempt import Attempt
from metier_agents.hands import Hands
from metier_agents.model import ScriptedModel
from metier_agents.permission import Parked
from metier_agents.safety import Bundle, demand
from metier_agents.spec import AgentSpec
from metier_agents.testing import ScriptedLane
from metier_agents.turns import ModelTurn, ToolTurn, ToolUse, load, of_kind
from metier_agents.worker import AgentWorker
from metier_infra.bus import Bus, Consumption, MemoryBus
from metier_infra.database import Database, Params, Row, Statement, migrate
from metier_infra.errors import FencedOff, GrantRefused, JournalGone, MissingApproval
from metier_infra.events import (
    DEAD_LETTERS,
    EVENTS_TOPIC,
    REQUESTS,
    RUNS,
    ApprovalDecided,
    ApprovalSettled,
    ApprovalWanted,
    CallAnswered,
    Event,
    RunFailed,
    RunRequested,
    RunSucceeded,
    tasks_topic,
)
from metier_infra.journal import Journal
from metier_infra.kafka_bus import KafkaBus
from metier_infra.kafka_topics import Topic, apply
from metier_infra.messages import Delivery, Envelope, decode, encode
from metier_infra.postgres_journal import PostgresDatabase
from metier_infra.rows import Approval, Call, Run
from metier_infra.service import Ready
from metier_infra.settings import KafkaSettings
from metier_infra.socket_bus import serve_bus
from metier_infra.sqlite_journal import SqliteDatabase
from metier_infra.testing import Process
from metier_infra.words import AgentCard, Answer, CallId, RunId, Task, stable_id
from metier_tools.builtin import BUILTIN
from metier_tools.tool import ToolResult
from metier_workflows.approving import call_event
from metier_workflows.holdings import Held
from metier_workflows.node import Place, agent
from metier_workflows.orchestrator import Orchestrator
from metier_workflows.run_desk import RunDesk
from metier_workflows.workflow import Graph, Workflows, workflow

T = TypeVar("T")
HUNG = 30
LEASE_S = 0.3
"""A keeper looks every third of it."""


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


async def say(state: State) -> dict[str, Any]:
    return {"said": [(await agent("solver").ask(state["text"], timeout_s=HUNG)).text]}


async def careful(state: State) -> dict[str, Any]:
    """An author who takes every error for a failure."""
    try:
        return await say(state)
    except Exception as error:
        return {"said": [f"failed: {error!r}"]}


ERRANDS: dict[str, asyncio.Event] = {}
ENTERED: list[str] = []


async def errand(state: Errand) -> dict[str, Any]:
    """Asks; or, where the text says so, does something of the author's that takes its time."""
    ENTERED.append(state["text"])
    if state["text"] in ERRANDS:
        await ERRANDS[state["text"]].wait()
        return {"said": [state["text"]]}
    return {"said": [(await agent("solver").ask(state["text"], timeout_s=HUNG)).text]}


def one(node: Any) -> Graph:
    made = StateGraph(State, output_schema=Said)
    made.add_node("node", node)
    made.add_edge(START, "node")
    made.add_edge("node", END)
    return made


def fan() -> Graph:
    def words(state: State) -> list[Send]:
        return [Send("errand", Errand(text=word)) for word in state["text"].split()]

    made = StateGraph(State, output_schema=Said)
    made.add_node("errand", errand)
    made.add_conditional_edges(START, words, ["errand"])
    made.add_edge("errand", END)
    return made


WORKFLOWS = Workflows(
    [
        workflow("one", input=Text)(lambda: one(say)),
        workflow("careful", input=Text)(lambda: one(careful)),
        workflow("fan", input=Text)(fan),
    ]
)
SPEC = AgentSpec.model_validate(
    {"name": "solver", "model": "scripted:x", "policy": {"kind": "collaborative"}, "tools": [{"name": "python"}]}
)
CARDS = {"solver": AgentCard(name="solver", model="m", policy="collaborative")}
ANSWER = ModelTurn(text="ANSWER: 42\nCONFIDENCE: 0.9", cost_usd=0.01)


def uses(*codes: str) -> ModelTurn:
    return ModelTurn(
        uses=tuple(ToolUse(id=f"u{n}", tool="python", arguments={"code": code}) for n, code in enumerate(codes)),
        cost_usd=0.01,
    )


def bundle(within_s: float = 600.0, **more: Any) -> Bundle:
    rules: list[dict[str, Any]] = [
        {"then": "ask", "arguments": {"code": "ask"}, "why": "it looks dear"},
        {"then": "deny", "arguments": {"code": "evil"}, "why": "evil is forbidden"},
        {"then": "skip", "arguments": {"code": "skip"}, "say": "nobody needs that"},
        {"then": "mutate", "arguments": {"code": "change"}, "change": {"code": "mild"}},
    ]
    return Bundle.model_validate(
        {"name": "b", "version": 1, "tools": {"allow": ["*"]}, "rules": rules, "otherwise": "allow", "within_s": within_s, **more}
    )  # fmt: skip


@dataclass
class Mortal:
    """A database whose process dies at its n-th write: before it, or after it was committed. The dead write and read no more."""

    inner: Database
    at: int | None = None
    committed: bool = False
    writes: int = 0
    dead: bool = False
    died: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self, sql: str, params: Params | None = None) -> Sequence[Row]:
        self._check()
        return await self.inner.read(sql, params)

    def _check(self) -> None:
        if self.dead:
            raise JournalGone("its process is dead")

    async def write(self, *statements: Statement) -> Sequence[Sequence[Row]]:
        self._check()
        renewal = any("held_until = :now + :ttl WHERE holder" in one.sql or "lease_until = :now + :ttl WHERE owner" in one.sql for one in statements)  # fmt: skip
        if renewal:
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
        self.dead = True
        self.died.set()
        await asyncio.Event().wait()

    async def close(self) -> None:
        await self.inner.close()


@dataclass
class House:
    """A bus and a journal, one worker and one orchestrator, which come and go; what the model was asked and the lane was given stays."""

    bus: Bus
    db: Database
    lease_s: float = LEASE_S
    script: Sequence[ModelTurn] = (uses("ask"), ANSWER)
    rules: Bundle = field(default_factory=bundle)
    lane: ScriptedLane = field(default_factory=lambda: ScriptedLane(lambda _: ToolResult(status="ok", stdout="42")))
    asked: int = 0

    @property
    def journal(self) -> Journal:
        return Journal(self.db, self.lease_s)

    def _model(self) -> ScriptedModel:
        house = self

        class Recorded(ScriptedModel):
            async def ask(self, messages: Any, **more: Any) -> ModelTurn:
                house.asked += 1
                done = len(of_kind(messages, ModelTurn))
                return house.script[done].model_copy(update={"model": "m"})

        return Recorded([])

    @asynccontextmanager
    async def worker(self, db: Database | None = None) -> AsyncGenerator[None]:
        role = AgentWorker(
            bus=self.bus, journal=Journal(db or self.db, self.lease_s), lane=self.lane, toolbox=BUILTIN,
            agents={"solver": SPEC}, open_model=lambda _: self._model(), grant_key=b"k" * 32, instance="w",
            bundles={"solver": self.rules}, drain_s=1,
        )  # fmt: skip
        ready = asyncio.Event()
        async with running(role.run(asyncio.Event(), ready.set), ready):
            yield

    @asynccontextmanager
    async def orchestrator(self, db: Database | None = None) -> AsyncGenerator[None]:
        ready = asyncio.Event()
        role = Orchestrator(self.bus, Journal(db or self.db, self.lease_s), WORKFLOWS, CARDS, instance="o", drain_s=1)
        async with running(role.run(asyncio.Event(), Ready(None, 2, ready.set)), ready):
            yield

    async def request(self, text: str = "q", name: str = "one", event_id: str = "e") -> RunId:
        event = RunRequested(workflow=name, input={"text": text})
        await self.bus.publish(encode(REQUESTS, Envelope(event, event_id, "/shop", event_id)))
        return RunId(stable_id("run", "/shop", event_id))

    async def decide(self, approval: Approval, *, granted: bool = True, **more: Any) -> None:
        """As a backend does."""
        told = {"run_id": approval.run_id, "approval_id": approval.approval_id, "granted": granted, "by": "ann"}
        said = ApprovalDecided.model_validate(told | more)
        await self.bus.publish(encode(REQUESTS, Envelope(said, f"d{id(said)}", "/shop", approval.run_id)))

    async def run(self, run_id: RunId) -> Run:
        found = await self.journal.runs.get(run_id)
        assert found is not None
        return found

    async def parked(self, run_id: RunId, waiting: int = 1) -> list[Approval]:
        """Wait until the run is parked for so many approvals."""

        async def enough() -> list[Approval] | None:
            run = await self.journal.runs.get(run_id)
            found = [one for one in await self.journal.approvals.of_run(run_id) if one.granted is None]
            return found if run and run.status == "parked" and len(found) == waiting else None

        return await until(enough)

    async def ended(self, run_id: RunId) -> Run:
        async def over() -> Run | None:
            run = await self.journal.runs.get(run_id)
            return run if run and run.announced else None

        return await until(over)

    async def all_of(self, topic: str) -> list[Delivery]:
        """All that a topic holds now."""
        seen: list[Delivery] = []
        stop = asyncio.Event()
        mark = encode(topic, Envelope(RunRequested(workflow="end", input={}), "mark", "/test", "mark"))

        async def keep(delivery: Delivery) -> None:
            seen.append(delivery)
            if dict(delivery.headers)["ce_source"] == b"/test":
                stop.set()

        await self.bus.publish(mark)
        async with asyncio.timeout(HUNG):
            await self.bus.consume(Consumption([topic], None), keep, stop)
        return [one for one in seen if dict(one.headers)["ce_source"] != b"/test"]

    async def events(self, *kinds: type[Event]) -> list[Envelope[Event]]:
        return [one for one in map(decode, await self.all_of(EVENTS_TOPIC)) if isinstance(one.data, kinds)]

    async def observed(self, run_id: RunId) -> list[ToolTurn]:
        """What the model read of its tool uses."""
        (call,) = await self.journal.calls.of_run(run_id)
        steps = await self.journal.steps.of_call(call.call_id)
        return of_kind([message for step in steps for message in load(step.body)], ToolTurn)

    @property
    def made(self) -> list[JsonValue]:
        """The code that was really run."""
        return [call.arguments["code"] for call in self.lane.calls]


async def until(probe: Callable[[], Awaitable[T | None]]) -> T:
    """What a probe finds, once it finds something."""
    async with asyncio.timeout(HUNG):
        while True:
            found = await probe()
            if found is not None:
                return found
            await asyncio.sleep(0.02)


@asynccontextmanager
async def running(work: Any, ready: asyncio.Event) -> AsyncGenerator[None]:
    """A role that dies at the end of the block: every task that it started ends where it is."""
    process = Process(work)
    async with asyncio.timeout(HUNG):
        await ready.wait()
    try:
        yield
    finally:
        await process.die()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    db = SqliteDatabase(tmp_path / "journal.db")
    await migrate(db)
    yield House(MemoryBus(), db)
    await db.close()


async def forgotten() -> bool | None:
    """Whether no run and no call is in memory; the segment that parked a run may be at its last words."""
    gc.collect()
    return None if any(isinstance(one, Held | Attempt) for one in gc.get_objects()) else True


async def test_what_is_asked_waits_held_by_nobody_and_runs_exactly_as_it_was_approved(house: House) -> None:
    async with house.worker(), house.orchestrator():
        run_id = await house.request()
        (asked,) = await house.parked(run_id)
        # Then nothing ran, and nobody holds the run or the call
        assert (house.made, house.asked) == ([], 1)
        assert (asked.tool, asked.arguments, asked.why, asked.stamp and asked.stamp.agent) == ("python", {"code": "ask"}, "it looks dear", "solver")  # fmt: skip
        await until(forgotten)
        (row,) = await house.db.read("SELECT * FROM runs")
        assert (row["owner"], row["lease_until"], row["status"]) == (None, 0, "parked")
        (call,) = await house.db.read("SELECT * FROM calls")
        assert (call["holder"], call["held_until"], call["parked_at"] is None) == (None, 0, False)
        # and when it is granted, it goes on where it was
        await house.decide(asked)
        run = await house.ended(run_id)
    assert (run.status, run.result, run.cost_usd) == ("succeeded", {"said": ["42"]}, 0.02)
    assert (house.made, house.asked) == (["ask"], 2)
    assert house.lane.calls[0].hold == demand(house.rules)
    (done,) = await house.journal.calls.of_run(run_id)
    assert done.attempt == 2
    wanted, settled = await house.events(ApprovalWanted, ApprovalSettled)
    assert (wanted.id, settled.id) == (f"{asked.approval_id}/wanted", f"{asked.approval_id}/settled")
    assert isinstance(settled.data, ApprovalSettled)
    assert (settled.data.granted, settled.data.by) == (True, "ann")


async def test_a_refusal_is_what_the_model_reads_and_nothing_runs(house: House) -> None:
    async with house.worker(), house.orchestrator():
        run_id = await house.request()
        (asked,) = await house.parked(run_id)
        await house.decide(asked, granted=False, note="not on a Friday", arguments={"code": "ignored"})
        assert (await house.ended(run_id)).status == "succeeded"
    (seen,) = await house.observed(run_id)
    assert (seen.result.status, seen.tool_call_id, house.made) == ("refused", None, [])
    assert "not approved (ann): not on a Friday" in seen.result.stderr


async def test_nobody_answers_and_so_it_is_refused(house: House) -> None:
    house.rules = bundle(within_s=0.3)
    async with house.worker(), house.orchestrator():
        run_id = await house.request()
        assert (await house.ended(run_id)).status == "succeeded"
    (asked,) = await house.journal.approvals.of_run(run_id)
    assert (asked.granted, asked.decided_by, house.made) == (False, "expiry", [])
    assert "expiry" in (await house.observed(run_id))[0].result.stderr


@pytest.mark.parametrize(
    ("code", "made", "said"),
    [("mild", ["mild"], "called with other arguments than yours"), ("evil", [], "evil is forbidden"), ("skip", [], "nobody needs that"),
     ("change", [], "the rules would change"), (7, [], "do not fit python")],
)  # fmt: skip
async def test_what_an_approver_changes_is_judged_like_the_agents_own(
    house: House, code: JsonValue, made: list[JsonValue], said: str
) -> None:
    async with house.worker(), house.orchestrator():
        run_id = await house.request()
        (asked,) = await house.parked(run_id)
        await house.decide(asked, arguments={"code": code})
        await house.ended(run_id)
    (seen,) = await house.observed(run_id)
    assert house.made == made
    assert said in seen.result.stdout + seen.result.stderr


async def test_the_other_uses_of_a_turn_run_first_and_once(house: House) -> None:
    house.script = (uses("1", "ask", "change", "skip", "evil"), ANSWER)
    async with house.worker(), house.orchestrator():
        run_id = await house.request()
        (asked,) = await house.parked(run_id)
        assert sorted(map(str, house.made)) == ["1", "mild"]
        await house.decide(asked)
        await house.ended(run_id)
    assert sorted(map(str, house.made)) == ["1", "ask", "mild"]
    seen = await house.observed(run_id)
    assert [one.result.status for one in seen] == ["ok", "ok", "ok", "ok", "refused"]
    assert [one.tool_call_id is None for one in seen] == [False, False, False, True, True]
    assert seen[3].result.stdout == "nobody needs that"


async def test_rules_that_changed_meanwhile_hold_and_what_was_shown_is_not_stretched(house: House) -> None:
    async with house.orchestrator():
        async with house.worker():
            run_id = await house.request()
            (asked,) = await house.parked(run_id)
        # Given a bundle that would now ask about another call than was shown
        change = {"then": "mutate", "arguments": {"code": "ask"}, "change": {"code": "ask for more"}}
        house.rules = bundle(rules=[change, {"then": "ask", "why": "all of it"}])
        async with house.worker():
            await house.decide(asked)
            await house.ended(run_id)
    assert house.made == []
    assert "what was approved is not what would run now" in (await house.observed(run_id))[0].result.stderr


async def test_arguments_that_nobody_can_read_are_refused_unasked(house: House) -> None:
    house.script = (uses("ask" + "\x01" * (60 << 10)), ANSWER)
    async with house.worker(), house.orchestrator():
        run_id = await house.request()
        await house.ended(run_id)
    assert (house.made, await house.journal.approvals.of_run(run_id)) == ([], [])
    assert "too long" in (await house.observed(run_id))[0].result.stderr


async def test_the_first_of_two_decisions_counts_and_a_late_one_changes_nothing(house: House) -> None:
    async with house.worker(), house.orchestrator():
        run_id = await house.request()
        (asked,) = await house.parked(run_id)
        await house.decide(asked, granted=False, by="bob")
        await house.decide(asked, by="ann", arguments={"code": "evil"})
        await house.ended(run_id)
        await house.decide(asked)
        await house.parked(await house.request(event_id="later"))  # by then it was read
    (kept,) = await house.journal.approvals.of_run(run_id)
    assert (kept.granted, kept.decided_by, kept.changed, house.made) == (False, "bob", None, [])
    assert await house.all_of(DEAD_LETTERS) == []
    assert len({one.id for one in await house.events(ApprovalSettled)}) == 1


async def test_forged_and_unknown_decisions_lie_in_the_dead_letters_with_their_reason(house: House) -> None:
    async with house.worker(), house.orchestrator():
        run_id = await house.request()
        (asked,) = await house.parked(run_id)
        await house.decide(asked.model_copy(update={"run_id": RunId("another")}))
        await house.decide(asked.model_copy(update={"approval_id": "nothing"}))

        async def buried() -> list[Delivery] | None:
            found = await house.all_of(DEAD_LETTERS)
            return found if len(found) == 2 else None

        dead = await until(buried)
        assert {dict(one.headers)["metier-dead-reason"] for one in dead} == {b"unknown_approval"}
        assert (await house.run(run_id)).status == "parked"
    assert house.made == []


async def test_a_decision_for_another_tenant_decides_nothing_and_one_for_its_own_does(house: House) -> None:
    async with house.worker(), house.orchestrator():
        run_id = await house.request()
        (asked,) = await house.parked(run_id)
        await house.decide(asked, tenant="bank")

        async def buried() -> list[Delivery] | None:
            return await house.all_of(DEAD_LETTERS) or None

        (dead,) = await until(buried)
        told = dict(dead.headers)
        assert told["metier-dead-reason"] == b"unknown_approval"
        assert b"of the tenant 'bank'" in told["metier-dead-message"]
        assert (await house.run(run_id)).status == "parked"
        assert house.made == []
        await house.decide(asked, tenant="default")
        await house.ended(run_id)
        assert len(house.made) == 1


async def test_time_stands_still_while_a_call_waits(house: House) -> None:
    async with house.worker(), house.orchestrator():
        run_id = await house.request()
        (asked,) = await house.parked(run_id)
        (before,) = await house.journal.calls.of_run(run_id)
        # Given that it waited past its deadline, the agent's limit and the run's patience
        shift = Statement(
            "UPDATE calls SET deadline = :now - 1, parked_at = parked_at - 1000, claimed_at = claimed_at - 1000"
        )
        await house.db.write(shift)
        await asyncio.sleep(3 * LEASE_S)
        run = await house.run(run_id)
        assert (run.status, run.epoch) == ("parked", 1)
        await house.decide(asked)
        assert (await house.ended(run_id)).status == "succeeded"
    (after,) = await house.journal.calls.of_run(run_id)
    assert after.parked_s > 1000
    assert after.deadline > before.deadline
    assert house.made == ["ask"]


async def test_an_author_who_catches_everything_sees_no_park(house: House) -> None:
    async with house.worker(), house.orchestrator():
        run_id = await house.request(name="careful")
        (asked,) = await house.parked(run_id)
        await house.decide(asked)
        run = await house.ended(run_id)
    assert run.result == {"said": ["42"]}


async def test_a_node_that_works_ends_first_and_is_not_run_again(house: House) -> None:
    ERRANDS["works"] = asyncio.Event()
    ENTERED.clear()
    house.script = (uses("ask"), uses("ask again"), ANSWER)
    async with house.worker(), house.orchestrator():
        run_id = await house.request("asks works", name="fan")

        async def waits() -> bool | None:
            calls = await house.journal.calls.of_run(run_id)
            return True if calls and calls[0].parked_at else None

        await until(waits)
        await asyncio.sleep(2 * LEASE_S)
        assert (await house.run(run_id)).status == "running"
        ERRANDS["works"].set()
        (first,) = await house.parked(run_id)
        await house.decide(first)
        # Then what ended before does not keep the run in memory the second time

        async def another() -> Approval | None:
            run, found = await house.run(run_id), await house.journal.approvals.of_run(run_id)
            return found[1] if run.status == "parked" and len(found) == 2 else None

        await house.decide(await until(another))
        run = await house.ended(run_id)
    (call,) = await house.journal.calls.of_run(run_id)
    assert (call.attempt, house.made) == (3, ["ask", "ask again"])
    assert run.result is not None
    assert sorted(cast("list[str]", run.result["said"])) == ["42", "works"]
    assert ENTERED.count("works") == 1


async def test_a_call_that_goes_on_while_its_run_is_in_memory_has_a_deadline_again(house: House) -> None:
    # Given a run that is kept in memory by another node, and a call that waits, of which little time is left
    ERRANDS["works"] = asyncio.Event()
    async with house.orchestrator():
        async with house.worker():
            run_id = await house.request("asks works", name="fan")
            (asked,) = await waiting(house, run_id)
            await asyncio.sleep(LEASE_S)
        await house.db.write(Statement("UPDATE calls SET deadline = parked_at + 0.3"))
        # When it is granted and no worker takes it
        await house.decide(asked)
        # Then the run does not wait for ever
        run = await house.ended(run_id)
    assert run.failure is not None
    assert run.failure.code == "deadline_missed"


async def waiting(house: House, run_id: RunId) -> list[Approval]:
    """What the run's calls wait for, once they are parked."""

    async def parked() -> list[Approval] | None:
        calls = await house.journal.calls.of_run(run_id)
        found = await house.journal.approvals.of_run(run_id)
        return list(found) if calls and all(one.parked_at for one in calls) else None

    return await until(parked)


async def test_a_call_that_parked_unheard_of_is_waited_for_beyond_its_deadline(house: House) -> None:
    desk = RunDesk(RunId("r"), house.bus, house.journal, CARDS)
    asking = asyncio.create_task(desk.ask(Place("node", 1), "solver", Task(text="q"), 0.3))

    async def asked() -> list[Call] | None:
        return list(await house.journal.calls.of_run(RunId("r"))) or None

    (call,) = await until(asked)
    assert await house.journal.calls.claim(call.call_id, "w")
    await house.journal.calls.park(call.call_id, "w")
    await asyncio.sleep(0.6)
    assert not asking.done()
    answer = Answer(text="42", agent="solver", model="m", policy="p")
    desk.waiting.deliver(CallAnswered(run_id=RunId("r"), call_id=call.call_id, answer=answer))
    assert await asking == answer


class Lagging:
    """A database that takes its time to return after it parked the first run."""

    def __init__(self, inner: Database, meanwhile: Callable[[], Awaitable[None]]) -> None:
        self._inner, self._meanwhile, self._first = inner, meanwhile, True

    async def read(self, sql: str, params: Params | None = None) -> Sequence[Row]:
        return await self._inner.read(sql, params)

    async def write(self, *statements: Statement) -> Sequence[Sequence[Row]]:
        rows = await self._inner.write(*statements)
        if self._first and "status = 'parked'" in statements[-1].sql:
            self._first = False
            await self._meanwhile()
        return rows

    async def close(self) -> None:
        await self._inner.close()


async def test_an_answer_that_comes_just_as_its_run_parks_takes_it_up_at_once(house: House) -> None:
    # Given no keeper that would find it, and a call that is granted and answered while the run is being parked
    house.lease_s = 600

    async def meanwhile() -> None:
        (run,) = await house.journal.runs.recent()
        (asked,) = await house.journal.approvals.of_run(run.run_id)
        await house.decide(asked)
        await until(answered)
        await asyncio.sleep(0.2)

    async def answered() -> bool | None:
        (run,) = await house.journal.runs.recent()
        (call,) = await house.journal.calls.of_run(run.run_id)
        return True if call.answered_at else None

    async with house.worker(), house.orchestrator(Lagging(house.db, meanwhile)):
        run = await house.ended(await house.request())
    assert run.result == {"said": ["42"]}


async def test_a_parked_run_whose_answer_nobody_told_is_found(house: House) -> None:
    async with house.worker(), house.orchestrator():
        run_id = await house.request()
        (asked,) = await house.parked(run_id)
    await house.journal.approvals.decide(asked.approval_id, granted=True, by="ann")
    await house.journal.approvals.told(asked.approval_id)
    answer = Answer(text="from elsewhere", agent="solver", model="m", policy="p")
    await house.journal.calls.answer(asked.call_id, answer=answer)
    async with house.orchestrator():
        run = await house.ended(run_id)
    assert run.result == {"said": ["from elsewhere"]}


# ---- the hands alone


def handed(house: House, rules: Bundle | None = None) -> Hands:
    return Hands(house.journal, house.lane, BUILTIN, b"k" * 32, rules or house.rules)


async def claimed(journal: Journal, attempt: int = 1) -> Call:
    call = Call(
        call_id=CallId("c" * 32), run_id=RunId("r"), agent="solver", task=Task(text="q"), deadline=time.time() + 60
    )
    await journal.calls.request(call)
    found = await journal.calls.claim(call.call_id, "w")
    assert found is not None
    return found.model_copy(update={"attempt": attempt})


async def act(hands: Hands, call: Call, *codes: str) -> list[ToolTurn]:
    turn = uses(*codes).model_copy(update={"offered": ("python",)})
    return await hands.act(call, turn, 1, left=5, deadline=call.deadline)


async def test_what_ran_is_what_the_model_reads_though_the_rules_forbid_it_now(house: House) -> None:
    call = await claimed(house.journal)
    await act(handed(house), call, "evening")
    strict = bundle(rules=[{"then": "deny", "why": "all of it"}])
    again = await claimed(house.journal, attempt=2)
    (seen,) = await act(handed(house, strict), again, "evening")
    assert (seen.result.status, len(house.lane.calls)) == ("ok", 1)


async def test_a_call_in_flight_is_not_made_again_with_arguments_that_the_rules_would_change_now(house: House) -> None:
    call = await claimed(house.journal)
    house.lane = ScriptedLane(lambda _: GrantRefused("it dies on the way"))
    with pytest.raises(GrantRefused):
        await act(handed(house), call, "plain")
    house.lane = ScriptedLane(lambda _: ToolResult(status="ok"))
    stricter = bundle(rules=[{"then": "mutate", "change": {"code": "tamed"}}])
    (seen,) = await act(handed(house, stricter), await claimed(house.journal, attempt=2), "plain")
    assert (seen.result.status, house.lane.calls) == ("refused", [])
    assert "the rules have changed" in seen.result.stderr


async def test_what_goes_wrong_is_told_before_what_waits(house: House) -> None:
    house.lane = ScriptedLane(lambda _: GrantRefused("forged"))
    with pytest.raises(GrantRefused):
        await act(handed(house), await claimed(house.journal), "ask", "plain")
    assert not issubclass(Parked, Exception)


# ---- the journal alone


def wish(call: Call) -> Approval:
    told = call.model_dump(include={"run_id", "call_id", "agent"})
    return Approval.model_validate(
        {**told, "approval_id": "a" * 32, "tool": "python", "digest": "d", "arguments": {"code": "ask"}, "why": "dear"}
    )


async def test_a_decision_lets_the_calls_time_go_on_at_once_and_is_told_until_it_was(journal: Journal) -> None:
    call = await claimed(journal)
    asked = await journal.approvals.want(wish(call), 60)
    parked = await journal.calls.park(call.call_id, "w")
    assert (parked.parked_at is None, parked.holder) == (False, None)
    assert [one.approval_id for one in await journal.approvals.waiting()] == [asked.approval_id]
    await journal.db.write(Statement("UPDATE calls SET parked_at = parked_at - 100"))
    settled = await journal.approvals.decide(asked.approval_id, granted=True, by="ann")
    assert settled is not None
    assert await journal.approvals.decide(asked.approval_id, granted=False, by="bob") is None
    goes_on = await journal.calls.get(call.call_id)
    assert goes_on is not None
    assert goes_on.parked_at is None
    assert 95 < goes_on.deadline - call.deadline < 105
    assert await journal.approvals.untold(60) == []
    assert await journal.approvals.untold(0) == [settled]
    await journal.approvals.told(asked.approval_id)
    assert await journal.approvals.untold(0) == []


async def test_a_parked_call_is_taken_only_for_a_decision_that_it_has_not_seen_or_to_be_cancelled(
    journal: Journal,
) -> None:
    call = await claimed(journal)
    first = await journal.approvals.want(wish(call), 60)
    second = await journal.approvals.want(wish(call).model_copy(update={"approval_id": "b" * 32}), 60)
    # Given a decision between the last look and the parking
    await journal.approvals.decide(first.approval_id, granted=True, by="ann")
    parked = await journal.calls.park(call.call_id, "w")
    assert parked.parked_at is not None
    taken = await journal.calls.claim(call.call_id, "w")
    assert taken is not None
    assert taken.parked_at is None
    # When it has seen that one, it waits for the other, however often it comes
    await journal.calls.park(call.call_id, "w")
    assert await journal.calls.claim(call.call_id, "w") is None
    assert [one.approval_id for one in await journal.approvals.undecided(call.call_id)] == [second.approval_id]
    await journal.calls.cancel(call.call_id, "enough")
    assert await journal.calls.claim(call.call_id, "w") is not None


async def test_a_parked_call_that_comes_again_is_told_again_and_not_worked_on(house: House) -> None:
    async with house.worker(), house.orchestrator():
        run_id = await house.request()
        (asked,) = await house.parked(run_id)
        call = await house.journal.calls.get(asked.call_id)
        assert call is not None
        await house.bus.publish(encode(tasks_topic("solver"), call_event(call)))

        async def twice() -> bool | None:
            return True if len(await house.events(ApprovalWanted)) == 2 else None

        await until(twice)
    again = await house.journal.calls.get(asked.call_id)
    assert again is not None
    assert (again.attempt, again.parked_at, house.asked) == (1, call.parked_at, 1)
    assert len({one.id for one in await house.events(ApprovalWanted)}) == 1


async def test_a_decision_after_its_time_is_none(journal: Journal) -> None:
    asked = await journal.approvals.want(wish(await claimed(journal)), -1)
    assert await journal.approvals.decide(asked.approval_id, granted=True, by="ann") is None
    assert await journal.approvals.overdue() == {asked.approval_id: "expiry"}
    assert await journal.approvals.decide(asked.approval_id, granted=False, by="expiry", late=True)


async def test_a_run_is_parked_only_while_nothing_of_what_it_waits_for_has_happened_and_only_by_its_owner(
    journal: Journal,
) -> None:
    run = Run(run_id=RunId("r"), source="/s", event_id="e", workflow="w", version=None, status="accepted", input={}, traceparent="")  # fmt: skip
    await journal.runs.accept(run)
    held = await journal.runs.lease(run.run_id, "o")
    assert held is not None
    call = await claimed(journal)
    await journal.db.write(Statement("UPDATE calls SET deadline = :now - 1"))
    assert not await journal.runs.park(run.run_id, held.epoch, {call.call_id: "call"})
    await journal.calls.park(call.call_id, "w")  # its time stands still
    with pytest.raises(FencedOff):
        await journal.runs.park(run.run_id, held.epoch + 1, {call.call_id: "call"})
    assert await journal.runs.park(run.run_id, held.epoch, {call.call_id: "call"})
    assert await journal.runs.unattended() == []


async def test_two_calls_wait_and_each_goes_on_by_itself_after_a_restart_of_all(house: House) -> None:
    ENTERED.clear()
    async with house.worker(), house.orchestrator():
        run_id = await house.request("a b", name="fan")
        first, second = await house.parked(run_id, 2)
    async with house.worker(), house.orchestrator():
        await house.decide(first)
        assert await house.parked(run_id) == [second]
        await house.decide(second)
        run = await house.ended(run_id)
    assert (run.status, run.cost_usd, house.asked, house.made) == ("succeeded", 0.04, 4, ["ask", "ask"])


async def test_a_decision_before_the_run_has_parked_loses_nothing(house: House) -> None:
    async with house.orchestrator():
        run_id = await house.request()

        async def wanted() -> list[Approval] | None:
            return list(await house.journal.approvals.of_run(run_id)) or None

        async with house.worker():
            (asked,) = await until(wanted)
            await house.decide(asked)
            assert (await house.ended(run_id)).status == "succeeded"
    assert house.made == ["ask"]


async def test_a_parked_call_that_is_cancelled_ends_and_what_it_asked_is_withdrawn(house: House) -> None:
    async with house.worker(), house.orchestrator():
        run_id = await house.request()
        (asked,) = await house.parked(run_id)
        await house.journal.calls.cancel(asked.call_id, "changed my mind")
        run = await house.ended(run_id)

        async def withdrawn() -> Approval | None:
            found = await house.journal.approvals.get(asked.approval_id)
            return found if found and found.announced else None

        settled = await until(withdrawn)
    assert (run.status, settled.decided_by, house.made) == ("failed", "withdrawn", [])


async def test_a_parked_run_that_nobody_woke_is_found(house: House) -> None:
    async with house.worker(), house.orchestrator():
        run_id = await house.request()
        (asked,) = await house.parked(run_id)
    # Given a decision that was written down by a replica that died then
    assert await house.journal.approvals.decide(asked.approval_id, granted=True, by="ann")
    async with house.worker(), house.orchestrator():
        assert (await house.ended(run_id)).status == "succeeded"
    assert house.made == ["ask"]
    assert len(await house.events(ApprovalSettled)) == 1


@pytest.mark.parametrize("committed", [False, True], ids=["before the write", "after the write"])
@pytest.mark.parametrize("role", ["worker", "orchestrator"])
async def test_whichever_write_a_role_dies_at_each_thing_is_asked_and_run_once(
    tmp_path: Path, role: str, committed: bool
) -> None:
    at, deaths = 0, 0
    while True:
        at += 1
        db = SqliteDatabase(tmp_path / f"{at}.db")
        await migrate(db)
        house, mortal = House(MemoryBus(), db), Mortal(db, at, committed, writes=-1)  # its start is not counted
        died = await lived_through(house, mortal, role)
        deaths += died
        await db.close()
        if not died:
            break
    assert deaths > 6


async def lived_through(house: House, mortal: Mortal, role: str) -> bool:
    """Run one request to its end with a role that dies once and is started again; whether it died."""
    run_id = await house.request()
    decided = asyncio.create_task(decide_when_asked(house, run_id))
    over = asyncio.create_task(house.ended(run_id))
    death = asyncio.create_task(mortal.died.wait())
    async with lives(house, mortal, role):
        await asyncio.wait([over, death], return_when=asyncio.FIRST_COMPLETED)
    if not over.done():
        async with lives(house, house.db, role):
            await over
    death.cancel()
    await decided
    run = over.result()
    assert (run.status, run.result, run.cost_usd) == ("succeeded", {"said": ["42"]}, 0.02)
    made = {call.tool_call_id for call in house.lane.calls}
    assert (len(made), set(house.made)) == (1, {"ask"})
    assert house.asked <= 3  # a request in flight at the death is made again
    assert len({one.id for one in await house.events(RunSucceeded, RunFailed)}) == 1
    assert len({one.id for one in await house.events(ApprovalWanted)}) == 1
    return mortal.died.is_set()


@asynccontextmanager
async def lives(house: House, db: Database, role: str) -> AsyncGenerator[None]:
    worker = house.worker(db if role == "worker" else None)
    orchestrator = house.orchestrator(db if role == "orchestrator" else None)
    async with worker, orchestrator:
        yield
        if isinstance(db, Mortal):
            db.dead = True


async def decide_when_asked(house: House, run_id: RunId) -> None:
    (asked,) = await house.parked(run_id)
    await house.decide(asked)
    await house.decide(asked)


async def test_the_trace_shows_who_was_asked_and_what_they_said(house: House) -> None:
    async with house.worker(), house.orchestrator():
        run_id = await house.request()
        (asked,) = await house.parked(run_id)
        waiting = str(tree(await gather(house.journal, await house.run(run_id))))
        await house.decide(asked, note="go")
        await house.ended(run_id)
    assert "waits; asked because: it looks dear" in waiting
    node = tree(await gather(house.journal, await house.run(run_id)))
    assert "granted by ann; go; asked because: it looks dear" in str(node)
    assert render(node).children


@asynccontextmanager
async def dev(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[Callable[..., Awaitable[Result]]]:
    """Commands as typed beside a `metier dev` in this folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METIER_SQLITE_PATH", str(tmp_path / "journal.db"))
    for name in ("METIER_KAFKA_BOOTSTRAP", "METIER_POSTGRES_URL"):
        monkeypatch.delenv(name, raising=False)

    async def metier(*words: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, app, list(words))

    async with house.worker(), house.orchestrator(), serve_bus(house.bus, tmp_path / "dev.sock"):
        yield metier


async def test_on_a_terminal_a_call_is_listed_shown_safely_and_granted(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given arguments that would move the cursor, turn the direction of writing, and look like markup
    code = "[red]ask\x1b[2J\u202e [red]é" + "x" * 5000
    house.script = (uses(code), ANSWER)
    async with dev(house, tmp_path, monkeypatch) as metier:
        run_id = await house.request()
        (asked,) = await house.parked(run_id)
        # When they are listed and shown
        listed, whole = await metier("approvals", "list"), await metier("approvals", "show", asked.approval_id[:8])
        runs = await metier("runs", "list", "--status", "parked")
        # Then the terminal gets none of it raw, and the list is short
        for told in (listed.output, whole.output):
            assert "\x1b" not in told
            assert "\u202e" not in told
        assert "[red]ask" in listed.output
        assert max(map(len, listed.output.split("\n"))) <= 121
        assert "\\u202e [red]é" + "x" * 5000 in whole.output
        assert f"waits for approval {asked.approval_id[:12]}"[:20] in runs.output
        granted = await metier(
            "approvals", "grant", asked.approval_id, "--by", "ann", "--note", "fine", "--arguments", '{"code": "mild"}'
        )
        await house.ended(run_id)
        again = await metier("approvals", "refuse", asked.approval_id)
    assert f"approval {asked.approval_id[:12]} granted by ann" in granted.output
    assert isinstance(again.exception, MissingApproval)
    assert "waits no more: it was granted by ann" in str(again.exception)
    assert house.made == ["mild"]


async def test_on_a_terminal_one_waiting_call_of_a_run_is_approved_by_the_run(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.script = (uses("ask", "ask again"), ANSWER)
    async with dev(house, tmp_path, monkeypatch) as metier:
        run_id = await house.request()
        first, second = await house.parked(run_id, 2)
        several = await metier("runs", "approve", run_id[:8])
        assert isinstance(several.exception, MissingApproval)
        assert first.approval_id[:12] in str(several.exception)
        assert (await metier("approvals", "refuse", first.approval_id, "--by", "ann")).exit_code == 0
        await house.parked(run_id)
        assert (await metier("runs", "approve", run_id[:8])).exit_code == 0
        await house.ended(run_id)
    assert house.made == [second.arguments["code"]]


async def test_on_real_services_a_run_parks_and_goes_on_with_new_processes(
    kafka: KafkaSettings, postgres_url: str
) -> None:
    quick = kafka.model_copy(update={"session_timeout_ms": 6_000})
    apply(quick, [Topic(name, 1, 1) for name in (REQUESTS, RUNS, EVENTS_TOPIC, DEAD_LETTERS, tasks_topic("solver"))])
    db = await PostgresDatabase(postgres_url).open()
    bus = KafkaBus(quick, client="tests")
    house = House(bus, db, lease_s=3)
    async with house.worker(), house.orchestrator():
        run_id = await house.request()
        (asked,) = await house.parked(run_id)
    async with house.worker(), house.orchestrator():
        await house.decide(asked)
        run = await house.ended(run_id)
    assert (run.status, run.cost_usd, house.asked, house.made) == ("succeeded", 0.02, 2, ["ask"])
    assert {type(decode(one).data) for one in await house.all_of(RUNS)} >= {CallAnswered}
    await bus.close()
    await db.close()
