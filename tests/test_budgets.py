"""Runs, tenants and calls under limits, over real journals and real workers with a model that counts what it bills: nothing is spent beyond a limit, and
nothing is spent without a trace.

Not here: the rules by which a limit is shared out (`test_budget`), and processes that are killed (`metier chaos`).
"""

from __future__ import annotations

import asyncio
import operator
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypedDict, cast

import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from pydantic import BaseModel, JsonValue

from metier_agents.attempt import Estimate
from metier_agents.model_table import Known, ModelTable
from metier_agents.prices import thrifty as by_price
from metier_agents.purse import Need
from metier_agents.spec import AgentSpec
from metier_agents.testing import ScriptedLane
from metier_agents.turns import ModelTurn, Usage, load, of_kind
from metier_agents.worker import AgentWorker
from metier_infra.budgets import Account
from metier_infra.bus import Consumption, MemoryBus
from metier_infra.database import Database, Row, Statement, migrate
from metier_infra.errors import LimitReached, ModelBusy
from metier_infra.events import (
    EVENTS_TOPIC,
    REQUESTS,
    RUNS,
    CallRequested,
    RequestRejected,
    RunCancelled,
    RunFailed,
    RunRequested,
    RunSucceeded,
    tasks_topic,
)
from metier_infra.journal import Journal
from metier_infra.messages import Delivery, Envelope, decode, encode
from metier_infra.rows import Approval, Call, Run
from metier_infra.service import Ready
from metier_infra.sqlite_journal import SqliteDatabase
from metier_infra.testing import Crash, Dying
from metier_infra.words import AgentCard, Allowance, CallId, Failure, Limits, RunId, Spent, Task, ToolCallId, stable_id
from metier_tools.builtin import BUILTIN
from metier_tools.tool import ToolResult
from metier_workflows.approving import call_event
from metier_workflows.node import agent, agents, decide, subrun
from metier_workflows.orchestrator import Orchestrator
from metier_workflows.routing import choose
from metier_workflows.spending import Spending, tenant_account
from metier_workflows.tenants import Tenant, TenantLimits, Tenants
from metier_workflows.workflow import Graph, Workflows, workflow

HUNG = 60
PRICE, TOKENS = 0.25, 100
"""What the model of these tests bills for one request."""
POLICY = {"kind": "autonomous"}
SOLVER = AgentSpec.model_validate(
    {"name": "solver", "model": "scripted:big", "fallbacks": ["scripted:small"], "policy": POLICY}
)
OTHERS = [SOLVER.model_copy(update={"name": name}) for name in ("first", "second", "third", "free")]
PONDERER = AgentSpec.model_validate(
    {"name": "ponderer", "model": "scripted:big", "policy": POLICY, "reasoning": {"kind": "deep", "rounds": 3}}
)
SPECS = {spec.name: spec for spec in (SOLVER, *OTHERS, PONDERER)}
PANEL = {"first", "second", "third"}


def card(spec: AgentSpec, skill: float) -> AgentCard:
    takes = Allowance(tokens=TOKENS if spec.name in PANEL else None, tool_calls=0)
    skills = {"general": skill}
    return AgentCard(
        name=spec.name, model=spec.model, policy="autonomous", skills=skills, takes=takes, priced=spec.name != "free"
    )


CARDS = {spec.name: card(spec, 1 - n / 10) for n, spec in enumerate(SPECS.values())}


class Meter:
    """A model that bills each request, and says so. `gate` holds its replies back from the n-th on, `holds` being n; `errors` come in place of the first."""

    def __init__(self, name: str = "scripted:big", price: float = PRICE) -> None:
        self.name, self.price = name, price
        self.billed: list[float] = []
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()
        self.holds: int | None = None
        self.errors: list[Exception] = []

    async def ask(
        self, messages: Any, *, tools: Any, tool_choice: Any, deadline: float, options: Any = None
    ) -> ModelTurn:
        """See `Model.ask`."""
        self.billed.append(self.price)
        if self.holds is not None and len(self.billed) >= self.holds:
            self.asked.set()
            await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        usage = Usage(input_tokens=TOKENS - 10, output_tokens=10)
        return ModelTurn(text="ANSWER: 42\nCONFIDENCE: 0.9", usage=usage, cost_usd=self.price, model=self.name)


