"""An event's form on the wire: CloudEvents 1.0, Kafka binary mode.

`service` reads and sends with it; whoever publishes makes an `Envelope`. What is inside is in `events`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event, to_binary_event
from cloudevents.core.v1.event import CloudEvent
from pydantic import ValidationError

from metier_infra.errors import TooLarge, Undecodable, UnknownEvent
from metier_infra.events import EVENTS, Event

LARGEST = 4 << 20
"""The most that one event's data may take, in bytes of JSON. The topics take twice as much; larger things need a claim check."""


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
