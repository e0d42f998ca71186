"""Waits of nodes: hot ones, and cold ones that cost no memory; times, signals, tries. Whatever dies, nothing is lost and nothing counts twice.

Not here: waits for persons (`test_approvals`); processes that are killed (the end-to-end tests).
"""

from __future__ import annotations

import asyncio
import operator
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from metier_infra.database import Statement
from metier_infra.errors import CallFailed, DeadlineMissed, FencedOff
from metier_infra.events import RUNS, RunAccepted
from metier_infra.journal import Journal
from metier_infra.kafka_bus import KafkaBus
from metier_infra.messages import Envelope, encode
from metier_infra.postgres_journal import PostgresDatabase
from metier_infra.rows import Awaited, Call, Run, Wait
from metier_infra.settings import KafkaSettings
from metier_infra.words import Answer, CallId, RunId, Task
from metier_workflows.node import Retry, agent, signal, sleep, sleep_until
from metier_workflows.workflow import Graph, Workflows, workflow

from .kit import House, helper_on, house_of, through_every_death, until

COLD = 0.05
R = RunId("r" * 32)
ENTERED: list[str] = []
MAY: dict[str, asyncio.Event] = {}


class State(TypedDict):
    """What the graphs of these tests share."""

    n: int
    said: Annotated[list[Any], operator.add]


class Said(TypedDict):
    """What they give."""

    said: list[Any]


def chain(*nodes: Any) -> Graph:
    made = StateGraph(State, output_schema=Said)
    names = [f"node{n}" for n in range(len(nodes))]
    for name, node in zip(names, nodes, strict=True):
        made.add_node(name, node)
    for before, after in zip([START, *names], [*names, END], strict=True):
        made.add_edge(before, after)
    return made


async def naps(state: State) -> dict[str, Any]:
    ENTERED.append("naps")
    await sleep(0.3)
    return {"said": ["slept"]}


async def sleeps_long(state: State) -> dict[str, Any]:
    ENTERED.append("sleeps")
    await sleep(3600)
    return {"said": ["slept"]}


async def sleeps_until(state: State) -> dict[str, Any]:
    await sleep_until(datetime.now(UTC) - timedelta(days=1))
    return {"said": ["slept"]}


async def hears(state: State) -> dict[str, Any]:
    ENTERED.append("hears")
    return {"said": [await signal("go")]}


async def hears_in_time(state: State) -> dict[str, Any]:
    try:
        return {"said": [await signal("go", timeout_s=0.2)]}
    except DeadlineMissed:
        return {"said": ["nothing"]}


async def asks(state: State) -> dict[str, Any]:
    ENTERED.append("asks")
    return {"said": [(await agent("helper").ask("q")).text]}


async def asks_hastily(state: State) -> dict[str, Any]:
    return {"said": [(await agent("helper").ask("q", timeout_s=0.5)).text]}


async def tries(state: State) -> dict[str, Any]:
    return {"said": [(await agent("helper").ask("q", retry=Retry(attempts=3, first_s=0.01))).text]}


async def branch(state: State) -> dict[str, Any]:
    ENTERED.append(f"branch {state['n']}")
    return {"said": [(await agent("helper").ask(f"q {state['n']}")).text]}


async def mixed(state: State) -> dict[str, Any]:
    """A time, a signal and a call side by side."""
    answer, heard, _ = await asyncio.gather(agent("helper").ask("q"), signal("go"), sleep(0.2))
    return {"said": [answer.text, heard]}


async def works(state: State) -> dict[str, Any]:
    """A node that does something else than wait."""
    await MAY["end"].wait()
    return {"said": ["worked"]}


def spread(state: State) -> list[Send]:
    return [Send("branch", State(n=n, said=[])) for n in range(state["n"])]


def fan() -> Graph:
    made = StateGraph(State, output_schema=Said)
    made.add_node("branch", branch)
    made.add_conditional_edges(START, spread, ["branch"])
    made.add_edge("branch", END)
    return made


def beside() -> Graph:
    made = StateGraph(State, output_schema=Said)
    made.add_node("hears", hears)
    made.add_node("works", works)
    for name in ("hears", "works"):
        made.add_edge(START, name)
        made.add_edge(name, END)
    return made