def estimate(spec: AgentSpec) -> Estimate:
    """A request comes to what is billed."""
    return lambda history, tools, output_tokens: Need(TOKENS, PRICE if spec.model == "scripted:big" else PRICE / 10)


def thrifty(spec: AgentSpec) -> AgentSpec:
    """The same on the small model."""
    return AgentSpec.model_validate({**spec.model_dump(), "model": "scripted:small", "fallbacks": ()})


class State(TypedDict):
    """What the graphs of these tests share."""

    n: int
    said: Annotated[list[str], operator.add]


class Said(TypedDict):
    """What they give."""

    said: list[str]


class Asked(BaseModel):
    """What they take."""

    n: int


async def say(text: str) -> dict[str, list[str]]:
    answer = await agent("solver").ask(text)
    return {"said": [f"{text}: {answer.model} {answer.stopped}"]}


async def one(state: State) -> dict[str, list[str]]:
    return await say("one")


async def two(state: State) -> dict[str, list[str]]:
    return await say("two")


async def many(state: State) -> dict[str, list[str]]:
    """All at once; those for which nothing was left say so."""

    async def each(n: int) -> str:
        try:
            return (await say(str(n)))["said"][0]
        except LimitReached as error:
            return type(error).__name__

    return {"said": list(await asyncio.gather(*(each(n) for n in range(state["n"]))))}


async def ponder(state: State) -> dict[str, list[str]]:
    answer = await agent("ponderer").ask("ponder")
    return {"said": [f"{answer.text} {answer.stopped}"]}


async def priceless(state: State) -> dict[str, list[str]]:
    return {"said": [(await agent("free").ask("free")).text]}


async def below(state: State) -> dict[str, list[str]]:
    """Two runs, one after the other; only their calls take."""
    for n in range(2):
        await subrun("one", {"n": n})
    return {"said": ["both"]}


async def panel(state: State) -> dict[str, list[str]]:
    decision = await decide(choose("general", {n: c for n, c in agents().items() if n in PANEL}, size=3, reason="hard"))
    answers = await asyncio.gather(*(agent(name).ask("panel") for name in decision.chosen))
    return {"said": [answer.agent for answer in answers]}


async def branch(state: State) -> dict[str, list[str]]:
    return await say(str(state["n"]))


def chain(*nodes: Any) -> Callable[[], Graph]:
    def build() -> Graph:
        made = StateGraph(State, input_schema=State, output_schema=Said)
        names = [f"node{n}" for n in range(len(nodes))]
        for name, node in zip(names, nodes, strict=True):
            made.add_node(name, node)
        for before, after in zip([START, *names], [*names, END], strict=True):
            made.add_edge(before, after)
        return made

    return build


def fan() -> Graph:
    def spread(state: State) -> list[Send]:
        return [Send("branch", {"n": n}) for n in range(state["n"])]

    made = StateGraph(State, output_schema=Said)
    made.add_node("branch", branch)
    made.add_conditional_edges(START, spread, ["branch"])
    made.add_edge("branch", END)
    return made


GRAPHS = {
    "chain": chain(one, two),
    "many": chain(many),
    "panel": chain(panel),
    "fan": fan,
    "ponder": chain(ponder),
    "priceless": chain(priceless),
    "one": chain(one),
    "below": chain(below),
}
WORKFLOWS = Workflows([workflow(name, input=Asked)(build) for name, build in GRAPHS.items()])


