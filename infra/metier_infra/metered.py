"""A layer round a bus that counts what goes through it. `compose` puts it round every bus; where nobody reads it, it only passes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from metier_infra import metrics
from metier_infra.bus import Bus, Consumption, Handler
from metier_infra.events import DEAD_LETTERS
from metier_infra.messages import Delivery, Record


class MeteredBus:
    """See `metier_infra.bus.Bus`. What is left of a topic, the bus within says itself (`backlog`)."""

    def __init__(self, inner: Bus) -> None:
        self._inner = inner

    async def publish(self, *records: Record) -> None:
        """See `Bus.publish`. A dead letter is counted by the topic where it lay, and its reason."""
        await self._inner.publish(*records)
        if not metrics.on():
            return
        for record in records:
            metrics.add(metrics.SENT, 1, _hop("send", record.topic))
            if record.topic == DEAD_LETTERS:
                metrics.add(metrics.DEAD_LETTERS, 1, _buried(record))

    async def consume(self, what: Consumption, handle: Handler, stop: asyncio.Event) -> None:
        """See `Bus.consume`."""
        if what.group is not None:
            for topic in what.topics:  # from 0, so that the first is seen to come
                metrics.add(metrics.DEAD_LETTERS, 0, {metrics.TOPIC: topic})

        async def metered(delivery: Delivery) -> None:
            if metrics.on():
                await self._handled(delivery, handle, what.group)
            else:
                await handle(delivery)

        await self._inner.consume(what, metered, stop)

    async def close(self) -> None:
        """See `Bus.close`."""
        await self._inner.close()

    async def _handled(self, delivery: Delivery, handle: Handler, group: str | None) -> None:
        hop = {**_hop("process", delivery.topic), metrics.GROUP: group}
        metrics.add(metrics.CONSUMED, 1, hop)
        began, failed = time.perf_counter(), None
        try:
            await handle(delivery)
        except BaseException as error:
            failed = str(getattr(error, "code", type(error).__name__))
            raise
        finally:
            metrics.record(metrics.PROCESS_DURATION, time.perf_counter() - began, {**hop, metrics.ERROR_TYPE: failed})


def _hop(operation: str, topic: str) -> dict[str, str | None]:
    return {"messaging.system": "kafka", "messaging.operation.name": operation, metrics.TOPIC: topic}


def _buried(record: Record) -> Mapping[str, str]:
    headers = dict(record.headers)
    place, reason = (headers.get(f"metier-dead-{name}", b"").decode(errors="replace") for name in ("topic", "reason"))
    return {metrics.TOPIC: place, metrics.REASON: reason}
