"""What the journal keeps, as frozen words: runs, calls, steps, tool calls. `journal` reads and writes them; everybody may read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import JsonValue

from metier_infra.database import Row
from metier_infra.messages import Answer, CallId, Failure, RunFailed, RunId, RunSucceeded, Task, ToolCallId, Word

RunStatus = Literal["accepted", "running", "succeeded", "failed"]


class Run(Word):
    """One execution of one workflow version. Times are seconds since the epoch; money is USD.

    `announced` tells whether the terminal event reached the bus; `traceparent` is the root of the run's trace.
    """

    run_id: RunId
    source: str
    event_id: str
    workflow: str
    version: str | None
    status: RunStatus
    input: dict[str, JsonValue]
    result: dict[str, JsonValue] | None = None
    failure: Failure | None = None
    cost_usd: float = 0.0
    traceparent: str
    epoch: int = 0
    announced: bool = False
    accepted_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None

    @property
    def ended(self) -> bool:
        """Whether the run reached its terminal state."""
        return self.status in {"succeeded", "failed"}

    @property
    def end(self) -> RunSucceeded | RunFailed:
        """The terminal event's data of a run that has ended: the same whenever it is told."""
        told: dict[str, Any] = {
            "run_id": self.run_id,
            "request_id": self.event_id,
            "workflow": self.workflow,
            "cost_usd": self.cost_usd,
        }
        if self.failure:
            return RunFailed(**told, failure=self.failure)
        return RunSucceeded(**told, result=self.result or {})


class Call(Word):
    """One request to an agent: outbox for the run that asks, inbox for the answer. `attempt` counts claims."""

    call_id: CallId
    run_id: RunId
    agent: str
    task: Task
    deadline: float
    attempt: int = 0
    holder: str | None = None
    answer: Answer | None = None
    failure: Failure | None = None
    cost_usd: float = 0.0
    requested_at: float = 0.0
    claimed_at: float | None = None
    answered_at: float | None = None


class ToolCallRow(Word):
    """One tool call, recorded before it is sent. `result` is what the agent saw; `ok` whether the tool did its work."""

    tool_call_id: ToolCallId
    run_id: RunId
    call_id: CallId
    agent: str
    category: str
    tool: str
    arguments: dict[str, JsonValue]
    result: dict[str, JsonValue] | None = None
    ok: bool | None = None
    wall_ms: float | None = None
    requested_at: float = 0.0
    finished_at: float | None = None


@dataclass(frozen=True)
class Step:
    """One entry of an agent's loop, in order; `body` is the agent's own JSON."""

    call_id: CallId
    n: int
    body: dict[str, Any]
    at: float


@dataclass(frozen=True)
class ToolRecord:
    """What was measured of a tool for one agent and category: successes, failures, median time in milliseconds (None: no data)."""

    ok: int
    failed: int
    wall_ms: float | None


_RUN_JSON = ("input", "result", "failure")
_CALL_JSON = ("task", "answer", "failure")
_TOOL_JSON = ("arguments", "result")


def _loaded(row: Row, fields: Sequence[str]) -> Mapping[str, Any]:
    return {name: json.loads(value) if name in fields and value is not None else value for name, value in row.items()}


def run_of(row: Row) -> Run:
    """The run in a row of the table."""
    return Run.model_validate(_loaded(row, _RUN_JSON))


def call_of(row: Row) -> Call:
    """The call in a row of the table."""
    return Call.model_validate(_loaded(row, _CALL_JSON))


def tool_call_of(row: Row) -> ToolCallRow:
    """The tool call in a row of the table."""
    return ToolCallRow.model_validate(_loaded(row, _TOOL_JSON))