@dataclass
class House:
    """A replica and a worker over one journal, with the models that they ask."""

    journal: Journal
    bus: MemoryBus = field(default_factory=MemoryBus)
    big: Meter = field(default_factory=Meter)
    small: Meter = field(default_factory=lambda: Meter("scripted:small", PRICE / 10))

    def worker(self, journal: Journal | None = None) -> AgentWorker:
        """One that serves all agents."""
        return AgentWorker(
            bus=self.bus, journal=journal or self.journal, lane=ScriptedLane(lambda _: ToolResult(status="ok")), toolbox=BUILTIN,
            agents=SPECS, estimate=estimate, thrifty=thrifty, grant_key=b"k" * 32,
            open_model=lambda spec: self.big if spec.model == "scripted:big" else self.small, instance="w",
        )  # fmt: skip

    async def run(self, name: str, n: int = 0, *, event_id: str = "e", tenant: str = "default", **limits: Any) -> Run:
        """Ask for a run under limits; how it ended."""
        asked = RunRequested(
            workflow=name, input={"n": n}, tenant=tenant, limits=Limits.model_validate(limits) if limits else None
        )
        await self.bus.publish(encode(REQUESTS, Envelope(asked, event_id, "/shop", event_id)))
        return await self.ended(RunId(stable_id("run", "/shop", event_id)))

    async def ended(self, run_id: RunId) -> Run:
        """The run, once it told its end."""
        over = asyncio.Event()

        async def look(delivery: Delivery) -> None:
            event = decode(delivery).data
            if isinstance(event, RunSucceeded | RunFailed | RunCancelled) and event.run_id == run_id:
                over.set()

        async with asyncio.timeout(HUNG):
            await self.bus.consume(Consumption([EVENTS_TOPIC], None), look, over)
        run = await self.journal.runs.get(run_id)
        assert run is not None
        return run

    async def told(self, request_id: str) -> RequestRejected | RunFailed:
        """What is told of a request that comes to nothing."""
        found: list[RequestRejected | RunFailed] = []
        over = asyncio.Event()

        async def look(delivery: Delivery) -> None:
            event = decode(delivery).data
            if isinstance(event, RequestRejected | RunFailed) and event.request_id == request_id:
                found.append(event)
                over.set()

        async with asyncio.timeout(HUNG):
            await self.bus.consume(Consumption([EVENTS_TOPIC], None), look, over)
        return found[0]

    async def calls(self, run: Run) -> Sequence[Call]:
        return await self.journal.calls.of_run(run.run_id)


@asynccontextmanager
async def at_work(house: House, tenants: Tenants | None = None) -> AsyncGenerator[House]:
    """With a replica and a worker until the end."""
    stop = asyncio.Event()
    ready = asyncio.Event()
    count = Ready(None, 3, ready.set)
    replica = Orchestrator(house.bus, house.journal, WORKFLOWS, CARDS, instance="o", drain_s=5, tenants=tenants)
    work = [asyncio.create_task(replica.run(stop, count)), asyncio.create_task(house.worker().run(stop, count.one))]
    async with asyncio.timeout(HUNG):
        await ready.wait()
        yield house
        stop.set()
        await asyncio.gather(*work)


@pytest.fixture
async def sqlite() -> AsyncIterator[Journal]:
    db = SqliteDatabase(":memory:")
    await migrate(db)
    yield Journal(db, lease_s=600)
    await db.close()


def said(found: Mapping[str, JsonValue] | None) -> list[str]:
    return cast("list[str]", (found or {})["said"])


async def test_a_run_without_limits_sets_nothing_aside_and_tells_what_it_took(sqlite: Journal) -> None:
    async with at_work(House(sqlite)) as house:
        run = await house.run("chain")
    assert run.spent == Spent(usd=2 * PRICE, tokens=2 * TOKENS, time_s=run.spent.time_s)
    assert run.end.spent == run.spent
    assert [one.allowance for one in await house.calls(run)] == [None, None]
    assert await sqlite.db.read("SELECT * FROM accounts") == []


@pytest.mark.parametrize("limits", [{"usd": PRICE}, {"tokens": TOKENS}])
async def test_at_its_limit_a_run_ends_with_the_reason_and_what_it_has(sqlite: Journal, limits: dict[str, Any]) -> None:
    async with at_work(House(sqlite)) as house:
        run = await house.run("chain", **limits)
    assert run.failure is not None
    assert run.failure.code == "limit_reached"
    assert run.partial == {"said": ["one: scripted:big answered"]}
    assert run.end.model_dump()["partial"] == run.partial
    assert run.spent.model_copy(update={"time_s": 0}) == Spent(usd=PRICE, tokens=TOKENS)
    assert house.big.billed == [PRICE]


