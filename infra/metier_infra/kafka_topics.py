"""The topics that `infra/topics.yaml` declares, and those of the broker: made alike, or told apart. Called by `metier topics`.

Nothing is taken away: partitions never become fewer, nothing is kept for a shorter time, no topic is deleted. What only a person
can mend is told, with what to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from kafka.admin import ConfigResource, KafkaAdminClient, NewPartitions, NewTopic
from kafka.errors import BrokerResponseError, InvalidReplicationFactorError, KafkaError

from metier_infra.errors import BadSettings, BusGone
from metier_infra.kafka_access import denied, opened, told
from metier_infra.settings import KafkaSettings

ALWAYS = {"compression.type": "uncompressed", "cleanup.policy": "delete"}
"""The broker unpacks what producers pack: a consumer here knows no lz4 or snappy, and would stand still at the first such record.
And it keeps every record of a key: compaction would leave the last."""
OURS = "metier."
"""How the name of each topic of Métier begins, after the prefix."""
RETENTION = "retention.ms"
SEEN_S = 10.0


@dataclass(frozen=True)
class Topic:
    """A topic as it should be. `retention_ms` and `max_message_bytes` None keep the broker's defaults."""

    name: str
    partitions: int
    replication: int
    retention_ms: int | None = None
    max_message_bytes: int | None = None

    @property
    def configs(self) -> dict[str, str]:
        """What is declared of it, by Kafka's names."""
        sizes = {RETENTION: self.retention_ms, "max.message.bytes": self.max_message_bytes}
        return ALWAYS | {name: str(size) for name, size in sizes.items() if size is not None}


@dataclass(frozen=True)
class Found:
    """A topic as the broker has it. `replicas`: of each partition; `configs`: those that it tells."""

    replicas: Sequence[int]
    configs: Mapping[str, str]


@dataclass(frozen=True)
class Drift:
    """One way in which a topic is not what is declared.

    Attributes:
        topic: its name, with the prefix.
        what: `topic`, `partitions`, `replication`, or Kafka's name of a setting.
        found: what the broker has; None: it has no such topic, or does not tell.
        declared: what it should be; None: nothing declares this topic.
        action: what to do, or what was done.
        state: whether `metier topics` mends it, did so, or leaves it to a person.
    """

    topic: str
    what: str
    found: str | None
    declared: str | None
    action: str
    state: Literal["mendable", "mended", "left"] = "left"


def check(settings: KafkaSettings, wanted: Sequence[Topic]) -> list[Drift]:
    """Where the broker's topics are not what is declared; changes nothing. Raises `BusGone`."""
    with administering(settings) as admin:
        named = named_on(settings, wanted)
        return drift(named, found_on(admin, named), settings.prefix)


def apply(settings: KafkaSettings, wanted: Sequence[Topic]) -> list[Drift]:
    """Mend what can be mended without a loss; what was done, and what is left to do. Raises `BusGone`, and `BadSettings` where the broker refuses."""
    with administering(settings) as admin:
        named = named_on(settings, wanted)
        declared = {topic.name: topic for topic in named}
        done = [_mended(admin, one, declared) for one in drift(named, found_on(admin, named), settings.prefix)]
        _wait_until_seen(admin, named, settings, {(one.topic, one.what) for one in done if one.state == "mended"})
        return done


def drift(wanted: Sequence[Topic], have: Mapping[str, Found], prefix: str) -> list[Drift]:
    """Where `have`, by name, is not `wanted`; the names bear the prefix."""
    known = {topic.name for topic in wanted}
    strange = sorted(name for name in have if name.startswith(prefix + OURS) and name not in known)
    return [one for topic in wanted for one in _of(topic, have.get(topic.name))] + [
        Drift(name, "topic", f"{len(have[name].replicas)} partitions", None, _STRANGE) for name in strange
    ]


_MENDS_IT = "`metier topics` does it"
_STRANGE = "declare its agent; or delete it, once nothing on it is wanted"
_MORE = "partitions never become fewer: set METIER_KAFKA_PARTITIONS to what it has; or delete it, once nothing on it is wanted"
_REPLICATION = "move its partitions by kafka-reassign-partitions; or set METIER_KAFKA_REPLICATION to what it has"
_UNTOLD = "let this user DESCRIBE_CONFIGS of the topic"
_LONGER = "a shorter time would delete records: set it by kafka-configs, if that is wanted"


def _of(topic: Topic, found: Found | None) -> Iterator[Drift]:
    if found is None:
        yield Drift(topic.name, "topic", None, f"{topic.partitions} partitions", _MENDS_IT, "mendable")
        return
    yield from _partitions(topic, len(found.replicas))
    if set(found.replicas) != {topic.replication}:
        counts = " or ".join(map(str, sorted(set(found.replicas))))
        yield Drift(topic.name, "replication", counts, str(topic.replication), _REPLICATION)
    for name, value in topic.configs.items():
        if (has := found.configs.get(name)) != value:
            left = _why_left(name, has, value)
            yield Drift(topic.name, name, has, value, left or _MENDS_IT, "left" if left else "mendable")


