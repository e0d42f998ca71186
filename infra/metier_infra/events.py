"""The events that travel, and the topics that carry them; what is told of a run on its way is in `progress_events`, all by type in `event_types`.

Produced and consumed by every role. All are frozen. Consumers ignore unknown fields; a breaking change is a new type that ends in `.v2`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, JsonValue, StrictBool

from metier_infra.words import (
    Allowance,
    Answer,
    CallId,
    Decision,
    Failure,
    Limits,
    Name,
    Remark,
    RunId,
    Spent,
    Stamp,
    Task,
    ToolCallId,
    Word,
)

REQUESTS = "metier.requests"
RUNS = "metier.runs"
EVENTS_TOPIC = "metier.events"
OUTCOMES = "metier.outcomes"
DEAD_LETTERS = "metier.dead-letters"
TASKS = "metier.agents.{agent}.tasks"
READERS: Mapping[str, str] = {
    REQUESTS: "metier.orchestrator.requests",
    OUTCOMES: "metier.orchestrator.outcomes",
    RUNS: "metier.orchestrator.runs",
}
"""The consumer group as which the orchestrators read each of their topics."""
HURRIED = "metier.orchestrator.cancels"
"""And a second one for requests, that only looks for cancels."""


def tasks_topic(agent: str) -> str:
    """The topic that carries the calls to one agent."""
    return TASKS.format(agent=agent)


def tasks_group(agent: str) -> str:
    """The consumer group as which the workers of one agent read it."""
    return f"metier.agents.{agent}"


class Event(Word):
    """An event's data. `TYPE` is its CloudEvents type, `TOPIC` where it travels; the envelope carries id, source and subject."""

    TYPE: ClassVar[str]
    TOPIC: ClassVar[str]


class RunRequested(Event):
    """A backend asks for a run of `workflow` (its newest version unless one is named) on `input`.

    Runs of a `tenant` share its limits; tenants get their turns alike. Of one tenant's runs those of higher `priority` (0 to 9) go first. `limits` hold for the run.
    """

    TYPE: ClassVar[str] = "io.metier.run.requested.v1"
    TOPIC: ClassVar[str] = REQUESTS
    workflow: Name
    input: dict[str, JsonValue]
    version: Name | None = None
    tenant: Name = "default"
    priority: Annotated[int, Field(ge=0, le=9)] = 5
    limits: Limits | None = None


class RunAccepted(Event):
    """The run is in the journal; whoever owns its partition runs it. Also sent to wake a run that nobody holds, and one that was `cancelled`, so that it ends.

    `begun`: it had its turn before, and does not wait behind those that had none.
    """

    TYPE: ClassVar[str] = "io.metier.run.accepted.v1"
    TOPIC: ClassVar[str] = RUNS
    run_id: RunId
    workflow: str
    cancelled: bool = False
    tenant: str = "default"
    priority: int = 5
    parent: RunId | None = None
    begun: bool = False


class CallRequested(Event):
    """A run asks an agent. `deadline` is seconds since the epoch; `allowance` is what the call may take, where the run or its tenant has limits."""

    TYPE: ClassVar[str] = "io.metier.call.requested.v1"
    TOPIC: ClassVar[str] = TASKS
    run_id: RunId
    call_id: CallId
    agent: str
    task: Task
    deadline: float
    allowance: Allowance | None = None
    stamp: Stamp | None = None


class CallAnswered(Event):
    """The one committed result of a call: an answer or a failure, never both."""

    TYPE: ClassVar[str] = "io.metier.call.answered.v1"
    TOPIC: ClassVar[str] = RUNS
    run_id: RunId
    call_id: CallId
    answer: Answer | None = None
    failure: Failure | None = None
    stamp: Stamp | None = None


class CallParked(Event):
    """A call waits for a person and is in nobody's hands; its time stands still."""

    TYPE: ClassVar[str] = "io.metier.call.parked.v1"
    TOPIC: ClassVar[str] = RUNS
    run_id: RunId
    call_id: CallId
    stamp: Stamp | None = None