GRAPHS: Mapping[str, Any] = {
    "naps": lambda: chain(naps),
    "long": lambda: chain(sleeps_long),
    "past": lambda: chain(sleeps_until),
    "hears": lambda: chain(hears),
    "thrice": lambda: chain(hears, hears, hears),
    "in time": lambda: chain(hears_in_time, hears),
    "asks": lambda: chain(asks),
    "hasty": lambda: chain(asks_hastily),
    "tries": lambda: chain(tries),
    "mixed": lambda: chain(mixed),
    "beside": beside,
    "fan": fan,
}
WORKFLOWS = Workflows([workflow(name)(build) for name, build in GRAPHS.items()])


@pytest.fixture
async def house() -> AsyncIterator[House]:
    ENTERED.clear()
    async with house_of(WORKFLOWS) as made:
        yield made


async def wake(house: House, run_id: RunId) -> None:
    event = RunAccepted(run_id=run_id, workflow="w")
    await house.bus.publish(encode(RUNS, Envelope(event, f"{run_id}/accepted", "/test", run_id)))


async def test_a_node_that_sleeps_goes_on_when_its_time_has_come_and_not_before(house: House) -> None:
    async with house.replica():
        run_id = await house.request("naps")
        run = await house.ended(run_id)
    assert run.result == {"said": ["slept"]}
    (wait,) = await house.journal.waits.of_run(run_id)
    assert wait.due is not None
    assert wait.ended_at is not None
    assert wait.ended_at >= wait.due == pytest.approx(wait.asked_at + 0.3, abs=0.002)
    assert (run.epoch, ENTERED) == (1, ["naps"])


async def test_a_time_that_has_passed_is_not_waited_for(house: House) -> None:
    async with house.replica():
        assert (await house.ended(await house.request("past"))).result == {"said": ["slept"]}


async def test_a_run_that_sleeps_for_long_is_parked_at_once_and_taken_up_when_its_time_has_come(house: House) -> None:
    async with house.replica(park_after_s=60):
        run_id = await house.request("long")
        await house.parked(run_id)
        (row,) = await house.db.read("SELECT * FROM runs")
        (wait,) = await house.journal.waits.of_run(run_id)
        assert (row["owner"], row["lease_until"], row["wake_at"]) == (None, 0, wait.due)
        assert await house.journal.runs.due() == []
        # When an hour is over
        await house.db.write(
            Statement("UPDATE waits SET due = due - 3600"), Statement("UPDATE runs SET wake_at = wake_at - 3600")
        )
        run = await house.ended(run_id)
    assert (run.result, ENTERED) == ({"said": ["slept"]}, ["sleeps", "sleeps"])


async def test_a_timer_is_fixed_when_it_is_first_asked_for(house: House) -> None:
    async with house.replica():
        run_id = await house.request("long")
        await house.parked(run_id)
        (before,) = await house.journal.waits.of_run(run_id)
        await wake(house, run_id)
        await until(lambda: _epoch(house, run_id, 2))
        await house.parked(run_id)
    (after,) = await house.journal.waits.of_run(run_id)
    assert (after.wait_id, after.due) == (before.wait_id, before.due)


async def _epoch(house: House, run_id: RunId, epoch: int) -> bool | None:
    run = await house.journal.runs.get(run_id)
    return (run is not None and run.epoch >= epoch) or None


async def test_signals_are_kept_and_each_wait_gets_the_next_one(house: House) -> None:
    async with house.replica():
        run_id = await house.request("thrice")
        await house.recorded(run_id, 1)
        for n in (1, 2):
            await house.signal(run_id, f"s{n}", data={"n": n})
        await house.signal(run_id, "s2", data="sent twice")
        await house.signal(run_id, "other", name="another")
        await house.recorded(run_id, 3)
        await house.signal(run_id, "s3", data=3)
        run = await house.ended(run_id)
    assert run.result == {"said": [{"n": 1}, {"n": 2}, 3]}
    left = [one.name for one in await house.journal.signals.of_run(run_id) if one.wait_id is None]
    assert left == ["another"]


async def test_a_signal_takes_a_parked_run_up(house: House) -> None:
    async with house.replica(park_after_s=COLD):
        run_id = await house.request("hears")
        await house.parked(run_id)
        await house.signal(run_id, "s", data=[1])
        run = await house.ended(run_id)
    assert (run.result, run.epoch) == ({"said": [[1]]}, 2)


async def test_a_signal_that_does_not_come_is_missed_and_the_next_wait_gets_the_one_that_does(house: House) -> None:
    async with house.replica(park_after_s=COLD):
        run_id = await house.request("in time")
        await house.recorded(run_id, 2)
        await house.signal(run_id, "s", data="late")
        assert (await house.ended(run_id)).result == {"said": ["nothing", "late"]}


