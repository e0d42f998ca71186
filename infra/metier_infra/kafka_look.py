"""What a broker is, and how it stands with the topics and groups that are ours: read only. `metier.doctor.kafka` asks, and judges."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kafka import TopicPartition
from kafka.admin import ConfigResource, KafkaAdminClient, OffsetSpec
from kafka.errors import BrokerResponseError

from metier_infra.kafka_topics import Drift, Topic, administering, drift, found_on, named_on
from metier_infra.settings import KafkaSettings

MIN_INSYNC = "min.insync.replicas"
FIRST_GROUP_S = 20.0
STARTING = ("CoordinatorNotAvailableError", "CoordinatorLoadInProgressError", "NotCoordinatorError")
UNKNOWN = "GroupIdNotFoundError"
"""What Kafka 4 says of a group that nobody was in yet; older ones say that it is empty."""


@dataclass(frozen=True)
class TopicSeen:
    """One topic of ours as it stands. Each figure is that of its worst partition.

    Attributes:
        replicas: how many copies it should have.
        in_sync: how many it has now.
        leaderless: partitions that nobody can read or write.
        min_insync: how many copies must be had for a record to be taken; None: the broker does not tell.
        rights: what this client may do with it, by Kafka's names; None: the broker does not tell.
    """

    replicas: int
    in_sync: int
    leaderless: int = 0
    min_insync: int | None = None
    rights: frozenset[str] | None = None


@dataclass(frozen=True)
class GroupSeen:
    """A consumer group: how many are in it, and how many records wait for it. `error`: why the broker tells nothing of it."""

    members: int = 0
    waiting: int = 0
    rights: frozenset[str] | None = None
    error: str = ""


@dataclass(frozen=True)
class KafkaSeen:
    """A cluster. `ahead_s` is by how much the newest record of ours is of the future; negative: it is of the past; None: there is no record."""

    version: str
    brokers: int
    drift: Sequence[Drift]
    topics: Mapping[str, TopicSeen] = field(default_factory=dict[str, TopicSeen])
    groups: Mapping[str, GroupSeen] = field(default_factory=dict[str, GroupSeen])
    ahead_s: float | None = None


def look(
    settings: KafkaSettings,
    wanted: Sequence[Topic],
    groups: Mapping[str, str],
    *,
    clock: Callable[[], float] = time.time,
) -> KafkaSeen:
    """Ask the broker.

    Args:
        settings: where it is.
        wanted: the topics that are declared.
        groups: consumer group to the topic that it reads, both without prefix.
        clock: this machine's, in seconds since the epoch.

    Raises:
        BusGone: it is away, or refuses (`BusRefused`).
        BadSettings: what cannot be used.
    """
    with administering(settings) as admin:
        cluster, named = admin.describe_cluster(), named_on(settings, wanted)
        told = {str(one["name"]): one for one in admin.describe_topics()}
        ours = {topic.name: told[topic.name] for topic in named if topic.name in told}
        ends = _offsets(admin, ours.values(), OffsetSpec.LATEST)
        ahead_s = _ahead_s(_newest_ms(admin, ours.values()), clock)
        return KafkaSeen(
            version=_version(admin, cluster["brokers"]),
            brokers=len(cluster["brokers"]),
            drift=drift(named, found_on(admin, named), settings.prefix),
            topics=_topics(admin, ours),
            groups=_groups(
                admin, {settings.prefix + one: settings.prefix + topic for one, topic in groups.items()}, ends
            ),
            ahead_s=ahead_s,
        )


def _version(admin: KafkaAdminClient, brokers: Sequence[Mapping[str, Any]]) -> str:
    """That of the oldest broker, as far as the requests that it knows tell."""
    told = [tuple(admin.get_broker_version_data(one["broker_id"]).broker_version) for one in brokers]
    return ".".join(map(str, min(told, default=())))


def _topics(admin: KafkaAdminClient, ours: Mapping[str, Mapping[str, Any]]) -> dict[str, TopicSeen]:
    asked = [ConfigResource("topic", name, [MIN_INSYNC]) for name in ours]
    told: Mapping[str, Mapping[str, Any]] = {}
    if asked:
        told = admin.describe_configs(asked, config_filter="all").get("topic", {})
    return {name: _topic(topic, told.get(name, {})) for name, topic in ours.items()}


def _topic(topic: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]]) -> TopicSeen:
    parts: Sequence[Mapping[str, Any]] = topic["partitions"]
    least = configs.get(MIN_INSYNC, {}).get("value")
    return TopicSeen(
        replicas=min((len(part["replica_nodes"]) for part in parts), default=0),
        in_sync=min((len(part["isr_nodes"]) for part in parts), default=0),
        leaderless=sum(part["leader_id"] < 0 for part in parts),
        min_insync=None if least is None else int(least),
        rights=_rights(topic),
    )


def _rights(told: Mapping[str, Any]) -> frozenset[str] | None:
    rights = told.get("authorized_operations")
    return None if rights is None else frozenset(rights)


def _parts(topics: Iterable[Mapping[str, Any]]) -> list[TopicPartition]:
    """Those that have a leader, who alone can tell of them."""
    return [
        TopicPartition(str(topic["name"]), part["partition_index"])
        for topic in topics
        for part in topic["partitions"]
        if part["leader_id"] >= 0
    ]


def _offsets(admin: KafkaAdminClient, topics: Iterable[Mapping[str, Any]], which: int) -> dict[TopicPartition, Any]:
    asked = dict.fromkeys(_parts(topics), which)
    return dict(admin.list_partition_offsets(asked)) if asked else {}


def _newest_ms(admin: KafkaAdminClient, topics: Iterable[Mapping[str, Any]]) -> int | None:
    stamps = [one.timestamp for one in _offsets(admin, topics, OffsetSpec.MAX_TIMESTAMP).values()]
    return max((stamp for stamp in stamps if stamp >= 0), default=None)


def _ahead_s(newest_ms: int | None, clock: Callable[[], float]) -> float | None:
    return None if newest_ms is None else newest_ms / 1000 - clock()


def _groups(
    admin: KafkaAdminClient, topics: Mapping[str, str], ends: Mapping[TopicPartition, Any]
) -> dict[str, GroupSeen]:
    """A cluster that never had a group makes what it keeps of them when it is asked first, and refuses meanwhile."""
    until = time.monotonic() + FIRST_GROUP_S
    return {
        name: _group(admin, name, [part for part in ends if part.topic == topic], ends, until)
        for name, topic in topics.items()
    }


def _group(
    admin: KafkaAdminClient,
    name: str,
    parts: Sequence[TopicPartition],
    ends: Mapping[TopicPartition, Any],
    until: float,
) -> GroupSeen:
    told, error = _described(admin, name, until)
    if error:
        return GroupSeen() if UNKNOWN in error else GroupSeen(error=error)
    done = admin.list_group_offsets(name).get(name, {})
    waiting = sum(ends[part].offset - done[part].offset for part in parts if part in done)
    return GroupSeen(len(told["members"]), max(waiting, 0), _rights(told))


def _described(admin: KafkaAdminClient, name: str, until: float) -> tuple[Mapping[str, Any], str]:
    """The group, or why nothing is told of it."""
    while True:
        told, error = _asked(admin, name)
        if not any(word in error for word in STARTING) or time.monotonic() > until:
            return told, error
        time.sleep(0.1)


def _asked(admin: KafkaAdminClient, name: str) -> tuple[Mapping[str, Any], str]:
    try:
        told = admin.describe_groups([name])[name]
    except BrokerResponseError as error:
        return {}, str(error)
    return told, str(told["error"] or "")
