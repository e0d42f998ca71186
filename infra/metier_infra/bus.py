"""The bus port and its in-memory adapter.

`service` consumes through it; orchestrator, worker and cli publish. `kafka_bus` and `socket_bus` are the other adapters; one contract test holds both.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

from metier_infra.backlog import Left, show
from metier_infra.failpoints import failpoint
from metier_infra.messages import Delivery, Record

Handler = Callable[[Delivery], Awaitable[None]]
Revoked = Callable[[str, frozenset[int]], None]


def _nothing() -> None:
    return


def _ignore(topic: str, partitions: frozenset[int]) -> None:
    del topic, partitions


@dataclass(frozen=True)
class Consumption:
    """What to consume and how.

    Attributes:
        topics: the topics' names.
        group: members of a group share the partitions and go on where the group stopped; None: every record, nothing is committed.
        start: where a group that never consumed, or a consumer without a group, begins.
        concurrency: records in hand at one time; records of one key are handled in their order.
        ready: called once when partitions are assigned and the start is fixed.
        revoked: called with a topic and the partitions of it that this consumer no longer owns.
    """

    topics: Sequence[str]
    group: str | None
    start: Literal["earliest", "latest"] = "earliest"
    concurrency: int = 16
    ready: Callable[[], None] = _nothing
    revoked: Revoked = _ignore


class Bus(Protocol):
    """Partitioned, keyed records, delivered at least once to each group.

    Contract: `publish` returns when the records are durable. A record is acknowledged after its handler returned; a handler that
    raises stops the consumption with that error and leaves the record unacknowledged, so it comes again.
    """

    async def publish(self, *records: Record) -> None:
        """Append `records`. Raises `BusGone` when the broker does not take them."""
        ...

    async def consume(self, what: Consumption, handle: Handler, stop: asyncio.Event) -> None:
        """Handle records until `stop` is set; then finish those in hand, acknowledge, and return. Raises `BusGone`."""
        ...

    async def close(self) -> None:
        """Let go of every connection."""
        ...


class Lanes:
    """Handlers in flight: at most `limit`, those of one key one after another. Shared by the adapters."""

    def __init__(self, handle: Handler, limit: int) -> None:
        self._handle = handle
        self._slots = asyncio.Semaphore(limit)
        self._tail: dict[tuple[str, bytes | None], asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def admit(self, delivery: Delivery, done: Callable[[], None]) -> None:
        """Wait for a free slot, then start the handler; `done` is called when it returned without an error."""
        await self._slots.acquire()
        if self._closed:
            self._slots.release()
            return
        key = (delivery.topic, delivery.key)
        before = self._tail.get(key) if delivery.key is not None else None
        task = asyncio.create_task(self._run(delivery, before, done))
        self._tasks.add(task)
        self._tail[key] = task
        task.add_done_callback(lambda t: self._ended(key, t))

    async def _run(self, delivery: Delivery, before: asyncio.Task[None] | None, done: Callable[[], None]) -> None:
        try:
            if before is not None:
                await asyncio.wait([before])
            if self.failed.done():
                return
            await self._handle(delivery)
            failpoint("record.handled")
            done()
        except Exception as error:  # handed to whoever runs the consumption
            if not self.failed.done():
                self.failed.set_exception(error)
        finally:
            self._slots.release()

    def _ended(self, key: tuple[str, bytes | None], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._tail.get(key) is task:
            del self._tail[key]

    async def drain(self) -> None:
        """Wait for every handler in flight."""
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    async def cancel(self) -> None:
        """Start no more handlers; cancel those in flight and wait until they have ended."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await self.drain()
        self.failed.cancel()


async def _all(tasks: Sequence[asyncio.Task[None]]) -> None:
    await asyncio.gather(*tasks)


class _Log:
    """One topic: its records in order, and who waits for more."""

    def __init__(self) -> None:
        self.records: list[Delivery] = []
        self.times: list[float] = []
        self.grew = asyncio.Event()

    def append(self, record: Record) -> None:
        partition = zlib.crc32(record.key or b"") % MemoryBus.PARTITIONS
        self.records.append(
            Delivery(record.topic, partition, len(self.records), record.key, record.value, record.headers)
        )
        self.times.append(time.time())
        self.grew.set()
        self.grew = asyncio.Event()


class MemoryBus:
    """The bus inside one process, for laptops and tests. One consumer a group; what is not handled is lost with the process."""

    PARTITIONS = 6

    def __init__(self) -> None:
        self._logs: defaultdict[str, _Log] = defaultdict(_Log)
        self._next: dict[tuple[str, str], int] = {}
        self._got_on: dict[tuple[str, str], float] = {}

    async def publish(self, *records: Record) -> None:
        """Append `records`; there is nobody to fail."""
        for record in records:
            self._logs[record.topic].append(record)

    def records(self, topic: str) -> Sequence[Delivery]:
        """All that the topic holds now, in order."""
        return list(self._logs[topic].records)

    async def scan(self, topic: str, look: Callable[[Delivery], None]) -> None:
        """See `metier_infra.dead_letters.Scan`."""
        for delivery in self.records(topic):
            look(delivery)

    async def consume(self, what: Consumption, handle: Handler, stop: asyncio.Event) -> None:
        """See `Bus.consume`."""
        lanes = Lanes(handle, what.concurrency)
        followers = [asyncio.create_task(self._follow(topic, what, lanes, stop)) for topic in what.topics]
        if what.group is not None:
            show(what.topics, what.group, partial(self._left, what.topics, what.group))
        what.ready()
        try:
            ended = asyncio.create_task(_all(followers))
            await asyncio.wait({ended, lanes.failed}, return_when=asyncio.FIRST_COMPLETED)
            await lanes.drain()
            if lanes.failed.done():
                lanes.failed.result()
            await ended
        finally:
            for follower in followers:
                follower.cancel()
            await lanes.cancel()

    async def _follow(self, topic: str, what: Consumption, lanes: Lanes, stop: asyncio.Event) -> None:
        log = self._logs[topic]
        begin = 0 if what.start == "earliest" else len(log.records)
        position = self._next.setdefault((what.group, topic), begin) if what.group else begin
        acknowledged: set[int] = set()

        def done(offset: int) -> None:
            if what.group:
                acknowledged.add(offset)
                first = self._next.setdefault((what.group, topic), begin)
                while first in acknowledged:
                    acknowledged.discard(first)
                    first += 1
                self._next[what.group, topic] = first
                self._got_on[what.group, topic] = time.time()

        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                if position < len(log.records):
                    delivery = log.records[position]
                    position += 1
                    await lanes.admit(delivery, partial(done, delivery.offset))
                else:
                    grew = asyncio.create_task(log.grew.wait())
                    try:
                        await asyncio.wait([grew, stopping], return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        grew.cancel()
        finally:
            stopping.cancel()

    def _left(self, topics: Sequence[str], group: str) -> Sequence[Left]:
        return [self._left_of(topic, group) for topic in topics]

    def _left_of(self, topic: str, group: str) -> Left:
        log, first = self._logs[topic], self._next.get((group, topic), 0)
        if first >= len(log.times):
            return Left(topic, 0, None, None)
        since = max(log.times[first], self._got_on.get((group, topic), 0.0))
        return Left(topic, len(log.times) - first, log.times[first], since)

    async def close(self) -> None:
        """Nothing is held."""
