"""From a backup of the journal to a whole system again, as docs/how-to/back-up-and-restore.md has it: what was asked after the backup is done again, and told under the same ids."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.errors import CommitFailedError

from .conftest import Fleet, echo_agents, new_fleet, until

REQUESTS_GROUP = "metier.orchestrator.requests"


@pytest.fixture
def up(services: Mapping[str, str], tmp_path: Path) -> Generator[Fleet]:
    """An orchestrator, a worker and a tool runner."""
    more = {"METIER_AGENTS": str(echo_agents(tmp_path, "print(6 * 7)")), "METIER_WORKFLOWS": "metier.examples.five"}
    with new_fleet(services, tmp_path, **more) as fleet:
        fleet.start_all("echo")
        yield fleet


def program(name: str) -> str:
    """One of Postgres's own programs, of the server's version or newer."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4].split(".")[0]))
    return str(found[-1]) if found else name


def rows(fleet: Fleet, sql: LiteralString) -> list[tuple[object, ...]]:
    with psycopg.connect(fleet.environment["METIER_POSTGRES_URL"]) as connection:
        return connection.execute(sql).fetchall()


def ask(fleet: Fleet, *names: str) -> None:
    for name in names:
        fleet.request("five", {"question": "?", "answers": []}, name)


def lose_and_restore(fleet: Fleet, backup: Path) -> None:
    """An empty database in place of the journal, then the backup in it."""
    url = fleet.environment["METIER_POSTGRES_URL"]
    server, _, name = url.rpartition("/")
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
        connection.execute(f"CREATE DATABASE {name}".encode())
    subprocess.run([program("pg_restore"), "--no-owner", "--dbname", url, str(backup)], check=True)


def rewind(fleet: Fleet, at_s: float) -> None:
    """Have the requests since then read again: what `kafka-consumer-groups.sh --reset-offsets --to-datetime` does."""
    consumer = KafkaConsumer(
        bootstrap_servers=fleet.environment["METIER_KAFKA_BOOTSTRAP"],
        group_id=fleet.prefix + REQUESTS_GROUP,
        enable_auto_commit=False,
    )
    topic = fleet.prefix + "metier.requests"
    parts = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic) or ()]
    consumer.assign(parts)
    ends = consumer.end_offsets(parts)
    since = consumer.offsets_for_times(dict.fromkeys(parts, int(at_s * 1000)))
    offsets = {part: (found.offset if (found := since[part]) else ends[part]) for part in parts}
    wanted = {part: OffsetAndMetadata(offset, "", -1) for part, offset in offsets.items()}
    until(lambda: committed(consumer, wanted), "the group empty, so that its offsets can be set")
    consumer.close()


def committed(consumer: KafkaConsumer, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> bool:
    """Members with names of their own stay in their group until their time-out, and while they do it takes no offsets."""
    try:
        consumer.commit(dict(offsets))
    except CommitFailedError:
        return False
    return True


def run_ids(fleet: Fleet) -> set[tuple[object, ...]]:
    return set(rows(fleet, "SELECT event_id, run_id FROM runs"))


def results(fleet: Fleet) -> dict[object, tuple[object, ...]]:
    found = rows(fleet, "SELECT event_id, status, result, cost_usd FROM runs WHERE announced = 1")
    return {name: tuple(rest) for name, *rest in found}


@pytest.mark.timeout(400)
def test_what_a_backup_lacks_is_done_again_from_the_requests_and_told_under_the_same_ids(
    up: Fleet, tmp_path: Path
) -> None:
    # Given runs that ended, and one in the middle of its work
    ask(up, "before-1", "before-2")
    until(lambda: len(results(up)) == 2, "two runs ended", 120)
    ask(up, "during")
    until(lambda: rows(up, "SELECT 1 FROM calls JOIN runs USING (run_id) WHERE event_id = 'during'"), "a call")
    # When a backup is made, more is asked for, and all of it ends
    at_s = time.time()
    backup = tmp_path / "journal.dump"
    url = up.environment["METIER_POSTGRES_URL"]
    subprocess.run([program("pg_dump"), "--format=custom", "--file", str(backup), url], check=True)
    ask(up, "after-1", "after-2")
    until(lambda: len(results(up)) == 5, "five runs ended", 120)
    ids = run_ids(up)
    # And the journal is lost, and restored as the page says
    for role in up.roles.values():
        assert role.end() == 0
    lose_and_restore(up, backup)
    assert set(results(up)) == {"before-1", "before-2"}
    rewind(up, at_s)
    for role in up.roles.values():
        role.restart()
        role.ready()
    # Then every run ends again, with the answers and costs that it had, and nothing is told twice under different ids
    until(lambda: len(results(up)) == 5, "five runs ended again", 120)
    wanted = ("succeeded", json.dumps({"question": "?", "answers": ["42"] * 5}), pytest.approx(0.015))
    assert results(up) == dict.fromkeys(("before-1", "before-2", "during", "after-1", "after-2"), wanted)
    assert run_ids(up) == ids
    for _, run_id in ids:
        assert up.ends(str(run_id)) == [(b"io.metier.run.succeeded.v1", f"{run_id}/ended".encode())]
