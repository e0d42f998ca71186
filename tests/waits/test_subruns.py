"""Runs that nodes start: each once, in its parent's trace and for its tenant; what becomes of one reaches the other. Not here: what they cost (`test_budgets`)."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.graph import END, START, StateGraph
from pydantic import BaseModel

from metier_infra import telemetry
from metier_infra.errors import SubRunFailed
from metier_infra.events import REQUESTS, RunRequested
from metier_infra.messages import Envelope, encode
from metier_infra.rows import Run
from metier_infra.words import Limits, RunId, stable_id
from metier_workflows.node import agent, subrun
from metier_workflows.workflow import Graph, Workflows, workflow

from .kit import House, house_of, through_every_death, until

COLD = 0.05
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class State(TypedDict):
    """What the graphs of these tests share."""

    text: str
    said: Annotated[list[Any], operator.add]


class Said(TypedDict):
    """What they give."""

    said: list[Any]


class Text(BaseModel):
    """What the child takes."""

    text: str


def one_node(node: Any) -> Graph:
    made = StateGraph(State, output_schema=Said)
    made.add_node("node", node)
    made.add_edge(START, "node")
    made.add_edge("node", END)
    return made


async def asks(state: State) -> dict[str, Any]:
    return {"said": [(await agent("helper").ask(state["text"])).text]}


async def starts_two(state: State) -> dict[str, Any]:
    """Two different ones, and one of them twice."""
    texts = ("a", "b", "a")
    results = await asyncio.gather(*(subrun("child", {"text": text}, limits=Limits(tool_calls=3)) for text in texts))
    return {"said": [result["said"] for result in results]}


async def starts_bad(state: State) -> dict[str, Any]:
    try:
        await subrun("child", {"text": 7})
    except SubRunFailed as error:
        return {"said": [error.reason]}
    return {"said": ["nothing failed"]}


async def starts_one(state: State) -> dict[str, Any]:
    return await subrun("child", {"text": "a"})


async def starts_itself(state: State) -> dict[str, Any]:
    return await subrun("deep", {"text": "a"})


async def breaks_beside(state: State) -> dict[str, Any]:
    async def breaks() -> None:
        await MAY["break"].wait()
        raise ZeroDivisionError

    await asyncio.gather(subrun("child", {"text": "a"}), breaks())
    return {}


MAY: dict[str, asyncio.Event] = {}
GRAPHS: Mapping[str, Any] = {
    "two": starts_two,
    "bad": starts_bad,
    "one": starts_one,
    "deep": starts_itself,
    "breaks": breaks_beside,
}
WORKFLOWS = Workflows(
    [
        workflow("child", input=Text)(lambda: one_node(asks)),
        *(workflow(name)(lambda node=node: one_node(node)) for name, node in GRAPHS.items()),
    ]
)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with house_of(WORKFLOWS) as made:
        yield made


async def child_of(house: House, run_id: RunId) -> Run:
    """The run's one child, once it asked its agent."""

    async def probe() -> Run | None:
        children = await house.journal.runs.children(run_id)
        return children[0] if children and house.helper.asked else None

    return await until(probe)


async def test_runs_that_a_node_starts_give_their_results_to_it(house: House) -> None:
    asked = RunRequested(workflow="two", input={}, tenant="shop", priority=8)
    await house.bus.publish(encode(REQUESTS, Envelope(asked, "e", "/shop", "e", traceparent=TRACE)))
    run_id = RunId(stable_id("run", "/shop", "e"))
    async with house.replica():
        run = await house.ended(run_id)
    assert run.result == {"said": [["re: a"], ["re: b"], ["re: a"]]}
    children = await house.journal.runs.children(run_id)
    assert sorted(str(child.input["text"]) for child in children) == ["a", "a", "b"]
    assert {(child.tenant, child.priority, child.parent) for child in children} == {("shop", 8, run_id)}
    assert all(child.limits == Limits(tool_calls=3) for child in children)
    assert {telemetry.trace_id(child.traceparent) for child in children} == {telemetry.trace_id(TRACE)}
    assert {child.epoch for child in children} == {1}


async def test_a_run_that_a_node_started_and_that_fails_is_an_error_in_the_node(house: House) -> None:
    async with house.replica():
        run = await house.ended(await house.request("bad"))
    assert run.result == {"said": ["bad_input"]}


