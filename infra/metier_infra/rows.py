"""What the journal keeps, as frozen words: runs, calls, steps, tool calls, approvals. `journal` reads and writes them; everybody may read."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from pydantic import JsonValue

from metier_infra.database import Row
from metier_infra.events import RunCancelled, RunFailed, RunSucceeded
from metier_infra.words import (
    Allowance,
    Answer,
    CallId,
    Failure,
    Limits,
    RunId,
    Slot,
    Spent,
    Stamp,
    Task,
    ToolCallId,
    Word,
)

RunStatus = Literal["accepted", "running", "parked", "succeeded", "failed", "cancelled"]
Awaited = Literal["call", "wait", "run"]
"""What a run may wait for: an agent's call, a time or a signal, the end of another run."""
ENDED = frozenset({"succeeded", "failed", "cancelled"})


class Run(Word):
    """One execution of one workflow version. Times are seconds since the epoch; money is USD.

    `partial` is what its graph's outputs held when a limit ended it. `agents` are those that it had called when it ended; `announced` tells whether the terminal event reached the bus; `traceparent` is the root of the run's trace. Since `parked_at` it does
    nothing but wait, and is in no process's memory. `lost` counts its processes that died, or broke, while they ran nodes of it, since its last checkpoint. `parent` is the run whose node started this one, `origin` the run that this one repeats or goes on with.
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
    partial: dict[str, JsonValue] | None = None
    agents: tuple[Stamp, ...] | None = None
    cost_usd: float = 0.0
    tokens: int = 0
    tool_calls: int = 0
    traceparent: str
    tenant: str = "default"
    priority: int = 5
    limits: Limits | None = None
    parent: RunId | None = None
    origin: RunId | None = None
    cancelled_by: str | None = None
    cancel_note: str | None = None
    cancelled_at: float | None = None
    epoch: int = 0
    lost: int = 0
    announced: bool = False
    accepted_at: float = 0.0
    started_at: float | None = None
    parked_at: float | None = None
    parked_s: float = 0.0
    finished_at: float | None = None

    @property
    def spent(self) -> Spent:
        """What it took in all, once it has ended; its time is that from its acceptance on, less that in which it was parked for a person."""
        time_s = (self.finished_at or self.accepted_at) - self.accepted_at - self.parked_s
        return Spent(usd=self.cost_usd, tokens=self.tokens, tool_calls=self.tool_calls, time_s=max(0.0, time_s))

    @property
    def begun(self) -> bool:
        """Whether some replica has had it."""
        return self.epoch > 0

    @property
    def ended(self) -> bool:
        """Whether the run reached its terminal state."""
        return self.status in ENDED

    @property
    def end(self) -> RunSucceeded | RunFailed | RunCancelled:
        """The terminal event's data of a run that has ended: the same whenever it is told."""
        told: dict[str, Any] = {
            "run_id": self.run_id,
            "request_id": self.event_id,
            "workflow": self.workflow,
            "cost_usd": self.cost_usd,
            "spent": self.spent,
            "agents": self.agents or (),
        }
        if self.status == "cancelled":
            return RunCancelled(**told, by=self.cancelled_by or "", note=self.cancel_note or "")
        if self.failure:
            return RunFailed(**told, failure=self.failure, partial=self.partial)
        return RunSucceeded(**told, result=self.result or {})


class Call(Word):
    """One request to an agent: outbox for the run that asks, inbox for the answer.

    `slot` is where in its run it was asked. `attempt` counts claims, `stamp` is what the last one worked under; `cancelled` says why the call was given up. Since `parked_at` it waits for a
    person; `parked_s` is how long it did before, in seconds, by which `deadline` was moved on. `allowance` is what was set aside for it, where its run or
    tenant has limits. `cost_usd`, `tokens` and `tool_calls` are what it took; while `tokens` is None, that is not known yet.
    """

    call_id: CallId
    run_id: RunId
    agent: str
    task: Task
    deadline: float
    slot: Slot | None = None
    attempt: int = 0
    holder: str | None = None
    answer: Answer | None = None
    failure: Failure | None = None
    cost_usd: float = 0.0
    tokens: int | None = None
    tool_calls: int = 0
    allowance: Allowance | None = None
    stamp: Stamp | None = None
    cancelled: str | None = None
    requested_at: float = 0.0
    claimed_at: float | None = None
    parked_at: float | None = None
    parked_s: float = 0.0
    answered_at: float | None = None
    awaited: int | None = None

    @property
    def spent(self) -> Spent:
        """What it took so far, as far as its worker told; its time is that since it was first claimed, less that in which it was parked."""
        time_s = (self.answered_at or self.parked_at or 0.0) - (self.claimed_at or math.inf) - self.parked_s
        return Spent(usd=self.cost_usd, tokens=self.tokens or 0, tool_calls=self.tool_calls, time_s=max(0.0, time_s))


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


class Approval(Word):
    """A tool call that a person is asked about, under the tool call's id. Times are seconds since the epoch.

    `digest` binds the tool and `arguments`, which are what is shown and what runs if it is granted; unless the one who granted it `changed` them.
    `stamp` is under what the agent acted. `granted` is None until it is decided. `announced` tells whether the decision reached the bus.
    """

    approval_id: ToolCallId
    run_id: RunId
    call_id: CallId
    agent: str
    tool: str
    digest: str
    arguments: dict[str, JsonValue]
    why: str
    stamp: Stamp | None = None
    wanted_at: float = 0.0
    expires_at: float = 0.0
    granted: bool | None = None
    decided_by: str | None = None
    note: str | None = None
    changed: dict[str, JsonValue] | None = None
    decided_at: float | None = None
    announced: bool = False