def _partitions(topic: Topic, count: int) -> Iterator[Drift]:
    if count < topic.partitions:
        yield Drift(topic.name, "partitions", str(count), str(topic.partitions), _MENDS_IT, "mendable")
    elif count > topic.partitions:
        yield Drift(topic.name, "partitions", str(count), str(topic.partitions), _MORE)


def _why_left(name: str, has: str | None, value: str) -> str | None:
    if has is None:
        return _UNTOLD
    longer = name == RETENTION and (int(has) < 0 or int(has) > int(value))
    return _LONGER if longer else None


def _mended(admin: KafkaAdminClient, one: Drift, declared: Mapping[str, Topic]) -> Drift:
    if one.state == "left":
        return one
    done = _MENDS.get(one.what, _set)(admin, one, declared[one.topic])
    return replace(one, action=done, state="mended")


def _create(admin: KafkaAdminClient, one: Drift, topic: Topic) -> str:
    new = NewTopic(one.topic, topic.partitions, topic.replication, topic_configs=topic.configs)
    until = time.monotonic() + SEEN_S
    while True:
        try:
            admin.create_topics([new], wait_for_metadata=True)
        except (
            InvalidReplicationFactorError
        ) as error:  # also said of a broker that came back and is not let in again yet
            if "fenced" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.2)
        else:
            return f"created with {topic.partitions} partitions"


def _grow(admin: KafkaAdminClient, one: Drift, topic: Topic) -> str:
    admin.create_partitions({one.topic: NewPartitions(topic.partitions)})
    return f"grew from {one.found} to {topic.partitions} partitions"


def _set(admin: KafkaAdminClient, one: Drift, topic: Topic) -> str:
    value = topic.configs[one.what]
    told = admin.alter_configs([ConfigResource("topic", one.topic, {one.what: value})])["topic"][one.topic]
    if told != "OK":
        raise BadSettings(f"Kafka does not set {one.what} of {one.topic} to {value}: {told}")
    return f"set from {one.found} to {value}"


_MENDS: Mapping[str, Callable[[KafkaAdminClient, Drift, Topic], str]] = {"topic": _create, "partitions": _grow}


def _wait_until_seen(
    admin: KafkaAdminClient, named: Sequence[Topic], settings: KafkaSettings, mended: set[tuple[str, str]]
) -> None:
    """A controller says that it is done before each broker shows it."""
    until = time.monotonic() + SEEN_S
    while mended & {(one.topic, one.what) for one in drift(named, found_on(admin, named), settings.prefix)}:
        if time.monotonic() > until:
            raise BusGone(f"Kafka at {settings.bootstrap} does not show within {SEEN_S:g} s what was changed")
        time.sleep(0.05)


@contextmanager
def administering(settings: KafkaSettings) -> Generator[KafkaAdminClient]:
    """Somebody who may ask for topics, and change them, as far as the broker lets. Raises `BusGone`, and `BadSettings` where the broker refuses."""
    admin: KafkaAdminClient | None = None
    try:
        admin = opened(KafkaAdminClient, settings, client_id="metier-topics")
        yield admin
    except KafkaError as error:
        if isinstance(error, BrokerResponseError) and not error.retriable and not denied(error):
            raise BadSettings(f"Kafka at {settings.bootstrap} refuses: {error}") from error
        raise told(settings, error) from error
    finally:
        if admin is not None:
            admin.close()


def named_on(settings: KafkaSettings, wanted: Sequence[Topic]) -> list[Topic]:
    """The same topics, with the prefix before their names."""
    return [replace(topic, name=settings.prefix + topic.name) for topic in wanted]


def found_on(admin: KafkaAdminClient, named: Sequence[Topic]) -> dict[str, Found]:
    """Every topic of the broker; of those that are wanted, their settings too."""
    replicas = {
        str(topic["name"]): [len(part["replica_nodes"]) for part in topic["partitions"]]
        for topic in admin.describe_topics()
    }
    asked = [ConfigResource("topic", one.name, list(one.configs)) for one in named if one.name in replicas]
    told: Mapping[str, Mapping[str, Any]] = (
        admin.describe_configs(asked, config_filter="all").get("topic", {}) if asked else {}
    )
    return {name: Found(counts, _values(told.get(name, {}))) for name, counts in replicas.items()}


def _values(configs: Mapping[str, Any]) -> dict[str, str]:
    return {name: one["value"] for name, one in configs.items()}