class ApprovalWanted(Event):
    """A tool call waits for a person: `why`, and until when (seconds since the epoch). `approval_id` is the tool call's id.

    If it is granted, `tool` is called with exactly these `arguments`. `stamp` is under what the agent acts.
    """

    TYPE: ClassVar[str] = "io.metier.approval.wanted.v1"
    TOPIC: ClassVar[str] = EVENTS_TOPIC
    run_id: RunId
    call_id: CallId
    approval_id: ToolCallId
    agent: str
    tool: str
    arguments: dict[str, JsonValue]
    why: str
    wanted_at: float
    expires_at: float
    stamp: Stamp | None = None


class ApprovalDecided(Event):
    """A person, or a program for them, decides about a tool call that waits. The first decision in time counts.

    With `arguments`, the call is granted with these in place of those that were shown; they are judged as the agent's own.
    With `tenant`, it counts only where the run is of that tenant.
    """

    TYPE: ClassVar[str] = "io.metier.approval.decided.v1"
    TOPIC: ClassVar[str] = REQUESTS
    run_id: Name
    approval_id: Name
    granted: StrictBool
    by: Name
    note: Remark = ""
    arguments: dict[str, JsonValue] | None = None
    tenant: Name | None = None


class ApprovalSettled(Event):
    """What became of a tool call that waited: granted or refused, and by whom; `expiry` where nobody answered in time, `withdrawn` where its call ended before."""

    TYPE: ClassVar[str] = "io.metier.approval.settled.v1"
    TOPIC: ClassVar[str] = EVENTS_TOPIC
    run_id: RunId
    call_id: CallId
    approval_id: ToolCallId
    agent: str
    tool: str
    granted: bool
    by: str
    note: str = ""
    arguments: dict[str, JsonValue] | None = None
    stamp: Stamp | None = None


class DecisionMade(Event):
    """A workflow chose whom to ask."""

    TYPE: ClassVar[str] = "io.metier.decision.made.v1"
    TOPIC: ClassVar[str] = EVENTS_TOPIC
    run_id: RunId
    decision: Decision


class OutcomeReported(Event):
    """What really came of a run, minutes or weeks later: `score` is how right it was, 0 to 1.

    It is of the run's whole answer, or of one `decision_id` of it, or of what one `agent` answered there. `kind` says whether somebody judged (`explicit`) or it was read off
    what happened (`dissent` within a panel, a `retry` of the run, an `edit` by the user): those count less. `weight` makes it count less still. A later outcome (by the event's time) about the same, by the same, of the same kind takes the place of an earlier one.
    Those of different people all stand, and learning sees their mean by weight. One about a run, decision or agent that is not known is kept, and counts once that is.
    """

    TYPE: ClassVar[str] = "io.metier.outcome.reported.v1"
    TOPIC: ClassVar[str] = OUTCOMES
    run_id: Name
    score: Annotated[float, Field(ge=0, le=1)]
    kind: Literal["explicit", "dissent", "retry", "edit"] = "explicit"
    weight: Annotated[float, Field(gt=0, le=1)] = 1.0
    decision_id: Name | None = None
    agent: Name | None = None
    by: Name
    note: Remark = ""


class RouterMoveRequested(Event):
    """Move a router version: watch it (`shadow`), try it on a `share` of the tasks (`canary`), let it decide (`promoted`), or take it out (`rolled_back`). `tenant` None: for all.

    `force` promotes one that was not judged, or was found to be worse; it needs a note.
    """

    TYPE: ClassVar[str] = "io.metier.router.move.v1"
    TOPIC: ClassVar[str] = REQUESTS
    router: Name
    to: Literal["shadow", "canary", "promoted", "rolled_back"]
    share: Annotated[float, Field(ge=0, le=1)] | None = None
    tenant: Name | None = None
    by: Name
    note: Remark = ""
    force: StrictBool = False


