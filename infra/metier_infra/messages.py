"""The words that travel: every event type, frozen, and its form on the wire (CloudEvents 1.0, Kafka binary mode).

Produced and consumed by every role; the reference pages are generated from `EVENTS`. Consumers ignore unknown fields; a
breaking change is a new type that ends in `.v2`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Generic, Literal, NewType, TypeVar

from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event, to_binary_event
from cloudevents.core.v1.event import CloudEvent
from pydantic import BaseModel, ConfigDict, JsonValue, StrictBool, StringConstraints, ValidationError

from metier_infra.errors import TooLarge, Undecodable, UnknownEvent

RunId = NewType("RunId", str)
CallId = NewType("CallId", str)
ToolCallId = NewType("ToolCallId", str)

REQUESTS = "metier.requests"
RUNS = "metier.runs"
EVENTS_TOPIC = "metier.events"
DEAD_LETTERS = "metier.dead-letters"

LARGEST = 4 << 20
"""The most that one event's data may take, in bytes of JSON. The topics take twice as much; larger things need a claim check."""


def tasks_topic(agent: str) -> str:
    """The topic that carries the calls to one agent."""
    return f"metier.agents.{agent}.tasks"


def stable_id(*parts: str | int) -> str:
    """32 hex characters that depend on the parts alone: the same work has the same id after any crash."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


class Word(BaseModel):
    """A frozen value that travels or is stored; unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Failure(Word):
    """Why something ended badly: `code` from the error tree, and a sentence for a person."""

    code: str
    message: str


class Task(Word):
    """What an agent is asked. `text` is the question; `context` is JSON that the agent may show to its model.

    `category` is what the workflow believes the task to be; records of tools and models are kept by it.
    """

    text: str
    category: str = "general"
    context: dict[str, JsonValue] = {}


class Claim(Word):
    """Something that an answer says, and the exact words of the source (its id) on which it stands."""

    text: str
    source: str
    quote: str


class Conflict(Word):
    """What sources contradict each other about: a side is what one of them says."""

    about: str
    sides: tuple[Claim, ...]


class Answer(Word):
    """What an agent answered: the comparable `text`, how sure it is (0 to 1, or None), and what it took.

    Money is USD; where `cost_known` is false, some price was not known and `cost_usd` is a lower bound. `model_turns` and `tool_calls`
    are counts; `stopped` says why the loop ended. Of several `explorations`, `agreement` is the share that gave this answer, and `selected_by` says what chose it. An agent that answers from sources says its `claims`, the `conflicts` between sources,
    and what stays `unresolved`; every quote was found in its source.
    """

    text: str
    agent: str
    model: str
    policy: str
    confidence: float | None = None
    stopped: str = "answered"
    model_turns: int = 0
    tool_calls: int = 0
    cost_usd: float = 0.0
    cost_known: bool = True
    explorations: int = 1
    agreement: float | None = None
    selected_by: str = ""
    claims: tuple[Claim, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    unresolved: tuple[str, ...] = ()


class Stamp(Word):
    """Under what an agent acts: its `digest` changes with any change of its behaviour; `safety` is NAME@VERSION of its bundle, or empty.

    `safety_digest` changes with any change of the bundle. It stands on every event that concerns the agent.
    """

    agent: str
    digest: str
    safety: str = ""
    safety_digest: str = ""


class AgentCard(Word):
    """What a workflow may know of an agent: skills are what it says it is good at, 0 to 1 by category."""

    name: str
    model: str
    policy: str
    skills: dict[str, float] = {}
    stamp: Stamp | None = None


class Candidate(Word):
    """One agent that a decision weighed: its score (higher is better) and the chance with which it would be chosen (0 to 1)."""

    agent: str
    score: float
    propensity: float
    stamp: Stamp | None = None


class Decision(Word):
    """A routing choice: who could have been asked, who was, why, and by which router version."""

    category: str
    chosen: tuple[str, ...]
    topology: Literal["specialist", "panel"]
    reason: str
    router: str
    candidates: tuple[Candidate, ...]


class Event(Word):
    """An event's data. `TYPE` is its CloudEvents type; the envelope carries id, source and subject."""

    TYPE: ClassVar[str]


Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]*$")]
"""A name that others chose: short, and without control characters."""
Remark = Annotated[str, StringConstraints(max_length=2000, pattern=r"^[^\x00]*$")]
"""A few sentences of others."""