class Wait(Word):
    """What a node waits for beside calls and runs: the next signal called `name`, or, without a name, a time.

    It ends at `due` at the latest (seconds since the epoch; None: never), `left_s` seconds from when it was read by the database's clock. `signal_id` and
    `data` are those of the signal that ended it; without, its time was over.
    """

    wait_id: str
    run_id: RunId
    slot: Slot
    name: str | None = None
    due: float | None = None
    left_s: float | None = None
    asked_at: float = 0.0
    ended_at: float | None = None
    signal_id: str | None = None
    data: JsonValue = None


class Signal(Word):
    """A signal that came for a run; `wait_id` is the wait that it ended, None while it is left for one."""

    run_id: RunId
    signal_id: str
    name: str
    data: JsonValue = None
    sent_by: str
    at: float
    wait_id: str | None = None


@dataclass(frozen=True)
class Step:
    """One entry of an agent's loop, in order; `body` is the agent's own JSON."""

    call_id: CallId
    n: int
    body: dict[str, Any]
    at: float


HALF_LIFE = 50.0
"""Calls after which what was measured of a tool counts half, unless a policy says otherwise.

A record is then worth some 70 calls: they settle a rate to 6 points, and of a tool that broke, the rate halves within 50 calls.
"""


@dataclass(frozen=True)
class ToolRecord:
    """What was measured of a tool for one agent and category, each call weighing less than the one after it.

    `n` calls were looked at; `ok` and `failed` are the sums of their weights. Latencies are seconds, over good and failed calls: both were waited for.
    None: nothing was measured. `cost_usd` is the tool's own price, over the calls that told one. Of good calls whose answer was compared with the
    model's own from before, `agreed` is the weight of those that agreed, and `differed` has that of the others by the confidence in that own answer,
    which is rounded to a hundredth.
    """

    n: int = 0
    ok: float = 0.0
    failed: float = 0.0
    latency_p50_s: float | None = None
    latency_p90_s: float | None = None
    cost_usd: float | None = None
    agreed: float = 0.0
    differed: tuple[tuple[float, float], ...] = ()

    @property
    def weight(self) -> float:
        """How many calls the record is worth; at most some 1.44 half-lives."""
        return self.ok + self.failed

    @property
    def success(self) -> float | None:
        """The share of good calls, by weight."""
        return self.ok / self.weight if self.weight else None


def fading(n: int, half_life: float) -> list[float]:
    """The weights of `n` things, newest first: 1, then less and less, half after `half_life` of them."""
    return [math.exp2(-age / half_life) for age in range(n)]


def weigh_record(rows: Sequence[Row], half_life: float) -> ToolRecord:
    """The record that finished tool calls make, given with the newest first; `half_life` calls later a call counts half."""
    weighed = list(zip(rows, fading(len(rows), half_life), strict=True))
    times = [(float(row["wall_ms"]) / 1000, weight) for row, weight in weighed]
    costs = [(float(row["cost_usd"]), weight) for row, weight in weighed if row["cost_usd"] is not None]
    return ToolRecord(
        n=len(rows),
        ok=sum(weight for row, weight in weighed if row["ok"]),
        failed=sum(weight for row, weight in weighed if not row["ok"]),
        latency_p50_s=_quantile(times, 0.5),
        latency_p90_s=_quantile(times, 0.9),
        cost_usd=sum(cost * weight for cost, weight in costs) / sum(weight for _, weight in costs) if costs else None,
        agreed=sum(weight for row, weight in weighed if row["agreed"]),
        differed=_differed([(float(row["own_confidence"]), weight) for row, weight in weighed if row["agreed"] == 0]),
    )


def _differed(weighed: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    found: defaultdict[float, float] = defaultdict(float)
    for confidence, weight in weighed:
        found[round(confidence, 2)] += weight
    return tuple(sorted(found.items()))


def _quantile(weighed: Sequence[tuple[float, float]], share: float) -> float | None:
    """The least value up to which at least `share` of the weight lies."""
    ordered = sorted(weighed)
    reached = list(accumulate(weight for _, weight in ordered))
    return next(
        (value for (value, _), sofar in zip(ordered, reached, strict=True) if sofar >= share * reached[-1]), None
    )


_RUN_JSON = ("input", "result", "failure", "partial", "agents", "limits")
_CALL_JSON = ("task", "answer", "failure", "stamp", "slot", "allowance")
_TOOL_JSON = ("arguments", "result")
_APPROVAL_JSON = ("arguments", "stamp", "changed")
_WAIT_JSON = ("slot", "data")


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


def approval_of(row: Row) -> Approval:
    """The approval in a row of the table."""
    return Approval.model_validate(_loaded(row, _APPROVAL_JSON))


def wait_of(row: Row) -> Wait:
    """The wait in a row of the table."""
    return Wait.model_validate(_loaded(row, _WAIT_JSON))


def signal_of(row: Row) -> Signal:
    """The signal in a row of the table."""
    return Signal.model_validate(_loaded(row, _WAIT_JSON))
