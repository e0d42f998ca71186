"""What the journal stands on, held by both databases: one SQL, one clock, transactions that are whole or not at all, and a fence."""

from __future__ import annotations

import asyncio
import re
import socket
import sqlite3
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from metier.chaos.proxy import Proxy, proxy
from metier_infra.database import (
    Database,
    Params,
    RetryingDatabase,
    Row,
    Statement,
    check_schema,
    migrate,
    migrations,
    oldest_code,
    schema_version,
    statements_of,
)
from metier_infra.errors import BadSettings, FencedOff, JournalGone, MissingService, SchemaBehind
from metier_infra.postgres_journal import PostgresDatabase
from metier_infra.retry import Backoff
from metier_infra.sqlite_journal import SqliteDatabase

HUNG = 60
AT_ONCE = Backoff(first_s=0, attempts=3)
INSERT = "INSERT INTO notes (id, body, raw) VALUES (:id, :body, :raw) RETURNING id, body"


def note(number: int, body: str | None = "x", raw: bytes = b"") -> Statement:
    return Statement(INSERT, {"id": number, "body": body, "raw": raw})


@pytest.fixture
async def notes(empty_database: Database) -> Database:
    await empty_database.write(
        Statement("CREATE TABLE notes (id bigint PRIMARY KEY, body text, raw bytea NOT NULL, at double precision)")
    )
    return empty_database


async def ids(db: Database) -> list[int]:
    return [int(row["id"]) for row in await db.read("SELECT id FROM notes ORDER BY id")]


async def test_what_is_written_is_read_back_with_its_types(notes: Database) -> None:
    text, every_byte = "%s ; ':now' :body — “ß”", bytes(range(256))
    await notes.write(note(2**60, text, every_byte), note(2, None))
    rows = await notes.read("SELECT * FROM notes WHERE id = :id", {"id": 2**60})
    assert [(row["id"], row["body"], bytes(row["raw"])) for row in rows] == [(2**60, text, every_byte)]
    assert (await notes.read("SELECT body FROM notes WHERE id = :id", {"id": 2}))[0]["body"] is None


async def test_every_statement_gives_its_own_rows(notes: Database) -> None:
    given = await notes.write(note(1, "a"), Statement("DELETE FROM notes WHERE id = 9"), note(2, "b"))
    assert [[dict(row) for row in rows] for rows in given] == [[{"id": 1, "body": "a"}], [], [{"id": 2, "body": "b"}]]


async def test_now_is_the_time_in_seconds_by_one_clock_for_reads_and_writes(notes: Database) -> None:
    await notes.write(note(1), Statement("UPDATE notes SET at = :now"))
    row = (await notes.read("SELECT at, :now AS later, :now - at AS age FROM notes"))[0]
    assert 0 <= float(row["age"]) < 20
    assert abs(float(row["at"]) - time.time()) < 20
    assert float(row["at"]) % 1 != 0


async def test_a_write_that_breaks_in_the_middle_leaves_nothing(notes: Database) -> None:
    await notes.write(note(1))
    with pytest.raises((sqlite3.IntegrityError, psycopg.IntegrityError)):
        await notes.write(note(2), note(1))
    assert await ids(notes) == [1]
    await notes.write(note(3))
    assert await ids(notes) == [1, 3]


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_a_fence_that_touches_no_row_undoes_the_whole_write(notes: Database, place: int) -> None:
    fence = Statement("UPDATE notes SET body = 'mine' WHERE id = :id", {"id": 7}, must=True)
    statements = [note(1), note(2)]
    statements.insert(place, fence)
    with pytest.raises(FencedOff):
        await notes.write(*statements)
    with pytest.raises(FencedOff):
        await notes.write(fence)
    assert await ids(notes) == []


async def test_a_fence_that_touches_a_row_lets_the_write_through(notes: Database) -> None:
    await notes.write(note(7))
    fence = Statement("UPDATE notes SET body = 'mine' WHERE id = :id", {"id": 7}, must=True)
    await notes.write(fence, note(8))
    await notes.write(Statement(fence.sql + " RETURNING id", fence.params, must=True))
    assert await ids(notes) == [7, 8]


async def test_of_writes_at_the_same_time_each_is_whole_and_a_fence_undoes_its_own_alone(notes: Database) -> None:
    gone = Statement("UPDATE notes SET body = 'mine' WHERE id = 99", must=True)
    wanted = [notes.write(note(2 * n), *([gone] if n % 7 == 3 else []), note(2 * n + 1)) for n in range(40)]
    found = await asyncio.gather(*wanted, return_exceptions=True)
    fenced = [n for n in range(40) if n % 7 == 3]
    assert [n for n, one in enumerate(found) if isinstance(one, FencedOff)] == fenced
    assert await ids(notes) == sorted(one for n in range(40) if n not in fenced for one in (2 * n, 2 * n + 1))
    whole = [one for one in found if not isinstance(one, BaseException)]
    assert [row["id"] for one in whole for rows in one for row in rows] == await ids(notes)