class RunRequested(Event):
    """A backend asks for a run of `workflow` (its newest version unless one is named) on `input`."""

    TYPE: ClassVar[str] = "io.metier.run.requested.v1"
    workflow: Name
    input: dict[str, JsonValue]
    version: Name | None = None


class RunAccepted(Event):
    """The run is in the journal; whoever owns its partition runs it. Also sent to wake a run that nobody holds."""

    TYPE: ClassVar[str] = "io.metier.run.accepted.v1"
    run_id: RunId
    workflow: str


class CallRequested(Event):
    """A run asks an agent. `deadline` is seconds since the epoch."""

    TYPE: ClassVar[str] = "io.metier.call.requested.v1"
    run_id: RunId
    call_id: CallId
    agent: str
    task: Task
    deadline: float
    stamp: Stamp | None = None


class CallAnswered(Event):
    """The one committed result of a call: an answer or a failure, never both."""

    TYPE: ClassVar[str] = "io.metier.call.answered.v1"
    run_id: RunId
    call_id: CallId
    answer: Answer | None = None
    failure: Failure | None = None
    stamp: Stamp | None = None


class CallParked(Event):
    """A call waits for a person and is in nobody's hands; its time stands still."""

    TYPE: ClassVar[str] = "io.metier.call.parked.v1"
    run_id: RunId
    call_id: CallId
    stamp: Stamp | None = None


class ApprovalWanted(Event):
    """A tool call waits for a person: `why`, and until when (seconds since the epoch). `approval_id` is the tool call's id.

    If it is granted, `tool` is called with exactly these `arguments`. `stamp` is under what the agent acts.
    """

    TYPE: ClassVar[str] = "io.metier.approval.wanted.v1"
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
    """

    TYPE: ClassVar[str] = "io.metier.approval.decided.v1"
    run_id: Name
    approval_id: Name
    granted: StrictBool
    by: Name
    note: Remark = ""
    arguments: dict[str, JsonValue] | None = None


class ApprovalSettled(Event):
    """What became of a tool call that waited: granted or refused, and by whom; `expiry` where nobody answered in time, `withdrawn` where its call ended before."""

    TYPE: ClassVar[str] = "io.metier.approval.settled.v1"
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


class TextWritten(Event):
    """A piece of what an agent's model writes, as it comes; not checked yet, and no answer.

    The pieces of one model request have its `step` and `attempt` and are numbered from 0; the last is -1. Those of a later attempt take the place of those before.
    """

    TYPE: ClassVar[str] = "io.metier.text.written.v1"
    run_id: RunId
    call_id: CallId
    agent: str
    step: int
    attempt: int
    piece: int
    text: str
    stamp: Stamp | None = None


class DecisionMade(Event):
    """A workflow chose whom to ask."""

    TYPE: ClassVar[str] = "io.metier.decision.made.v1"
    run_id: RunId
    decision: Decision


class RunStarted(Event):
    """An orchestrator took the run up for the first time."""

    TYPE: ClassVar[str] = "io.metier.run.started.v1"
    run_id: RunId
    workflow: str
    version: str


class RunSucceeded(Event):
    """The run's one terminal event, when it went well. `request_id` is the id of the event that asked for it, `agents` are those that were called."""

    TYPE: ClassVar[str] = "io.metier.run.succeeded.v1"
    run_id: RunId
    request_id: str
    workflow: str
    result: dict[str, JsonValue]
    cost_usd: float
    agents: tuple[Stamp, ...] = ()