async def test_a_call_that_was_left_too_little_ends_its_run_as_at_the_limit(sqlite: Journal) -> None:
    async with at_work(House(sqlite)) as house:
        run = await house.run("chain", usd=1.5 * PRICE)
    first, second = await house.calls(run)
    assert run.failure is not None
    assert run.failure.code == "limit_reached"
    assert second.failure is not None
    assert second.failure.code == "limit_reached"
    assert [one.allowance.usd for one in (first, second) if one.allowance] == [1.5 * PRICE, 0.5 * PRICE]
    assert call_event(second).data.allowance == second.allowance
    assert sum(house.big.billed) == run.cost_usd == PRICE


@pytest.mark.parametrize(("name", "n"), [("many", 50), ("fan", 50)])
async def test_of_many_calls_at_once_as_many_are_made_as_the_limit_pays_for_and_no_more(
    sqlite: Journal, name: str, n: int
) -> None:
    """A tenth of the limit is set aside for each; what one leaves is there for the next."""
    async with at_work(House(sqlite)) as house:
        run = await house.run(name, n, usd=20 * PRICE)
    assert sum(house.big.billed) == run.cost_usd == 20 * PRICE
    if name == "many":
        assert said(run.result).count("LimitReached") == 30
    else:
        assert run.failure is not None
        assert run.failure.code == "limit_reached"


async def test_a_call_waits_for_what_others_leave_and_does_not_fail(sqlite: Journal) -> None:
    async with at_work(House(sqlite)) as house:
        run = await house.run("many", 20, usd=20 * PRICE)
    assert "LimitReached" not in said(run.result)
    assert len(house.big.billed) == 20


async def test_where_a_limit_is_near_the_smaller_model_answers_and_the_journal_says_so(sqlite: Journal) -> None:
    """18 requests of the big model leave less than the tenth of the limit that a call may need."""
    async with at_work(House(sqlite)) as house:
        run = await house.run("many", 30, usd=19.4 * PRICE, at_limit="smaller")
        economies = [one.allowance.economy for one in await house.calls(run) if one.allowance]
    assert (
        (economies.count(False), economies.count(True)) == (18, 12) == (len(house.big.billed), len(house.small.billed))
    )
    assert {text.split(": ")[1] for text in said(run.result)} == {"scripted:big answered", "scripted:small answered"}
    assert run.cost_usd == pytest.approx(sum(house.big.billed + house.small.billed))


@pytest.mark.parametrize(("at_limit", "asked"), [("fewer", 2), ("stop", 3)])
async def test_of_a_panel_fewer_are_asked_where_the_limit_says_so_and_the_decision_tells(
    sqlite: Journal, at_limit: str, asked: int
) -> None:
    async with at_work(House(sqlite)) as house:
        run = await house.run("panel", tokens=250, at_limit=at_limit)
    decision = (await sqlite.decisions.of_run(run.run_id))[0]
    assert len(decision.chosen) == asked
    assert decision.reason == ("hard; limits pay for 2 of 3" if at_limit == "fewer" else "hard")
    assert run.status == ("succeeded" if at_limit == "fewer" else "failed")
    assert run.tokens == 2 * TOKENS


async def test_an_agent_stops_with_what_it_has_where_its_call_may_take_no_more(sqlite: Journal) -> None:
    async with at_work(House(sqlite)) as house:
        free = await house.run("ponder")
        run = await house.run("ponder", event_id="f", usd=1.5 * PRICE)
    assert said(free.result) == ["42 answered"]
    assert said(run.result) == ["42 cost_limit"]
    assert run.cost_usd == PRICE < free.cost_usd


async def test_an_agent_without_a_price_is_not_asked_under_a_limit_on_money(sqlite: Journal) -> None:
    async with at_work(House(sqlite)) as house:
        run = await house.run("priceless", usd=5)
        other = await house.run("priceless", event_id="f", tokens=1000)
    assert run.failure is not None
    assert "has no price" in run.failure.message
    assert (run.failure.code, other.status) == ("limit_reached", "succeeded")


