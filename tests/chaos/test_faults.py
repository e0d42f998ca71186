"""What the faults of `metier chaos` do to a real service. Not here: killing and freezing, which the crashes show."""

from __future__ import annotations

import pytest

from metier.chaos import disk
from metier_infra.database import Statement
from metier_infra.errors import JournalGone
from metier_infra.postgres_journal import PostgresDatabase

WRITE = Statement("INSERT INTO tenant_locks (tenant) VALUES ('t') ON CONFLICT (tenant) DO UPDATE SET tenant = 't'")


async def test_a_full_disk_takes_no_row_until_it_is_emptied(postgres_url: str) -> None:
    db = await PostgresDatabase(postgres_url, size=1).open()
    await disk.prepare(db)
    await db.write(WRITE)

    await disk.fill(db)
    with pytest.raises(JournalGone, match="No space left on device"):
        await db.write(WRITE)
    assert await db.read("SELECT tenant FROM tenant_locks")

    await disk.empty(db)
    await db.write(WRITE)
    await db.close()
