"""The run's side of its nodes: records calls, waits and decisions, sends calls out, starts runs, and ends the waits of nodes.

The orchestrator makes one `RunDesk` for each run it holds, and delivers to its `waiting`; nodes reach it through `node`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Mapping

from pydantic import JsonValue

from metier_infra import telemetry
from metier_infra.bus import Bus
from metier_infra.calls import NOT_NEEDED
from metier_infra.errors import CallFailed, DeadlineMissed, LimitReached, SubRunFailed, WorkflowBroken
from metier_infra.events import CallAnswered, DecisionMade, tasks_topic
from metier_infra.failpoints import failpoint
from metier_infra.journal import Journal
from metier_infra.messages import Envelope
from metier_infra.outgoing import Level, Outgoing
from metier_infra.retry import persist
from metier_infra.rows import Call, Run, Wait
from metier_infra.service import PATIENT, send
from metier_infra.words import (
    AgentCard,
    Answer,
    CallId,
    Decision,
    Failure,
    Limits,
    RunId,
    Slot,
    Task,
    Wanted,
    source_below,
    stable_id,
)
from metier_workflows import measuring, outcomes, progress
from metier_workflows.accepting import Accepting
from metier_workflows.approving import SOURCE, call_event
from metier_workflows.deciding import Deciding
from metier_workflows.node import Cap, Chosen, NotNeeded, Place
from metier_workflows.routing import seed_of
from metier_workflows.spending import Spending
from metier_workflows.waiting import PARK_AFTER_S, Waiter, Waiting

DEEPEST = 20
"""So many runs may stand one under the other: a workflow that starts itself must end somewhere."""


class RunDesk:
    """See `metier_workflows.node.Desk`. `waiting` knows which nodes wait, and whether the run may leave memory.

    `progress` carries what is told of the run. `spending` keeps to the run's limits; `outputs` are the last values of the graph's outputs.
    `ended`: the journal has the run's end.
    """

    def __init__(
        self,
        run_id: RunId,
        bus: Bus,
        journal: Journal,
        cards: Mapping[str, AgentCard],
        level: Level = "all",
        park_after_s: float = PARK_AFTER_S,
        deciding: Deciding | None = None,
    ) -> None:
        self.run_id = run_id
        self.progress = Outgoing(bus, level)
        self.waiting = Waiting(park_after_s)
        self.spending = Spending(journal)
        self.outputs: dict[str, object] = {}
        self.ended = False
        self._run: Run | None = None
        self._bus = bus
        self._journal = journal
        self._cards = cards
        self._deciding = deciding or Deciding()
        self._asked: Counter[tuple[Place, str]] = Counter()
        self._accepting = Accepting(bus, journal)

    def serve(self, run: Run, spending: Spending) -> None:
        """The run was taken up, as it stands here."""
        self._run = run
        self.spending = spending
        self.progress.traceparent = run.traceparent

    @property
    def traceparent(self) -> str | None:
        """The root of the run's trace, once it was taken up."""
        return self._run.traceparent if self._run else None

    @property
    def epoch(self) -> int | None:
        """Of the lease under which it was taken up."""
        return self._run.epoch if self._run else None

    @property
    def tenant(self) -> str:
        """See `Desk.tenant`."""
        return self._run.tenant if self._run else "default"

    def cards(self) -> Mapping[str, AgentCard]:
        """See `Desk.cards`."""
        return self._cards

    def _next(self, place: Place, what: str) -> Slot:
        """Where in the run something is asked: the node's task, what it is and how often it was asked there before.

        So an id that is made of it is the same when the node runs again, retried or after a crash, in whatever order its answers came.
        """
        self._asked[place, what] += 1
        return place.task, what, self._asked[place, what]

    async def ask(self, place: Place, agent: str, task: Task, timeout_s: float, within: Cap | None = None) -> Answer:
        """See `Desk.ask`. The waiter stands before the call goes out, so that no answer can slip through."""
        call = self._call(place, agent, task, timeout_s)
        try:
            with self.waiting.waiter(call.call_id, "call", place) as waiter:
                stored = await self._answered(call, waiter, within)
        except asyncio.CancelledError as gone:
            if not any(isinstance(why, NotNeeded) for why in gone.args):
                raise
            stored = await self._journal.calls.withdraw(call)
        finally:
            self.spending.settled()
        stored = _as_counted(stored)
        self.progress.tell(progress.answered(stored))
        return _answer(stored)

    def _call(self, place: Place, agent: str, task: Task, timeout_s: float) -> Call:
        """The call that is asked for here: always the same."""
        if agent not in self._cards:
            raise WorkflowBroken(f"no agent is called {agent!r}; there are: {', '.join(sorted(self._cards)) or 'none'}")
        slot = self._next(place, stable_id(agent, task.model_dump_json()))
        return Call(
            call_id=CallId(stable_id("call", self.run_id, *slot)),
            run_id=self.run_id,
            agent=agent,
            task=task,
            deadline=time.time() + timeout_s,
            slot=slot,
            stamp=self._cards[agent].stamp,
        )

    async def _answered(self, call: Call, waiter: Waiter, within: Cap | None) -> Call:
        """The call with its result, recorded and sent now or before; or as it was given up."""
        card, sharers = self._cards[call.agent], lambda: self.waiting.sharers
        stored = await self.spending.request(call, card, sharers, within)
        waiter.recorded = True
        self.progress.tell(progress.asked(stored))
        while stored.answered_at is None and waiter.answered is None and stored.cancelled != NOT_NEEDED:
            stored = await (self._parked(waiter, stored) if stored.parked_at else self._hot(waiter, stored))
        return _with(stored, waiter.answered)

    async def _hot(self, waiter: Waiter, call: Call) -> Call:
        """Send the call, and wait for news of it until its deadline; how it stands then. One for which the run was parked was sent before that."""
        topic = tasks_topic(call.agent)
        attributes = {
            telemetry.AGENT_NAME: call.agent,
            telemetry.CALL_ID: call.call_id,
            telemetry.OPERATION: "invoke_agent",
            **telemetry.stamped(call.stamp),
        }
        with telemetry.span(telemetry.invoke_agent(call.agent), "client", attributes=attributes):
            try:
                async with asyncio.timeout(max(0.0, call.deadline - time.time())):
                    if call.awaited is None:
                        failpoint("call.requested")
                        await persist(f"send to {topic}", lambda: send(self._bus, topic, call_event(call)), PATIENT)
                    self.waiting.settle(waiter)
                    failpoint("call.sent")
                    return await self._news(waiter, call)
            except TimeoutError:
                return await self._overdue(await self._look(call))

    async def _parked(self, waiter: Waiter, call: Call) -> Call:
        """Wait, with no span open and no deadline, for news of a call that waits for a person; how it stands then."""
        waiter.parked = True
        self.waiting.settle(waiter)
        try:
            return await self._news(waiter, call)
        finally:
            waiter.parked = False

    async def _news(self, waiter: Waiter, call: Call) -> Call:
        await waiter.heard()
        return call if waiter.answered else await self._look(call)

    async def _look(self, call: Call) -> Call:
        return await self._journal.calls.get(call.call_id) or call

    async def _overdue(self, call: Call) -> Call:
        """End a call whose deadline is over; one that is parked, or was, has more time than it had."""
        if call.answered_at is not None or call.parked_at is not None or call.deadline > time.time():
            return call
        late = DeadlineMissed(f"the agent {call.agent!r} gave no answer before the call's deadline")
        return await self._journal.calls.answer(call.call_id, failure=Failure(code=late.code, message=str(late)))

    async def sleep(self, place: Place, *, after_s: float | None = None, until: float | None = None) -> None:
        """See `Desk.sleep`."""
        slot = self._next(place, stable_id("sleep", str(after_s), str(until)))
        await self._wait(place, self._wait_of(slot, due=until), after_s)

    async def signal(self, place: Place, name: str, timeout_s: float | None) -> JsonValue:
        """See `Desk.signal`."""
        ended = await self._wait(place, self._wait_of(self._next(place, stable_id("signal", name)), name), timeout_s)
        if ended.signal_id is None:
            raise DeadlineMissed(f"no signal {name!r} came within {timeout_s:g} seconds")
        return ended.data

    def _wait_of(self, slot: Slot, name: str | None = None, due: float | None = None) -> Wait:
        return Wait(wait_id=stable_id("wait", self.run_id, *slot), run_id=self.run_id, slot=slot, name=name, due=due)

    async def _wait(self, place: Place, asked: Wait, after_s: float | None) -> Wait:
        """Record the wait, and how it ended."""
        with self.waiting.waiter(asked.wait_id, "wait", place) as waiter:
            wait = await self._journal.waits.ask(asked, after_s)
            while wait.ended_at is None:
                self.waiting.settle(waiter, at_least_s=wait.left_s or 0.0 if wait.name is None else 0.0)
                wait = await self._next_news(waiter, wait)
            return wait

    async def _next_news(self, waiter: Waiter, wait: Wait) -> Wait:
        """How the wait stands once there is news of it, or its time is over; that is measured by this machine's clock and decided by the database's."""
        try:
            async with asyncio.timeout(None if wait.left_s is None else max(0.0, wait.left_s)):
                await waiter.heard()
        except TimeoutError:
            return await self._journal.waits.over(wait)
        return await self._journal.waits.get(wait.wait_id) or wait

    async def subrun(
        self, place: Place, workflow: str, value: Mapping[str, JsonValue], limits: Limits | None
    ) -> dict[str, JsonValue]:
        """See `Desk.subrun`."""
        slot = self._next(place, stable_id("run", workflow, json.dumps(value, sort_keys=True)))
        run = _child(self._run, slot, workflow, dict(value), limits)
        with self.waiting.waiter(run.run_id, "run", place) as waiter:
            run = await self._started(run)
            while not run.ended:
                self.waiting.settle(waiter)
                await waiter.heard()
                run = await self._journal.runs.get(run.run_id) or run
        return _result(run)

    async def _started(self, child: Run) -> Run:
        """The child as it stands, accepted now or before. Raises `WorkflowBroken` where it would stand too deep."""
        stored = await self._journal.runs.get(child.run_id)
        if stored is None and len(await self._journal.runs.above(child)) > DEEPEST:
            raise WorkflowBroken(f"a run that stands {DEEPEST} deep under others may start none itself")
        if stored is not None and stored.status != "accepted":
            return stored
        await persist(f"start {child.workflow}", lambda: self._accepting.take(child), PATIENT)
        return await self._journal.runs.get(child.run_id) or child

    async def decide(self, place: Place, decision: Decision) -> Decision:
        """See `Desk.decide`. Told each time that the node runs, under one id: at least once."""
        slot = self._next(place, decision.category)
        decision_id = stable_id("decision", self.run_id, *slot)
        decision = await self.spending.affordable(decision, self._cards)
        kept = await self._journal.decisions.record(decision_id, self.run_id, decision, slot)
        await self._decided(decision_id, kept)
        return kept

    async def choose(self, place: Place, wanted: Wanted) -> Chosen:
        """See `Desk.choose`. What was decided before is not decided again: the versions that stand may be others by now."""
        slot = self._next(place, stable_id("choose", wanted.task.model_dump_json()))
        decision_id = stable_id("decision", self.run_id, *slot)
        kept = await self._journal.decisions.get(decision_id)
        if kept is None:
            seed = seed_of(self.run_id, *slot)
            made = await self._deciding.decide(wanted, self._cards, tenant=self.tenant, seed=seed)
            made = await self.spending.affordable(made, self._cards)
            kept = await self._journal.decisions.record(decision_id, self.run_id, made, slot, wanted)
        await self._decided(decision_id, kept)
        return Chosen(decision_id, kept)

    async def _decided(self, decision_id: str, kept: Decision) -> None:
        event = Envelope(DecisionMade(run_id=self.run_id, decision=kept), decision_id, SOURCE, self.run_id)
        await self.progress.told(event)
        measuring.decided(kept)

    async def voted(self, chosen: Chosen, votes: Mapping[str, float]) -> None:
        """See `Desk.voted`."""
        await self._journal.outcomes.record(*outcomes.votes(self.run_id, chosen.decision_id, votes))