class RouterMoved(Event):
    """A router version stands elsewhere now; `before` is the stage where it was.

    `other` is the version whose place it took when it was promoted, or that decides again since it was rolled back.
    """

    TYPE: ClassVar[str] = "io.metier.router.moved.v1"
    TOPIC: ClassVar[str] = EVENTS_TOPIC
    router: str
    before: str
    to: str
    share: float | None = None
    tenant: str | None = None
    by: str
    note: str = ""
    other: str | None = None


class CancelRequested(Event):
    """A person or a program gives a run up: what works for it is ended, what has not started never starts. A run that ended stays as it is.

    With `tenant`, here and in all that is asked of a run, it is done only where the run is of that tenant: for any other there is no such run.
    """

    TYPE: ClassVar[str] = "io.metier.run.cancel.v1"
    TOPIC: ClassVar[str] = REQUESTS
    run_id: Name
    by: Name
    note: Remark = ""
    tenant: Name | None = None


class RetryRequested(Event):
    """Run a run that ended once more, from its input on, as a new run: its id follows from this event's (source, id)."""

    TYPE: ClassVar[str] = "io.metier.run.retry.v1"
    TOPIC: ClassVar[str] = REQUESTS
    run_id: Name
    by: Name
    note: Remark = ""
    tenant: Name | None = None


class RedriveRequested(Event):
    """Go on with a run that failed or was cancelled, as a new run, from its last checkpoint: what was answered is not asked again."""

    TYPE: ClassVar[str] = "io.metier.run.redrive.v1"
    TOPIC: ClassVar[str] = REQUESTS
    run_id: Name
    by: Name
    note: Remark = ""
    tenant: Name | None = None


class Signalled(Event):
    """Something that a run may wait for has happened: the node that waits for the signal `name` gets `data`; one that will wait finds it."""

    TYPE: ClassVar[str] = "io.metier.run.signal.v1"
    TOPIC: ClassVar[str] = REQUESTS
    run_id: Name
    name: Name
    data: JsonValue = None
    by: Name = "unknown"
    tenant: Name | None = None


class RequestRejected(Event):
    """A request that was readable and cannot be done, and why. `request_id` and `request_source` are those of its event."""

    TYPE: ClassVar[str] = "io.metier.request.rejected.v1"
    TOPIC: ClassVar[str] = EVENTS_TOPIC
    request_id: str
    request_source: str
    request_type: str
    failure: Failure
    run_id: str | None = None


class RunStarted(Event):
    """An orchestrator took the run up for the first time."""

    TYPE: ClassVar[str] = "io.metier.run.started.v1"
    TOPIC: ClassVar[str] = EVENTS_TOPIC
    run_id: RunId
    workflow: str
    version: str


class RunSucceeded(Event):
    """The run's one terminal event, when it went well. `request_id` is the id of the event that asked for it, `agents` are those that were called.

    `spent` is what their calls took, and the run's own time.
    """

    TYPE: ClassVar[str] = "io.metier.run.succeeded.v1"
    TOPIC: ClassVar[str] = EVENTS_TOPIC
    run_id: RunId
    request_id: str
    workflow: str
    result: dict[str, JsonValue]
    cost_usd: float
    spent: Spent = Spent()
    agents: tuple[Stamp, ...] = ()


class RunFailed(Event):
    """The run's one terminal event, when it did not go well. `partial` is what its graph's outputs held so far, where a limit was reached."""

    TYPE: ClassVar[str] = "io.metier.run.failed.v1"
    TOPIC: ClassVar[str] = EVENTS_TOPIC
    run_id: RunId
    request_id: str
    workflow: str
    failure: Failure
    partial: dict[str, JsonValue] | None = None
    cost_usd: float
    spent: Spent = Spent()
    agents: tuple[Stamp, ...] = ()


class RunCancelled(Event):
    """The run's one terminal event, when it was given up: by whom, and why."""

    TYPE: ClassVar[str] = "io.metier.run.cancelled.v1"
    TOPIC: ClassVar[str] = EVENTS_TOPIC
    run_id: RunId
    request_id: str
    workflow: str
    by: str
    note: str = ""
    cost_usd: float
    spent: Spent = Spent()
    agents: tuple[Stamp, ...] = ()
