"""The saver over both databases: LangGraph's own conformance suite, the fence, and graphs that go on where they were cut off."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, Checkpoint, CheckpointMetadata, empty_checkpoint
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.capabilities import BASE_CAPABILITIES
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from metier_infra.database import Database, Params, Row, Statement
from metier_infra.errors import FencedOff
from metier_infra.journal import Journal
from metier_infra.rows import Run
from metier_infra.words import RunId
from metier_workflows.checkpoint import JournalSaver

TABLES = ("checkpoints", "channel_values", "channel_writes")
META: CheckpointMetadata = {"source": "loop", "step": 1, "parents": {}}
HUNG = 30


async def test_langgraphs_own_conformance_suite_passes(database: Database) -> None:
    @checkpointer_test(name="JournalSaver")
    async def savers() -> AsyncGenerator[BaseCheckpointSaver[str]]:
        yield JournalSaver(database)

    report = await validate(savers)
    for capability in BASE_CAPABILITIES:
        found = report.results[capability.value]
        assert found.detected, capability
        assert found.failures == [], capability
        assert found.tests_passed > 0, capability


async def held(journal: Journal, owner: str = "one") -> Run:
    """A run, accepted once, and leased."""
    asked = Run(
        run_id=RunId("r" * 32), source="/s", event_id="e", workflow="w", version=None, status="accepted", input={}, traceparent=""
    )  # fmt: skip
    await journal.runs.accept(asked)
    run = await journal.runs.lease(asked.run_id, owner)
    assert run is not None
    return run


def at(run: Run, **more: str) -> RunnableConfig:
    return {"configurable": {"thread_id": run.run_id, "checkpoint_ns": "", **more}}


def checkpoint(a: int) -> Checkpoint:
    """A checkpoint with the value `a` of one channel, in its version `a`."""
    made = empty_checkpoint()
    made["channel_values"] = {"a": a}
    made["channel_versions"] = {"a": str(a)}
    return made


async def stored(db: Database) -> dict[str, int]:
    return {table: int((await db.read(f"SELECT count(*) AS n FROM {table}"))[0]["n"]) for table in TABLES}


async def test_who_lost_the_run_can_write_nothing_and_who_holds_it_can(database: Database) -> None:
    brief = Journal(database, lease_s=-1)
    first = await held(brief)
    zombie = JournalSaver(database, first.epoch)
    place = await zombie.aput(at(first), checkpoint(1), META, {"a": "1"})
    await zombie.aput_writes(place, [("a", 1)], "task")
    second = await held(brief, "two")
    before = await stored(database)
    with pytest.raises(FencedOff):
        await zombie.aput(place, checkpoint(2), META, {"a": "2"})
    with pytest.raises(FencedOff):
        await zombie.aput_writes(place, [("a", 2)], "other task")
    assert await stored(database) == before == {"checkpoints": 1, "channel_values": 1, "channel_writes": 1}
    owner = JournalSaver(database, second.epoch)
    await owner.aput(place, checkpoint(2), META, {"a": "2"})
    found = await owner.aget_tuple(at(first))
    assert found is not None
    assert found.checkpoint["channel_values"] == {"a": 2}


async def test_a_saver_that_begins_hands_over_once_what_it_knows_and_reads_from_then_on(database: Database) -> None:
    run = await held(Journal(database))
    saver = JournalSaver(database, run.epoch)
    # Given a run that is new, and so has nothing that would have to be read
    assert await saver.begin(at(run), new=True) is None
    place = await saver.aput(at(run), checkpoint(1), META, {"a": "1"})
    assert await saver.aget_tuple(at(run)) is None
    # When it is asked again, or for a certain checkpoint, then it reads
    found = await saver.aget_tuple(at(run))
    assert found is not None
    assert found.config == place
    # And one that goes on begins where it stands
    again = JournalSaver(database, run.epoch)
    begun = await again.begin(at(run), new=False)
    assert begun is not None
    assert begun.config == place
    assert await again.aget_tuple(place) is not begun
    assert await again.aget_tuple(at(run)) is begun


class State(TypedDict):
    """Items to work on, and what came of them."""

    items: list[int]
    done: Annotated[list[int], operator.add]
    total: int


class Item(TypedDict):
    """What one branch gets."""

    n: int


class Work:
    """A graph that fans out over its items and sums up; it can be made to hang in one item, and counts its entries."""

    def __init__(self, hang_in: int | None = None) -> None:
        self.entered: list[str] = []
        self.hanging = asyncio.Event()
        self.hang_in = hang_in

    async def plan(self, state: State) -> dict[str, Any]:
        self.entered.append("plan")
        return {"items": [1, 2, 3]}

    async def item(self, state: Item) -> dict[str, Any]:
        self.entered.append(f"item{state['n']}")
        if state["n"] == self.hang_in:
            self.hanging.set()
            await asyncio.Event().wait()
        return {"done": [state["n"] * 10]}

    async def total(self, state: State) -> dict[str, Any]:
        self.entered.append("total")
        if self.hang_in == 0:
            self.hanging.set()
            await asyncio.Event().wait()
        return {"total": sum(state["done"])}

    async def run(self, saver: JournalSaver, config: RunnableConfig, value: State | None) -> dict[str, Any]:
        def fan(state: State) -> list[Send]:
            return [Send("item", Item(n=n)) for n in state["items"]]

        graph = StateGraph(State)
        graph.add_node("plan", self.plan)
        graph.add_node("item", self.item)
        graph.add_node("total", self.total)
        graph.add_edge(START, "plan")
        graph.add_conditional_edges("plan", fan, ["item"])
        graph.add_edge("item", "total")
        graph.add_edge("total", END)
        async with asyncio.timeout(HUNG):
            return await graph.compile(checkpointer=saver).ainvoke(value, config, durability="sync")


BEGIN: State = {"items": [], "done": [], "total": 0}
END_STATE = {"items": [1, 2, 3], "done": [10, 20, 30], "total": 60}


async def recorded(db: Database, tasks: int) -> None:
    """Wait until so many tasks of the fan-out have their writes in the database."""
    async with asyncio.timeout(HUNG):
        while True:
            rows = await db.read("SELECT count(*) AS n FROM channel_writes WHERE channel = 'done'")
            if int(rows[0]["n"]) >= tasks:
                return


async def cut_off(database: Database, run: Run, hang_in: int, done: int) -> Work:
    """Run until the graph hangs and the others' writes are stored; then the process dies."""
    work = Work(hang_in)
    running = asyncio.create_task(work.run(JournalSaver(database, run.epoch), at(run), BEGIN))
    async with asyncio.timeout(HUNG):
        await work.hanging.wait()
    await recorded(database, done)
    running.cancel()
    await asyncio.wait([running])
    return work