async def test_of_writes_at_the_same_time_one_that_breaks_takes_nobody_with_it(notes: Database) -> None:
    await notes.write(note(3))
    found = await asyncio.gather(*[notes.write(note(n)) for n in range(6)], return_exceptions=True)
    assert [n for n, one in enumerate(found) if isinstance(one, Exception)] == [3]
    assert await ids(notes) == [*range(6)]


@pytest.mark.parametrize("empty_database", ["postgres"], indirect=True)
async def test_writes_at_the_same_time_share_commits(notes: Database) -> None:
    await asyncio.gather(*[notes.write(note(2 * n), note(2 * n + 1)) for n in range(20)])
    rows = await notes.read("SELECT count(*) AS n FROM notes GROUP BY CAST(xmin AS text)")
    assert [row["n"] for row in rows] == [40]


async def test_migrations_bring_an_empty_database_up_to_date_once(empty_database: Database) -> None:
    assert await schema_version(empty_database) == 0
    assert await migrate(empty_database) == list(migrations())
    assert await schema_version(empty_database) == max(migrations())
    assert await migrate(empty_database) == []
    await check_schema(empty_database)


async def test_a_schema_that_is_behind_names_the_command(empty_database: Database) -> None:
    with pytest.raises(SchemaBehind, match=r"at version 0 and this code needs \d+; run `metier migrate`"):
        await check_schema(empty_database)


async def test_a_schema_that_is_ahead_asks_for_a_newer_program(database: Database) -> None:
    await database.write(Statement("INSERT INTO metier_schema (version, at) VALUES (9999, :now)"))
    with pytest.raises(
        SchemaBehind, match=r"at version 9999, which needs code of version 9999, newer than .* deploy a newer"
    ):
        await check_schema(database)
    assert await migrate(database) == []


async def test_a_schema_that_is_ahead_serves_the_code_before_it_where_each_migration_says_so(
    database: Database,
) -> None:
    # Given two migrations that this code does not know, and that work with it
    ours = max(migrations())
    newer = "INSERT INTO metier_schema (version, at, oldest) VALUES (:version, :now, :oldest)"
    await database.write(Statement(newer, {"version": ours + 1, "oldest": ours}))
    await database.write(Statement(newer, {"version": ours + 2, "oldest": ours - 1}))
    # Then it starts with them
    await check_schema(database)
    # And a third that does not makes it refuse, whatever a later one says
    await database.write(Statement(newer, {"version": ours + 3, "oldest": ours + 1}))
    await database.write(Statement(newer, {"version": ours + 4, "oldest": ours}))
    with pytest.raises(SchemaBehind, match=f"needs code of version {ours + 1}, newer than this code's {ours}"):
        await check_schema(database)


async def test_two_that_migrate_at_the_same_time_apply_each_migration_once(empty_database: Database) -> None:
    await migrate(empty_database)
    await empty_database.write(Statement("DELETE FROM metier_schema WHERE version > 20"))
    for sql in ("ALTER TABLE runs DROP COLUMN lost", "ALTER TABLE metier_schema DROP COLUMN oldest"):
        await empty_database.write(Statement(sql))
    applied = await asyncio.gather(*[migrate(empty_database) for _ in range(3)])
    assert sorted(version for one in applied for version in one) == [
        version for version in migrations() if version > 20
    ]


@pytest.mark.parametrize("many", [False, True])
async def test_a_migration_beside_it_costs_a_process_that_has_prepared_its_statements_nothing(
    postgres_url: str, many: bool
) -> None:
    # Given statements that the driver has prepared, because they came often
    db = RetryingDatabase(await PostgresDatabase(postgres_url, size=2).open(), AT_ONCE)
    row = Statement(
        "INSERT INTO tenant_locks (tenant) VALUES ('t') ON CONFLICT (tenant) DO UPDATE SET tenant = 't' RETURNING *"
    )
    writes = [row, row] if many else [row]
    for _ in range(20):
        await asyncio.gather(
            db.read("SELECT * FROM tenant_locks"), db.read("SELECT * FROM tenant_locks"), db.write(*writes)
        )
    # When the next version adds a column
    await db.write(Statement("ALTER TABLE tenant_locks ADD COLUMN more bigint DEFAULT 7"))
    # Then the same statements go on
    for _ in range(3):
        assert [one["more"] for one in await db.read("SELECT * FROM tenant_locks")] == [7]
        assert [[one["more"] for one in rows] for rows in await db.write(*writes)] == [[7]] * len(writes)
    await db.close()