async def test_a_run_ends_when_its_time_is_over(sqlite: Journal) -> None:
    house = House(sqlite)
    house.big.holds = 1
    async with at_work(house):
        run = await house.run("chain", time_s=0.5)
        house.big.gate.set()
    (call,) = await house.calls(run)
    assert run.failure is not None
    assert run.failure.code == "limit_reached"
    assert call.allowance == Allowance(cut=("time",))
    assert call.deadline == pytest.approx(run.accepted_at + 0.5)


TENANTS = Tenants(tenants={"small": Tenant(limits=TenantLimits(usd=30 * PRICE, per="month"))})


async def test_the_runs_of_a_tenant_share_its_limit_and_those_of_others_do_not(sqlite: Journal) -> None:
    async with at_work(House(sqlite), TENANTS) as house:
        first, second = [await house.run("many", 20, event_id=str(n), tenant="small") for n in range(2)]
        third = await house.run("chain", event_id="t", tenant="small")
        other = await house.run("chain", event_id="o", tenant="large")
    assert [said(run.result).count("LimitReached") for run in (first, second)] == [0, 10]
    assert third.failure is not None
    assert (third.failure.code, other.status) == ("limit_reached", "succeeded")
    account = tenant_account("small", TENANTS.of("small").limits or TenantLimits(), time.time())
    assert (await sqlite.budgets.balance(account)).taken == Spent(usd=30 * PRICE, tokens=30 * TOKENS)


@pytest.mark.parametrize("new_runs", ["end", "reject"])
async def test_a_new_run_of_a_tenant_that_has_nothing_left_ends_or_is_rejected_and_one_that_was_accepted_is_not(
    sqlite: Journal, new_runs: Literal["end", "reject"]
) -> None:
    limits = TenantLimits(usd=10 * PRICE, new_runs=new_runs)
    async with at_work(House(sqlite), Tenants(others=Tenant(limits=limits))) as house:
        first = await house.run("many", 11)
        again = await house.run("many", 11)
        asked = RunRequested(workflow="chain", input={"n": 0})
        await house.bus.publish(encode(REQUESTS, Envelope(asked, "late", "/shop", "late")))
        told = await house.told("late")
    assert first == again
    assert isinstance(told, RequestRejected if new_runs == "reject" else RunFailed)
    assert told.failure.code == ("tenant_spent" if new_runs == "reject" else "limit_reached")


def test_a_tenants_account_begins_anew_with_each_period_of_utc() -> None:
    names = {
        per: tenant_account("t", TenantLimits(per=per), 1_767_225_599.0 + later).name
        for later in (0, 1)
        for per in ("hour", "day", "month")
    }
    before = [tenant_account("t", TenantLimits(per=per), 1_767_225_599.0).name for per in ("hour", "day", "month")]
    assert before == ["tenant:t/2025-12-31T23", "tenant:t/2025-12-31", "tenant:t/2025-12"]
    assert [*names.values()] == ["tenant:t/2026-01-01T00", "tenant:t/2026-01-01", "tenant:t/2026-01"]


LIMITED = TenantLimits(usd=1.0)
AN_APPROVAL = Approval(
    approval_id=ToolCallId("a"), run_id=RunId("person"), call_id=CallId("c"), agent="solver", tool="t", digest="", arguments={}, why=""
)  # fmt: skip


def a_run(run_id: str, *, parent: RunId | None = None, limits: Limits | None = None, accepted_at: float = 0.0) -> Run:
    return Run(
        run_id=RunId(run_id), source="/s", event_id=run_id, workflow="w", version=None, status="accepted", input={}, traceparent="",
        parent=parent, limits=limits, accepted_at=accepted_at or time.time(),
    )  # fmt: skip


def a_call(name: str, seconds: float = 0.0) -> Call:
    return Call(
        call_id=CallId(name), run_id=RunId("r"), agent="solver", task=Task(text="?"), deadline=time.time() + seconds
    )


async def took(spending: Spending, call: Call, usd: float = 1.0) -> Allowance | None:
    """What one call of an agent may take that takes `usd` itself; None where nothing was left."""
    mine = AgentCard(name="solver", model="m", policy="p", takes=Allowance(usd=usd))
    try:
        return (await spending.request(call, mine, lambda: 1)).allowance
    except LimitReached:
        return None


