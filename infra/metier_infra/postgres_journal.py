"""Postgres as the journal's database, through psycopg 3. `compose` opens it; nothing else names it."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, cast

from psycopg import AsyncConnection, OperationalError, errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from metier_infra.database import Params, Row, Statement
from metier_infra.errors import BadSettings, FencedOff, JournalGone, SchemaBehind

_PARAMETER = re.compile(r":([a-z_][a-z_0-9]*)")
_CLOCK = "extract(epoch FROM clock_timestamp())::double precision"


class PostgresDatabase:
    """See `metier_infra.database.Database`. `open` before use; `size` is the most connections it holds."""

    def __init__(self, url: str, size: int = 8) -> None:
        try:
            place = conninfo_to_dict(url)
        except Exception as error:
            raise BadSettings(
                "METIER_POSTGRES_URL is not a Postgres URL: postgresql://user@host:port/database"
            ) from error
        self._url = url
        self._place = f"{place.get('host', 'localhost')}:{place.get('port', 5432)}"
        self._pool: AsyncConnectionPool[AsyncConnection[DictRow]] = AsyncConnectionPool(
            url,
            min_size=1,
            max_size=size,
            timeout=5.0,
            open=False,
            reconnect_timeout=5.0,
            kwargs={"autocommit": True, "row_factory": dict_row, "connect_timeout": 5},
        )

    async def open(self) -> PostgresDatabase:
        """Connect once, to know at once why it cannot be done; then start the pool. Raises `JournalGone`."""
        try:
            await (await AsyncConnection.connect(self._url, connect_timeout=5)).close()
        except OperationalError as error:
            raise self._gone(error) from error
        await self._pool.open(wait=False)
        return self

    def _gone(self, error: Exception) -> JournalGone:
        return JournalGone(f"Postgres at {self._place} does not answer: {' '.join(str(error).split())}")

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[AsyncConnection[DictRow]]:
        try:
            async with self._pool.connection() as connection:
                yield connection
        except errors.UndefinedTable as error:
            raise SchemaBehind(f"the journal at {self._place} is empty: run `metier migrate`") from error
        except (OperationalError, PoolTimeout, errors.AdminShutdown, errors.InFailedSqlTransaction) as error:
            raise self._gone(error) from error

    async def read(self, sql: str, params: Params | None = None) -> Sequence[Row]:
        """See `Database.read`."""
        async with self._connection() as connection:
            cursor = await connection.execute(_translate(sql), params)
            return await cursor.fetchall()

    async def write(self, *statements: Statement) -> Sequence[Sequence[Row]]:
        """See `Database.write`. One statement is its own transaction."""
        async with self._connection() as connection:
            if len(statements) == 1:
                return [await _run(connection, statements[0])]
            async with connection.transaction():
                return [await _run(connection, statement) for statement in statements]

    async def close(self) -> None:
        """Close the pool."""
        await self._pool.close()


async def _run(connection: AsyncConnection[Any], statement: Statement) -> Sequence[Row]:
    cursor = await connection.execute(_translate(statement.sql), statement.params)
    if statement.must and cursor.rowcount < 1:
        raise FencedOff("this process no longer owns the run")
    return cast("Sequence[Row]", await cursor.fetchall()) if cursor.description else []


@lru_cache(maxsize=512)
def _translate(sql: str) -> bytes:
    """`:name` to psycopg's `%(name)s`. The statements are this project's own constants: nothing of a user is ever part of them."""
    named: str = _PARAMETER.sub(lambda match: _CLOCK if match[1] == "now" else f"%({match[1]})s", sql)
    return named.encode()