async def test_a_run_that_waits_for_another_is_parked_and_its_end_takes_it_up(house: House) -> None:
    house.helper.holds["a"] = asyncio.Event()
    async with house.replica(park_after_s=COLD):
        run_id = await house.request("one")
        child = await child_of(house, run_id)
        await house.parked(run_id)
        await house.parked(child.run_id)
        house.helper.holds["a"].set()
        run = await house.ended(run_id)
    assert (run.result, run.epoch) == ({"said": ["re: a"]}, 2)
    assert len(await house.journal.runs.children(run_id)) == 1


async def test_a_parent_is_found_when_nobody_told_it_that_its_child_has_ended(house: House) -> None:
    house.helper.holds["a"] = asyncio.Event()
    async with house.replica(park_after_s=COLD):
        run_id = await house.request("one")
        child = await child_of(house, run_id)
        await house.parked(run_id)
        await house.parked(child.run_id)
    # Given an end that is written and told, while no orchestrator lives to wake anybody
    held = await house.journal.runs.lease(child.run_id, "another")
    assert held is not None
    assert await house.journal.runs.unattended() == []
    await house.journal.runs.finish(child.run_id, held.epoch, result={"said": ["by another"]})
    await house.journal.runs.announced(child.run_id)
    assert [run.run_id for run in await house.journal.runs.unattended()] == [run_id]
    async with house.replica(park_after_s=COLD):
        assert (await house.ended(run_id)).result == {"said": ["by another"]}


async def test_a_parent_that_is_cancelled_takes_its_child_with_it_and_a_cancelled_child_fails_its_node(
    house: House,
) -> None:
    house.helper.holds["a"] = asyncio.Event()
    async with house.replica():
        first = await house.request("one", "first")
        child = await child_of(house, first)
        await house.cancel(first)
        assert (await house.ended(first)).status == "cancelled"
        assert (await house.ended(child.run_id)).status == "cancelled"
        second = await house.request("one", "second")
        await house.cancel((await child_of(house, second)).run_id)
        failed = await house.ended(second)
    assert failed.failure is not None
    assert failed.failure.code == "sub_run_failed"


async def test_a_run_that_fails_gives_up_what_it_started(house: House) -> None:
    house.helper.holds["a"] = asyncio.Event()
    MAY["break"] = asyncio.Event()
    async with house.replica():
        run_id = await house.request("breaks")
        child = await child_of(house, run_id)
        MAY["break"].set()
        assert (await house.ended(run_id)).status == "failed"
        assert (await house.ended(child.run_id)).status == "cancelled"


async def test_a_workflow_that_starts_itself_ends(house: House) -> None:
    async with house.replica():
        run = await house.ended(await house.request("deep"))
    assert run.failure is not None
    assert "20 deep" in run.failure.message
    assert len(await house.journal.runs.recent(limit=100)) == 21


async def test_a_run_that_somebody_else_asked_for_under_the_same_id_is_not_taken_for_the_child(house: House) -> None:
    house.helper.holds["a"] = asyncio.Event()
    async with house.replica():
        run_id = await house.request("one")
        child = await child_of(house, run_id)
    other = RunRequested(workflow="child", input={"text": "a"})
    await house.bus.publish(encode(REQUESTS, Envelope(other, child.event_id, f"/metier/runs/{run_id}", "k")))
    async with house.replica():
        house.helper.holds["a"].set()
        assert (await house.ended(run_id)).result == {"said": ["re: a"]}
    assert len(await house.journal.runs.recent()) == 2


@pytest.mark.parametrize("committed", [False, True], ids=["before", "after"])
async def test_whichever_write_the_orchestrator_dies_at_one_child_runs_and_both_end_once(committed: bool) -> None:
    async def work(house: House) -> None:
        house.helper.holds["a"] = asyncio.Event()
        run_id = await house.request("one")
        child = await child_of(house, run_id)
        await house.parked(run_id)
        house.helper.holds["a"].set()
        assert (await house.ended(run_id)).result == {"said": ["re: a"]}
        await house.ended(child.run_id)
        assert len(await house.journal.runs.recent()) == 2
        assert len(house.helper.asked) == 1
        assert await house.ends_told() == {f"{run_id}/ended", f"{child.run_id}/ended"}

    assert await through_every_death(WORKFLOWS, work, committed=committed, park_after_s=COLD) > 10
