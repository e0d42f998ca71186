"""SQLite as the journal's database: the embedded default. `compose` opens it; nothing else names it.

One connection on one thread, WAL, fsync at every commit; writes that are wanted at the same time share a commit (`grouped`).
A file lock makes a second process fail with a clear sentence.
"""

from __future__ import annotations

import asyncio
import fcntl
import re
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TypeVar

from metier_infra.database import Params, Row, Statement
from metier_infra.errors import FencedOff, JournalGone, MissingService, SchemaBehind
from metier_infra.grouped import Grouped

T = TypeVar("T")
_NOW = re.compile(r":now\b")
_CLOCK = "((julianday('now') - 2440587.5) * 86400.0)"


class SqliteDatabase:
    """See `metier_infra.database.Database`. `path` is a file, or `:memory:` for a journal that ends with the process.

    `read_only` reads beside the process that owns the file.
    """

    def __init__(self, path: Path | str, *, read_only: bool = False) -> None:
        self._path = Path(path)
        self._read_only = read_only
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        self._lock: IO[str] | None = None
        self._writes = Grouped(self._together, self._alone, JournalGone)
        try:
            self._connection = self._thread.submit(self._open).result()
        except BaseException as error:
            self._thread.shutdown(wait=False)
            if isinstance(error, OSError | sqlite3.DatabaseError):
                raise self._no_journal(error) from error
            raise

    def _no_journal(self, error: Exception) -> MissingService:
        return MissingService(f"{self._path} cannot be used as a journal: {error}; METIER_SQLITE_PATH names another")

    def _open(self) -> sqlite3.Connection:
        if self._read_only:
            if not self._path.is_file():
                raise MissingService(
                    f"there is no journal at {self._path}: nothing ran here yet (METIER_SQLITE_PATH names another)"
                )
            connection = sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, isolation_level=None)
        else:
            self._own()
            connection = sqlite3.connect(self._path, isolation_level=None)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
        connection.row_factory = sqlite3.Row
        return connection

    def _own(self) -> None:
        """Lock the file for this process. Raises `MissingService` when another has it."""
        if str(self._path) == ":memory:":
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = self._path.with_suffix(".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise MissingService(
                f"{self._path} is in use by another `metier` process; end it, or set METIER_SQLITE_PATH"
            ) from error

    async def _call(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                raise SchemaBehind(f"the journal at {self._path} is empty: run `metier migrate`") from error
            raise JournalGone(f"SQLite at {self._path}: {error}") from error
        except sqlite3.DatabaseError as error:
            if type(error) is sqlite3.DatabaseError:  # no file of SQLite's, or a broken one
                raise self._no_journal(error) from error
            raise

    async def read(self, sql: str, params: Params | None = None) -> Sequence[Row]:
        """See `Database.read`."""
        return await self._call(lambda: self._rows(sql, params or {})[0])

    async def write(self, *statements: Statement) -> Sequence[Sequence[Row]]:
        """See `Database.write`."""
        return await self._writes.do(statements)

    async def _together(self, writes: Sequence[Sequence[Statement]]) -> Sequence[Sequence[Sequence[Row]]]:
        return await self._call(lambda: self._transaction(writes))

    async def _alone(self, statements: Sequence[Statement]) -> Sequence[Sequence[Row]]:
        return (await self._together([statements]))[0]

    def _transaction(self, writes: Sequence[Sequence[Statement]]) -> Sequence[Sequence[Sequence[Row]]]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            results = [[self._run(statement) for statement in write] for write in writes]
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")
        return results

    def _run(self, statement: Statement) -> list[Row]:
        rows, touched = self._rows(statement.sql, statement.params)
        if statement.must and not (rows or touched > 0):
            raise FencedOff("this process no longer owns the run")
        return rows

    def _rows(self, sql: str, params: Params) -> tuple[list[Row], int]:
        cursor = self._connection.execute(_NOW.sub(_CLOCK, sql), dict(params))
        rows: list[Row] = [dict(row) for row in cursor.fetchall()]
        return rows, cursor.rowcount

    async def close(self) -> None:
        """Close the file and end the thread, after the writes that are under way."""
        await self._writes.end()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown()
        if self._lock is not None:
            self._lock.close()
