"""A full disk, as whoever writes to Postgres meets it: each row is refused with the server's own error for it (SQLSTATE 53100, `disk_full`).

Triggers in the suite's own database say so: a disk that is really full would take every other database on it along. What they do not show is a server
whose log cannot grow: it ends itself, which is the fault `restart`. `harness` prepares the database; `faults` fills and empties the disk.
"""

from __future__ import annotations

from metier_infra.database import Database, Statement

_FULL = "RAISE disk_full USING MESSAGE = 'could not extend file: No space left on device'"
_ROOM = "RETURN NEW"


async def prepare(db: Database) -> None:
    """Put every table on the disk, which has room."""
    await empty(db)
    for table in await db.read("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
        rows = f"BEFORE INSERT OR UPDATE ON {table['tablename']} FOR EACH ROW"
        await db.write(Statement(f"CREATE TRIGGER disk {rows} EXECUTE FUNCTION disk()"))


async def fill(db: Database) -> None:
    """No row is written any more."""
    await _does(db, _FULL)


async def empty(db: Database) -> None:
    """There is room again."""
    await _does(db, _ROOM)


async def _does(db: Database, what: str) -> None:
    body = f"$$ BEGIN {what}; END $$"
    await db.write(Statement(f"CREATE OR REPLACE FUNCTION disk() RETURNS trigger LANGUAGE plpgsql AS {body}"))
