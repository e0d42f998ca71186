"""What is told of a run while it is under way: in order, each thing under one id for ever, and at nobody's expense.

The whole system runs in this process, with a scripted tool lane; a crash is the sudden end of all of it. Not here: the same over Kafka, where one key is one
partition (`test_bus_contract.py`), and processes that are killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from metier import client, compose, compose_tools, configuration, roles
from metier.chaos import order
from metier.chaos.evidence import Seen
from metier_agents.recordings import read_recordings
from metier_infra import outgoing
from metier_infra.bus import Bus, MemoryBus
from metier_infra.errors import BusGone, FencedOff, JournalGone, TooLarge
from metier_infra.events import EVENTS_TOPIC, DecisionMade, Event, RunStarted, RunSucceeded
from metier_infra.journal import Journal
from metier_infra.messages import LARGEST, Delivery, Envelope, Record, decode
from metier_infra.outgoing import Outgoing
from metier_infra.progress_events import (
    AgentAnswered,
    AgentAsked,
    NodeEnded,
    NodeStarted,
    RunResumed,
    TextWritten,
    ToolAnswered,
    ToolCalled,
)
from metier_infra.rows import Call, Run
from metier_infra.sqlite_journal import SqliteDatabase
from metier_infra.words import CallId, RunId, Task
from metier_tools.lane import ToolLane
from metier_tools.sandbox import Outcome, Request
from metier_tools.tool import ToolCall, ToolResult
from metier_workflows import progress
from metier_workflows.execution import Execution
from metier_workflows.run_desk import RunDesk
from metier_workflows.segment import to_the_end

HUNG = 40
CODE = next(one for one in read_recordings(compose.recordings_path()).queries if one.category == "code_reasoning")
RUN = RunId("r" * 32)


class Broker(MemoryBus):
    """A broker that takes each publication when it is let, and none while it is `away`; `batches` is what came together."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[str]] = []
        self.free = asyncio.Event()
        self.free.set()
        self.asked = asyncio.Event()
        self.away = False

    async def publish(self, *records: Record) -> None:
        self.asked.set()
        await self.free.wait()
        if self.away:
            raise BusGone("no broker")
        self.batches.append([decoded(record).id for record in records])
        await super().publish(*records)

    @property
    def told(self) -> list[str]:
        return [one for batch in self.batches for one in batch]


def decoded(record: Record) -> Envelope[Event]:
    return decode(Delivery(record.topic, 0, 0, record.key, record.value, record.headers))


def node(number: int) -> Envelope[Any]:
    return progress.node_started(RUN, {"id": str(number), "name": "n"})


def ids(*numbers: int) -> list[str]:
    return [node(number).id for number in numbers]


def text(of: str) -> Envelope[Any]:
    written = TextWritten(run_id=RUN, call_id=CallId("c"), agent="a", step=0, attempt=1, piece=0, text=of)
    return Envelope(written, "text", "/test", RUN)


async def test_what_is_told_while_the_broker_is_busy_goes_out_together_and_in_order() -> None:
    broker = Broker()
    broker.free.clear()
    out = Outgoing(broker)
    out.tell(node(0))
    async with asyncio.timeout(HUNG):
        await broker.asked.wait()
    for number in (1, 2, 3):
        out.tell(node(number))
    broker.free.set()
    await out.drain(HUNG)
    assert broker.batches == [ids(0), ids(1, 2, 3)]


async def test_a_broker_that_is_away_keeps_nobody_waiting_and_gets_everything_in_order_when_it_is_back() -> None:
    broker = Broker()
    broker.away = True
    out = Outgoing(broker)
    for number in range(5):
        out.tell(node(number))
    async with asyncio.timeout(HUNG):
        await broker.asked.wait()
    broker.away = False
    async with asyncio.timeout(HUNG):
        await out.told(node(5))
    assert broker.told == ids(*range(6))


async def test_only_so_many_wait_for_a_broker_and_what_somebody_waits_for_is_never_dropped() -> None:
    broker = Broker()
    broker.free.clear()
    out = Outgoing(broker)
    for number in range(outgoing.WAITING + 50):
        out.tell(node(number))
    end = asyncio.create_task(out.told(node(-1)))
    await asyncio.sleep(0)
    broker.free.set()
    async with asyncio.timeout(HUNG):
        await end
    assert broker.told == ids(*range(outgoing.WAITING), -1)
    assert max(map(len, broker.batches)) == outgoing.BATCH


async def test_what_can_never_be_sent_costs_itself_alone_and_whoever_waits_for_it_hears_why() -> None:
    broker = Broker()
    out = Outgoing(broker)
    out.tell(node(0))
    out.tell(text("x" * (2 * LARGEST)))
    out.tell(node(1))
    with pytest.raises(TooLarge):
        await out.told(text("x" * (2 * LARGEST)))
    await out.drain(HUNG)
    assert broker.told == ids(0, 1)


async def test_nothing_is_told_any_more_once_the_time_to_drain_is_over() -> None:
    broker = Broker()
    broker.away = True
    out = Outgoing(broker)
    out.tell(node(0))
    async with asyncio.timeout(HUNG):
        await broker.asked.wait()
    out.tell(node(2))
    await out.drain(0)
    broker.away = False
    await out.told(node(1))
    assert broker.told == ids(1)