async def test_a_run_that_waits_for_an_agent_for_long_is_parked_and_its_call_is_sent_once(house: House) -> None:
    house.helper.holds["q"] = asyncio.Event()
    async with house.replica(park_after_s=COLD):
        run_id = await house.request("asks")
        await house.parked(run_id)
        (row,) = await house.db.read("SELECT * FROM runs")
        (call,) = await house.journal.calls.of_run(run_id)
        assert (row["owner"], row["lease_until"], row["wake_at"]) == (None, 0, call.deadline)
        house.helper.holds["q"].set()
        run = await house.ended(run_id)
    assert (run.result, ENTERED) == ({"said": ["re: q"]}, ["asks", "asks"])
    assert dict(house.helper.asked) == {call.call_id: 1}


async def test_a_call_whose_deadline_passes_while_its_run_is_parked_is_missed(house: House) -> None:
    house.helper.holds["q"] = asyncio.Event()
    async with house.replica(park_after_s=COLD):
        run_id = await house.request("hasty")
        run = await house.ended(run_id)
    assert run.failure is not None
    assert (run.failure.code, run.epoch) == ("deadline_missed", 2)


async def test_a_parked_run_that_is_cancelled_ends(house: House) -> None:
    async with house.replica():
        run_id = await house.request("long")
        await house.parked(run_id)
        await house.cancel(run_id)
        assert (await house.ended(run_id)).status == "cancelled"


async def test_a_node_that_works_keeps_its_run_in_memory(house: House) -> None:
    MAY["end"] = asyncio.Event()
    async with house.replica(park_after_s=COLD):
        run_id = await house.request("beside")
        await house.recorded(run_id, 1)
        await asyncio.sleep(10 * COLD)
        run = await house.journal.runs.get(run_id)
        assert run is not None
        assert run.status == "running"
        MAY["end"].set()
        await house.parked(run_id)
        await house.signal(run_id, "s", data="heard")
        assert (await house.ended(run_id)).result == {"said": ["heard", "worked"]}


async def test_a_hundred_waits_that_were_parked_are_entered_twice_each_however_their_answers_come(house: House) -> None:
    house.helper.holds = {f"q {n}": asyncio.Event() for n in range(100)}
    async with house.replica(park_after_s=1):
        run_id = await house.request("fan", n=100)
        await house.parked(run_id)
        assert len(ENTERED) == 100
        for let in house.helper.holds.values():
            let.set()
            await asyncio.sleep(0.002)
        run = await house.ended(run_id)
    assert run.result == {"said": [f"re: q {n}" for n in range(100)]}
    assert len(ENTERED) <= 300
    assert set(house.helper.asked.values()) == {1}


async def test_a_thousand_branches_ask_once_each_and_the_run_ends(house: House) -> None:
    async with house.replica():
        run = await house.ended(await house.request("fan", n=1000))
    assert run.result == {"said": [f"re: q {n}" for n in range(1000)]}
    assert (len(house.helper.asked), set(house.helper.asked.values()), len(ENTERED)) == (1000, {1}, 1000)


async def test_what_may_pass_is_asked_again_as_a_call_of_its_own(house: House) -> None:
    house.helper.fails["q"] = 2
    async with house.replica():
        run_id = await house.request("tries")
        run = await house.ended(run_id)
    assert run.result == {"said": ["re: q"]}
    calls = await house.journal.calls.of_run(run_id)
    assert [call.failure.code if call.failure else None for call in calls] == ["model_busy", "model_busy", None]
    assert [call.slot[2] for call in calls if call.slot] == [1, 2, 3]
    waits = await house.journal.waits.of_run(run_id)
    assert [round((wait.due or 0) - wait.asked_at, 2) for wait in waits] == [0.01, 0.02]


async def test_the_last_failure_is_raised_when_all_tries_are_used_up(house: House) -> None:
    house.helper.fails["q"] = 3
    async with house.replica():
        run = await house.ended(await house.request("tries"))
    assert run.failure is not None
    assert run.failure.code == CallFailed("", reason="").code
    assert sum(house.helper.asked.values()) == 3


def test_only_failures_that_may_pass_are_tried_again() -> None:
    retry = Retry(attempts=4, first_s=1, factor=3, ceiling_s=5)
    assert [retry.delay("model_busy", n) for n in (1, 2, 3, 4)] == [1, 3, 5, None]
    assert retry.delay("model_refused", 1) is None
    assert Retry(on={"model_refused"}).delay("model_refused", 1) == 1


