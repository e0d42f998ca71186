"""What a node of a graph may do beyond plain Python: ask an agent, and decide whom to ask.

Authors call `agent(name).ask(...)` and `decide(...)` inside nodes; the orchestrator puts itself behind `Desk` for the time of a run.
Ids depend on the run, the node's task and what is asked, so a node that runs again finds the same answers.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from langgraph.runtime import get_runtime
from pydantic import JsonValue

from metier_infra.errors import WorkflowBroken
from metier_infra.words import AgentCard, Answer, Decision, Task

DEFAULT_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Place:
    """Where in a run something is asked: the node's task and its attempt."""

    task: str
    attempt: int


class Desk(Protocol):
    """The run's side of a node: it sends calls out and brings answers back."""

    async def ask(self, place: Place, agent: str, task: Task, timeout_s: float) -> Answer:
        """The agent's committed answer. Raises `CallFailed` or `DeadlineMissed`."""
        ...

    async def decide(self, place: Place, decision: Decision) -> Decision:
        """Keep a decision with the run, and publish it; the one that is kept, which is the first."""
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


def _here() -> tuple[Desk, Place]:
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
    ) -> Answer:
        """Ask and wait for the committed answer, durably: after a crash the run finds it, and does not ask again.

        Args:
            text: the question as the model shall see it.
            category: what kind of task it is; records of models and tools are kept by it.
            context: JSON to hand to the agent beside the question.
            timeout_s: the call's deadline, in seconds from now.

        Raises:
            CallFailed: the agent ended the call with a failure.
            DeadlineMissed: no answer in time.
        """
        desk, place = _here()
        return await desk.ask(
            place, self.name, Task(text=text, category=category, context=dict(context or {})), timeout_s
        )


def agent(name: str) -> Agent:
    """The agent called `name`, to be asked inside a node."""
    return Agent(name)


async def decide(decision: Decision) -> Decision:
    """Keep a routing choice with the run and publish it. After a crash the first choice stands: it is what is returned."""
    desk, place = _here()
    return await desk.decide(place, decision)


def agents() -> Mapping[str, AgentCard]:
    """The cards of the agents that this run may ask: model, policy and declared skills."""
    return _here()[0].cards()
