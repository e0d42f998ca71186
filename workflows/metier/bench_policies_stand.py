"""Where `metier bench policies` measures: each cell is one agent with a journal of its own, asked one query after another.

`bench_policies` hands it a plan and a lane; every call goes through the loop that ships. What is right is looked up here after a call has
ended, and in the lane that breaks the tool: no agent sees it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

from metier.bench_policies_lane import FaultyLane, Liar, Spent
from metier.bench_policies_report import Case, Cell, cell
from metier_agents import explorations
from metier_agents.attempt import Attempt
from metier_agents.comparing import same
from metier_agents.hands import Hands
from metier_agents.recorded_model import RecordedModel
from metier_agents.recordings import RecordedQuery, Recordings
from metier_agents.spec import AgentSpec, MetaReasoned
from metier_agents.turns import Assessed, Message, ModelTurn, Realised, load, of_kind
from metier_infra.database import migrate
from metier_infra.journal import Journal
from metier_infra.rows import Call
from metier_infra.sqlite_journal import SqliteDatabase
from metier_infra.words import Answer, CallId, RunId, Task, stable_id
from metier_tools.builtin import BUILTIN
from metier_tools.lane import ToolLane

CATEGORY = "code_reasoning"
POLICIES: Mapping[str, Mapping[str, Any]] = {
    "autonomous": {"kind": "autonomous", "threshold": 0.4},
    "collaborative": {"kind": "collaborative"},
    "meta_reasoned": {"kind": "meta_reasoned"},
}
"""The threshold is below the confidence of every model that is measured, so that an autonomous one relies on itself. All else is as it ships."""
LEARNS = "meta_reasoned"
PRICES = MetaReasoned.model_validate(POLICIES[LEARNS])
"""What a second and a US dollar cost, for all three."""
STEADY = 10
"""A tool is used again from the first of so many calls in a row that were offered it as worth it."""
AT_ONCE = 6
CALL_S = 120.0


@dataclass(frozen=True)
class Plan:
    """What is run. `warmup` are the queries before figures count, where the policy learns.

    To see a mended tool taken up again, it is broken for `broken` calls and whole for `mended`.
    """

    seed: int
    models: tuple[str, ...]
    levels: tuple[float, ...]
    warmup: tuple[RecordedQuery, ...]
    counted: tuple[RecordedQuery, ...]
    broken: int
    mended: int

    @property
    def calls(self) -> int:
        """How many calls of agents it comes to."""
        cells = len(POLICIES) * len(self.counted) + len(self.warmup)
        return len(self.models) * (len(self.levels) * cells + self.broken + self.mended)


def draw(queries: Sequence[RecordedQuery], seed: int, count: int) -> tuple[RecordedQuery, ...]:
    """So many code queries, in an order that the seed decides; all of them when there are fewer."""
    code = [query for query in queries if query.category == CATEGORY]
    return tuple(sorted(code, key=lambda query: stable_id("draw", seed, query.id))[:count])


@dataclass
class Found:
    """What was measured: cells in the plan's order; by model, calls until a mended tool was used again; what the tool did; real times in ms."""

    cells: list[Cell] = field(default_factory=list[Cell])
    recovery: dict[str, int | None] = field(default_factory=dict[str, "int | None"])
    fates: Counter[str] = field(default_factory=Counter[str])
    real_ms: list[float] = field(default_factory=list[float])


@dataclass
class Bench:
    """The plan at work. `lane` runs what goes right, `key` signs its calls, `tell` hears of each call that has ended."""

    plan: Plan
    recordings: Recordings
    lane: ToolLane
    key: bytes
    tell: Callable[[], None] = lambda: None
    found: Found = field(default_factory=Found)

    async def run(self) -> Found:
        """All cells, a few at one time. Each has its own journal and order, so that nothing depends on the pace of another."""
        plan, free = self.plan, asyncio.Semaphore(AT_ONCE)
        cells = [(model, policy, level) for model in plan.models for policy in POLICIES for level in plan.levels]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._cell(free, *one)) for one in cells]
        self.found.cells = [task.result() for task in tasks]
        async with asyncio.TaskGroup() as group:
            back = {model: group.create_task(self._recovery(free, model)) for model in plan.models}
        self.found.recovery = {model: task.result() for model, task in back.items()}
        return self.found

    async def _cell(self, free: asyncio.Semaphore, model: str, policy: str, level: float) -> Cell:
        async with free, self._stand(model, policy) as stand:
            await stand.ask(self.plan.warmup if policy == LEARNS else (), level)
            return cell(model, policy, level, await stand.ask(self.plan.counted, level))

    async def _recovery(self, free: asyncio.Semaphore, model: str) -> int | None:
        plan = self.plan
        queries = tuple(islice(cycle(plan.warmup or plan.counted), plan.broken + plan.mended))
        async with free, self._stand(model, LEARNS) as stand:
            await stand.ask(queries[: plan.broken], 0.0)
            return used_again([case.worth for case in await stand.ask(queries[plan.broken :], 1.0)])

    @asynccontextmanager
    async def _stand(self, model: str, policy: str) -> AsyncGenerator[Stand]:
        db = SqliteDatabase(":memory:")
        await migrate(db)
        queries = [query for query in self.recordings.queries if query.category == CATEGORY]
        stand = Stand(
            spec(model, policy),
            RecordedModel(self.recordings, model),
            Journal(db),
            FaultyLane(self.lane, self.plan.seed, Liar(queries)),
            self.key,
            self.tell,
        )
        try:
            yield stand
        finally:
            await db.close()
            self.found.fates.update(stand.lane.fates)
            self.found.real_ms += stand.lane.real_ms


