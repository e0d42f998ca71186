"""What a node of a graph may do beyond plain Python: ask an agent, decide whom to ask, wait for a time or a signal, start another run.

Authors call `agent(name).ask(...)` and the other functions inside nodes; the orchestrator puts itself behind `Desk` for the time of a run.
Ids depend on the run, the node's task and what is asked, so a node that runs again finds the same answers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from langgraph.runtime import get_runtime
from pydantic import JsonValue

from metier_infra.errors import CallFailed, DeadlineMissed, WorkflowBroken
from metier_infra.retry import Backoff
from metier_infra.words import AgentCard, Answer, Decision, Limits, Task, Wanted

DEFAULT_TIMEOUT_S = 300.0


TRANSIENT = frozenset(
    {"model_busy", "circuit_open", "lane_gone", "engine_gone", "bus_gone", "journal_gone", "deadline_missed"}
)
"""Codes of failures that may pass by themselves."""


@dataclass(frozen=True)
class Retry:
    """When a call that failed is made again. Each try is a call of its own, and the waits between them are durable: a crash forgets neither.

    Attributes:
        attempts: tries in all.
        on: the codes of the failures after which it is tried again.
        first_s: how long it waits after the first failure; seconds.
        factor: each wait is so many times the one before.
        ceiling_s: no wait is longer; seconds.
    """

    attempts: int = 3
    on: Collection[str] = TRANSIENT
    first_s: float = 1.0
    factor: float = 2.0
    ceiling_s: float = 60.0

    def delay(self, code: str, failures: int) -> float | None:
        """Seconds to wait after so many failures, the last of this code; None to give up."""
        backoff = Backoff(self.first_s, self.factor, self.ceiling_s, self.attempts)
        return backoff.delay(failures) if code in self.on else None


@dataclass(frozen=True)
class Place:
    """Where in a run something is asked: the node's task and its attempt."""

    task: str
    attempt: int


@dataclass(frozen=True)
class Cap:
    """What several calls of a run may take together, in USD; `name` is that of the account, the same after a crash."""

    name: str
    usd: float


@dataclass(frozen=True)
class Chosen:
    """A decision that is kept, and its id."""

    decision_id: str
    decision: Decision


class NotNeeded:
    """Goes with the cancel of a task that waits in `Desk.ask`: the call is given up for good, and not only the wait for it."""


class Desk(Protocol):
    """The run's side of a node: it sends calls out and brings answers back."""

    @property
    def tenant(self) -> str:
        """Whose run it is."""
        ...

    async def ask(self, place: Place, agent: str, task: Task, timeout_s: float, within: Cap | None = None) -> Answer:
        """The agent's committed answer. Raises `CallFailed` or `DeadlineMissed`, and `LimitReached` where a limit or the cap leaves nothing.

        Cancelled with `NotNeeded`, it gives the call up, and raises `CallFailed`, now and whenever the node runs again; unless the answer was there before.
        """
        ...

    async def sleep(self, place: Place, *, after_s: float | None = None, until: float | None = None) -> None:
        """Wait so many seconds from the first time that it is asked for, or until a time in seconds since the epoch."""
        ...

    async def signal(self, place: Place, name: str, timeout_s: float | None) -> JsonValue:
        """The data of the next signal of that name. Raises `DeadlineMissed`."""
        ...

    async def subrun(
        self, place: Place, workflow: str, value: Mapping[str, JsonValue], limits: Limits | None
    ) -> dict[str, JsonValue]:
        """The result of another run, started here. Raises `SubRunFailed`."""
        ...

    async def decide(self, place: Place, decision: Decision) -> Decision:
        """Keep a decision with the run, and publish it; the one that is kept, which is the first."""
        ...

    async def choose(self, place: Place, wanted: Wanted) -> Chosen:
        """Decide whom to ask, keep that with the run, and publish it; the decision that is kept, which is the first."""
        ...

    async def voted(self, chosen: Chosen, votes: Mapping[str, float]) -> None:
        """Keep how members of a panel or cascade stand to its answer, as a weak label of each: 1 behind it, 0 in dissent."""
        ...

    def cards(self) -> Mapping[str, AgentCard]:
        """The agents that may be asked."""
        ...