CALL = Call(call_id=CallId("c"), run_id=RUN, agent="a", task=Task(text="t"), deadline=2e9)


@pytest.mark.parametrize(
    ("level", "told"),
    [("all", {"NodeStarted", "AgentAsked", "RunStarted"}), ("few", {"AgentAsked", "RunStarted"}), ("none", {"RunStarted"})],
)  # fmt: skip
async def test_an_operator_says_how_much_is_told(level: outgoing.Level, told: set[str]) -> None:
    broker = Broker()
    out = Outgoing(broker, level)
    started = Envelope(RunStarted(run_id=RUN, workflow="w", version="v"), "RunStarted", "/test", RUN)
    for event in (node(0), progress.asked(CALL), started):
        out.tell(event)
    await out.drain(HUNG)
    names = {node(0).id: "NodeStarted", progress.asked(CALL).id: "AgentAsked"}
    assert {names.get(one, one) for one in broker.told} == told


def test_a_node_is_named_with_the_graphs_round_it() -> None:
    call = CALL.model_copy(update={"slot": ("outer:1f|inner:2e:2e", "what", 1)})
    assert progress.node_of(call) == "outer/inner"
    assert progress.node_of(CALL) == ""


class Died(Exception):
    """The system ends in the middle."""


@dataclass(frozen=True)
class Gated:
    """A lane whose calls wait until they are let."""

    inner: ToolLane
    let: asyncio.Event

    async def call(self, call: ToolCall) -> ToolResult:
        await self.let.wait()
        return await self.inner.call(call)

    async def close(self) -> None:
        await self.inner.close()


class Bench:
    """Systems one after another over one journal, and all that they told of runs."""

    def __init__(self, folder: Path, bus: Callable[[], Bus] = MemoryBus) -> None:
        self.bus = bus
        self.journal = folder / "journal.db"
        self.told: list[Envelope[Event]] = []
        self.let = asyncio.Event()
        self.let.set()
        self.run_id = RunId("")

    async def lane(self, config: configuration.Config) -> ToolLane:
        return Gated(await compose_tools.scripted_lane(self._run)(config), self.let)

    def _run(self, request: Request) -> Outcome:
        said = f"{CODE.gold}\n" if "print(repr(" in request.source else ""
        return Outcome("ok" if said else "error", 0 if said else 1, said, wall_ms=3.0)

    async def until(self, enough: Callable[[Envelope[Event]], bool], *, die: bool = False) -> None:
        """Run the system until it told something; where it shall `die`, all of it ends there."""
        there = asyncio.Event()

        def seen(event: Envelope[Event]) -> None:
            self.told.append(event)
            if enough(event):
                there.set()

        try:
            async with (
                roles.embedded(
                    configuration.configure(), journal=self.journal, lane=self.lane, bus=self.bus()
                ) as system,
                client.following(system.bus, seen),
                asyncio.timeout(HUNG),
            ):
                if not self.run_id:
                    sent = await client.publish(system.bus, "specialists", {"question": CODE.text}, event_id="e")
                    self.run_id = client.run_id_of(sent.source, sent.id)
                await there.wait()
                if die:
                    raise Died
        except* Died:
            assert die


def ended(event: Envelope[Event]) -> bool:
    return isinstance(event.data, client.Ended)


def firsts(told: Sequence[Envelope[Event]]) -> list[Envelope[Event]]:
    """Each event where it was told for the first time."""
    found: dict[str, Envelope[Event]] = {}
    for one in told:
        found.setdefault(one.id, one)
    return list(found.values())


def check_order(told: Sequence[Envelope[Event]]) -> None:
    """P3, and more than that: what belongs together stands in the order of cause and effect, and nothing new after the end."""
    assert broken(told) == []
    new = [one.data for one in firsts(told)]
    assert isinstance(new[0], RunStarted)
    assert isinstance(new[-1], RunSucceeded)
    assert sum(isinstance(one, client.Ended) for one in new) == 1
    place = {key(one): number for number, one in enumerate(new)}
    for one in new:
        match one:
            case NodeEnded():
                assert place["node", "begin", one.task] < place[key(one)]
            case AgentAnswered():
                tools = [two for two in new if isinstance(two, ToolAnswered) and two.call_id == one.call_id]
                assert place["call", "begin", one.call_id] < place[key(one)]
                assert all(place[key(two)] < place[key(one)] for two in tools)
            case ToolAnswered():
                assert place["tool", "begin", one.tool_call_id] < place[key(one)]
            case _:
                continue


def broken(told: Sequence[Envelope[Event]]) -> list[str]:
    """What the chaos suite finds wrong with it, where nobody took anything over."""
    seen = [Seen(one.key, one.id, one.data.TYPE, one.data.model_dump(mode="json")) for one in told]
    return [*order.broken(seen, order.Holders())]


