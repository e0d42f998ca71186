"""Postgres as the journal's database, through psycopg 3. `compose` opens it; nothing else names it.

Writes go through `grouped`: those that are wanted at the same time are sent as one pipeline and committed once, in one round trip
(`postgres_pipeline`), over a connection that does nothing else. Reads have a pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import Context
from typing import Any, cast

from psycopg import AsyncConnection, OperationalError, errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from metier_infra.database import Params, Row, Statement
from metier_infra.errors import BadSettings, FencedOff, JournalGone, SchemaBehind
from metier_infra.grouped import Grouped
from metier_infra.postgres_pipeline import Pipeline, named

CONNECT_S = 5


class PostgresDatabase:
    """See `metier_infra.database.Database`. `open` before use; `size` is the most connections it holds, one to write and one to read at the least.

    What finds all of them in use waits for one, up to `busy_s`; each `patience_s` that it waits, a connection of its own asks, for all
    that wait, whether the database is there at all.
    """

    def __init__(self, url: str, size: int = 8, *, busy_s: float = 60.0, patience_s: float = 5.0) -> None:
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
            max_size=max(1, size - 1),
            open=False,
            reconnect_timeout=5.0,
            kwargs={"autocommit": True, "row_factory": dict_row, "connect_timeout": CONNECT_S},
        )
        self._writes = Grouped(self._together, self._alone, JournalGone)
        self._writer: Pipeline | None = None
        self._busy_s = busy_s
        self._patience_s = patience_s
        self._look: asyncio.Task[Exception | None] | None = None

    async def open(self) -> PostgresDatabase:
        """Connect once, to know at once why it cannot be done; then start the pool. Raises `JournalGone`."""
        if (error := await self._asked()) is not None:
            raise self._gone(error) from error
        await self._pool.open(wait=False)
        return self

    async def _asked(self) -> Exception | None:
        """What is wrong with the database, if anything: asked by a connection of its own."""
        try:
            await (await AsyncConnection.connect(self._url, connect_timeout=CONNECT_S)).close()
        except OperationalError as error:
            return error
        return None

    def _gone(self, error: Exception) -> JournalGone:
        return JournalGone(f"Postgres at {self._place} does not answer: {' '.join(str(error).split())}")

    async def _taken(self) -> AsyncConnection[DictRow]:
        """One of the pool's connections, once there is one for us."""
        until = asyncio.get_running_loop().time() + self._busy_s
        while True:
            try:
                return await self._pool.getconn(self._patience_s)
            except PoolTimeout as error:
                if (wrong := await self._looked()) is not None:
                    raise self._gone(wrong) from error
                if asyncio.get_running_loop().time() > until:
                    raise JournalGone(
                        f"Postgres at {self._place} answers, and no connection came free for {self._busy_s:g} s"
                    ) from error

    async def _looked(self) -> Exception | None:
        """What is wrong with the database; all that want to know it now ask once."""
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._asked(), context=Context())
        return await asyncio.shield(self._look)

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[AsyncConnection[DictRow]]:
        with self._told():
            connection = await self._taken()
            try:
                async with connection:
                    yield connection
            except errors.FeatureNotSupported:
                await connection.close()  # with all that it had prepared
                raise
            finally:
                await self._pool.putconn(connection)

    @contextmanager
    def _told(self) -> Generator[None]:
        """What psycopg raises, as ours."""
        try:
            yield
        except errors.UndefinedTable as error:
            raise SchemaBehind(f"the journal at {self._place} is empty: run `metier migrate`") from error
        except (OperationalError, errors.AdminShutdown, errors.InFailedSqlTransaction) as error:
            raise self._gone(error) from error
        except errors.FeatureNotSupported as error:
            if "cached plan" not in str(error):
                raise
            raise JournalGone(
                f"the schema at {self._place} was changed: what was prepared before is out of date"
            ) from error

    async def read(self, sql: str, params: Params | None = None) -> Sequence[Row]:
        """See `Database.read`."""
        async with self._connection() as connection:
            cursor = await connection.execute(named(sql), params)
            return await cursor.fetchall()

    async def write(self, *statements: Statement) -> Sequence[Sequence[Row]]:
        """See `Database.write`."""
        return await self._writes.do(statements)

    async def _together(self, writes: Sequence[Sequence[Statement]]) -> Sequence[Sequence[Sequence[Row]]]:
        """One pipeline, which Postgres takes for one transaction. A `must` that touches no row breaks it on the server, so that nothing waits for a look at it."""
        with self._told():
            writer, self._writer = self._writer or await self._connected(), None
            try:
                rows = iter(await writer.run([statement for write in writes for statement in write]))
            except BaseException as error:
                await writer.close()
                if isinstance(error, errors.DivisionByZero | errors.DeadlockDetected):
                    raise FencedOff("a write of this group cannot be done with the others") from error
                raise
            self._writer = writer
            return [[next(rows) for _ in write] for write in writes]

    async def _connected(self) -> Pipeline:
        return Pipeline(await AsyncConnection.connect(self._url, autocommit=True, connect_timeout=CONNECT_S))

    async def _alone(self, statements: Sequence[Statement]) -> Sequence[Sequence[Row]]:
        """One statement is its own transaction."""
        async with self._connection() as connection:
            if len(statements) == 1:
                return [await _run(connection, statements[0])]
            async with connection.transaction():
                return [await _run(connection, statement) for statement in statements]

    async def close(self) -> None:
        """Close the pool, after the writes that are under way."""
        await self._writes.end()
        if self._writer is not None:
            await self._writer.close()
        if self._look is not None:
            self._look.cancel()
        await self._pool.close()


async def _run(connection: AsyncConnection[Any], statement: Statement) -> Sequence[Row]:
    cursor = await connection.execute(named(statement.sql), statement.params)
    if statement.must and cursor.rowcount < 1:
        raise FencedOff("this process no longer owns the run")
    found = cursor.pgresult
    return cast("Sequence[Row]", await cursor.fetchall()) if found is not None and found.nfields else []
