"""What a Postgres is, and how it stands with the journal: nothing that is written stays. `metier.doctor.postgres` asks, and judges."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from metier_infra.errors import BadSettings, JournalGone

CONNECT_S = 5
"""How long it may take to let us in; seconds."""
_PLACES = """
SELECT current_setting('server_version') AS version,
       current_setting('server_version_num')::int AS number,
       getdatabaseencoding() AS encoding,
       current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int AS connections,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') - 1 AS taken,
       pg_is_in_recovery() AS standby,
       current_setting('fsync') AS fsync,
       current_setting('synchronous_commit') AS commits,
       to_regclass('metier_schema') IS NOT NULL AS migrated
"""
_FORBIDDEN = """
SELECT tablename FROM pg_tables
WHERE schemaname = (SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = to_regclass('metier_schema'))
  AND NOT (has_table_privilege(format('%I.%I', schemaname, tablename), 'SELECT')
      AND has_table_privilege(format('%I.%I', schemaname, tablename), 'INSERT')
      AND has_table_privilege(format('%I.%I', schemaname, tablename), 'UPDATE')
      AND has_table_privilege(format('%I.%I', schemaname, tablename), 'DELETE'))
ORDER BY tablename
"""


@dataclass(frozen=True)
class PostgresSeen:
    """A database.

    Attributes:
        version: as the server writes it.
        major: its first number.
        encoding: of the database.
        connections: how many there may be, without those kept for superusers.
        taken: how many there are, without ours.
        standby: it follows another server, and takes no writes.
        fsync: whether what is committed is on the disk.
        commits: `synchronous_commit`.
        schema: the migrations that were made, by their versions, each with that of the oldest code that works with it; None: only its own.
        unwritten: why a write that was undone again could not be made; empty: it could.
        forbidden: tables of the journal that this user may not use as the journal does.
        skew_s: how much its clock is ahead of ours; seconds.
        unsure_s: by how much that may be wrong; seconds.
    """

    version: str
    major: int
    encoding: str
    connections: int
    taken: int
    standby: bool
    fsync: bool
    commits: str
    schema: Mapping[int, int | None]
    unwritten: str
    forbidden: Sequence[str]
    skew_s: float
    unsure_s: float


def look(url: str, *, clock: Callable[[], float] = time.time) -> PostgresSeen:
    """Ask the database. Raises `JournalGone`, and `BadSettings` for what is no address of one."""
    place = _place(url)
    try:
        with psycopg.connect(url, connect_timeout=CONNECT_S, autocommit=True) as connection:
            return _seen(connection, clock)
    except psycopg.Error as error:
        raise JournalGone(f"Postgres at {place} does not answer: {_short(error)}") from error


def _place(url: str) -> str:
    try:
        place = conninfo_to_dict(url)
    except psycopg.Error as error:
        raise BadSettings("METIER_POSTGRES_URL is not a Postgres URL: postgresql://user@host:port/database") from error
    return f"{place.get('host', 'localhost')}:{place.get('port', 5432)}"


def _short(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _seen(connection: psycopg.Connection[Any], clock: Callable[[], float]) -> PostgresSeen:
    cursor = connection.execute(_PLACES)
    names = [column.name for column in cursor.description or ()]
    told: dict[str, Any] = dict(zip(names, cursor.fetchone() or (), strict=True))
    skew_s, unsure_s = _skew(connection, clock)
    return PostgresSeen(
        version=told["version"],
        major=told["number"] // 10_000,
        encoding=told["encoding"],
        connections=told["connections"],
        taken=told["taken"],
        standby=told["standby"],
        fsync=told["fsync"] == "on",
        commits=told["commits"],
        schema=_schema(connection) if told["migrated"] else {},
        unwritten=_unwritten(connection, migrated=told["migrated"]),
        forbidden=[row[0] for row in connection.execute(_FORBIDDEN)] if told["migrated"] else [],
        skew_s=skew_s,
        unsure_s=unsure_s,
    )


def _schema(connection: psycopg.Connection[Any]) -> dict[int, int | None]:
    """The column `oldest` came later than the table."""
    try:
        rows = connection.execute("SELECT to_jsonb(metier_schema) FROM metier_schema")
        return {row[0]["version"]: row[0].get("oldest") for row in rows}
    except psycopg.errors.InsufficientPrivilege:
        return {}


def _skew(connection: psycopg.Connection[Any], clock: Callable[[], float]) -> tuple[float, float]:
    """Its clock against the middle of the round trip; half of that may be wrong."""
    before = clock()
    row = connection.execute("SELECT extract(epoch FROM clock_timestamp())::double precision").fetchone()
    after = clock()
    return (float(row[0]) if row else after) - (before + after) / 2, (after - before) / 2


def _unwritten(connection: psycopg.Connection[Any], *, migrated: bool) -> str:
    """Why this user cannot write: a row where there is a schema, else a table, as `metier migrate` does; either is undone."""
    name = sql.Identifier(f"metier_doctor_{uuid4().hex}")
    row = sql.SQL("INSERT INTO metier_schema (version, at) VALUES (-1, 0) ON CONFLICT DO NOTHING")
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(row if migrated else sql.SQL("CREATE TABLE {} (one int)").format(name))
    except psycopg.Error as error:
        return _short(error)
    return ""