async def test_however_many_ask_at_one_time_no_more_is_set_aside_than_a_tenant_has(journal: Journal) -> None:
    """Ten runs on as many replicas, each with four calls at once; some of the calls stand under their run's own limit too."""
    runs = [a_run(f"r{n}", limits=Limits(usd=0.15) if n % 2 else None) for n in range(10)]
    desks = [Spending(journal, run, LIMITED) for run in runs]
    found = await asyncio.gather(
        *(took(desk, a_call(f"{n}/{k}"), usd=0.07) for n, desk in enumerate(desks) for k in range(4))
    )
    taken = (await journal.budgets.balance(tenant_account("default", LIMITED, time.time()))).taken
    assert taken.usd == pytest.approx(sum(one.usd or 0 for one in found if one))
    assert 0.99 < taken.usd <= 1.0 + 1e-9
    for run in runs[1::2]:
        own = await journal.budgets.balance(Account(f"run:{run.run_id}", Limits()))
        assert own.taken.usd <= 0.15 + 1e-9


async def test_a_run_under_another_takes_from_its_limits_too(journal: Journal) -> None:
    top, _ = await journal.runs.accept(a_run("top", limits=Limits(usd=1.0)))
    middle, _ = await journal.runs.accept(a_run("middle", parent=top.run_id))
    below, _ = await journal.runs.accept(a_run("below", parent=middle.run_id, limits=Limits(usd=0.75)))
    assert await took(Spending(journal, below), a_call("1"), usd=0.5) == Allowance(usd=0.5)
    assert await took(Spending(journal, middle), a_call("2"), usd=0.25) == Allowance(usd=0.25)
    assert await took(Spending(journal, top), a_call("3"), usd=0.25) == Allowance(usd=0.25)
    assert await took(Spending(journal, below), a_call("4"), usd=0.25) is None


@pytest.mark.parametrize(("usd", "code"), [(2.5 * PRICE, None), (1.0 * PRICE, "limit_reached")])
async def test_what_runs_below_take_ends_the_run_above_as_its_own_calls_do(
    sqlite: Journal, usd: float, code: str | None
) -> None:
    async with at_work(House(sqlite)) as house:
        run = await house.run("below", usd=usd)
    assert (run.failure.code if run.failure else None) == code
    in_all = await sqlite.runs.spent_in_all(run.run_id)
    assert (run.cost_usd, in_all.usd, in_all.tokens) == (
        0.0,
        len(house.big.billed) * PRICE,
        len(house.big.billed) * TOKENS,
    )
    assert sum(house.big.billed) <= usd


async def test_only_time_in_which_a_run_is_parked_for_a_person_is_left_aside(journal: Journal) -> None:
    for name in ("machine", "person"):
        await journal.runs.accept(a_run(name))
        leased = await journal.runs.lease(RunId(name), "o")
        assert leased is not None
        if name == "person":
            await journal.approvals.want(AN_APPROVAL, 60)
        assert await journal.runs.park(leased.run_id, leased.epoch, {})
        await journal.db.write(
            Statement("UPDATE runs SET parked_at = parked_at - 100 WHERE run_id = :id", {"id": name})
        )
    machine, person = [await journal.runs.lease(RunId(name), "p") for name in ("machine", "person")]
    assert machine is not None
    assert person is not None
    assert machine.parked_s == 0
    assert person.parked_s >= 100


async def test_a_call_that_waits_for_a_person_keeps_its_allowance_and_nobody_waits_for_it(journal: Journal) -> None:
    spending = Spending(journal, a_run("r", limits=Limits(usd=1.0)))
    assert await took(spending, a_call("1", seconds=60), usd=0.75) == Allowance(usd=0.75)
    assert await journal.calls.claim(CallId("1"), "w")
    parked = await journal.calls.park(CallId("1"), "w", Spent(usd=0.5, tokens=5, tool_calls=1))
    assert parked.spent.model_copy(update={"time_s": 0}) == Spent(usd=0.5, tokens=5, tool_calls=1)
    assert await took(spending, a_call("2", seconds=60), usd=0.75) == Allowance(usd=0.25, cut=("usd",))
    await journal.calls.cancel(CallId("1"), "no more need")
    again = await journal.calls.claim(CallId("1"), "w")
    assert again is not None
    assert again.tokens is None, "what it takes is open again"


