"""The time of a run: it ends when that is over, whatever its nodes do, with what it has; while it waits for a person, its time stands still.

Not here: how a limit of time shortens the deadlines of calls (`test_budgets`).
"""

from __future__ import annotations

import asyncio
import operator
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.graph import END, START, StateGraph

from metier_infra.bus import MemoryBus
from metier_infra.database import Statement
from metier_infra.errors import LimitReached
from metier_infra.events import REQUESTS, RunRequested
from metier_infra.journal import Journal
from metier_infra.messages import Envelope, encode
from metier_infra.rows import Approval, Call, Run
from metier_infra.words import CallId, Limits, RunId, Task, ToolCallId, stable_id
from metier_workflows.node import agent, sleep, subrun
from metier_workflows.run_desk import RunDesk
from metier_workflows.segment import to_the_end
from metier_workflows.spending import Spending
from metier_workflows.workflow import Graph, Workflows, workflow

from .kit import HUNG, House, house_of, until

HOUR_S = 3600.0


class State(TypedDict):
    """What the graphs of these tests share."""

    said: Annotated[list[str], operator.add]


async def gives(state: State) -> dict[str, list[str]]:
    return {"said": ["given"]}


async def stalls(state: State) -> dict[str, list[str]]:
    await asyncio.Event().wait()
    return {}


async def naps(state: State) -> dict[str, list[str]]:
    await sleep(HOUR_S)
    return {"said": ["slept"]}


async def delegates(state: State) -> dict[str, Any]:
    return await subrun("nap", {"said": []})


async def asks_and_breaks(state: State) -> dict[str, list[str]]:
    async def breaks() -> None:
        await ASKED.wait()
        raise ZeroDivisionError

    await asyncio.gather(agent("helper").ask("held"), breaks())
    return {}


ASKED = asyncio.Event()
NODES = {"stall": stalls, "nap": naps, "delegate": delegates, "break": asks_and_breaks}


def after_it_gave(node: Any) -> Graph:
    made = StateGraph(State)
    made.add_node("gives", gives)
    made.add_node("node", node)
    made.add_edge(START, "gives")
    made.add_edge("gives", "node")
    made.add_edge("node", END)
    return made


WORKFLOWS = Workflows([workflow(name)(lambda node=node: after_it_gave(node)) for name, node in NODES.items()])


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with house_of(WORKFLOWS) as made:
        yield made


async def within(house: House, name: str, time_s: float) -> RunId:
    """Ask for a run that may take so long."""
    event = RunRequested(workflow=name, input={"said": []}, limits=Limits(time_s=time_s))
    await house.bus.publish(encode(REQUESTS, Envelope(event, "e", "/shop", "e")))
    return RunId(stable_id("run", "/shop", "e"))


async def test_a_node_that_does_not_come_to_an_end_does_not_outlast_the_time_of_its_run(house: House) -> None:
    async with house.replica():
        run = await house.ended(await within(house, "stall", 0.01))
    assert run.failure is not None
    assert (run.status, run.failure.code) == ("failed", "limit_reached")


async def stuck() -> AsyncGenerator[Any]:
    yield "values", {"said": ["given"]}
    await asyncio.Event().wait()


async def test_what_a_run_has_when_its_time_is_over_is_kept(house: House) -> None:
    desk = RunDesk(RunId("a" * 32), MemoryBus(), house.journal, {})
    async with asyncio.timeout(HUNG):
        with pytest.raises(LimitReached, match="time is over"):
            await to_the_end(desk, stuck(), ends_at=time.time())
    assert desk.outputs == {"said": ["given"]}


async def passes(house: House, seconds: float) -> None:
    """So long goes by for runs that are parked."""
    await house.db.write(
        Statement(
            "UPDATE runs SET accepted_at = accepted_at - :s, parked_at = parked_at - :s, wake_at = wake_at - :s WHERE status = 'parked'",
            {"s": seconds},
        )
    )


async def test_a_run_that_is_parked_past_its_time_is_taken_up_and_ends_with_what_it_has(house: House) -> None:
    async with house.replica():
        run = await house.parked(await within(house, "nap", 600))
        await passes(house, 601)
        ended = await house.ended(run.run_id)
    assert ended.failure is not None
    assert (ended.failure.code, ended.partial) == ("limit_reached", {"said": ["given"]})
    assert ended.finished_at is not None
    assert ended.finished_at - ended.accepted_at < HOUR_S


async def test_the_time_of_a_run_bounds_the_runs_that_it_started(house: House) -> None:
    async with house.replica(park_after_s=0.05):
        run = await house.parked(await within(house, "delegate", 600))
        (child,) = await house.journal.runs.children(run.run_id)
        await house.parked(child.run_id)
        assert await Spending(house.journal, child).ends_at() == pytest.approx(run.accepted_at + 600)
        await passes(house, 601)
        ends = [await house.ended(run.run_id), await house.ended(child.run_id)]
    assert ends[0].failure is not None
    assert ends[0].failure.code == "limit_reached"
    assert ends[1].status in {"failed", "cancelled"}


async def a_call_that_waits_for_a_person(journal: Journal) -> tuple[Run, Call]:
    run = Run(
        run_id=RunId(stable_id("run", "/s", "e")), source="/s", event_id="e", workflow="w", version=None, status="accepted",
        input={}, traceparent="",
    )  # fmt: skip
    await journal.runs.accept(run)
    held = await journal.runs.lease(run.run_id, "one")
    assert held is not None
    call = Call(call_id=CallId("c" * 32), run_id=run.run_id, agent="a", task=Task(text="q"), deadline=time.time() + 60)
    await journal.calls.request(call)
    await journal.calls.claim(call.call_id, "w")
    wish = {"run_id": run.run_id, "call_id": call.call_id, "agent": "a", "approval_id": "a" * 32, "tool": "python"}
    await journal.approvals.want(Approval.model_validate({**wish, "digest": "d", "arguments": {}, "why": "dear"}), 60)
    return held, await journal.calls.park(call.call_id, "w")


async def wakes_at(journal: Journal) -> float | None:
    rows = await journal.db.read("SELECT wake_at FROM runs WHERE status = 'parked'")
    found: float | None = rows[0]["wake_at"]
    return found


async def test_while_it_waits_for_a_person_the_time_of_a_run_stands_still(journal: Journal) -> None:
    run, call = await a_call_that_waits_for_a_person(journal)
    ends_at = time.time() + 100
    assert await journal.runs.park(run.run_id, run.epoch, {call.call_id: "call"}, ends_at)
    assert await wakes_at(journal) is None
    # and once that person has decided, it goes on
    await journal.approvals.decide(ToolCallId("a" * 32), granted=True, by="ann")
    taken = await journal.runs.lease(run.run_id, "two")
    assert taken is not None
    assert await journal.runs.park(run.run_id, taken.epoch, {}, ends_at)
    assert await wakes_at(journal) == pytest.approx(ends_at)


async def test_a_run_that_failed_gives_up_the_calls_that_nobody_waits_for_any_more(house: House) -> None:
    house.helper.holds["held"] = asyncio.Event()
    ASKED.clear()
    async with house.replica():
        run_id = await house.request("break", said=[])
        await house.asked(1)
        ASKED.set()
        run = await house.ended(run_id)
        house.helper.holds["held"].set()
    (call,) = await house.journal.calls.of_run(run_id)
    assert run.status == "failed"
    assert call.cancelled == "its run failed: workflow_broken"

    async def settled() -> bool | None:
        (one,) = await house.journal.calls.of_run(run_id)
        return one.answered_at is not None or None

    await until(settled)
