"""Waiting for what others make: a schema, topics. For init containers, which begin before the services do.

`cli_migrate` and `cli_topics` say what to look at. A service that is away, or hangs, is waited for like what is not made yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from metier.bounded import started
from metier_infra.errors import MissingService, RetryLater

T = TypeVar("T")

LOOK_S = 10.0
"""A look that takes longer is given up, and made anew; seconds."""
SHORTEST_LOOK_S = 1.0
"""The last look has at least so long; seconds."""
PAUSE_S = 1.0
TOLD_S = 10.0
"""The same is said again after so long; seconds."""


class Missing(Exception):
    """What is waited for is not there yet; the sentence says what is missing."""


def until(
    what: str,
    look: Callable[[], T],
    within_s: float,
    say: Callable[[str], None],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """What `look` gives, once it neither raises `Missing` nor `RetryLater`; `say` is told meanwhile what is missing.

    Raises:
        MissingService: it was not so within `within_s` seconds.
        AskOperator: whatever else `look` raises, at once.
    """
    end, reason, told, tell_at = clock() + within_s, "", "", 0.0
    while True:
        look_s = max(min(LOOK_S, end - clock()), SHORTEST_LOOK_S)
        found, why = _looked(look, look_s)
        if found is not None:
            return found[0]
        reason = why or reason
        missing = why or f"no answer within {look_s:.0f} s{f'; before, {reason}' if reason else ''}"
        left = end - clock()
        if left <= 0:
            raise MissingService(f"waited {within_s:g} s for {what}, in vain: {missing}")
        if missing != told or clock() >= tell_at:
            say(f"waiting for {what}, for {left:.0f} s more: {missing}")
            told, tell_at = missing, clock() + TOLD_S
        sleep(min(PAUSE_S, left))


def _looked(look: Callable[[], T], within_s: float) -> tuple[tuple[T] | None, str]:
    """What was found, or else what is missing; neither, where it hangs."""
    try:
        return (started("look", look).result(within_s),), ""
    except TimeoutError:
        return None, ""
    except (Missing, RetryLater) as error:
        return None, str(error)
