"""The run's side of its nodes: records calls and decisions, sends them, and hands answers to the nodes that wait.

The orchestrator makes one `RunDesk` for each run it holds, and delivers to it; nodes reach it through `node`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from metier_infra import telemetry
from metier_infra.bus import Bus
from metier_infra.errors import CallFailed, DeadlineMissed, WorkflowBroken
from metier_infra.events import EVENTS_TOPIC, CallAnswered, DecisionMade, tasks_topic
from metier_infra.journal import Journal
from metier_infra.messages import Envelope
from metier_infra.retry import persist
from metier_infra.rows import Call
from metier_infra.service import PATIENT, send
from metier_infra.words import AgentCard, Answer, CallId, Decision, Failure, RunId, Task, stable_id
from metier_workflows.approving import SOURCE, call_event
from metier_workflows.node import Place


@dataclass
class Waiter:
    """A node that waits for a call. `news` says that the call was answered, or is to be looked at again."""

    place: Place
    parked: bool = False
    answered: CallAnswered | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)


class RunDesk:
    """See `metier_workflows.node.Desk`. `traceparent` is the root of the run's trace; `idle` is set while the run waits for persons alone.

    The orchestrator says which tasks of the graph `began` and `ended`: a node that does something else keeps the run in memory.
    """

    def __init__(self, run_id: RunId, bus: Bus, journal: Journal, cards: Mapping[str, AgentCard]) -> None:
        self.run_id = run_id
        self.traceparent: str | None = None
        self.idle = asyncio.Event()
        self._bus = bus
        self._journal = journal
        self._cards = cards
        self._asked: Counter[tuple[Place, str]] = Counter()
        self._waiting: dict[CallId, Waiter] = {}
        self._tasks: set[str] = set()

    def cards(self) -> Mapping[str, AgentCard]:
        """See `Desk.cards`."""
        return self._cards

    def began(self, task: str) -> None:
        """A task of the graph runs."""
        self._tasks.add(task)
        self._weigh()

    def ended(self, task: str) -> None:
        """It ended."""
        self._tasks.discard(task)
        self._weigh()

    @property
    def waits_for(self) -> Sequence[CallId]:
        """The calls that nodes wait for."""
        return list(self._waiting)

    def _weigh(self) -> None:
        """Set `idle` if every task of the graph waits, and waits for parked calls alone."""
        places = [waiter.place.task for waiter in self._waiting.values()]
        waiting = all(any(task in place for place in places) for task in self._tasks)
        if places and waiting and all(waiter.parked for waiter in self._waiting.values()):
            self.idle.set()
        else:
            self.idle.clear()

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
        waiter = self._waiting[call_id] = Waiter(place)
        call = Call(
            call_id=call_id,
            run_id=self.run_id,
            agent=agent,
            task=task,
            deadline=time.time() + timeout_s,
            stamp=self._cards[agent].stamp,
        )
        try:
            self._weigh()
            stored = await self._journal.calls.request(call)
            while stored.answered_at is None and waiter.answered is None:
                stored = await (self._parked(waiter, stored) if stored.parked_at else self._hot(waiter, stored))
            return _answer(_with(stored, waiter.answered))
        finally:
            del self._waiting[call_id]
            self._weigh()

    async def _hot(self, waiter: Waiter, call: Call) -> Call:
        """Send the call, and wait for news of it until its deadline; how it stands then."""
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
                    await persist(f"send to {topic}", lambda: send(self._bus, topic, call_event(call)), PATIENT)
                    return await self._news(waiter, call)
            except TimeoutError:
                return await self._overdue(await self._look(call))

    async def _parked(self, waiter: Waiter, call: Call) -> Call:
        """Wait, with no span open and no deadline, for news of a call that waits for a person; how it stands then."""
        waiter.parked = True
        self._weigh()
        try:
            return await self._news(waiter, call)
        finally:
            waiter.parked = False

    async def _news(self, waiter: Waiter, call: Call) -> Call:
        await waiter.news.wait()
        waiter.news.clear()
        return call if waiter.answered else await self._look(call)

    async def _look(self, call: Call) -> Call:
        return await self._journal.calls.get(call.call_id) or call

    async def _overdue(self, call: Call) -> Call:
        """End a call whose deadline is over; one that is parked, or was, has more time than it had."""
        if call.answered_at is not None or call.parked_at is not None or call.deadline > time.time():
            return call
        late = DeadlineMissed(f"the agent {call.agent!r} gave no answer before the call's deadline")
        return await self._journal.calls.answer(call.call_id, failure=Failure(code=late.code, message=str(late)))

    def deliver(self, answered: CallAnswered) -> None:
        """Hand a committed result to the node that waits for it; a second one, or one for another time, is dropped."""
        waiter = self._waiting.get(answered.call_id)
        if waiter is not None and waiter.answered is None:
            waiter.answered = answered
            waiter.news.set()

    def look(self, call_id: CallId | None = None) -> None:
        """A call was parked, or goes on: the node that waits for it shall look. None: all that wait for a person."""
        for known, waiter in self._waiting.items():
            if known == call_id or (call_id is None and waiter.parked):
                waiter.news.set()

    async def decide(self, place: Place, decision: Decision) -> Decision:
        """See `Desk.decide`. Told each time that the node runs, under one id: at least once."""
        decision_id = self._next("decision", place, decision.category)
        kept = await self._journal.decisions.record(decision_id, self.run_id, decision)
        event = Envelope(DecisionMade(run_id=self.run_id, decision=kept), decision_id, SOURCE, self.run_id)
        await persist("tell a decision", lambda: send(self._bus, EVENTS_TOPIC, event), PATIENT)
        return kept


def _with(call: Call, answered: CallAnswered | None) -> Call:
    return call.model_copy(update={"answer": answered.answer, "failure": answered.failure}) if answered else call


def _answer(call: Call) -> Answer:
    if call.answer is not None:
        return call.answer
    failure = call.failure or Failure(code="call_failed", message="no reason was recorded")
    if failure.code == "deadline_missed":
        raise DeadlineMissed(failure.message)
    raise CallFailed(f"the agent {call.agent!r} failed: {failure.message}", reason=failure.code)
