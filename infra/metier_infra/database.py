"""The journal's lowest seam: a database that takes SQL common to Postgres and SQLite.

`journal` and the checkpoint saver speak to it; `sqlite_journal` and `postgres_journal` are its adapters, held by one contract test.
In every statement `:name` is a parameter and `:now` the database's own clock, in seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from metier_infra.errors import SchemaBehind
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
    await db.write(
        Statement("CREATE TABLE IF NOT EXISTS metier_schema (version bigint PRIMARY KEY, at double precision NOT NULL)")
    )
    rows = await db.read("SELECT coalesce(max(version), 0) AS version FROM metier_schema")
    return int(rows[0]["version"])


async def migrate(db: Database) -> list[int]:
    """Bring the schema up to date, each migration in a transaction of its own; the versions that were applied."""
    have = await schema_version(db)
    applied = [version for version in migrations() if version > have]
    for version in applied:
        body = [Statement(part) for part in _split(migrations()[version])]
        await db.write(
            Statement("INSERT INTO metier_schema (version, at) VALUES (:version, :now)", {"version": version}), *body
        )
    return applied


async def check_schema(db: Database) -> None:
    """Raise `SchemaBehind` unless the schema is exactly the one that this code needs."""
    have, need = await schema_version(db), max(migrations())
    if have < need:
        raise SchemaBehind(
            f"the journal's schema is at version {have} and this code needs {need}; run `metier migrate`"
        )
    if have > need:
        raise SchemaBehind(
            f"the journal's schema is at version {have}, newer than this code's {need}; deploy a newer Métier"
        )


def _split(sql: str) -> list[str]:
    text = "\n".join(line for line in sql.splitlines() if not line.startswith("--"))
    return [part.strip() for part in text.split(";") if part.strip()]
