"""A database whose process dies, for tests of what a crash costs. Tests put it between a journal and its database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from metier_infra.database import Database, Params, Row, Statement


class Crash(BaseException):
    """The process dies here."""


@dataclass
class Dying:
    """A database whose process dies at its n-th write: before it, or after it was committed. `at` None: never."""

    inner: Database
    at: int | None = None
    committed: bool = False
    writes: int = 0

    async def read(self, sql: str, params: Params | None = None) -> Sequence[Row]:
        """See `Database.read`."""
        return await self.inner.read(sql, params)

    async def write(self, *statements: Statement) -> Sequence[Sequence[Row]]:
        """See `Database.write`. Raises `Crash`."""
        self.writes += 1
        dies = self.writes == self.at
        if dies and not self.committed:
            raise Crash
        rows = await self.inner.write(*statements)
        if dies:
            raise Crash
        return rows

    async def close(self) -> None:
        """See `Database.close`."""
        await self.inner.close()
