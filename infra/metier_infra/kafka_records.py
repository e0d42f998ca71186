"""Records as kafka-python has them, and as we do. `kafka_bus` and `kafka_scan` read and write through it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from metier_infra.messages import Delivery, Nothing, Record

if TYPE_CHECKING:
    from kafka import ConsumerRecord


def delivery_of(record: ConsumerRecord, prefix: str) -> Delivery:
    """The record at its place, as its bytes are; `prefix` is taken off its topic's name."""
    headers = tuple((str(name), bytes(value or b"")) for name, value in record.headers or ())
    topic = record.topic.removeprefix(prefix)
    value = Nothing() if record.value is None else record.value
    return Delivery(topic, record.partition, record.offset, record.key, value, headers)


def sent(record: Record) -> dict[str, Any]:
    """The record as kafka-python's producer wants it, which sends none without both key and value: that one's value is then empty."""
    nothing = isinstance(record.value, Nothing) and record.key is not None
    return {"value": None if nothing else bytes(record.value), "key": record.key, "headers": list(record.headers)}