@pytest.fixture
def journal_brief(database: Database) -> Journal:
    return Journal(database, lease_s=-1)


async def test_after_a_crash_only_what_was_not_recorded_runs_again(database: Database, journal_brief: Journal) -> None:
    first = await cut_off(database, await held(journal_brief), hang_in=2, done=2)
    assert sorted(first.entered) == ["item1", "item2", "item3", "plan"]
    run, again = await held(journal_brief, "two"), Work()
    assert await again.run(JournalSaver(database, run.epoch), at(run), None) == END_STATE
    assert again.entered == ["item2", "total"]


async def test_after_a_crash_in_the_last_node_the_others_stay_done(database: Database, journal_brief: Journal) -> None:
    await cut_off(database, await held(journal_brief), hang_in=0, done=3)
    run, again = await held(journal_brief, "two"), Work()
    assert await again.run(JournalSaver(database, run.epoch), at(run), None) == END_STATE
    assert again.entered == ["total"]


async def test_asking_a_finished_graph_again_gives_its_result_and_runs_nothing(
    database: Database, journal_brief: Journal
) -> None:
    run = await held(journal_brief)
    await Work().run(JournalSaver(database, run.epoch), at(run), BEGIN)
    again = Work()
    assert await again.run(JournalSaver(database, run.epoch), at(run), None) == END_STATE
    assert again.entered == []


async def test_a_graph_whose_run_was_taken_over_stops_with_the_fence(
    database: Database, journal_brief: Journal
) -> None:
    lost = await held(journal_brief)
    await held(journal_brief, "two")
    work = Work()
    with pytest.raises(FencedOff):
        await work.run(JournalSaver(database, lost.epoch), at(lost), BEGIN)
    assert await stored(database) == dict.fromkeys(TABLES, 0)


async def test_only_changed_channels_are_stored(database: Database, journal_brief: Journal) -> None:
    """`items` is written once by the input and once by `plan`; no later superstep stores it again."""
    run = await held(journal_brief)
    await Work().run(JournalSaver(database, run.epoch), at(run), BEGIN)
    rows = await database.read("SELECT count(*) AS n FROM channel_values WHERE channel = 'items'")
    assert int(rows[0]["n"]) == 2


