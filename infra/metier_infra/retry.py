"""Back-off as pure arithmetic, and the one loop that obeys it.

`service` uses it round each record, `RetryingDatabase` round each statement, agents round each model request.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import structlog

from metier_infra import metrics
from metier_infra.errors import RetryLater

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")
log = structlog.get_logger()


@dataclass(frozen=True)
class Backoff:
    """Exponential back-off.

    Attributes:
        first_s: the delay after the first failure, in seconds.
        factor: each delay is this many times the one before.
        ceiling_s: no delay is longer.
        attempts: tries in all, or None to try until cancelled.
    """

    first_s: float = 0.05
    factor: float = 2.0
    ceiling_s: float = 5.0
    attempts: int | None = None

    def delay(self, failures: int, wished_s: float | None = None) -> float | None:
        """Seconds to wait after `failures` failed tries (1, 2, …), or None to give up."""
        if self.attempts is not None and failures >= self.attempts:
            return None
        grown = min(self.ceiling_s, self.first_s * self.factor ** min(failures - 1, 60))
        return grown if wished_s is None else max(wished_s, 0.0)


async def persist(what: str, work: Callable[[], Awaitable[T]], backoff: Backoff) -> T:
    """Run `work` until it succeeds, sleeping between tries that raise `RetryLater`; the last such error is raised on giving up."""
    failures = 0
    while True:
        try:
            return await work()
        except RetryLater as error:
            failures += 1
            metrics.add(metrics.RETRIES, 1, {metrics.REASON: error.code})
            delay = backoff.delay(failures, error.after_s)
            if delay is None:
                raise
            log.warning(
                "try again",
                action="retry",
                what=what,
                reason=error.code,
                error=str(error),
                failures=failures,
                after_s=delay,
            )
            await asyncio.sleep(delay)
