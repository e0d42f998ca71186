"""The events that tell how a run comes along: nodes, calls, tool calls and text as it is written. `outgoing` sends them, `metier runs watch` shows them."""

from __future__ import annotations

from typing import ClassVar

from metier_infra.events import EVENTS_TOPIC, Event
from metier_infra.words import CallId, RunId, Stamp, ToolCallId


class TextWritten(Event):
    """A piece of what an agent's model writes, as it comes; not checked yet, and no answer.

    The pieces of one model request have its `step` and `attempt` and are numbered from 0; the last is -1. Those of a later attempt take the place of those before.
    """

    TYPE: ClassVar[str] = "io.metier.text.written.v1"
    TOPIC: ClassVar[str] = EVENTS_TOPIC
    run_id: RunId
    call_id: CallId
    agent: str
    step: int
    attempt: int
    piece: int
    text: str
    stamp: Stamp | None = None


class NodeStarted(Event):
    """A node of the run's graph began. `task` is LangGraph's id of it, the same whenever it runs again after a crash."""

    TYPE: ClassVar[str] = "io.metier.node.started.v1"
    TOPIC: ClassVar[str] = EVENTS_TOPIC
    run_id: RunId
    task: str
    node: str


class NodeEnded(Event):
    """It ended: well, or with an error, or at a wait of its own."""

    TYPE: ClassVar[str] = "io.metier.node.ended.v1"
    TOPIC: ClassVar[str] = EVENTS_TOPIC
    run_id: RunId
    task: str
    node: str
    ok: bool


class AgentAsked(Event):
    """A node of the run asked an agent. `node` is its name, with those of the graphs round it, outermost first."""

    TYPE: ClassVar[str] = "io.metier.agent.asked.v1"
    TOPIC: ClassVar[str] = EVENTS_TOPIC
    run_id: RunId
    call_id: CallId
    agent: str
    node: str = ""


class AgentAnswered(Event):
    """Its call ended, with `ok` or the `reason` why not. `tokens` and `cost_usd` are what it took, as far as that was known then."""

    TYPE: ClassVar[str] = "io.metier.agent.answered.v1"
    TOPIC: ClassVar[str] = EVENTS_TOPIC
    run_id: RunId
    call_id: CallId
    agent: str
    ok: bool
    reason: str | None = None
    model: str = ""
    cost_usd: float = 0.0
    stamp: Stamp | None = None


class ToolCalled(Event):
    """An agent's tool call was sent. Its arguments are not told."""

    TYPE: ClassVar[str] = "io.metier.tool.called.v1"
    TOPIC: ClassVar[str] = EVENTS_TOPIC
    run_id: RunId
    call_id: CallId
    tool_call_id: ToolCallId
    agent: str
    tool: str


class ToolAnswered(Event):
    """It ended: `status` as the agent reads it, and the tool's own time. What it gave is not told."""

    TYPE: ClassVar[str] = "io.metier.tool.answered.v1"
    TOPIC: ClassVar[str] = EVENTS_TOPIC
    run_id: RunId
    call_id: CallId
    tool_call_id: ToolCallId
    agent: str
    tool: str
    ok: bool
    status: str
    wall_ms: float | None = None


class RunParked(Event):
    """The run leaves memory until there is news for it; `calls` are those for which it waits. `segment` counts how often it was taken up."""

    TYPE: ClassVar[str] = "io.metier.run.parked.v1"
    TOPIC: ClassVar[str] = EVENTS_TOPIC
    run_id: RunId
    segment: int
    calls: tuple[CallId, ...] = ()


class RunResumed(Event):
    """An orchestrator took the run up once more: what it waited for came, or the replica that had it is gone."""

    TYPE: ClassVar[str] = "io.metier.run.resumed.v1"
    TOPIC: ClassVar[str] = EVENTS_TOPIC
    run_id: RunId
    segment: int


PROGRESS: tuple[type[Event], ...] = (
    TextWritten,
    NodeStarted,
    NodeEnded,
    AgentAsked,
    AgentAnswered,
    ToolCalled,
    ToolAnswered,
    RunParked,
    RunResumed,
)
