"""What a model writes, told on `metier.events` as it comes, for agents that stream.

The trail opens `Teller.telling` round each request for an answer. It is told at best effort: an event that cannot be sent is dropped, and the
answer, which is whole and checked, comes with its own event. Pieces of a request that was made again have a higher `attempt`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress

import structlog

from metier_infra.bus import Bus
from metier_infra.errors import MetierError
from metier_infra.events import EVENTS_TOPIC, TextWritten
from metier_infra.messages import Envelope
from metier_infra.rows import Call
from metier_infra.service import send
from metier_infra.words import Stamp

log = structlog.get_logger()

EVERY_S = 0.1
"""What is written within this time is told in one event; seconds."""
LAST_S = 2.0
"""How long an answer waits for what is still to be told of it; seconds."""


class Teller:
    """Tells what is written in one call."""

    def __init__(self, bus: Bus, call: Call, stamp: Stamp | None) -> None:
        self._bus, self._call, self._stamp = bus, call, stamp
        self._requests: Counter[int] = Counter()

    @asynccontextmanager
    async def telling(self, step: int) -> AsyncGenerator[Callable[[str], None]]:
        """Tell the pieces that are handed to what it yields, until the request for step `step` has ended."""
        self._requests[step] += 1
        written: list[str] = []
        ended = asyncio.Event()
        teller = asyncio.create_task(self._tell(step, self._requests[step], written, ended))
        try:
            yield written.append
            ended.set()
            await asyncio.wait([teller], timeout=LAST_S)
        finally:
            teller.cancel()

    async def _tell(self, step: int, request: int, written: list[str], ended: asyncio.Event) -> None:
        piece = 0
        while not ended.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), EVERY_S)
            if written and not ended.is_set():
                await self._send(step, request, piece, written)
                piece += 1
        await self._send(step, request, -1, written)

    async def _send(self, step: int, request: int, piece: int, written: list[str]) -> None:
        """Send what was written since the last time; piece -1 is the last one of its request."""
        text = "".join(written)
        written.clear()
        call, attempt = self._call, (self._call.attempt - 1) * 1000 + request
        data = TextWritten(
            run_id=call.run_id,
            call_id=call.call_id,
            agent=call.agent,
            step=step,
            attempt=attempt,
            piece=piece,
            text=text,
            stamp=self._stamp,
        )
        event = Envelope(
            data, f"{call.call_id}/text/{step}/{attempt}/{piece}", f"/metier/agents/{call.agent}", call.run_id
        )
        try:
            await send(self._bus, EVENTS_TOPIC, event)
        except MetierError as error:
            log.warning("text not told", action="drop", call_id=call.call_id, reason=error.code)