def key(event: Event) -> tuple[str, str, str]:
    match event:
        case NodeStarted() | NodeEnded():
            return "node", "begin" if isinstance(event, NodeStarted) else "end", event.task
        case AgentAsked() | AgentAnswered():
            return "call", "begin" if isinstance(event, AgentAsked) else "end", event.call_id
        case ToolCalled() | ToolAnswered():
            return "tool", "begin" if isinstance(event, ToolCalled) else "end", event.tool_call_id
        case _:
            return "run", "", type(event).__name__


async def test_a_run_is_told_in_the_order_of_cause_and_effect_under_one_key(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.until(ended)
    check_order(bench.told)
    kinds = {type(one.data) for one in bench.told}
    assert kinds >= {NodeStarted, NodeEnded, AgentAsked, AgentAnswered, ToolCalled, ToolAnswered, DecisionMade}
    assert {(one.key, getattr(one.data, "run_id", "")) for one in bench.told} == {(bench.run_id, bench.run_id)}
    assert len({one.id for one in bench.told}) == len(bench.told)
    assert "print(" not in " ".join(one.data.model_dump_json() for one in bench.told if not ended(one))


class Slow(MemoryBus):
    """Holds the end of each node back for a while; were the run's end told meanwhile, until that."""

    def __init__(self) -> None:
        super().__init__()
        self.over = asyncio.Event()

    async def publish(self, *records: Record) -> None:
        names = [dict(record.headers)["ce_id"] for record in records if record.topic == EVENTS_TOPIC]
        if any(name.endswith(b"/done") for name in names):
            with suppress(TimeoutError):
                await asyncio.wait_for(self.over.wait(), 0.7)
        await super().publish(*records)
        if any(name.endswith(b"/ended") for name in names):
            self.over.set()


async def test_the_end_is_told_last_though_the_broker_takes_its_time_with_what_was_told_before(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Slow)
    await bench.until(ended)
    check_order(bench.told)
    assert {type(one.data) for one in bench.told} >= {NodeEnded, AgentAnswered, ToolAnswered}


async def test_the_chaos_suite_sees_an_end_that_does_not_wait_for_what_was_told_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a product that tells the end of a run past what its nodes told
    announce = Execution.announce

    async def hasty(self: Execution, run: Run, desk: RunDesk | None = None) -> None:
        await announce(self, run)

    monkeypatch.setattr(Execution, "announce", hasty)
    bench = Bench(tmp_path, Slow)
    # When a run ends on a broker that takes its time
    await bench.until(lambda one: isinstance(one.data, NodeEnded) and any(map(ended, bench.told)))
    # Then that counts
    assert f"{NodeEnded.TYPE} after the end" in broken(bench.told)


async def test_a_node_that_is_run_again_because_a_service_was_away_has_not_ended_and_one_that_failed_has_an_id_for_that() -> (
    None
):
    def chunk(**ended: object) -> tuple[str, dict[str, object]]:
        return "tasks", {"id": "t", "name": "n", "result": {}, "interrupts": (), **ended}

    async def graph() -> AsyncGenerator[Any]:
        for error in (JournalGone("away"), FencedOff("taken"), asyncio.CancelledError(), ValueError("broken"), None):
            yield chunk(error=error)

    db = SqliteDatabase(":memory:")
    broker = Broker()
    desk = RunDesk(RUN, broker, Journal(db), {})
    await to_the_end(desk, graph())
    await desk.progress.drain(HUNG)
    await db.close()
    assert broker.told == [f"{RUN}/node/t/failed", f"{RUN}/node/t/done"]


@pytest.mark.parametrize("last", [RunStarted, DecisionMade, AgentAsked, ToolCalled, AgentAnswered, NodeEnded])
async def test_after_a_crash_what_is_told_again_has_its_id_and_its_words_and_the_order_holds(
    tmp_path: Path, last: type[Event]
) -> None:
    bench = Bench(tmp_path)
    # Given a system that dies in the middle of a run; where it dies at a tool call, that one is under way
    if last is ToolCalled:
        bench.let.clear()
    await bench.until(lambda one: isinstance(one.data, last), die=True)
    bench.let.set()
    before = len(bench.told)
    # When another one goes on over the same journal
    await bench.until(ended)
    # Then the run was resumed, and ended once
    assert [one.data.segment for one in bench.told if isinstance(one.data, RunResumed)] == [2]
    check_order(bench.told)
    # and what was told again says the same
    again = {one.id for one in bench.told[:before]} & {one.id for one in bench.told[before:]}
    assert again
    for one in again:
        assert len({type(two.data).__name__ + two.data.model_dump_json() for two in bench.told if two.id == one}) == 1


async def test_a_broker_that_refuses_now_and_then_changes_no_order() -> None:
    refused: set[bytes] = set()

    class Grudging(Broker):
        """Refuses once whatever comes new."""

        async def publish(self, *records: Record) -> None:
            names = {dict(record.headers)["ce_id"] for record in records}
            if names - refused:
                refused.update(names)
                raise BusGone("not now")
            await super().publish(*records)

    broker = Grudging()
    out = Outgoing(broker)
    for number in range(5):
        out.tell(node(number))
        await asyncio.sleep(0)
    async with asyncio.timeout(HUNG):
        await out.told(node(5))
    assert broker.told == ids(*range(6))
