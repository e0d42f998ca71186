"""What lies on a Kafka topic now, from its beginning to its end, by a consumer without a group. `compose` gives it to `dead_letters`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from metier_infra import kafka_access
from metier_infra.errors import BusGone, MissingService
from metier_infra.kafka_records import delivery_of
from metier_infra.messages import Delivery
from metier_infra.settings import KafkaSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

SILENT_S = 30.0
"""A broker that gives nothing for so long is gone."""


async def scan(settings: KafkaSettings, topic: str, look: Callable[[Delivery], None]) -> None:
    """See `metier_infra.dead_letters.Scan`. `look` is called in a thread. Raises `BusGone`, and `MissingService` where there is no such topic."""
    await asyncio.to_thread(_scan, settings, topic, look)


def _scan(settings: KafkaSettings, topic: str, look: Callable[[Delivery], None]) -> None:
    try:
        _scan_by(_open(settings), settings, topic, look)
    except KafkaError as error:
        raise kafka_access.told(settings, error) from error


def _open(settings: KafkaSettings) -> KafkaConsumer:
    return kafka_access.opened(
        KafkaConsumer,
        settings,
        client_id="metier-scan",
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=8 << 20,
    )


def _scan_by(consumer: KafkaConsumer, settings: KafkaSettings, topic: str, look: Callable[[Delivery], None]) -> None:
    try:
        name = settings.prefix + topic
        parts = [TopicPartition(name, number) for number in consumer.partitions_for_topic(name) or ()]
        if not parts:
            kafka_access.refuse_hidden(settings, [name])
            raise MissingService(f"there is no topic {name} at {settings.bootstrap}: `metier topics` makes it")
        consumer.assign(parts)
        consumer.seek_to_beginning(*parts)
        _to_the_end(consumer, consumer.end_offsets(parts), settings, look)
    finally:
        consumer.close(autocommit=False)


def _to_the_end(
    consumer: KafkaConsumer,
    ends: Mapping[TopicPartition, int],
    settings: KafkaSettings,
    look: Callable[[Delivery], None],
) -> None:
    heard = time.monotonic()
    while any((consumer.position(part) or 0) < end for part, end in ends.items()):
        batch = consumer.poll(200)
        if batch:
            heard = time.monotonic()
        elif time.monotonic() - heard > SILENT_S:
            raise BusGone(f"Kafka at {settings.bootstrap} gave nothing for {SILENT_S:g} s")
        for part, records in batch.items():
            for record in records:
                if record.offset < ends[part]:
                    look(delivery_of(record, settings.prefix))