async def test_of_an_overdue_call_its_allowance_counts_until_its_worker_tells_what_it_took(journal: Journal) -> None:
    account = Account("run:r", Limits(usd=1.0))
    spending = Spending(journal, a_run("r", limits=account.limits))
    await took(spending, a_call("1"), usd=0.5)
    await journal.calls.claim(CallId("1"), "w")
    late = Failure(code="deadline_missed", message="")
    assert (await journal.calls.answer(CallId("1"), failure=late)).tokens is None
    assert (await journal.budgets.balance(account)).taken.usd == 0.5
    stored = await journal.calls.answer(CallId("1"), failure=BUSY, took=Spent(usd=0.125, tokens=7))
    assert (stored.failure, stored.cost_usd) == (late, 0.125)
    assert (await journal.budgets.balance(account)).taken == Spent(usd=0.125, tokens=7)
    await took(spending, a_call("2"), usd=0.5)
    assert (await journal.calls.answer(CallId("2"), failure=late)).tokens == 0, "nobody had begun"
    assert (await journal.budgets.balance(account)).taken == Spent(usd=0.125, tokens=7)


async def test_a_call_that_is_asked_again_gets_what_it_had_even_if_nothing_is_left_and_the_time_is_over(
    journal: Journal,
) -> None:
    run = a_run("r", limits=Limits(usd=1.0, time_s=100), accepted_at=time.time())
    first = await took(Spending(journal, run), a_call("1"))
    later = run.model_copy(update={"accepted_at": 1.0})
    assert first == await took(Spending(journal, later), a_call("1")) == Allowance(usd=1.0)
    assert await took(Spending(journal, later), a_call("2")) is None
    assert len(await journal.db.read("SELECT * FROM reservations")) == 1


BUSY = Failure(code="model_busy", message="")


async def test_time_in_which_a_run_is_parked_does_not_count(journal: Journal) -> None:
    run = a_run("r", limits=Limits(time_s=10), accepted_at=100.0).model_copy(update={"parked_s": 1000.0})
    assert await took(Spending(journal, run), a_call("1")) is None
    now = run.model_copy(update={"parked_s": time.time() - 105.0})
    assert await took(Spending(journal, now), a_call("2", seconds=60)) == Allowance(cut=("time",))
    ended = run.model_copy(update={"finished_at": 1105.0})
    assert ended.spent.time_s == 5.0


@dataclass
class Still(Dying):
    """The journal of a process that stands still at its n-th write, before or after that is committed, and never goes on."""

    stands: asyncio.Event = field(default_factory=asyncio.Event)

    async def write(self, *statements: Statement) -> Sequence[Sequence[Row]]:
        """See `Database.write`. Raises `Crash` once the process has been ended."""
        if self.stands.is_set():
            raise Crash
        try:
            return await super().write(*statements)
        except Crash:
            self.stands.set()
            await asyncio.Event().wait()
            raise


async def one_call(house: House, db: Database, *, agent_name: str = "ponderer") -> None:
    """A worker that gets the one call, until it has told what became of it, or stands still; then it is ended."""
    stop, ready = asyncio.Event(), asyncio.Event()
    call = a_call("1", seconds=HUNG).model_copy(update={"agent": agent_name})
    await house.journal.calls.request(call)
    asked = CallRequested(
        run_id=call.run_id, call_id=call.call_id, agent=agent_name, task=call.task, deadline=call.deadline
    )
    await house.bus.publish(encode(tasks_topic(agent_name), Envelope(asked, "1/asked", "/test", "r")))
    work = asyncio.create_task(house.worker(Journal(db, lease_s=600)).run(stop, ready.set))

    async def told(_: Delivery) -> None:
        stop.set()

    ends = [asyncio.create_task(house.bus.consume(Consumption([RUNS], None), told, stop))]
    ends += [asyncio.create_task(db.stands.wait())] if isinstance(db, Still) else []
    async with asyncio.timeout(HUNG):
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            work.cancel()
        stop.set()
        await asyncio.gather(work, return_exceptions=True)
        ends[-1].cancel()
        await asyncio.wait(ends)