@pytest.mark.parametrize("committed", [False, True], ids=["before", "after"])
async def test_whichever_write_the_orchestrator_dies_at_nothing_is_lost_and_nothing_doubled(committed: bool) -> None:
    async def work(house: House) -> None:
        ENTERED.clear()
        run_id = await house.request("mixed")
        house.helper.holds["q"] = asyncio.Event()
        await house.recorded(run_id, 2)
        await house.parked(run_id)
        await house.signal(run_id, "s", data="heard")
        await house.signal(run_id, "s", data="heard again")
        house.helper.holds["q"].set()
        run = await house.ended(run_id)
        assert run.result == {"said": ["re: q", "heard"]}
        assert len(house.helper.asked) == 1
        assert len(await house.journal.waits.of_run(run_id)) == 2
        assert await house.ends_told() == {f"{run_id}/ended"}

    assert await through_every_death(WORKFLOWS, work, committed=committed, park_after_s=COLD) > 6


def a_run(run_id: RunId, parent: RunId | None = None) -> Run:
    return Run(run_id=run_id, source="/s", event_id=run_id, workflow="w", version=None, status="accepted", input={}, traceparent="", parent=parent)  # fmt: skip


def a_wait(n: int, name: str | None = None) -> Wait:
    return Wait(wait_id=f"{n:032x}", run_id=R, slot=("node:task", "what", n), name=name)


async def held(journal: Journal) -> Run:
    await journal.runs.accept(a_run(R))
    run = await journal.runs.lease(R, "one")
    assert run is not None
    return run


async def a_call(journal: Journal) -> str:
    call = Call(call_id=CallId("c" * 32), run_id=R, agent="helper", task=Task(text="q"), deadline=time.time() + 60)
    return (await journal.calls.request(call)).call_id


async def answered(journal: Journal) -> None:
    answer = Answer(text="a", agent="helper", model="m", policy="p")
    await journal.calls.answer(CallId("c" * 32), answer=answer)


async def a_signal(journal: Journal) -> None:
    assert await journal.signals.record(R, "s", "go", None, "ann")


async def a_child(journal: Journal) -> str:
    await journal.runs.accept(a_run(RunId("d" * 32), R))
    return "d" * 32


async def the_childs_end(journal: Journal) -> None:
    child = await journal.runs.lease(RunId("d" * 32), "two")
    assert child is not None
    await journal.runs.finish(child.run_id, child.epoch, result={})
    await journal.runs.announced(child.run_id)


async def a_wait_for_a_signal(journal: Journal) -> str:
    return (await journal.waits.ask(a_wait(1, "go"))).wait_id


async def a_timer(journal: Journal) -> str:
    return (await journal.waits.ask(a_wait(1), 3600)).wait_id


async def an_hour(journal: Journal) -> None:
    await journal.db.write(
        Statement("UPDATE waits SET due = due - 3601"), Statement("UPDATE runs SET wake_at = wake_at - 3601")
    )


EVENTS: Mapping[str, tuple[Awaited, Any, Any]] = {
    "an answer": ("call", a_call, answered),
    "a signal": ("wait", a_wait_for_a_signal, a_signal),
    "a time": ("wait", a_timer, an_hour),
    "an end": ("run", a_child, the_childs_end),
}


@pytest.mark.parametrize("what", EVENTS)
async def test_what_happens_before_a_run_parks_keeps_it_and_what_happens_afterwards_is_found(
    journal: Journal, what: str
) -> None:
    kind, asked, happens = EVENTS[what]
    run = await held(journal)
    # Given that it happens between the last look and the parking
    awaited = await asked(journal)
    await happens(journal)
    assert not await journal.runs.park(R, run.epoch, {awaited: kind})
    # Given that it has not happened
    await journal.db.write(
        *(Statement(f"DELETE FROM {part}") for part in ("calls", "waits", "signals", "runs WHERE parent IS NOT NULL"))
    )
    again = await asked(journal)
    with pytest.raises(FencedOff):
        await journal.runs.park(R, run.epoch + 1, {again: kind})
    assert await journal.runs.park(R, run.epoch, {again: kind})
    needy = [one.run_id for one in await journal.runs.unattended(-1)]
    assert R not in needy
    # When it happens then
    await happens(journal)
    needy = [one.run_id for one in await journal.runs.unattended(-1)]
    assert R in needy
    assert [one.run_id for one in await journal.runs.due()] == ([R] if what == "a time" else [])


