"""Try until it works or the call's time runs out. The loop and `hands` wrap model requests and tool calls in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from metier_infra.errors import DeadlineMissed, RetryLater
from metier_infra.retry import Backoff, persist

T = TypeVar("T")
BACKOFF = Backoff(first_s=0.2, ceiling_s=10.0)


async def until(deadline: float, what: str, work: Callable[[], Awaitable[T]]) -> T:
    """The result of `work`, tried again on `RetryLater`. Raises `DeadlineMissed`, with the last reason, at `deadline` (epoch seconds)."""
    reasons: list[RetryLater] = []
    left = deadline - time.time()
    if left <= 0:
        raise DeadlineMissed(f"the call's time ran out before {what}")

    async def attempt() -> T:
        try:
            return await work()
        except RetryLater as error:
            reasons.append(error)
            raise

    try:
        async with asyncio.timeout(left):
            return await persist(what, attempt, BACKOFF)
    except TimeoutError as error:
        why = f"; the last try failed: {reasons[-1]}" if reasons else ""
        raise DeadlineMissed(f"the call's time ran out during {what}{why}") from (reasons[-1] if reasons else error)