DESTRUCTIVE = re.compile(
    r"\b(DROP|RENAME|TRUNCATE|DELETE|UNIQUE|SET NOT NULL|ALTER COLUMN|CHECK)\b|NOT NULL(?! DEFAULT)", re.IGNORECASE
)


def breaks_the_code_before(sql: str) -> bool:
    """Whether a migration does more than add what older code need not know. A table of its own may be as strict as it likes."""
    return any(DESTRUCTIVE.search(part) for part in statements_of(sql) if not part.upper().startswith("CREATE TABLE"))


@pytest.mark.parametrize("version", [version for version in migrations() if version > 20])
def test_a_migration_says_which_code_works_with_it_and_only_adds_where_that_is_older(version: int) -> None:
    sql = migrations()[version]
    oldest = oldest_code(sql)
    assert oldest is not None
    assert oldest == version or not breaks_the_code_before(sql)


@pytest.mark.parametrize(
    ("sql", "breaks"),
    [
        ("ALTER TABLE runs ADD COLUMN a bigint", False),
        ("ALTER TABLE runs ADD COLUMN a bigint NOT NULL DEFAULT 0", False),
        ("CREATE TABLE t (a bigint NOT NULL, UNIQUE (a))", False),
        ("CREATE INDEX i ON runs (a)", False),
        ("ALTER TABLE runs ADD COLUMN a bigint NOT NULL", True),
        ("ALTER TABLE runs DROP COLUMN a", True),
        ("ALTER TABLE runs RENAME COLUMN a TO b", True),
        ("CREATE UNIQUE INDEX i ON runs (a)", True),
        ("CREATE TABLE t (a bigint); DELETE FROM runs", True),
    ],
)
def test_what_breaks_the_code_before_is_told_from_what_only_adds(sql: str, breaks: bool) -> None:
    assert breaks_the_code_before(sql) is breaks


async def test_reading_a_journal_that_was_never_made_says_what_to_run(empty_database: Database) -> None:
    with pytest.raises(SchemaBehind, match="is empty: run `metier migrate`"):
        await empty_database.read("SELECT * FROM runs")


class Flickering:
    """A database that is away for its first calls."""

    def __init__(self, inner: Database, away: int) -> None:
        self.inner = inner
        self.away = away

    def _flicker(self) -> None:
        self.away -= 1
        if self.away >= 0:
            raise JournalGone("away")

    async def read(self, sql: str, params: Params | None = None) -> Sequence[Row]:
        self._flicker()
        return await self.inner.read(sql, params)

    async def write(self, *statements: Statement) -> Sequence[Sequence[Row]]:
        self._flicker()
        return await self.inner.write(*statements)

    async def close(self) -> None:
        await self.inner.close()


async def test_a_database_that_is_away_for_a_moment_is_asked_again(notes: Database) -> None:
    flickering = Flickering(notes, away=2)
    patient = RetryingDatabase(flickering, AT_ONCE)
    assert await patient.write(note(1)) == [[{"id": 1, "body": "x"}]]
    flickering.away = 2
    assert len(await patient.read("SELECT id FROM notes")) == 1


async def test_a_database_that_stays_away_is_said_to_be_gone(notes: Database) -> None:
    with pytest.raises(JournalGone):
        await RetryingDatabase(Flickering(notes, away=3), AT_ONCE).read("SELECT id FROM notes")


async def test_a_fence_is_not_tried_again(notes: Database) -> None:
    flickering = Flickering(notes, away=0)
    with pytest.raises(FencedOff):
        await RetryingDatabase(flickering, AT_ONCE).write(Statement("DELETE FROM notes", must=True))
    assert flickering.away == -1


