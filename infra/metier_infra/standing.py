"""How this process stands: whether it is starting, ready or draining, why it is not ready, and when its event loop last turned.

`service.Ready` and the roles say it, `health` answers probes with it. It knows of no service: what is told here is what a role found out by its work.
"""

from __future__ import annotations

import asyncio
import time
from typing import Literal

State = Literal["starting", "ready", "draining"]
STATES: tuple[State, ...] = ("starting", "ready", "draining")
BEAT_S = 1.0
"""How often the event loop says that it turns; seconds."""


class Standing:
    """Said by the role's loop, read from any thread."""

    def __init__(self) -> None:
        self._state: State = "starting"
        self._why = "it starts"
        self._lacks: dict[str, str] = {}
        self._turned_at = time.monotonic()

    def starting(self, why: str) -> None:
        """It is not ready yet, or no longer, and means to be: `why` says what it waits for."""
        self._is("starting", why)

    def ready(self) -> None:
        """It takes work, unless it lacks something."""
        self._is("ready", "")

    def draining(self) -> None:
        """It takes no more work and ends what it has. Nothing that is said later changes that."""
        self._is("draining", "it ends what it has, and takes no more work")

    def _is(self, state: State, why: str) -> None:
        if self._state != "draining":
            self._state, self._why = state, why

    def lacks(self, what: str, why: str) -> None:
        """Something is gone without which it takes no work, until `has` says otherwise."""
        self._lacks[what] = why

    def has(self, what: str) -> None:
        """It is there, or there again."""
        self._lacks.pop(what, None)

    @property
    def state(self) -> State:
        """What it is: `starting` too where it was ready, and lacks something now."""
        return "starting" if self._state == "ready" and self._lacks else self._state

    @property
    def why(self) -> str:
        """Why it is not ready, in a sentence without a full stop; empty where it is."""
        lacking = [] if self._state == "draining" else list(self._lacks.values())
        return lacking[0] if lacking else self._why

    def beat(self) -> None:
        """From now on the running loop says each `BEAT_S` that it turns, until it is closed."""
        self._turned_at = time.monotonic()
        asyncio.get_running_loop().call_later(BEAT_S, self.beat)

    @property
    def still_s(self) -> float:
        """Seconds since the loop last turned, or since this was made; about `BEAT_S` at most where nothing blocks it."""
        return time.monotonic() - self._turned_at


here = Standing()
"""That of this process."""