class Counted:
    """A layer round a database: it keeps every write."""

    def __init__(self, inner: Database) -> None:
        self._inner = inner
        self.writes: list[Sequence[Statement]] = []

    async def read(self, sql: str, params: Params | None = None) -> Sequence[Row]:
        return await self._inner.read(sql, params)

    async def write(self, *statements: Statement) -> Sequence[Sequence[Row]]:
        self.writes.append(statements)
        return await self._inner.write(*statements)

    async def close(self) -> None:
        await self._inner.close()


async def test_a_superstep_of_one_node_is_one_transaction(database: Database, journal_brief: Journal) -> None:
    run, counted = await held(journal_brief), Counted(database)
    graph = StateGraph(State)
    work = Work()
    graph.add_node("plan", work.plan)
    graph.add_node("total", work.total)
    graph.add_edge(START, "plan")
    graph.add_edge("plan", "total")
    graph.add_edge("total", END)
    await graph.compile(checkpointer=JournalSaver(counted, run.epoch)).ainvoke(BEGIN, at(run), durability="sync")
    rows = await database.read("SELECT count(*) AS n FROM checkpoints")
    assert len(counted.writes) == int(rows[0]["n"]) == 4
    assert all(sum(one.must for one in write) == 1 for write in counted.writes)
    kinds = [{one.sql.split()[2] for one in write if not one.must} for write in counted.writes]
    assert kinds == [{"channel_values", "checkpoints"}] + [{"channel_writes", "channel_values", "checkpoints"}] * 3


async def test_where_the_fence_falls_between_node_and_checkpoint_neither_is_stored(
    database: Database, journal_brief: Journal
) -> None:
    lost = await held(journal_brief)
    saver = JournalSaver(database, lost.epoch)
    place = await saver.aput(at(lost), checkpoint(1), META, {"a": "1"})
    await held(journal_brief, "two")
    node = saver.aput_writes(place, [("a", 2)], "task")
    found = await asyncio.gather(node, saver.aput(place, checkpoint(2), META, {"a": "2"}), return_exceptions=True)
    assert [type(one) for one in found] == [FencedOff, FencedOff]
    assert await stored(database) == {"checkpoints": 1, "channel_values": 1, "channel_writes": 0}


async def test_writes_of_a_node_whose_superstep_goes_on_are_stored_without_its_checkpoint(database: Database) -> None:
    saver = JournalSaver(database)
    place = await saver.aput({"configurable": {"thread_id": "r", "checkpoint_ns": ""}}, checkpoint(1), META, {"a": "1"})
    await saver.aput_writes(place, [("a", n) for n in range(120)], "task")
    found = await saver.aget_tuple(place)
    assert found is not None
    assert found.pending_writes == [("task", "a", n) for n in range(120)]


async def test_a_run_can_be_looked_at_and_forked_at_any_of_its_checkpoints(database: Database) -> None:
    config: RunnableConfig = {"configurable": {"thread_id": "r"}}
    work = Work()
    graph = StateGraph(State)
    graph.add_node("plan", work.plan)
    graph.add_node("total", work.total)
    graph.add_edge(START, "plan")
    graph.add_edge("plan", "total")
    graph.add_edge("total", END)
    compiled = graph.compile(checkpointer=JournalSaver(database))
    await compiled.ainvoke({"items": [], "done": [7], "total": 0}, config)
    history = [one async for one in compiled.aget_state_history(config)]
    assert [one.next for one in history] == [(), ("total",), ("plan",), ("__start__",)]
    assert [one.values.get("total") for one in history] == [7, 0, 0, None]
    before = history[1].config
    fork = await compiled.aupdate_state(before, {"done": [5]})
    assert (await compiled.ainvoke(None, fork))["total"] == 12
    assert (await compiled.aget_state(history[0].config)).values["total"] == 7
    assert (await compiled.aget_state(config)).values["total"] == 12


async def test_a_graph_within_a_graph_keeps_its_checkpoints_under_its_own_name(database: Database) -> None:
    inner = StateGraph(State)
    inner.add_node("plan", Work().plan)
    inner.add_edge(START, "plan")
    outer = StateGraph(State)
    outer.add_node("inner", inner.compile(checkpointer=True))
    outer.add_edge(START, "inner")
    config: RunnableConfig = {"configurable": {"thread_id": "r"}}
    compiled = outer.compile(checkpointer=JournalSaver(database))
    assert (await compiled.ainvoke(BEGIN, config))["items"] == [1, 2, 3]
    rows = await database.read("SELECT DISTINCT ns FROM checkpoints ORDER BY ns")
    assert [str(row["ns"]).split(":")[0] for row in rows] == ["", "inner"]
