"""The journal's lowest seam: a database that takes SQL common to Postgres and SQLite.

`journal` and the checkpoint saver speak to it; `sqlite_journal` and `postgres_journal` are its adapters, held by one contract test.
In every statement `:name` is a parameter and `:now` the database's own clock, in seconds since the epoch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from metier_infra.errors import FencedOff, SchemaBehind
from metier_infra.retry import Backoff, persist

Row = Mapping[str, Any]
Params = Mapping[str, object]
MIGRATIONS = Path(__file__).parent / "migrations"


@dataclass(frozen=True)
class Statement:
    """SQL with its parameters. `must`: if it touches no row, the whole write is undone and raises `FencedOff`."""

    sql: str
    params: Params = field(default_factory=dict[str, object])
    must: bool = False


class Database(Protocol):
    """Durable SQL. Raises `JournalGone` when the database does not answer; everything else is a defect of ours."""

    async def read(self, sql: str, params: Params | None = None) -> Sequence[Row]:
        """The rows that a query gives."""
        ...

    async def write(self, *statements: Statement) -> Sequence[Sequence[Row]]:
        """Run statements in one durable transaction; the rows that each returned. Raises `FencedOff`, then nothing is written."""
        ...

    async def close(self) -> None:
        """Let go of every connection."""
        ...


class RetryingDatabase:
    """A layer round a database: a statement that meets `JournalGone` is tried again. Every statement of ours may run twice."""

    def __init__(self, inner: Database, backoff: Backoff) -> None:
        self._inner = inner
        self._backoff = backoff

    async def read(self, sql: str, params: Params | None = None) -> Sequence[Row]:
        """See `Database.read`."""
        return await persist("journal read", lambda: self._inner.read(sql, params), self._backoff)

    async def write(self, *statements: Statement) -> Sequence[Sequence[Row]]:
        """See `Database.write`."""
        return await persist("journal write", lambda: self._inner.write(*statements), self._backoff)

    async def close(self) -> None:
        """See `Database.close`."""
        await self._inner.close()


def migrations() -> dict[int, str]:
    """Version to SQL text, in order; forward only."""
    return {int(path.name[:4]): path.read_text() for path in sorted(MIGRATIONS.glob("[0-9]*.sql"))}


async def schema_version(db: Database) -> int:
    """The version of the journal's schema; 0 for an empty database."""
    try:
        rows = await db.read("SELECT coalesce(max(version), 0) AS version FROM metier_schema")
    except SchemaBehind:
        return 0
    return int(rows[0]["version"])


async def migrate(db: Database) -> list[int]:
    """Bring the schema up to date, each migration in a transaction of its own; the versions that were applied here, and by nobody else meanwhile."""
    await db.write(
        Statement("CREATE TABLE IF NOT EXISTS metier_schema (version bigint PRIMARY KEY, at double precision NOT NULL)")
    )
    have = await schema_version(db)
    return [version for version, sql in migrations().items() if version > have and await _applied(db, version, sql)]


async def _applied(db: Database, version: int, sql: str) -> bool:
    """Whether it was this process that brought the schema to this version."""
    new = "INSERT INTO metier_schema (version, at) VALUES (:version, :now) ON CONFLICT DO NOTHING"
    body = [Statement(part) for part in statements_of(sql)]
    if (oldest := oldest_code(sql)) is not None:
        place = {"version": version, "oldest": oldest}
        body.append(Statement("UPDATE metier_schema SET oldest = :oldest WHERE version = :version", place))
    try:
        await db.write(Statement(new, {"version": version}, must=True), *body)
    except FencedOff:
        return False
    return True


def oldest_code(sql: str) -> int | None:
    """The schema version of the oldest code that works with what a migration made: its line `-- oldest: N`. None: only code that knows it."""
    found = re.search(r"^-- oldest: (\d+)$", sql, re.MULTILINE)
    return int(found[1]) if found else None


async def check_schema(db: Database) -> None:
    """Raise `SchemaBehind` unless this code works with the schema: with its own, or with a newer one whose migrations all say so."""
    have, need = await schema_version(db), max(migrations())
    if have < need:
        raise SchemaBehind(
            f"the journal's schema is at version {have} and this code needs {need}; run `metier migrate`"
        )
    if have > need and (oldest := await _oldest(db, need)) > need:
        raise SchemaBehind(
            f"the journal's schema is at version {have}, which needs code of version {oldest}, newer than this code's {need}; deploy a newer Métier"
        )


async def _oldest(db: Database, need: int) -> int:
    rows = await db.read(
        "SELECT max(coalesce(oldest, version)) AS oldest FROM metier_schema WHERE version > :need", {"need": need}
    )
    return int(rows[0]["oldest"])


def statements_of(sql: str) -> list[str]:
    """The statements of a migration, without its comments."""
    text = "\n".join(line for line in sql.splitlines() if not line.startswith("--"))
    return [part.strip() for part in text.split(";") if part.strip()]
