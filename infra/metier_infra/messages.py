"""An event's form on the wire: CloudEvents 1.0, Kafka binary mode.

`service` reads and sends with it; whoever publishes makes an `Envelope`. What is inside is in `events`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar, cast

from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event, to_binary_event
from cloudevents.core.v1.event import CloudEvent
from pydantic import ValidationError
from pydantic_core import from_json

from metier_infra.errors import TooLarge, Undecodable, UnknownEvent
from metier_infra.event_types import EVENTS
from metier_infra.events import Event

LARGEST = 32 << 20
"""The most that one event's data may take, in bytes of JSON. What is large travels by claim check (`claims`); a record of the topics holds 8 MiB."""

LARGEST_VALUE = LARGEST * 3 // 2
"""The most that a whole value takes, in bytes: the data, and what an event has round it."""

DATAREF, DATASIZE = "ce_dataref", "ce_datasize"
"""The headers of an event whose data is in the blob store: a claim on it, and how long it is, in bytes."""

MOST_HEADERS = 200
LARGEST_HEADERS = 64 << 10
"""The most headers that an event may have, and what they may take together, names and values, in bytes."""


class Nothing(bytes):
    """What a record has where others have bytes, and it has none (Kafka's null): it reads as empty, and is passed on as none."""


Headers = tuple[tuple[str, bytes], ...]
"""In their order; a name may stand there twice."""


@dataclass(frozen=True)
class Record:
    """What a bus carries: a Kafka record without its place."""

    topic: str
    key: bytes | None
    value: bytes
    headers: Headers = ()


@dataclass(frozen=True)
class Delivery:
    """A record at its place in the log, as a consumer gets it. `key` and `value` are the original bytes."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes
    headers: Headers = ()


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
    if len(message.value) > LARGEST_VALUE:
        raise TooLarge(f"the event {event.data.TYPE} takes {len(message.value)} bytes; an event carries {LARGEST}")
    trace = {"traceparent": event.traceparent.encode()} if event.traceparent else {}
    return Record(topic, event.key.encode(), message.value, tuple({**message.headers, **trace}.items()))


def decode(delivery: Delivery) -> Envelope[Event]:
    """The event in `delivery`.

    Raises:
        Undecodable: the bytes are not a CloudEvent in binary mode, or the data does not fit its type.
        UnknownEvent: a well-formed CloudEvent of a type that is not ours.
    """
    headers = _headers(delivery)
    event = _cloud_event(headers)
    kind = EVENTS.get(event.get_type())
    if kind is None:
        raise UnknownEvent(f"the event type {event.get_type()!r} is not one of ours")
    if DATAREF in headers and not delivery.value:
        claim = headers[DATAREF][:80].decode("utf-8", "replace")
        raise Undecodable(f"the event's data is in no blob store of ours under {claim!r}, or is too large")
    try:
        data = kind.model_validate(_json(delivery.value))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "data"
        raise Undecodable(f"the event's data does not fit its type: {place}: {first['msg']}") from error
    for attribute, value in (("ce_id", event.get_id()), ("ce_source", event.get_source())):
        if len(value) > 1000 or not value.isprintable():
            raise Undecodable(f"{attribute} must be at most 1000 printable characters; it has {len(value)}")
    trace = headers.get("traceparent", b"").decode("ascii", "replace") or None
    key = (delivery.key or b"").decode("utf-8", "replace")
    return Envelope(
        data, event.get_id(), event.get_source(), key, event.get_subject(), trace, event.get_time() or datetime.now(UTC)
    )


def _headers(delivery: Delivery) -> dict[str, bytes]:
    """The headers by name, in lower case. Raises `Undecodable` where they are more than any event needs, or an attribute stands there twice."""
    size = sum(len(name) + len(value) for name, value in delivery.headers)
    if len(delivery.headers) > MOST_HEADERS or size > LARGEST_HEADERS:
        raise Undecodable(f"{len(delivery.headers)} headers of {size} bytes; an event has at most {MOST_HEADERS} of {LARGEST_HEADERS}")  # fmt: skip
    found: dict[str, bytes] = {}
    for name, value in delivery.headers:
        if found.setdefault(name.lower(), value) != value and name.lower().startswith("ce_"):
            raise Undecodable(f"the header {name[:50]} stands there twice, and says two things")
    return found


def _json(value: bytes) -> object:
    """The data. JSON as its standard has it: UTF-8 without a mark, no NaN, no lone surrogates, at most 200 deep, numbers that a double can hold."""
    try:
        data = from_json(value, allow_inf_nan=False)
    except ValueError as error:
        raise Undecodable(f"the data is not JSON: {_short(error)}") from error
    if _PERHAPS_HUGE.search(value) and not _finite(data):
        raise Undecodable("the data holds a number that no double can hold")
    return data


_PERHAPS_HUGE = re.compile(rb"[eE]\+?\d{3}|\d{300}")


def _finite(data: object) -> bool:
    if isinstance(data, dict):
        return all(map(_finite, cast("dict[str, object]", data).values()))
    if isinstance(data, list):
        return all(map(_finite, cast("list[object]", data)))
    return not isinstance(data, float) or math.isfinite(data)


def _cloud_event(headers: dict[str, bytes]) -> BaseCloudEvent:
    if "ce_id" not in headers:  # the library would make one up, and another each time that the record is read
        structured = headers.get("content-type", b"").lower().startswith(b"application/cloudevents")
        hint = "; structured mode is not read: put the context into headers, and the data alone into the value"
        raise Undecodable(f"not a CloudEvent in Kafka binary mode: it has no ce_id{hint if structured else ''}")
    try:
        return from_binary_event(KafkaMessage(headers, None, b""))
    except Exception as error:  # the library raises many kinds on hostile bytes; all of them mean the same
        raise Undecodable(f"not a CloudEvent in Kafka binary mode: {_why(headers, error)}") from error


def _why(headers: dict[str, bytes], error: Exception) -> str:
    """What the library finds wrong, with the header where it does not name one."""
    for name, value in headers.items():
        try:
            value.decode()
        except UnicodeDecodeError:
            return f"the header {name[:50]} is not UTF-8"
    if isinstance(error, ValueError) and "ce_time" in headers:
        return f"ce_time is {headers['ce_time'][:50].decode()!r}, not a time of RFC 3339: {_short(error)}"
    return _short(error)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