async def test_a_parked_run_is_not_found_for_what_it_did_not_wait_for(journal: Journal) -> None:
    run = await held(journal)
    awaited = await a_wait_for_a_signal(journal)
    await a_call(journal)
    assert await journal.runs.park(R, run.epoch, {awaited: "wait"})
    await answered(journal)
    assert await journal.runs.unattended(-1) == []


async def test_each_signal_ends_one_wait_in_order_though_all_come_at_once(journal: Journal) -> None:
    await held(journal)
    asked = [journal.waits.ask(a_wait(n, "go"), 60) for n in range(1, 31)]
    told = [journal.signals.record(R, f"s{n}", "go", n, "ann") for n in range(20)]
    again = [journal.signals.record(R, f"s{n}", "go", "again", "ann") for n in range(20)]
    new = await asyncio.gather(*asked[:10], *told, *again, *asked[10:])
    assert sum(one is True for one in new) == 20
    waits, signals = await journal.waits.of_run(R), await journal.signals.of_run(R)
    ended = [wait for wait in waits if wait.ended_at is not None]
    assert [wait.wait_id for wait in ended] == [wait.wait_id for wait in waits[:20]]
    assert [wait.signal_id for wait in ended] == [signal.signal_id for signal in signals]
    assert [wait.data for wait in ended] == [signal.data for signal in signals]


async def test_a_wait_that_is_over_gets_no_signal_and_one_that_got_a_signal_is_not_over(journal: Journal) -> None:
    await held(journal)
    late = await journal.waits.ask(a_wait(1, "go"), 0)
    assert late.ended_at is None
    assert (await journal.waits.over(late)).ended_at is not None
    await a_signal(journal)
    heard = await journal.waits.ask(a_wait(2, "go"), 0)
    after = await journal.waits.over(heard)
    assert (heard.signal_id, after.signal_id, after.ended_at) == ("s", "s", heard.ended_at)
    early = await journal.waits.ask(a_wait(3, "go"), 60)
    assert (await journal.waits.over(early)).ended_at is None
    assert (await journal.waits.ask(a_wait(1, "go"), 999)).due == late.due


async def test_what_was_sent_over_a_bus_that_is_gone_is_sent_again(house: House) -> None:
    """As where everything is in one process, and that ends."""
    house.helper.holds["q"] = asyncio.Event()
    async with house.replica(park_after_s=COLD):
        run_id = await house.request("asks")
        await house.parked(run_id)
        sleeper = await house.request("long", "other")
        await house.parked(sleeper)
    (lost,) = house.helper.asked
    async with house.moved():
        await house.journal.runs.recall()
        async with house.replica():
            assert (await house.ended(run_id)).result == {"said": ["re: q"]}
        assert dict(house.helper.asked) == {lost: 1}
        run = await house.journal.runs.get(sleeper)
        assert run is not None
        assert (run.status, run.epoch) == ("parked", 1)


async def test_a_run_that_was_given_up_a_moment_ago_is_not_parked(journal: Journal) -> None:
    run = await held(journal)
    awaited = await a_timer(journal)
    await journal.runs.cancel(R, by="ann", note="")
    assert not await journal.runs.park(R, run.epoch, {awaited: "wait"})


async def test_on_real_services_what_one_replica_parked_another_takes_up(
    topics: KafkaSettings, postgres_url: str
) -> None:
    ENTERED.clear()
    db = PostgresDatabase(postgres_url)
    await db.open()
    bus = KafkaBus(topics.model_copy(update={"session_timeout_ms": 3_000}), client="test")
    house = House(bus, db, WORKFLOWS, await helper_on(bus, Journal(db)), lease_s=3)
    house.helper.holds["q"] = asyncio.Event()
    async with house.replica(park_after_s=COLD, name="leaves"):
        runs = [await house.request("mixed", f"e{n}") for n in range(4)]
        for run_id in runs:
            await house.recorded(run_id, 2)
            await house.parked(run_id)
    house.helper.holds["q"].set()
    async with house.replica(park_after_s=COLD, name="stays"):
        for run_id in runs:
            await house.signal(run_id, f"s {run_id}", data="heard")
        ended = [await house.ended(run_id) for run_id in runs]
    assert [run.result for run in ended] == [{"said": ["re: q", "heard"]}] * 4
    assert set(house.helper.asked.values()) == {1}
    house.helper.task.cancel()
    await asyncio.wait([house.helper.task])
    await bus.close()
    await db.close()
