"""Runs a recorded run again with something else in it, in this process and on a journal of its own, and says what would differ and what cannot be known.

`cli_replay` calls it; `replay_record` answers from the record. The graph, the policies and the checks are the ones that serve runs: only time, tools and models are
replaced. Waits are over at once, approvals are given, limits of money and time do not hold, and sources are read as they are now.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from metier import compose, compose_tools, configuration
from metier.configuration import Config, System
from metier.replay_record import Answers, Record, RecordedLane, Rule, Unasked, Unknown, record_of, recorded_journal
from metier.replay_report import Replayed, compared
from metier_infra.bus import MemoryBus
from metier_infra.errors import BadSettings, DeadlineMissed, UnknownAgent
from metier_infra.events import REQUESTS, ApprovalDecided
from metier_infra.journal import Journal
from metier_infra.messages import Envelope
from metier_infra.rows import Run
from metier_infra.service import Ready, send
from metier_infra.words import Decision, Limits, Wanted
from metier_workflows.accepting import Accepting
from metier_workflows.choosing.router import Router
from metier_workflows.routing import replayed

if TYPE_CHECKING:
    from metier_agents.model import Model
    from metier_agents.spec import AgentSpec
    from metier_workflows.workflow import Workflows

FREE = ("recorded", "scripted")
"""Kinds of models that may always be asked: they cost nothing, and reach nobody."""
LOOK_S = 0.05
What = Literal["nothing", "router", "agent", "policy"]
POLICIES = ("autonomous", "collaborative", "meta_reasoned")


@dataclass(frozen=True)
class With:
    """What is another than it was: a router, the `agent` that answers every call, or the `policy` of every agent."""

    what: What = "nothing"
    name: str = ""
    router: Router | None = None

    def stays(self, agent: str) -> bool:
        """Whether what this agent answered stands."""
        return self.what in {"nothing", "router"} or (self.what == "agent" and agent == self.name)

    def decided(self, decision: Decision, wanted: Wanted | None, recorded: Decision | None) -> Decision:
        """The decision that counts."""
        base = recorded or decision
        if self.router is not None and wanted is not None:
            return replayed(base.model_copy(update={"router": self.router.version}), wanted, [self.router]) or base
        if self.what == "agent":
            told = {"chosen": (self.name,), "topology": "specialist", "weights": (1.0,), "by": "override"}
            return base.model_copy(update={**told, "reason": f"replayed with {self.name}", "paid": None})
        return base


@dataclass(frozen=True)
class Models:
    """Whether models that cost something may be asked, and for how much in all; USD."""

    ask: bool = False
    budget_usd: float | None = None


def check_ended(run: Run) -> None:
    """Raise `BadSettings` for a run that goes on."""
    if not run.ended:
        raise BadSettings(f"run {run.run_id} is {run.status}: it can be replayed once it has ended")


async def replay(
    config: Config, journal: Journal, run: Run, changed: With, models: Models, *, timeout_s: float
) -> Replayed:
    """What would differ. Nothing is written to `journal`. Raises `BadSettings`, `UnknownAgent`, `UnknownWorkflow` or `DeadlineMissed`."""
    check_ended(run)
    record, unknown = await record_of(journal, run), Unknown()
    if run.status == "cancelled":
        unknown.say("when it would have been given up: somebody cancelled it, and a replay goes to its end")
    if changed.what == "router" and not any(one.wanted for one in record.decisions):
        unknown.say("what a router would choose: no decision of this run was left to one")
    answers = Answers(record, changed.stays)
    async with _alone(config, record, changed, models, unknown, answers) as system:
        await _begin(system, record, models)
        again = await _ended(system, run, unknown, timeout_s)
        return compared(record, await record_of(system.journal, again), answers.given, list(unknown.told))


@asynccontextmanager
async def _alone(
    config: Config, record: Record, changed: With, models: Models, unknown: Unknown, answers: Answers
) -> AsyncGenerator[System]:
    """A system for this replay alone: an orchestrator and a worker over memory."""
    from metier_infra.database import migrate
    from metier_infra.sqlite_journal import SqliteDatabase
    from metier_workflows.evaluating import asking
    from metier_workflows.workflow import load_workflows

    alone = configuration.standalone(config)
    workflows = load_workflows([asking.MODULE, *(name.strip() for name in alone.role.workflows.split(","))])
    workflows.find(record.run.workflow, record.run.version)
    specs = _specs(alone, changed)
    async with AsyncExitStack() as stack:
        db = SqliteDatabase(":memory:")
        stack.push_async_callback(db.close)
        await migrate(db)
        system = System(MemoryBus(), recorded_journal(db, record, answers, _rule(changed, unknown)))
        stop, ready = asyncio.Event(), asyncio.Event()
        open_model = _opener(alone, specs, models, unknown)
        count = Ready(None, 3, ready.set)
        async with asyncio.TaskGroup() as group:
            group.create_task(_orchestrate(alone, system, workflows, specs, stop, count))
            group.create_task(_work(alone, system, RecordedLane(record, unknown), specs, open_model, stop, count))
            await ready.wait()
            try:
                yield system
            finally:
                stop.set()


def _rule(changed: With, unknown: Unknown) -> Rule:
    def rule(decision: Decision, wanted: Wanted | None, recorded: Decision | None) -> Decision:
        if recorded is None:
            unknown.say("how a decision would have gone that the run did not come to: its seed is not recorded")
        return changed.decided(decision, wanted, recorded)

    return rule


def _specs(config: Config, changed: With) -> Mapping[str, AgentSpec]:
    """The agents as they are declared now, with what is another. Raises `UnknownAgent` or `BadSettings`."""
    specs = compose.agent_specs(config)
    if changed.what == "agent":
        if changed.name not in specs:
            raise UnknownAgent(f"no agent is called {changed.name!r}; there are: {', '.join(sorted(specs))}")
        return {name: specs[changed.name].model_copy(update={"name": name}) for name in specs}
    if changed.what == "policy":
        return {name: _with_policy(spec, changed.name) for name, spec in specs.items()}
    return specs


def _with_policy(spec: AgentSpec, kind: str) -> AgentSpec:
    from metier_agents.spec import AgentSpec

    if kind not in POLICIES:
        raise BadSettings(f"no policy is called {kind!r}; there are {', '.join(POLICIES)}")
    if spec.policy.kind == kind:
        return spec
    return AgentSpec.model_validate({**spec.model_dump(), "policy": {"kind": kind}})


def _opener(
    config: Config, specs: Mapping[str, AgentSpec], models: Models, unknown: Unknown
) -> Callable[[AgentSpec], Model]:
    allowed = [spec for spec in specs.values() if models.ask or _free(spec)]
    opened = compose.open_models(config, allowed, compose.open_buckets(config))
    return lambda spec: opened(spec) if models.ask or _free(spec) else Unasked(spec.model, unknown)


def _free(spec: AgentSpec) -> bool:
    return all(model.partition(":")[0] in FREE for model in (spec.model, *spec.fallbacks))


async def _orchestrate(
    config: Config,
    system: System,
    workflows: Workflows,
    specs: Mapping[str, AgentSpec],
    stop: asyncio.Event,
    ready: Ready,
) -> None:
    from metier_workflows.orchestrator import Orchestrator

    cards = compose.cards(config, specs, compose.bundles(config, specs))
    replica = Orchestrator(system.bus, system.journal, workflows, cards, instance="replay", drain_s=0.0, level="none")
    await replica.run(stop, ready)


async def _work(
    config: Config,
    system: System,
    lane: RecordedLane,
    specs: Mapping[str, AgentSpec],
    open_model: Callable[[AgentSpec], Model],
    stop: asyncio.Event,
    ready: Ready,
) -> None:
    from metier_agents.worker import AgentWorker

    worker = AgentWorker(
        bus=system.bus,
        journal=system.journal,
        lane=lane,
        toolbox=compose_tools.toolbox(config),
        agents=specs,
        open_model=open_model,
        bundles=compose.bundles(config, specs),
        estimate=compose.estimates(config),
        grant_key=compose_tools.grant_key(config),
        instance="replay",
        level="none",
        drain_s=0.0,
    )
    await worker.run(stop, ready.one)


async def _begin(system: System, record: Record, models: Models) -> None:
    """The run once more, under its own id, with the signals that came to it."""
    asked = record.run.model_dump(
        include={"run_id", "source", "event_id", "workflow", "version", "input", "tenant", "priority", "traceparent"}
    )
    limits = Limits(usd=models.budget_usd) if models.ask else None
    await system.journal.runs.accept(Run(**asked, limits=limits, status="accepted"))
    for one in record.signals:
        await system.journal.signals.record(record.run.run_id, one.signal_id, one.name, one.data, one.sent_by)
    run = await system.journal.runs.get(record.run.run_id)
    if run is not None:
        await Accepting(system.bus, system.journal).wake(run)


async def _ended(system: System, run: Run, unknown: Unknown, timeout_s: float) -> Run:
    """The replayed run when it has ended, or waits for something that never came. Raises `DeadlineMissed`."""
    granted, ends = set[str](), time.monotonic() + timeout_s
    while time.monotonic() < ends:
        again = await system.journal.runs.get(run.run_id) or run
        if again.ended:
            return again
        for one in await system.journal.approvals.of_run(run.run_id):
            if one.granted is None and one.approval_id not in granted:
                granted.add(one.approval_id)
                await send(system.bus, REQUESTS, _granted(one.run_id, one.approval_id))
        if waits := [
            one.name
            for one in await system.journal.waits.of_run(run.run_id)
            if one.ended_at is None and one.due is None
        ]:
            unknown.say(f"how it goes on: it waits for the signal {waits[0]}, and no more of them came")
            return again
        await asyncio.sleep(LOOK_S)
    raise DeadlineMissed(
        f"the replay of run {run.run_id} did not end within {timeout_s:g} s; --timeout gives it longer"
    )


def _granted(run_id: str, approval_id: str) -> Envelope[ApprovalDecided]:
    said = ApprovalDecided(run_id=run_id, approval_id=approval_id, granted=True, by="replay")
    return Envelope(said, f"replay/{approval_id}", "/metier/replay", run_id)
