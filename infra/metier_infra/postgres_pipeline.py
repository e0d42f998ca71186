"""A group of statements in one round trip and one transaction: a libpq pipeline. `postgres_journal` makes all its writes through one.

What goes in and comes out is adapted by psycopg. Its cursors are left out: each waits for its statement alone, which takes four times the CPU.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import compress
from typing import Any

from psycopg import AsyncConnection
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

from metier_infra.database import Row, Statement

_CLOCK = "extract(epoch FROM clock_timestamp())::double precision"
_PARAMETER = re.compile(r":([a-z_][a-z_0-9]*)")
_INSISTING = (
    "WITH touched AS (SQL) SELECT touched.* FROM (SELECT 1 / count(*) AS share FROM touched) AS must"
    " LEFT JOIN touched ON must.share >= 0"
)
_DONE = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)
PREPARED_FROM = 5
"""A statement that comes so often is prepared: the server plans it once."""
PREPARED_AT_MOST = 200
LONGEST_PREPARED = 4096
"""Characters. A longer one carries the rows of a wide fan, and is hardly ever the same twice."""


class Pipeline:
    """The pipeline of a connection that nothing else uses. After an error the connection is of no use: what was prepared in it is not known."""

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        self._connection = connection
        self._libpq = connection.pgconn
        self._adapting = Transformer(connection)
        self._seen: Counter[tuple[str, tuple[int, ...]]] = Counter()
        self._prepared: dict[tuple[str, tuple[int, ...]], bytes] = {}

    async def run(self, statements: Sequence[Statement]) -> list[list[Row]]:
        """The rows of each, once all are committed; a `must` that touches no row raises `DivisionByZero`. Raises what psycopg would, and has done nothing then."""
        self._libpq.enter_pipeline_mode()
        answers: list[bool] = []
        for statement in statements:
            answers += self._send(statement)
        self._libpq.pipeline_sync()
        results = await self._results()
        self._libpq.exit_pipeline_mode()
        return [self._rows(result) for result in compress(results, answers)]

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    def _send(self, statement: Statement) -> list[bool]:
        """Of the results that will come of it, which one is the statement's."""
        sql, names = numbered(statement.sql, insisting=statement.must)
        values = [statement.params[name] for name in names]
        dumped = self._adapting.dump_sequence(values, [PyFormat.AUTO] * len(values))
        types, formats = self._adapting.types or (), self._adapting.formats
        key = sql, tuple(types)
        name = self._prepared.get(key)
        if name is not None:
            self._libpq.send_query_prepared(name, dumped, formats)
            return [True]
        if not self._worth(key):
            self._libpq.send_query_params(sql.encode(), dumped, types, formats)
            return [True]
        name = self._prepared[key] = f"m{len(self._prepared)}".encode()
        self._libpq.send_prepare(name, sql.encode(), types)
        self._libpq.send_query_prepared(name, dumped, formats)
        return [False, True]

    def _worth(self, key: tuple[str, tuple[int, ...]]) -> bool:
        """Whether it is to be prepared now."""
        if len(key[0]) > LONGEST_PREPARED or len(self._prepared) == PREPARED_AT_MOST:
            return False
        self._seen[key] += 1
        return self._seen[key] == PREPARED_FROM

    async def _results(self) -> list[PGresult]:
        """All results up to the `Sync` that ends the transaction."""
        found: list[PGresult] = []
        last: PGresult | None = None
        while True:
            unsent = self._libpq.flush()
            while not self._libpq.is_busy():
                result = self._libpq.get_result()
                if result is None:
                    if last is None:
                        break
                elif result.status == ExecStatus.PIPELINE_SYNC:
                    return found
                elif result.status not in _DONE:
                    raise error_from_result(result)
                else:
                    found.append(result)
                last = result
            await self._ready(write=unsent != 0)
            self._libpq.consume_input()

    async def _ready(self, *, write: bool) -> None:
        """Wait until the server sent something, or takes more of what is to be sent."""
        loop, socket = asyncio.get_running_loop(), self._libpq.socket
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(socket, _set, ready)
        if write:
            loop.add_writer(socket, _set, ready)
        try:
            await ready
        finally:
            loop.remove_reader(socket)
            if write:
                loop.remove_writer(socket)

    def _rows(self, result: PGresult) -> list[Row]:
        if not result.ntuples:
            return []
        names = [(result.fname(place) or b"").decode() for place in range(result.nfields)]
        self._adapting.set_pgresult(result)
        return self._adapting.load_rows(0, result.ntuples, lambda row: dict(zip(names, row, strict=True)))


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


@lru_cache(maxsize=512)
def named(sql: str) -> bytes:
    """SQL with psycopg's own `%(name)s` for its parameters. The statements are this project's own constants: nothing of a user is ever part of them."""
    text: str = _PARAMETER.sub(lambda match: _CLOCK if match[1] == "now" else f"%({match[1]})s", sql)
    return text.encode()


@lru_cache(maxsize=512)
def numbered(sql: str, *, insisting: bool = False) -> tuple[str, Sequence[str]]:
    """As `named`, with libpq's `$1` for the first parameter; and their names, in this order.

    `insisting`: it divides by zero, which ends the transaction, where it would touch no row.
    """
    names: dict[str, int] = {}

    def place(match: re.Match[str]) -> str:
        return _CLOCK if match[1] == "now" else f"${names.setdefault(match[1], len(names) + 1)}"

    text = _PARAMETER.sub(place, sql)
    if insisting:
        text = _INSISTING.replace("SQL", text if " RETURNING " in text else f"{text} RETURNING 1 AS one")
    return text, tuple(names)