def _as_counted(call: Call) -> Call:
    """The call as its run counts it: one that was given up failed, whatever its worker makes of it."""
    if call.cancelled != NOT_NEEDED:
        return call
    return call.model_copy(update={"answer": None, "failure": Failure(code="not_needed", message=NOT_NEEDED)})


def _with(call: Call, answered: CallAnswered | None) -> Call:
    return call.model_copy(update={"answer": answered.answer, "failure": answered.failure}) if answered else call


_LIMITED = {"limit_reached": {"usd", "tokens"}, "deadline_missed": {"time"}}
"""Failures of a call that are the run's own doing, where its limits had left the call less of these than it would have had."""


def _answer(call: Call) -> Answer:
    if call.answer is not None:
        return call.answer
    failure = call.failure or Failure(code="call_failed", message="no reason was recorded")
    if failure.code in _LIMITED and call.allowance and _LIMITED[failure.code] & {*call.allowance.cut}:
        raise LimitReached(f"a limit of the run left the agent {call.agent!r} too little: {failure.message}")
    if failure.code == "deadline_missed":
        raise DeadlineMissed(failure.message)
    raise CallFailed(f"the agent {call.agent!r} failed: {failure.message}", reason=failure.code)


def _child(parent: Run | None, slot: Slot, workflow: str, value: dict[str, JsonValue], limits: Limits | None) -> Run:
    """The run that a node of `parent` starts at this place: its id follows from both. It stands in the same trace, for the same tenant."""
    if parent is None:
        raise WorkflowBroken("a run can be started only inside a run that was taken up")
    source, event_id = source_below(parent.run_id), stable_id(*slot)
    return Run(
        **parent.model_dump(include={"tenant", "priority"}),
        run_id=RunId(stable_id("run", source, event_id)),
        source=source,
        event_id=event_id,
        workflow=workflow,
        version=None,
        status="accepted",
        input=value,
        limits=limits,
        parent=parent.run_id,
        traceparent=telemetry.current() or parent.traceparent,
    )


def _result(run: Run) -> dict[str, JsonValue]:
    if run.status == "succeeded":
        return run.result or {}
    if run.limits is None and run.failure and run.failure.code == "limit_reached":
        raise LimitReached(
            f"the run {run.run_id} of {run.workflow!r}, which has no limits of its own: {run.failure.message}"
        )
    failure = run.failure or Failure(code="cancelled", message=run.cancel_note or f"{run.cancelled_by} gave it up")
    raise SubRunFailed(
        f"the run {run.run_id} of {run.workflow!r} {run.status}: {failure.message}",
        reason=failure.code,
        run_id=run.run_id,
    )
