"""The run's side of its nodes: records calls and decisions, sends them, and hands answers to the nodes that wait.

The orchestrator makes one `RunDesk` for each run it holds, and delivers to it; nodes reach it through `node`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping

from metier_infra import telemetry
from metier_infra.bus import Bus
from metier_infra.errors import CallFailed, DeadlineMissed, WorkflowBroken
from metier_infra.journal import Journal
from metier_infra.messages import (
    EVENTS_TOPIC,
    AgentCard,
    Answer,
    CallAnswered,
    CallId,
    CallRequested,
    Decision,
    DecisionMade,
    Envelope,
    Failure,
    RunId,
    Task,
    stable_id,
    tasks_topic,
)
from metier_infra.retry import persist
from metier_infra.rows import Call
from metier_infra.service import PATIENT, send
from metier_workflows.node import Place

SOURCE = "/metier/orchestrator"


class RunDesk:
    """See `metier_workflows.node.Desk`. `traceparent` is the root of the run's trace."""

    def __init__(self, run_id: RunId, bus: Bus, journal: Journal, cards: Mapping[str, AgentCard]) -> None:
        self.run_id = run_id
        self.traceparent: str | None = None
        self._bus = bus
        self._journal = journal
        self._cards = cards
        self._asked: Counter[tuple[Place, str]] = Counter()
        self._waiting: dict[CallId, asyncio.Future[CallAnswered]] = {}

    def cards(self) -> Mapping[str, AgentCard]:
        """See `Desk.cards`."""
        return self._cards

    def _next(self, kind: str, place: Place, what: str) -> str:
        """An id that depends on the run, the node's task, what is asked and how often it was asked there before.

        So it is the same when the node runs again, retried or after a crash, in whatever order its answers came.
        """
        self._asked[place, what] += 1
        return stable_id(kind, self.run_id, place.task, what, self._asked[place, what])

    async def ask(self, place: Place, agent: str, task: Task, timeout_s: float) -> Answer:
        """See `Desk.ask`. The waiter stands before the call goes out, so that no answer can slip through."""
        if agent not in self._cards:
            raise WorkflowBroken(f"no agent is called {agent!r}; there are: {', '.join(sorted(self._cards)) or 'none'}")
        call_id = CallId(self._next("call", place, stable_id(agent, task.model_dump_json())))
        waiter = self._waiting[call_id] = asyncio.get_running_loop().create_future()
        call = Call(call_id=call_id, run_id=self.run_id, agent=agent, task=task, deadline=time.time() + timeout_s)
        attributes = {telemetry.AGENT_NAME: agent, telemetry.CALL_ID: call_id, telemetry.OPERATION: "invoke_agent"}
        try:
            with telemetry.span(telemetry.invoke_agent(agent), "client", attributes=attributes):
                stored = await self._journal.calls.request(call)
                if stored.answered_at is None:
                    stored = await self._await(stored, waiter)
                return _answer(stored)
        finally:
            del self._waiting[call_id]

    async def _await(self, call: Call, waiter: asyncio.Future[CallAnswered]) -> Call:
        request = CallRequested(
            run_id=call.run_id, call_id=call.call_id, agent=call.agent, task=call.task, deadline=call.deadline
        )
        topic = tasks_topic(call.agent)
        event = Envelope(request, f"{call.call_id}/requested", SOURCE, call.call_id)
        try:
            async with asyncio.timeout(max(0.0, call.deadline - time.time())):
                await persist(f"send to {topic}", lambda: send(self._bus, topic, event), PATIENT)
                answered = await waiter
        except TimeoutError:
            late = DeadlineMissed(f"the agent {call.agent!r} gave no answer before the call's deadline")
            return await self._journal.calls.answer(call.call_id, failure=Failure(code=late.code, message=str(late)))
        return call.model_copy(update={"answer": answered.answer, "failure": answered.failure})

    def deliver(self, answered: CallAnswered) -> None:
        """Hand a committed result to the node that waits for it; a second one, or one for another time, is dropped."""
        waiter = self._waiting.get(answered.call_id)
        if waiter is not None and not waiter.done():
            waiter.set_result(answered)

    async def decide(self, place: Place, decision: Decision) -> Decision:
        """See `Desk.decide`. Told each time that the node runs, under one id: at least once."""
        decision_id = self._next("decision", place, decision.category)
        kept = await self._journal.decisions.record(decision_id, self.run_id, decision)
        event = Envelope(DecisionMade(run_id=self.run_id, decision=kept), decision_id, SOURCE, self.run_id)
        await persist("tell a decision", lambda: send(self._bus, EVENTS_TOPIC, event), PATIENT)
        return kept


def _answer(call: Call) -> Answer:
    if call.answer is not None:
        return call.answer
    failure = call.failure or Failure(code="call_failed", message="no reason was recorded")
    if failure.code == "deadline_missed":
        raise DeadlineMissed(failure.message)
    raise CallFailed(f"the agent {call.agent!r} failed: {failure.message}", reason=failure.code)
