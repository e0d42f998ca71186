"""Group commit: what is to be made durable at the same time is made so at once. The database adapters and `kafka_bus` hand what they are given in here.

While one group is under way, the next gathers; so what comes alone waits for nobody, and under load one fsync or one round trip is shared by many.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Generic, TypeVar

Work = TypeVar("Work")
Result = TypeVar("Result")
LARGEST_GROUP = 128
"""What goes at once, at the most: who stands behind a full group waits some milliseconds."""


@dataclass(frozen=True)
class Wanted(Generic[Work, Result]):
    """A piece of work, and the future of who waits for it."""

    work: Work
    done: asyncio.Future[Result]


class Grouped(Generic[Work, Result]):
    """Gathers work and has it done.

    Args:
        together: does all that is in a group, or nothing of it; the result of each.
        alone: does one piece. Called for each where `together` raised what may concern only some of them.
        hopeless: an error that concerns them all, so that trying one by one is of no use.
    """

    def __init__(
        self,
        together: Callable[[Sequence[Work]], Awaitable[Sequence[Result]]],
        alone: Callable[[Work], Awaitable[Result]],
        hopeless: type[Exception],
    ) -> None:
        self._together = together
        self._alone = alone
        self._hopeless = hopeless
        self._waiting: list[Wanted[Work, Result]] = []
        self._working: asyncio.Task[None] | None = None

    async def do(self, work: Work) -> Result:
        """The work's result, once it is durable. Who is cancelled meanwhile does not know whether it is."""
        wanted: Wanted[Work, Result] = Wanted(work, asyncio.get_running_loop().create_future())
        self._waiting.append(wanted)
        if self._working is None:
            self._working = asyncio.create_task(self._work(), context=Context())  # it is nobody's own work
        return await wanted.done

    async def end(self) -> None:
        """Wait for what is under way."""
        while self._working is not None:
            await asyncio.wait([self._working])

    async def _work(self) -> None:
        try:
            while self._waiting:
                taken, self._waiting = self._waiting[:LARGEST_GROUP], self._waiting[LARGEST_GROUP:]
                group = [one for one in taken if not one.done.done()]
                if group:
                    await self._do(group)
        finally:
            self._working = None

    async def _do(self, group: Sequence[Wanted[Work, Result]]) -> None:
        try:
            results = await self._together([one.work for one in group])
        except self._hopeless as error:
            for one in group:
                _fail(one.done, error)
        except Exception:
            for one in group:
                await self._do_alone(one)
        except BaseException:  # whoever ends this, nobody may wait for it for ever
            for one in group:
                _fail(one.done, self._hopeless("it was ended before it was known to be done"))
            raise
        else:
            for one, result in zip(group, results, strict=True):
                _tell(one.done, result)

    async def _do_alone(self, one: Wanted[Work, Result]) -> None:
        try:
            _tell(one.done, await self._alone(one.work))
        except Exception as error:
            _fail(one.done, error)


def _tell(waiter: asyncio.Future[Result], result: Result) -> None:
    if not waiter.done():
        waiter.set_result(result)


def _fail(waiter: asyncio.Future[Result], error: Exception) -> None:
    if not waiter.done():
        waiter.set_exception(error)