async def test_postgres_that_loses_its_connections_comes_back(postgres_url: str) -> None:
    db = await PostgresDatabase(postgres_url, size=2).open()
    patient = RetryingDatabase(db, Backoff(first_s=0.01))
    assert await patient.read("SELECT 1 AS one")
    with psycopg.connect(postgres_url, autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    with pytest.raises(JournalGone, match=r"Postgres at .* does not answer"):
        await db.read("SELECT 1 AS one")
    assert [row["one"] for row in await patient.read("SELECT 1 AS one")] == [1]
    await db.close()


@dataclass
class Busy:
    """A database by a line that can be cut, whose only connection is in use until `free`."""

    line: Proxy
    db: PostgresDatabase
    free: Callable[[], object]


@asynccontextmanager
async def busy(postgres_url: str, busy_s: float = 600) -> AsyncGenerator[Busy]:
    """The connection waits for a lock."""
    async with proxy(int(str(conninfo_to_dict(postgres_url)["port"]))) as line:
        url = make_conninfo(postgres_url, host="127.0.0.1", port=line.port)
        db = await PostgresDatabase(url, size=1, busy_s=busy_s, patience_s=0.1).open()
        with psycopg.connect(postgres_url, autocommit=True) as other:
            other.execute("SELECT pg_advisory_lock(1)")
            reading = asyncio.create_task(db.read("SELECT pg_advisory_lock(1)"))
            await asyncio.to_thread(_until_one_waits, other)
            yield Busy(line, db, lambda: other.execute("SELECT pg_advisory_unlock(1)"))
        line.reject()
        await asyncio.gather(reading, return_exceptions=True)
        await db.close()


def _until_one_waits(other: psycopg.Connection[tuple[object, ...]]) -> None:
    waits = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"
    while not other.execute(waits).fetchall():
        time.sleep(0.01)


async def test_a_read_that_finds_every_connection_in_use_waits_for_one_and_is_told_of_no_outage(
    postgres_url: str,
) -> None:
    async with busy(postgres_url) as one:
        waiting = asyncio.create_task(one.db.read("SELECT 1 AS one"))
        await asyncio.wait(
            {waiting}, timeout=1.0
        )  # many times what it waits before it asks whether there is a database
        assert not waiting.done()
        one.free()
        assert await waiting == [{"one": 1}]


async def test_a_read_waits_no_longer_than_it_may_and_is_told_that_the_database_answers(postgres_url: str) -> None:
    async with busy(postgres_url, busy_s=0.5) as one:
        with pytest.raises(JournalGone, match=r"answers, and no connection came free for 0\.5 s"):
            await one.db.read("SELECT 1 AS one")


@pytest.mark.parametrize("cut", ["reject", "drop"])
async def test_all_that_wait_for_a_connection_are_told_when_the_database_is_away(postgres_url: str, cut: str) -> None:
    """As soon as a connection of its own is refused, or gets no answer in five seconds: long before their wait is over."""
    async with busy(postgres_url) as one:
        waiting = [asyncio.create_task(one.db.read("SELECT 1 AS one")) for _ in range(20)]
        await asyncio.sleep(0)
        one.line.reject() if cut == "reject" else one.line.drop()
        async with asyncio.timeout(HUNG):
            told = await asyncio.gather(*waiting, return_exceptions=True)
        assert {str(error).partition(":")[0] for error in told} == {"Postgres at 127.0.0.1"}
        assert {type(error) for error in told} == {JournalGone}


async def test_where_no_postgres_listens_the_journal_is_gone() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(JournalGone, match=f"Postgres at {place} does not answer"):
            await PostgresDatabase(f"postgresql://postgres@{place}/none").open()


def test_a_postgres_address_that_is_none_names_the_setting() -> None:
    with pytest.raises(BadSettings, match="METIER_POSTGRES_URL is not a Postgres URL"):
        PostgresDatabase("http://not postgres")


async def test_what_is_no_journal_is_named_and_asks_for_a_person(tmp_path: Path) -> None:
    other = tmp_path / "notes.db"
    other.write_text("buy milk, and whatever else there is to buy" * 100)
    with pytest.raises(MissingService, match=r"notes\.db cannot be used as a journal: file is not a database"):
        SqliteDatabase(other)
    with pytest.raises(MissingService, match="cannot be used as a journal: unable to open"):
        SqliteDatabase(tmp_path)
    reading = SqliteDatabase(other, read_only=True)
    with pytest.raises(MissingService, match=r"notes\.db cannot be used as a journal"):
        await reading.read("SELECT 1 FROM runs")
    await reading.close()


async def test_a_second_process_on_one_sqlite_file_is_told_so(tmp_path: Path) -> None:
    """The lock is the file's, not the process's: a second opening in this process stands for another one."""
    path = tmp_path / "deep" / "journal.db"
    db = SqliteDatabase(path)
    with pytest.raises(MissingService, match="in use by another `metier` process; end it, or set METIER_SQLITE_PATH"):
        SqliteDatabase(path)
    await db.close()
    await SqliteDatabase(path).close()


async def test_a_reader_sees_what_the_owner_wrote_and_cannot_write(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    owner = SqliteDatabase(path)
    await migrate(owner)
    reader = SqliteDatabase(path, read_only=True)
    assert await schema_version(owner) == max(migrations())
    await check_schema(reader)
    assert await reader.read("SELECT * FROM runs") == []
    with pytest.raises(JournalGone, match="readonly"):
        await reader.write(Statement("DELETE FROM runs"))
    await reader.close()
    await owner.close()


async def test_a_reader_of_a_file_that_is_not_there_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(MissingService, match="there is no journal at"):
        SqliteDatabase(tmp_path / "none.db", read_only=True)


async def test_what_sqlite_committed_is_there_after_the_file_is_opened_again(tmp_path: Path) -> None:
    db = SqliteDatabase(tmp_path / "journal.db")
    await migrate(db)
    await db.close()
    again = SqliteDatabase(tmp_path / "journal.db")
    await check_schema(again)
    await again.close()
