"""Create the topics that `infra/topics.yaml` declares. Called by `metier topics`; never shrinks, never deletes."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass, replace

from kafka.admin import KafkaAdminClient, NewPartitions, NewTopic
from kafka.errors import KafkaError

from metier_infra.errors import BusGone
from metier_infra.kafka_bus import CONNECTING, brokers
from metier_infra.settings import KafkaSettings

READABLE = {"compression.type": "uncompressed"}
"""The broker unpacks what producers pack: a consumer here knows no lz4 or snappy, and would stand still at the first such record."""


@dataclass(frozen=True)
class Topic:
    """A topic as it should be. `retention_ms` and `max_message_bytes` None keep the broker's defaults."""

    name: str
    partitions: int
    replication: int
    retention_ms: int | None = None
    max_message_bytes: int | None = None


@dataclass(frozen=True)
class TopicChange:
    """What was done about one topic."""

    name: str
    action: str


def apply(settings: KafkaSettings, wanted: list[Topic]) -> list[TopicChange]:
    """Create missing topics, add missing partitions, and report the rest. Raises `BusGone`."""
    admin: KafkaAdminClient | None = None
    try:
        admin = KafkaAdminClient(bootstrap_servers=brokers(settings), client_id="metier-topics", **CONNECTING)
        have = {str(topic["name"]): _count(topic["partitions"]) for topic in admin.describe_topics()}
        named = [replace(topic, name=settings.prefix + topic.name) for topic in wanted]
        return [_apply(admin, topic, have.get(topic.name)) for topic in named]
    except KafkaError as error:
        raise BusGone(f"Kafka at {settings.bootstrap} does not answer: {error or type(error).__name__}") from error
    finally:
        if admin is not None:
            admin.close()


def _count(partitions: object) -> int:
    return len(partitions) if isinstance(partitions, Sized) else 0


def _apply(admin: KafkaAdminClient, topic: Topic, have: int | None) -> TopicChange:
    if have is None:
        wanted = {"retention.ms": topic.retention_ms, "max.message.bytes": topic.max_message_bytes}
        config = READABLE | {name: str(value) for name, value in wanted.items() if value is not None}
        admin.create_topics(
            [NewTopic(topic.name, topic.partitions, topic.replication, topic_configs=config)], wait_for_metadata=True
        )
        return TopicChange(topic.name, f"created with {topic.partitions} partitions")
    if have < topic.partitions:
        admin.create_partitions({topic.name: NewPartitions(topic.partitions)})
        return TopicChange(topic.name, f"grew from {have} to {topic.partitions} partitions")
    drift = f" (declared {topic.partitions}; never shrunk)" if have > topic.partitions else ""
    return TopicChange(topic.name, f"has {have} partitions{drift}")