_desk: ContextVar[Desk] = ContextVar("desk")


@contextmanager
def at(desk: Desk) -> Generator[None]:
    """Put `desk` behind every node that runs inside."""
    token = _desk.set(desk)
    try:
        yield
    finally:
        _desk.reset(token)


def here() -> tuple[Desk, Place]:
    """The desk of the run in whose node this is called, and the place there. Raises `WorkflowBroken` outside of one."""
    desk = _desk.get(None)
    info = get_runtime().execution_info if desk else None
    if desk is None or info is None:
        raise WorkflowBroken(
            "agents can be asked only inside a node of a run; start one with `metier publish` or `metier dev`"
        )
    return desk, Place(f"{info.checkpoint_ns}:{info.task_id}", info.node_attempt)


@dataclass(frozen=True)
class Agent:
    """A handle on an agent, by name; which model stands behind it is the operator's choice."""

    name: str

    async def ask(
        self,
        text: str,
        *,
        category: str = "general",
        context: Mapping[str, JsonValue] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: Retry | None = None,
    ) -> Answer:
        """Ask and wait for the committed answer, durably: after a crash the run finds it, and does not ask again.

        Args:
            text: the question as the model shall see it.
            category: what kind of task it is; records of models and tools are kept by it.
            context: JSON to hand to the agent beside the question.
            timeout_s: the call's deadline, in seconds from now; that of each try.
            retry: after which failures it is asked again; None: after none.

        Raises:
            CallFailed: the agent ended the call with a failure.
            DeadlineMissed: no answer in time.
        """
        desk, place = here()
        task = Task(text=text, category=category, context=dict(context or {}))
        failures = 0
        while True:
            try:
                return await desk.ask(place, self.name, task, _finite(timeout_s))
            except (CallFailed, DeadlineMissed) as error:
                failures += 1
                code = error.reason if isinstance(error, CallFailed) else error.code
                if retry is None or (delay_s := retry.delay(code, failures)) is None:
                    raise
            await desk.sleep(place, after_s=delay_s)


def agent(name: str) -> Agent:
    """The agent called `name`, to be asked inside a node."""
    return Agent(name)


async def decide(decision: Decision) -> Decision:
    """Keep a routing choice with the run and publish it. After a crash the first choice stands: it is what is returned."""
    desk, place = here()
    return await desk.decide(place, decision)


def agents() -> Mapping[str, AgentCard]:
    """The cards of the agents that this run may ask: model, policy and declared skills."""
    return here()[0].cards()


async def sleep(seconds: float) -> None:
    """Wait, durably: when the wait ends is fixed the first time that the node comes here, and a long one holds no memory."""
    desk, place = here()
    await desk.sleep(place, after_s=_finite(seconds))


async def sleep_until(at: datetime) -> None:
    """The same, until a time. Raises `WorkflowBroken` for one without a time zone."""
    if at.tzinfo is None:
        raise WorkflowBroken("sleep_until needs a time with its time zone: datetime.now(UTC), say")
    desk, place = here()
    await desk.sleep(place, until=at.timestamp())


async def signal(name: str, *, timeout_s: float | None = None) -> JsonValue:
    """Wait, durably, for the next signal called `name` to this run, and give its data. Signals that came before are kept: the first wait gets the first.

    Raises:
        DeadlineMissed: none came within `timeout_s` seconds.
    """
    desk, place = here()
    return await desk.signal(place, name, None if timeout_s is None else _finite(timeout_s))


async def subrun(
    workflow: str, input: Mapping[str, JsonValue] | None = None, *, limits: Limits | None = None
) -> dict[str, JsonValue]:
    """Start a run of another workflow, wait for its end, durably, and give its result. It is started once, whatever crashes, and ends with this run.

    It is of the same tenant and priority, and what it takes counts for this run's limits too; `limits` are its own.

    Raises:
        SubRunFailed: it failed, or somebody gave it up; `reason` says why.
    """
    desk, place = here()
    return await desk.subrun(place, workflow, input or {}, limits)


def _finite(seconds: float) -> float:
    if not math.isfinite(seconds):
        raise WorkflowBroken(f"a node cannot wait {seconds} seconds")
    return max(0.0, seconds)
