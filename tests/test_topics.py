"""What `metier topics` makes of the broker's topics, and what it tells of those that are not as declared.

Not tested: a cluster of several brokers (replication is a pure matter here), and a user who may not ask for settings.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from kafka.admin import ConfigResource, KafkaAdminClient, NewPartitions, NewTopic
from kafka.errors import InvalidReplicationFactorError
from typer.testing import CliRunner, Result

from metier.cli import app
from metier_infra.errors import BadSettings
from metier_infra.events import DEAD_LETTERS, REQUESTS, RUNS, tasks_topic
from metier_infra.kafka_topics import ALWAYS, Drift, Found, Topic, apply, check, drift
from metier_infra.settings import KafkaSettings

HUNG = 30
DAY_MS = 86_400_000
DECLARED = {**ALWAYS, "retention.ms": str(DAY_MS), "max.message.bytes": "1000"}
TOPIC = Topic("metier.a", 3, 2, DAY_MS, 1000)


def found(*, replicas: tuple[int, ...] = (2, 2, 2), **configs: str | None) -> Found:
    """`metier.a` as declared, but for what is said."""
    told = DECLARED | {name.replace("_", "."): value for name, value in configs.items()}
    return Found(replicas, {name: value for name, value in told.items() if value is not None})


def only(have: Mapping[str, Found]) -> Drift:
    """The one drift of what there is."""
    (one,) = drift([TOPIC], have, "")
    return one


def test_a_topic_that_is_as_declared_is_not_told_of() -> None:
    assert drift([TOPIC], {"metier.a": found()}, "") == []


@pytest.mark.parametrize(
    ("have", "what", "on_the_broker", "declared", "state"),
    [
        ({}, "topic", None, "3 partitions", "mendable"),
        ({"metier.a": found(replicas=(2,))}, "partitions", "1", "3", "mendable"),
        ({"metier.a": found(replicas=(2, 2, 2, 2))}, "partitions", "4", "3", "left"),
        ({"metier.a": found(replicas=(2, 1, 2))}, "replication", "1 or 2", "2", "left"),
        ({"metier.a": found(replicas=(3, 3, 3))}, "replication", "3", "2", "left"),
        ({"metier.a": found(retention_ms="60000")}, "retention.ms", "60000", str(DAY_MS), "mendable"),
        ({"metier.a": found(retention_ms=str(DAY_MS + 1))}, "retention.ms", str(DAY_MS + 1), str(DAY_MS), "left"),
        ({"metier.a": found(retention_ms="-1")}, "retention.ms", "-1", str(DAY_MS), "left"),
        ({"metier.a": found(max_message_bytes="2000")}, "max.message.bytes", "2000", "1000", "mendable"),
        ({"metier.a": found(compression_type="lz4")}, "compression.type", "lz4", "uncompressed", "mendable"),
        ({"metier.a": found(cleanup_policy="compact")}, "cleanup.policy", "compact", "delete", "mendable"),
        ({"metier.a": found(cleanup_policy=None)}, "cleanup.policy", None, "delete", "left"),
        ({"metier.a": found(), "metier.b": found()}, "topic", "3 partitions", None, "left"),
    ],
)
def test_each_way_to_drift_is_told_with_what_is_and_what_should_be(
    have: Mapping[str, Found], what: str, on_the_broker: str | None, declared: str | None, state: str
) -> None:
    one = only(have)
    assert (one.what, one.found, one.declared, one.state) == (what, on_the_broker, declared, state)
    assert one.action


def test_what_is_kept_as_long_as_the_broker_likes_has_no_retention_to_drift_from() -> None:
    free = Topic("metier.a", 3, 2)
    assert drift([free], {"metier.a": found(retention_ms="1", max_message_bytes="1")}, "") == []


def test_topics_of_others_are_no_matter_of_ours() -> None:
    have = {"metier.a": found(), "orders": found(), "other.metier.a": found()}
    assert drift([TOPIC], have, "") == []
    named = Topic("mine.metier.a", 3, 2, DAY_MS, 1000)
    assert drift([named], {"mine.metier.a": found(), "metier.b": found()}, "mine.") == []


@pytest.fixture
def admin(kafka: KafkaSettings) -> Iterator[KafkaAdminClient]:
    """Somebody else who may change topics."""
    one = KafkaAdminClient(bootstrap_servers=kafka.bootstrap, client_id="metier-tests")
    yield one
    one.close()


def alter(admin: KafkaAdminClient, name: str, configs: Mapping[str, str]) -> None:
    """Change settings, and return when the broker shows them."""
    admin.alter_configs([ConfigResource("topic", name, configs)])
    until = time.monotonic() + HUNG
    while any(settings_of(admin, name)[key] != value for key, value in configs.items()):
        assert time.monotonic() < until


def settings_of(admin: KafkaAdminClient, name: str) -> dict[str, str]:
    told = admin.describe_configs([ConfigResource("topic", name)], config_filter="all")["topic"][name]
    return {key: one["value"] for key, one in told.items()}


def told(drifts: list[Drift]) -> list[tuple[str, str, str]]:
    """Topic without prefix, what, and what was done."""
    return [(one.topic.rpartition("metier.")[2], one.what, one.action) for one in drifts]


def test_topics_are_made_and_grown_and_never_shrunk(kafka: KafkaSettings) -> None:
    def applied(partitions: int) -> list[Drift]:
        return apply(kafka, [Topic("metier.a", partitions, 1, retention_ms=60_000), Topic("metier.b", 1, 1)])

    assert told(applied(2)) == [
        ("a", "topic", "created with 2 partitions"),
        ("b", "topic", "created with 1 partitions"),
    ]
    assert applied(2) == []
    assert told(applied(3)) == [("a", "partitions", "grew from 2 to 3 partitions")]
    (one,) = applied(1)
    assert (one.what, one.found, one.declared, one.state) == ("partitions", "3", "1", "left")


def test_a_broker_that_came_back_and_is_not_let_in_yet_is_waited_for(
    kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a broker that says so once
    real, said = (
        KafkaAdminClient.create_topics,
        ["All brokers are currently fenced, or have all their log directories cordoned."],
    )

    def create(self: KafkaAdminClient, *args: Any, **options: Any) -> Any:
        if said:
            raise InvalidReplicationFactorError(said.pop())
        return real(self, *args, **options)

    monkeypatch.setattr(KafkaAdminClient, "create_topics", create)
    # Then its topics are made all the same
    apply(kafka, [Topic("metier.later", 2, 1)])
    assert check(kafka, [Topic("metier.later", 2, 1)]) == []
    # While more copies than there are brokers stay what they are: a mistake
    with pytest.raises(BadSettings, match="refuses"):
        apply(kafka, [Topic("metier.later", 2, 1), Topic("metier.many", 2, 9)])


def test_settings_that_drifted_on_the_broker_are_found_and_set_again_and_others_are_let_alone(
    kafka: KafkaSettings, admin: KafkaAdminClient
) -> None:
    wanted = [Topic("metier.a", 1, 1, DAY_MS, 100_000)]
    apply(kafka, wanted)
    name = kafka.prefix + "metier.a"
    wrong = {"retention.ms": "60000", "max.message.bytes": "5000", "cleanup.policy": "compact", "segment.ms": "777777"}
    alter(admin, name, wrong)
    before = check(kafka, wanted)
    assert {one.what for one in before} == {"retention.ms", "max.message.bytes", "cleanup.policy"}
    assert check(kafka, wanted) == before  # looking changed nothing
    done = apply(kafka, wanted)
    assert ("a", "retention.ms", f"set from 60000 to {DAY_MS}") in told(done)
    assert {one.state for one in done} == {"mended"}
    assert check(kafka, wanted) == []
    assert settings_of(admin, name)["segment.ms"] == "777777"


def test_a_longer_retention_is_told_and_not_cut_short(kafka: KafkaSettings, admin: KafkaAdminClient) -> None:
    wanted = [Topic("metier.a", 1, 1, DAY_MS)]
    apply(kafka, wanted)
    alter(admin, kafka.prefix + "metier.a", {"retention.ms": "-1"})
    first, second = apply(kafka, wanted), apply(kafka, wanted)
    assert first == second
    assert [(one.what, one.found, one.state) for one in first] == [("retention.ms", "-1", "left")]


def test_a_setting_that_the_broker_refuses_is_said_to_be_so(kafka: KafkaSettings) -> None:
    apply(kafka, [Topic("metier.a", 1, 1)])
    with pytest.raises(BadSettings, match=r"max\.message\.bytes .* -5"):
        apply(kafka, [Topic("metier.a", 1, 1, max_message_bytes=-5)])
    with pytest.raises(BadSettings, match="refuses"):
        apply(kafka, [Topic("metier.b", 1, 9)])


class Command:
    """`metier topics` on the corner of the broker."""

    def __init__(self, kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("METIER_KAFKA_BOOTSTRAP", str(kafka.bootstrap))
        monkeypatch.setenv("METIER_KAFKA_PREFIX", kafka.prefix)
        monkeypatch.setenv("METIER_KAFKA_PARTITIONS", "2")

    def __call__(self, *words: str) -> Result:
        return CliRunner().invoke(app, ["topics", *words])


@pytest.fixture
def command(kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(kafka, monkeypatch)


def test_the_check_fails_with_all_that_drifted_and_changes_nothing_and_is_content_once_it_is_mended(
    kafka: KafkaSettings, admin: KafkaAdminClient, command: Command
) -> None:
    assert command("--check").exit_code == 1  # nothing is there yet
    assert json.loads(command("--check", "--json").stdout)[0]["found"] is None
    assert command().exit_code == 0
    assert (command("--check").exit_code, command("--check", "--json").stdout) == (0, "[]\n")

    admin.create_partitions({kafka.prefix + RUNS: NewPartitions(5)})
    alter(admin, kafka.prefix + REQUESTS, {"max.message.bytes": "99"})
    admin.delete_topics([kafka.prefix + DEAD_LETTERS])  # and what comes after it in the controller's log is waited for:
    admin.create_topics([NewTopic(kafka.prefix + tasks_topic("nobody"), 1, 1)], wait_for_metadata=True)
    checked = command("--check", "--json")
    named = {(one["topic"].removeprefix(kafka.prefix), one["what"]): one for one in json.loads(checked.stdout)}
    assert checked.exit_code == 1
    assert named.keys() == {
        (RUNS, "partitions"),
        (REQUESTS, "max.message.bytes"),
        (DEAD_LETTERS, "topic"),
        (tasks_topic("nobody"), "topic"),
    }
    assert json.loads(command("--check", "--json").stdout) == json.loads(checked.stdout)

    mended = {one["what"] for one in json.loads(command("--json").stdout) if one["state"] == "mended"}
    assert mended == {"max.message.bytes", "topic"}
    left = json.loads(command("--check", "--json").stdout)
    assert {one["state"] for one in left} == {"left"}
    assert {one["topic"].removeprefix(kafka.prefix) for one in left} == {RUNS, tasks_topic("nobody")}
    assert "METIER_KAFKA_PARTITIONS" in " ".join(command("--check").stdout.split())
