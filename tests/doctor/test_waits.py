"""Init containers wait for the schema and the topics, through services that are away, and say what is missing. Not here: what the two commands do without waiting."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest
from kafka.admin import KafkaAdminClient, NewTopic
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from metier import awaiting
from metier.awaiting import Missing, until
from metier_infra.database import migrate, migrations
from metier_infra.errors import BadSettings, BusGone, MissingService
from metier_infra.postgres_journal import PostgresDatabase
from metier_infra.settings import KafkaSettings

from .kit import Command, Door, run


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def raising(errors: Iterator[Exception | None]) -> Callable[[], str]:
    def look() -> str:
        if (error := next(errors)) is not None:
            raise error
        return "there"

    return look


def waited(look: Callable[[], str], within_s: float) -> tuple[str, list[str], Clock]:
    """What came of it, what was said meanwhile, and the clock."""
    said, clock = list[str](), Clock()
    try:
        found = until("the thing", look, within_s, said.append, clock=clock, sleep=clock.sleep)
    except MissingService as error:
        found = f"failed: {error}"
    return found, said, clock


def test_what_is_there_is_not_waited_for() -> None:
    found, said, clock = waited(raising(iter([None])), 0)
    assert (found, said, clock.slept) == ("there", [], [])


def test_what_is_missing_or_away_is_waited_for_and_each_new_reason_is_said() -> None:
    errors = iter([BusGone("no broker"), Missing("no topic"), Missing("no topic"), None])
    found, said, clock = waited(raising(errors), 60)
    assert found == "there"
    assert said == [
        "waiting for the thing, for 60 s more: no broker",
        "waiting for the thing, for 59 s more: no topic",
    ]
    assert clock.slept == [awaiting.PAUSE_S] * 3


def test_the_same_reason_is_said_again_at_intervals() -> None:
    _, said, _ = waited(raising(itertools.repeat(BusGone("no broker"))), 2.5 * awaiting.TOLD_S)
    assert len(said) == 3


def test_at_the_end_of_the_time_it_fails_with_what_was_missing_last() -> None:
    errors = itertools.chain([BusGone("no broker")], itertools.repeat(Missing("no topic")))
    found, _, clock = waited(raising(errors), 5)
    assert found == "failed: waited 5 s for the thing, in vain: no topic"
    assert sum(clock.slept) == 5


def test_what_no_waiting_mends_fails_at_once() -> None:
    with pytest.raises(BadSettings, match="no password"):
        until("the thing", raising(iter([BadSettings("no password")])), 60, lambda _: None)


def test_a_look_that_hangs_is_given_up_and_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awaiting, "SHORTEST_LOOK_S", 0.01)
    monkeypatch.setattr(awaiting, "LOOK_S", 0.01)
    hangs, looks = threading.Event(), itertools.count()

    def look() -> str:
        at = next(looks)
        if at == 0:
            raise BusGone("no broker")
        if at == 1:
            hangs.wait()
        return "there"

    said: list[str] = []
    assert until("the thing", look, 600, said.append, sleep=lambda _: None) == "there"
    assert any("no answer within 0 s; before, no broker" in line for line in said)
    hangs.set()


def port_of(url: str) -> int:
    return int(str(conninfo_to_dict(url)["port"]))


def migrated(url: str) -> None:
    async def work() -> None:
        db = await PostgresDatabase(url, size=1).open()
        await migrate(db)
        await db.close()

    asyncio.run(work())


def test_the_schema_is_waited_for_while_postgres_is_away_and_until_it_is_migrated(empty_postgres_url: str) -> None:
    with Door(port_of(empty_postgres_url)) as door:
        url = make_conninfo(empty_postgres_url, port=door.port)
        with Command("migrate", "--check", "--wait", "100", env={"METIER_POSTGRES_URL": url}) as command:
            assert "does not answer" in command.await_progress("waiting for the journal's schema")
            door.open()
            assert "run `metier migrate`" in command.await_progress("is at version 0")
            with psycopg.connect(empty_postgres_url) as connection:
                assert connection.execute("SELECT to_regclass('metier_schema')").fetchone() == (None,)
            migrated(empty_postgres_url)
            assert command.end()[:2] == (0, "the schema is up to date\n")


def test_a_schema_that_does_not_come_ends_the_wait_with_a_sentence(empty_postgres_url: str) -> None:
    code, out, err = run("migrate", "--check", "--wait", "0", env={"METIER_POSTGRES_URL": empty_postgres_url})
    assert (code, out) == (2, "")
    assert err.endswith("run `metier migrate`\n")
    assert "metier: waited 0 s for the journal's schema, in vain: " in err


@pytest.mark.parametrize(("oldest", "code"), [(1, 0), (None, 2)])
def test_a_newer_schema_is_content_where_it_says_that_this_code_works_with_it_and_is_not_waited_for_elsewhere(
    postgres_url: str, oldest: int | None, code: int
) -> None:
    newer = (max(migrations()) + 1, oldest)
    with psycopg.connect(postgres_url) as connection:
        connection.execute("INSERT INTO metier_schema (version, at, oldest) VALUES (%s, 0, %s)", newer)
    ended, _, err = run("migrate", "--check", "--wait", "100", env={"METIER_POSTGRES_URL": postgres_url})
    assert (ended, "newer" in err) == (code, code == 2)
    assert "waiting" not in err


@pytest.fixture
def admin(kafka: KafkaSettings) -> Iterator[KafkaAdminClient]:
    one = KafkaAdminClient(bootstrap_servers=kafka.bootstrap, client_id="metier-tests")
    yield one
    one.close()


def test_the_topics_are_waited_for_while_kafka_is_away_and_until_they_are_made(
    kafka: KafkaSettings, admin: KafkaAdminClient
) -> None:
    host, _, port = str(kafka.bootstrap).partition(":")
    given = {"METIER_KAFKA_PREFIX": kafka.prefix, "METIER_KAFKA_PARTITIONS": "1"}
    with Door(int(port)) as door:
        env = given | {"METIER_KAFKA_BOOTSTRAP": f"{host}:{door.port}"}
        with Command("topics", "--check", "--wait", "100", "--json", env=env) as command:
            assert "does not answer" in command.await_progress("waiting for the topics")
            door.open()
            assert kafka.prefix in command.await_progress("`metier topics` has still to do")
            admin.create_topics([NewTopic(f"{kafka.prefix}metier.old", 1, 1)], wait_for_metadata=True)
            assert run("topics", env=given | {"METIER_KAFKA_BOOTSTRAP": str(kafka.bootstrap)})[0] == 0
            code, out, _ = command.end()
    assert code == 0
    assert f"{kafka.prefix}metier.old" in out  # what only a person can mend is told


def test_topics_that_do_not_come_end_the_wait_with_a_sentence(kafka: KafkaSettings) -> None:
    env = {"METIER_KAFKA_BOOTSTRAP": str(kafka.bootstrap), "METIER_KAFKA_PREFIX": kafka.prefix}
    code, out, err = run("topics", "--check", "--wait", "0", env=env)
    assert (code, out) == (2, "")
    assert "metier: waited 0 s for the topics, in vain: `metier topics` has still to do" in err


def test_a_broker_that_accepts_and_says_nothing_is_one_that_is_away() -> None:
    with Door().mute() as door:
        env = {"METIER_KAFKA_BOOTSTRAP": f"127.0.0.1:{door.port}"}
        code, _, err = run("topics", "--check", "--wait", "1", env=env)
    assert code == 2
    assert "in vain" in err


@pytest.mark.parametrize("command", ["migrate", "topics"])
def test_waiting_without_a_check_is_refused(command: str) -> None:
    code, _, err = run(command, "--wait", "5", env={})
    assert (code, err) == (2, "metier: --wait goes with --check: without it, nothing is waited for\n")
