"""Outcomes on their topic, beside a real orchestrator: kept once, late, early or twice; and those that it reads off what happened. Not here: what counts (`test_outcomes`)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypedDict

import pytest
from langgraph.graph import START, StateGraph

from metier_infra.bus import MemoryBus
from metier_infra.events import DEAD_LETTERS, OUTCOMES, REQUESTS, OutcomeReported, RetryRequested
from metier_infra.messages import Envelope, encode
from metier_infra.outcomes import Outcome
from metier_infra.words import RunId, stable_id
from metier_workflows.choosers import panel
from metier_workflows.workflow import Graph, Workflows, workflow

from .kit import House, house_of, until


class State(TypedDict):
    """What the graph of these tests has."""

    question: str
    answer: dict[str, Any]


@workflow("ask")
def ask() -> Graph:
    return StateGraph(State).add_node("solve", panel("helper")).add_edge(START, "solve")


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with house_of(Workflows([ask])) as made:
        yield made


async def report(house: House, run_id: str, event_id: str, hour: int = 1, **more: Any) -> None:
    said = OutcomeReported.model_validate({"run_id": run_id, "score": 1.0, "by": "ann", **more})
    at = datetime(2026, 11, 28, hour, tzinfo=UTC)
    await house.bus.publish(encode(OUTCOMES, Envelope(said, event_id, "/shop", run_id, time=at)))


async def said_of(house: House, run_id: str, *, until_event: str) -> list[Outcome]:
    """What is kept about the run, once this event is."""

    async def probe() -> list[Outcome] | None:
        found = [*await house.journal.outcomes.listed(run_id)]
        return found if any(one.event_id == until_event for one in found) else None

    return await until(probe)


async def test_what_is_reported_is_kept_once_however_often_it_comes_and_the_latest_word_stands(house: House) -> None:
    async with house.replica():
        run_id = await house.request("ask", question="q")
        await house.ended(run_id)
        await report(house, run_id, "a late one", hour=5, score=0.5, note="almost")
        await report(house, run_id, "early", hour=2, score=0.0)
        for _ in range(3):
            await report(house, run_id, "a late one", hour=5, score=0.5, note="almost")
        await report(house, run_id, "of the agent", agent="helper", by="bob", kind="edit", weight=0.5)
        found = await said_of(house, run_id, until_event="of the agent")
    assert sorted((one.agent, one.score, one.by, one.note, one.counts, one.orphan) for one in found) == [
        ("", 0.5, "ann", "almost", 1.0, False),
        ("helper", 1.0, "bob", "", 0.25, False),
    ]


async def test_what_comes_before_its_run_waits_for_it_and_what_came_while_nobody_was_there_is_found(
    house: House,
) -> None:
    run_id = RunId(stable_id("run", "/shop", "e"))
    await report(house, run_id, "before")
    async with house.replica():
        (orphan,) = await said_of(house, run_id, until_event="before")
        assert orphan.orphan
        await house.ended(await house.request("ask", question="q"))
    (known,) = await house.journal.outcomes.listed(run_id)
    assert not known.orphan
    (row,) = (await house.journal.outcomes.logged()).rows
    assert (row.agent, row.score, row.text) == ("helper", 1.0, "q")


async def test_an_outcome_that_cannot_be_read_is_buried_and_holds_up_no_other(house: House) -> None:
    async with house.replica():
        await report(house, "r", "good")
        said = OutcomeReported(run_id="r", score=1, by="ann")
        bad = encode(OUTCOMES, Envelope(said, "bad", "/shop", "r"))
        await house.bus.publish(replace(bad, value=json.dumps(said.model_dump() | {"score": 1.5}).encode()))
        await report(house, "r", "after", by="bob")
        await said_of(house, "r", until_event="after")
        await until(lambda: buried(house))
    assert {one.event_id for one in await house.journal.outcomes.listed("r")} == {"good", "after"}


async def buried(house: House) -> bool | None:
    """Whether one record was."""
    assert isinstance(house.bus, MemoryBus)
    return len(house.bus.records(DEAD_LETTERS)) == 1 or None


async def test_that_a_run_which_succeeded_is_repeated_says_a_little_against_its_answer_and_of_one_that_failed_nothing(
    house: House,
) -> None:
    async with house.replica():
        good = await house.request("ask", question="q")
        bad = await house.request("ask", "f", question="")
        for run_id in (good, bad):
            await house.ended(run_id)
            asked = RetryRequested(run_id=run_id, by="ann", note="no good")
            await house.bus.publish(encode(REQUESTS, Envelope(asked, f"again {run_id}", "/shop", run_id)))
            await house.ended(RunId(stable_id("run", "/shop", f"again {run_id}")))
        (said,) = await said_of(house, good, until_event=f"again {good}")
    assert (said.kind, said.score, said.by, said.note) == ("retry", 0.0, "ann", "no good")
    assert await house.journal.outcomes.listed(bad) == []