class RunFailed(Event):
    """The run's one terminal event, when it did not go well."""

    TYPE: ClassVar[str] = "io.metier.run.failed.v1"
    run_id: RunId
    request_id: str
    workflow: str
    failure: Failure
    cost_usd: float
    agents: tuple[Stamp, ...] = ()


EVENTS: Mapping[str, type[Event]] = {
    kind.TYPE: kind
    for kind in (
        RunRequested,
        RunAccepted,
        CallRequested,
        CallAnswered,
        CallParked,
        ApprovalWanted,
        ApprovalDecided,
        ApprovalSettled,
        TextWritten,
        DecisionMade,
        RunStarted,
        RunSucceeded,
        RunFailed,
    )
}


@dataclass(frozen=True)
class Record:
    """What a bus carries: a Kafka record without its place."""

    topic: str
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True)
class Delivery:
    """A record at its place in the log, as a consumer gets it. `key` and `value` are the original bytes."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


E_co = TypeVar("E_co", bound=Event, covariant=True)


@dataclass(frozen=True)
class Envelope(Generic[E_co]):
    """An event with its CloudEvents context. `traceparent` is the W3C context of the send, when there is one."""

    data: E_co
    id: str
    source: str
    key: str
    subject: str | None = None
    traceparent: str | None = None
    time: datetime = field(default_factory=lambda: datetime.now(UTC))


def encode(topic: str, event: Envelope[Any]) -> Record:
    """The record that carries `event`; `traceparent` is a plain header, as W3C Trace Context wants it. Raises `TooLarge`."""
    attributes = {
        "id": event.id,
        "source": event.source,
        "type": event.data.TYPE,
        "specversion": "1.0",
        "time": event.time,
        "datacontenttype": "application/json",
        "partitionkey": event.key,
        **({"subject": event.subject} if event.subject else {}),
    }
    message = to_binary_event(CloudEvent(attributes, event.data.model_dump(mode="json")))
    if len(message.value) > 1.5 * LARGEST:
        raise TooLarge(f"the event {event.data.TYPE} takes {len(message.value)} bytes; an event carries {LARGEST}")
    trace = {"traceparent": event.traceparent.encode()} if event.traceparent else {}
    return Record(topic, event.key.encode(), message.value, tuple({**message.headers, **trace}.items()))


def decode(delivery: Delivery) -> Envelope[Event]:
    """The event in `delivery`.

    Raises:
        Undecodable: the bytes are not a CloudEvent in binary mode, or the data does not fit its type.
        UnknownEvent: a well-formed CloudEvent of a type that is not ours.
    """
    event = _cloud_event(delivery)
    kind = EVENTS.get(event.get_type())
    if kind is None:
        raise UnknownEvent(f"the event type {event.get_type()!r} is not one of ours")
    try:
        data = kind.model_validate(event.get_data())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "data"
        raise Undecodable(f"the event's data does not fit its type: {place}: {first['msg']}") from error
    for attribute, value in (("ce_id", event.get_id()), ("ce_source", event.get_source())):
        if len(value) > 1000 or not value.isprintable():
            raise Undecodable(f"{attribute} must be at most 1000 printable characters; it has {len(value)}")
    trace = dict(delivery.headers).get("traceparent", b"").decode("ascii", "replace") or None
    key = (delivery.key or b"").decode("utf-8", "replace")
    return Envelope(
        data, event.get_id(), event.get_source(), key, event.get_subject(), trace, event.get_time() or datetime.now(UTC)
    )


def _cloud_event(delivery: Delivery) -> BaseCloudEvent:
    try:
        return from_binary_event(KafkaMessage(dict(delivery.headers), None, delivery.value))
    except Exception as error:  # the library raises many kinds on hostile bytes; all of them mean the same
        raise Undecodable(f"not a CloudEvent in Kafka binary mode: {_short(error)}") from error


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
