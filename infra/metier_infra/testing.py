"""Deaths, for tests of what a crash costs: of a process with all its tasks, and of one at a write to its database."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

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


_tasks: ContextVar[WeakSet[asyncio.Task[Any]] | None] = ContextVar("tasks", default=None)


class Process:
    """Does `work`; `die` ends it with every task that began in it or below, where they are, as the death of a process does.

    A task with a context of its own is no part of it: a database that replicas of a test share writes on.
    """

    def __init__(self, work: Coroutine[Any, Any, Any]) -> None:
        asyncio.get_running_loop().set_task_factory(_noted)
        self._tasks: WeakSet[asyncio.Task[Any]] = WeakSet()
        token = _tasks.set(self._tasks)
        self.task = asyncio.create_task(work)
        _tasks.reset(token)

    async def die(self) -> None:
        """End now. Nothing is raised, whatever the work came to."""
        alive = [task for task in [*self._tasks] if not task.done()]
        for task in alive:
            task.cancel()
        await asyncio.wait([*alive, self.task])


def _noted(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
    task = asyncio.Task(work, loop=loop, **options)
    context = options.get("context")
    tasks = _tasks.get() if context is None else context.get(_tasks)
    if tasks is not None:
        tasks.add(task)
    return task