@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize("at", range(1, 6))
async def test_wherever_a_worker_dies_the_journal_has_what_was_billed_but_for_requests_that_are_marked(
    sqlite: Journal, at: int, committed: bool
) -> None:
    """A request whose reply may not have been recorded is made again, and its turn says that it may have been billed twice."""
    house = House(sqlite)
    await one_call(house, Still(sqlite.db, at=at, committed=committed))
    await one_call(house, sqlite.db)
    stored = await sqlite.calls.get(CallId("1"))
    assert stored is not None
    assert stored.answer is not None
    turns = [turn for step in await sqlite.steps.of_call(CallId("1")) for turn in of_kind(load(step.body), ModelTurn)]
    asked_again = sum(turn.asked_again for turn in turns)
    unknown = sum(house.big.billed) - stored.cost_usd
    assert unknown in {0, asked_again * PRICE}
    assert unknown or at != 3 or committed, "a reply that was lost is the case in point"
    assert stored.tokens == len(turns) * TOKENS
    assert asked_again <= 1


async def test_a_request_that_may_have_been_billed_and_was_lost_counts(sqlite: Journal) -> None:
    house = House(sqlite)
    house.big.errors = [ModelBusy("cut", after_s=0.0, maybe_billed=True)]
    await one_call(house, sqlite.db, agent_name="solver")
    stored = await sqlite.calls.get(CallId("1"))
    assert stored is not None
    assert stored.spent.model_copy(update={"time_s": 0}) == Spent(usd=sum(house.big.billed), tokens=2 * TOKENS)
    assert len(house.big.billed) == 2


async def test_a_call_that_is_given_up_tells_what_it_took_with_the_request_that_was_under_way(sqlite: Journal) -> None:
    house = House(sqlite)
    house.big.holds = 2
    working = asyncio.create_task(one_call(house, sqlite.db))
    await asyncio.wait_for(house.big.asked.wait(), HUNG)
    assert await sqlite.calls.cancel(CallId("1"), "no more need")
    await working
    stored = await sqlite.calls.get(CallId("1"))
    assert stored is not None
    assert stored.failure is not None
    assert (stored.failure.code, stored.cost_usd, stored.tokens) == ("cancelled", sum(house.big.billed), 2 * TOKENS)


async def test_a_call_that_is_given_up_after_its_worker_died_tells_what_that_worker_took(sqlite: Journal) -> None:
    house = House(sqlite)
    await one_call(house, Still(sqlite.db, at=4, committed=True))
    assert await sqlite.calls.cancel(CallId("1"), "no more need")
    await one_call(house, sqlite.db)
    stored = await sqlite.calls.get(CallId("1"))
    assert stored is not None
    assert stored.failure is not None
    assert (stored.failure.code, stored.cost_usd) == ("cancelled", 2 * PRICE) == ("cancelled", sum(house.big.billed))


PRICES = ModelTable.model_validate(
    {"prices": {"as_of": "2026-11-01", "source": "s", "usd_per_million": [
        {"model": "a:big", "input": 10, "output": 10}, {"model": "a:wordy", "input": 1, "output": 40}, {"model": "a:even", "input": 4, "output": 4}, {"model": "a:reader", "input": 1, "output": 10}, {"model": "a:small", "input": 2, "output": 8}]}}
)  # fmt: skip


@pytest.mark.parametrize(
    ("models", "cheapest"),
    [
        (["a:big", "a:wordy", "a:small"], "a:small"),
        (["a:small", "a:big"], "a:small"),
        (["a:even", "a:reader"], "a:reader"),
        (["b:unknown", "a:big"], "a:big"),
        (["b:unknown", "b:other"], "b:unknown"),
    ],
)
def test_the_cheapest_of_an_agents_models_is_that_by_three_tokens_read_and_one_written(
    models: list[str], cheapest: str
) -> None:
    spec = AgentSpec.model_validate({**SOLVER.model_dump(), "model": models[0], "fallbacks": models[1:]})
    found = by_price(spec, Known(PRICES))
    assert (found.model, found.fallbacks, found.name) == (cheapest, (), "solver")