def spec(model: str, policy: str) -> AgentSpec:
    """The agent of a cell."""
    said = {"name": "solver", "model": f"recorded:{model}", "policy": POLICIES[policy], "tools": [{"name": "python"}]}
    return AgentSpec.model_validate(said)


def used_again(worth: Sequence[bool]) -> int | None:
    """How many calls came before the first of `STEADY` in a row that were offered the tool as worth it; None: there are none."""
    starts = range(len(worth) - STEADY + 1)
    return next((start for start in starts if all(worth[start : start + STEADY])), None)


@dataclass
class Stand:
    """One agent with its journal and its tool."""

    spec: AgentSpec
    model: RecordedModel
    journal: Journal
    lane: FaultyLane
    key: bytes
    tell: Callable[[], None]
    asked: int = 0

    async def ask(self, queries: Sequence[RecordedQuery], level: float) -> list[Case]:
        """What came of the queries, one after another, with a tool that does its work in `level` of all calls."""
        return [await self._case(query, level) for query in queries]

    async def _case(self, query: RecordedQuery, level: float) -> Case:
        call_id = CallId(stable_id("bench", self.lane.seed, self.spec.digest, self.asked))
        self.asked += 1
        spent = self.lane.expect(call_id, query, level)
        deadline = time.time() + CALL_S
        task = Task(text=query.text, category=query.category)
        call = Call(
            call_id=call_id,
            run_id=RunId(f"bench-{self.spec.digest}"),
            agent=self.spec.name,
            task=task,
            deadline=deadline,
        )
        await self.journal.calls.request(call)
        call = await self.journal.calls.claim(call_id, self.spec.name) or call
        hands = Hands(self.journal, self.lane, BUILTIN, self.key)
        answer = await explorations.answer(Attempt(call, self.spec, self.model, self.journal, hands, deadline))
        steps = await self.journal.steps.of_call(call_id)
        self.tell()
        return case(query, answer, [message for step in steps for message in load(step.body)], spent)


def case(query: RecordedQuery, answer: Answer, history: Sequence[Message], spent: Spent) -> Case:
    """What came of one call, now that it may be looked up what is right."""
    right = same(answer.text, query.gold or "")
    price = PRICES.price_per_second * spent.seconds + PRICES.price_per_usd * answer.cost_usd
    offered = any(turn.offered for turn in of_kind(history, ModelTurn))
    worth = any(tool.value > 0 for assessed in of_kind(history, Assessed) for tool in assessed.tools)
    return Case(
        right=right,
        cost_usd=answer.cost_usd,
        calls=spent.calls,
        tool_s=spent.seconds,
        worth=offered and worth,
        looked=offered and not worth and bool(of_kind(history, Assessed)),
        values=_values(query, right, history, spent),
        price=price,
    )


def _values(
    query: RecordedQuery, right: bool, history: Sequence[Message], spent: Spent
) -> tuple[float, float, float] | None:
    """Predicted, realised and true value of the tool calls. True is what the answer gained over the model's own, less the price that was paid."""
    judged, assessed = of_kind(history, Realised), of_kind(history, Assessed)
    if not judged or assessed[-1].own_answer is None:
        return None
    turn_usd = of_kind(history, ModelTurn)[-1].cost_usd or 0.0
    paid = PRICES.price_per_second * spent.seconds + PRICES.price_per_usd * spent.calls * turn_usd
    true = right - same(assessed[-1].own_answer, query.gold or "") - paid
    return sum(one.predicted for one in judged), sum(one.realised for one in judged), true
