"""What is told of a run on `metier.events`, on its way: in the order in which it was told, and without keeping its teller waiting.

The orchestrator has one for each run in hand, the agent worker one for each call. What is told while the broker takes the last things goes out together. A
broker that is away is tried again; a bounded number of things waits for it, and what is told beyond that is dropped: progress, and never the one thing that
somebody waits for with `told`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import structlog

from metier_infra import telemetry
from metier_infra.bus import Bus
from metier_infra.events import EVENTS_TOPIC, Event
from metier_infra.messages import Envelope, encode
from metier_infra.progress_events import PROGRESS, NodeEnded, NodeStarted, TextWritten, ToolAnswered, ToolCalled
from metier_infra.retry import Backoff, persist

log = structlog.get_logger()

Level = Literal["all", "few", "none"]
LEVELS: Mapping[Level, frozenset[type[Event]]] = {
    "all": frozenset(),
    "few": frozenset({NodeStarted, NodeEnded, ToolCalled, ToolAnswered, TextWritten}),
    "none": frozenset(PROGRESS),
}
"""What is not told of a run. Its beginning and end, its decisions and what people are asked always are."""
BATCH = 100
"""So many events go out together at the most."""
WAITING = 1_000
"""So many wait for a broker at the most."""
LAST_S = 2.0
"""How long `drain` waits for what is still to be told; seconds."""
PATIENT = Backoff(first_s=0.05, ceiling_s=5.0)


Waiting = tuple[Envelope[Any], "asyncio.Future[None] | None"]
"""What is to be told, and who waits for that."""


class Outgoing:
    """See the module. `traceparent` is the trace to which what is told belongs; None: that in which it was told."""

    def __init__(self, bus: Bus, level: Level = "all") -> None:
        self.traceparent: str | None = None
        self._bus = bus
        self._silent = LEVELS[level]
        self._waiting: list[Waiting] = []
        self._pump: asyncio.Task[None] | None = None
        self._dropped = 0

    def tell(self, event: Envelope[Any]) -> None:
        """Tell it when its turn comes. What `level` leaves out, and what does not fit any more, is not told."""
        if type(event.data) in self._silent:
            return
        if len(self._waiting) >= WAITING:
            self._dropped += 1
            return
        self._add(event, None)

    async def told(self, event: Envelope[Any]) -> None:
        """Tell it after all that was told before, and return when the broker has it. Raises what can never be sent, such as `TooLarge`."""
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._add(event, sent)
        await sent

    def _add(self, event: Envelope[Any], sent: asyncio.Future[None] | None) -> None:
        self._waiting.append((event, sent))
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._out())

    async def drain(self, limit_s: float = LAST_S) -> None:
        """Return when everything was told, at the latest after `limit_s` seconds; what is left then is dropped."""
        if self._pump is not None:
            await asyncio.wait([self._pump], timeout=limit_s)
            self._pump.cancel()
            self._pump = None
        if self._dropped or self._waiting:
            log.warning("progress not told", action="drop", events=self._dropped + len(self._waiting))
        self._waiting, self._dropped = [], 0

    async def _out(self) -> None:
        """Send what waits, in batches, until nothing does."""
        while self._waiting:
            batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
            await self._send(batch)

    async def _send(self, batch: Sequence[Waiting]) -> None:
        """Send a batch; where something of it can never be sent, each thing alone."""
        try:
            await persist("tell a run's events", lambda: self._publish([event for event, _ in batch]), PATIENT)
        except Exception as error:  # whatever it is, whoever waits for it hears of it, and the others are told
            if len(batch) > 1:
                for one in batch:
                    await self._send([one])
                return
            reason = getattr(error, "code", type(error).__name__)
            log.warning("event not told", action="drop", event_id=batch[0][0].id, reason=reason)
            _settle(batch, error)
        else:
            _settle(batch)

    async def _publish(self, events: Sequence[Envelope[Any]]) -> None:
        attributes = {**telemetry.messaging(EVENTS_TOPIC, "send"), telemetry.BATCH: len(events)}
        name = telemetry.send(EVENTS_TOPIC)
        with telemetry.span(name, "producer", parent=self.traceparent, attributes=attributes) as span:
            records = [encode(EVENTS_TOPIC, replace(event, traceparent=span.traceparent)) for event in events]
            await self._bus.publish(*records)


def _settle(batch: Sequence[Waiting], error: Exception | None = None) -> None:
    for _, sent in batch:
        if sent is None or sent.done():
            continue
        if error is None:
            sent.set_result(None)
        else:
            sent.set_exception(error)
