"""A migrated database of somebody's own on the configured server: `metier chaos` and `metier bench orchestrator` work in one, beside whatever else is there."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

from metier import compose
from metier.configuration import Config
from metier_infra.database import RetryingDatabase, Statement, migrate
from metier_infra.errors import MissingService


@asynccontextmanager
async def own_database(config: Config, name: str) -> AsyncGenerator[str]:
    """Its URL; the database, called `name`, is dropped after the block. Raises `MissingService` where no server is named."""
    from metier_infra.postgres_journal import PostgresDatabase

    if config.journal.postgres_url is None:
        raise MissingService("METIER_POSTGRES_URL is not set; `make up` starts a server")
    given = config.journal.postgres_url.get_secret_value()
    url = urlunsplit(urlsplit(given)._replace(path=f"/{name}"))
    async with AsyncExitStack() as stack:
        pool = await PostgresDatabase(given, 1).open()
        stack.push_async_callback(pool.close)
        admin = RetryingDatabase(pool, compose.BRIEF)
        await admin.write(Statement(f"CREATE DATABASE {name}"))
        stack.push_async_callback(admin.write, Statement(f"DROP DATABASE {name} WITH (FORCE)"))
        db = await PostgresDatabase(url, 1).open()
        stack.push_async_callback(db.close)
        await migrate(db)
        yield url
