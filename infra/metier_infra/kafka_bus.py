"""Kafka as the bus, through kafka-python. `compose` opens it; nothing else names it.

One thread owns each consumer and hands records to asyncio; what is finished comes back to the thread, which commits the first
pending offset. While more is in hand than the handlers can take, partitions are paused, so the group's heartbeat never waits for work.

A poll always takes all that was fetched: kafka-python 3.0.12 loses sight of a partition that is paused while a part of its fetched
records was taken, when another one's were taken meanwhile. It never asks for that partition again.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from kafka.errors import CommitFailedError, KafkaError, MessageSizeTooLargeError, RebalanceInProgressError
from kafka.structs import MemberState

from metier_infra import kafka_access, kafka_names, metrics
from metier_infra.backlog import Left, show
from metier_infra.bus import Consumption, Handler, Lanes
from metier_infra.errors import BusGone, TooLarge
from metier_infra.grouped import Grouped
from metier_infra.kafka_left import Backlog
from metier_infra.kafka_records import delivery_of, sent
from metier_infra.messages import Delivery, Record
from metier_infra.offsets import Offsets
from metier_infra.settings import KafkaSettings

if TYPE_CHECKING:
    from kafka import ConsumerRecord

log = structlog.get_logger()

DELIVERED_MS = 30_000
SETTLED_S = DELIVERED_MS / 1000 + 10.0
"""After so long kafka-python has sent a record or has given it up, or never will: 3.0.12 can lose sight of a batch while a broker comes and goes."""
POLL_MS = 200
FULL_POLL_MS = 10
ALL_FETCHED = 1 << 30
COMMIT_EVERY_S = 0.2
PROVE_S = 60.0
"""How often a consumer that gets nothing proves who it is anew; seconds."""
HEARTBEAT_MS = 1_000
"""By its heartbeat a member that has nothing to commit hears that another one comes or goes, and all wait for the last to hear."""
STAYING = (StickyPartitionAssignor, RangePartitionAssignor)
"""No more partitions move than must. Not the cooperative one: a poll of kafka-python 3.0.12 gives no records while a member joins,
and that one has all of them join twice. A group that also has members of an older version agrees on the second."""
W = TypeVar("W")
T = TypeVar("T")
Taken = tuple[TopicPartition, Offsets, int]
_Left = dict[str, Sequence[Left]]
"""By group, what was left when somebody last looked."""
Sent = Any
"""The future of a record that is on its way, or the error that kept it from being sent."""


class KafkaBus:
    """See `metier_infra.bus.Bus`.

    `member` is a name that survives a restart of this process: the broker then gives it its partitions back at once, instead of
    after the session timeout. Leave it None where no such name exists.
    """

    def __init__(self, settings: KafkaSettings, *, client: str, member: str | None = None) -> None:
        self._settings = settings
        self._client = client
        self._member = member
        self._producer: KafkaProducer | None = None
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="kafka-send")
        self._sending = Grouped(self._together, self._alone, BusGone)
        self._left: _Left = {}

    async def publish(self, *records: Record) -> None:
        """See `Bus.publish`: acks=all, idempotent; returns when every record is acknowledged. What is published meanwhile goes next, at once."""
        error = await self._sending.do(records)
        if error is None:
            return
        if isinstance(error, MessageSizeTooLargeError) or kafka_access.denied(error):
            await self._in_thread(self._send_alone, records)
        else:
            raise await self._in_thread(self._told, error) from error

    async def _together(self, group: Sequence[Sequence[Record]]) -> Sequence[KafkaError | None]:
        return await self._in_thread(self._send, group)

    async def _in_thread(self, work: Callable[[W], T], what: W) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._sender, work, what)

    async def _alone(self, records: Sequence[Record]) -> KafkaError | None:
        return (await self._together([records]))[0]

    def _told(self, error: KafkaError) -> BusGone:
        return kafka_access.told(self._settings, error, "did not take the record")

    def _send_alone(self, records: Sequence[Record]) -> None:
        """Tell which record is too large, or not allowed: after one, kafka-python's producer fails all that were beside it, and all that come after."""
        if self._producer is not None:
            self._producer.close(timeout=0)
            self._producer = None
        for record in records:
            producer = self._connect()
            try:
                producer.send(self._settings.prefix + record.topic, **sent(record)).get(timeout=30)
            except MessageSizeTooLargeError as error:
                size = len(record.value)
                raise TooLarge(f"Kafka at {self._settings.bootstrap} takes no record of {size} bytes") from error
            except KafkaError as error:
                raise self._told(error) from error
            finally:
                producer.close(timeout=1)

    def _send(self, group: Sequence[Sequence[Record]]) -> Sequence[KafkaError | None]:
        """What became of each of the group, once all of it is settled. Raises `BusGone` where no producer can be had."""
        producer = self._producer = self._producer or self._connect()
        ways = [[self._append(producer, record) for record in records] for records in group]
        try:
            producer.flush(timeout=SETTLED_S)
        except KafkaError as error:
            log.warning("a Kafka producer lost a record", action="replace", error=type(error).__name__)
            self._producer = None
        return [_failure(records) for records in ways]

    def _append(self, producer: KafkaProducer, record: Record) -> Sent:
        try:
            return producer.send(self._settings.prefix + record.topic, **sent(record))
        except KafkaError as error:
            return error

    def _connect(self) -> KafkaProducer:
        return kafka_access.opened(
            KafkaProducer,
            self._settings,
            client_id=self._client,
            acks="all",
            enable_idempotence=True,
            allow_auto_create_topics=False,
            max_block_ms=10_000,
            delivery_timeout_ms=DELIVERED_MS,
            request_timeout_ms=10_000,
            max_request_size=10 << 20,
            metrics_enabled=False,  # nobody reads them, and they take a fifth of the client's time
        )

    async def consume(self, what: Consumption, handle: Handler, stop: asyncio.Event) -> None:
        """See `Bus.consume`."""
        puller = _Puller(self._settings, self._client, self._member, what, self._left)
        lanes = Lanes(handle, what.concurrency)
        pulling = asyncio.create_task(puller.run(lanes))
        stopping = asyncio.create_task(stop.wait())
        try:
            first: list[asyncio.Future[Any]] = [pulling, stopping, lanes.failed]
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            puller.stop_fetching()
            if not lanes.failed.done():
                await lanes.drain()
        finally:
            stopping.cancel()
            puller.stop_fetching()
            await lanes.cancel()
            puller.end()
            await asyncio.wait({pulling})
        if lanes.failed.done() and not lanes.failed.cancelled():
            lanes.failed.result()
        pulling.result()

    async def close(self) -> None:
        """Flush and close the producer."""
        if self._producer is not None:
            await asyncio.get_running_loop().run_in_executor(self._sender, partial(self._producer.close, timeout=5))
        self._sender.shutdown()


def _failure(ways: Sequence[Sent]) -> KafkaError | None:
    """The first that went wrong."""
    try:
        for one in ways:
            if isinstance(one, KafkaError):
                return one
            one.get(timeout=0)
    except KafkaError as error:
        return error
    return None


class _Puller:
    """One consumer and the thread that owns it."""

    def __init__(
        self, settings: KafkaSettings, client: str, member: str | None, what: Consumption, left: _Left
    ) -> None:
        self._settings = settings
        self._client = client
        self._member = member
        self._what = what
        self._fetching = True
        self._ending = False
        self._ready = False
        self._known = False
        self._settled = False
        self._prove_at = time.monotonic() + PROVE_S
        self._handing: asyncio.Task[None] | None = None
        self._parts: dict[TopicPartition, Offsets] = {}
        self._committed: dict[TopicPartition, int] = {}
        self._finished: queue.SimpleQueue[Taken] = queue.SimpleQueue()
        self._backlog, self._left = Backlog(settings.prefix), left
        self._handed: asyncio.Queue[Sequence[tuple[Delivery, Taken]]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kafka-pull")

    async def run(self, lanes: Lanes) -> None:
        """Pull until `end`; hand each record to a free lane."""
        handing = self._handing = asyncio.create_task(self._hand_over(lanes))
        if (group := self._what.group) is not None:
            show(self._what.topics, group, lambda: self._left.get(group, ()))
        try:
            await self._loop.run_in_executor(self._thread, self._pull)
        finally:
            handing.cancel()
            self._thread.shutdown(wait=False)

    async def _hand_over(self, lanes: Lanes) -> None:
        while True:
            for delivery, taken in await self._handed.get():
                part, offsets, _ = taken
                if self._parts.get(part) is offsets:  # else it moved, or was sent back: the record comes again there
                    await lanes.admit(delivery, partial(self._finished.put, taken))

    def stop_fetching(self) -> None:
        """Start no more records; those that have a lane go on, the others are not acknowledged."""
        self._fetching = False
        if self._handing is not None:
            self._handing.cancel()

    def end(self) -> None:
        """Commit what is finished and close."""
        self._fetching = False
        self._ending = True

    def _pull(self) -> None:
        try:
            self._pull_by(self._open())
        except KafkaError as error:
            raise kafka_access.told(self._settings, error) from error

    def _pull_by(self, consumer: KafkaConsumer) -> None:
        committed_at = time.monotonic()
        try:
            while not self._ending:
                full = self._throttle(consumer)
                batch = consumer.poll(FULL_POLL_MS if full else POLL_MS, max_records=ALL_FETCHED)
                self._drop_lost(consumer)
                self._announce(consumer)
                self._prove(got=bool(batch))
                if self._fetching:
                    self._hand(batch)
                self._collect(wait_s=(POLL_MS - FULL_POLL_MS) / 1000 if full else 0.0)
                if time.monotonic() - committed_at > COMMIT_EVERY_S:
                    self._commit(consumer)
                    self._look(consumer)
                    committed_at = time.monotonic()
            self._collect()
            self._commit(consumer)
        finally:
            consumer.close(autocommit=False)

    def _prove(self, *, got: bool) -> None:
        """See now and then, while nothing comes, that we are still let in: a connection that stays hears nothing of a new password. Raises `BusRefused`."""
        due = not got and time.monotonic() >= self._prove_at
        if got or due:
            self._prove_at = time.monotonic() + PROVE_S
        if due:
            kafka_access.refuse_strangers(self._settings)

    def _open(self) -> KafkaConsumer:
        kafka_names.be_lenient()
        grouped = self._what.group is not None
        static = {"group_instance_id": f"{self._member}.{self._what.group}"} if grouped and self._member else {}
        consumer = kafka_access.opened(
            KafkaConsumer,
            self._settings,
            client_id=self._client,
            group_id=self._settings.prefix + self._what.group if self._what.group is not None else None,
            enable_auto_commit=False,
            auto_offset_reset=self._what.start,
            session_timeout_ms=self._settings.session_timeout_ms,
            heartbeat_interval_ms=min(self._settings.session_timeout_ms // 4, HEARTBEAT_MS),
            partition_assignment_strategy=STAYING,
            metadata_max_age_ms=5_000,
            max_partition_fetch_bytes=8 << 20,
            metrics_enabled=False,
            **static,
        )
        try:
            self._begin(consumer, grouped=grouped)
        except BaseException:
            consumer.close(autocommit=False)
            raise
        return consumer

    def _begin(self, consumer: KafkaConsumer, *, grouped: bool) -> None:
        names = [self._settings.prefix + topic for topic in self._what.topics]
        if grouped:
            consumer.subscribe(names)
        # A member that joins without knowing its topics is given nothing, and must join again.
        parts = {name: consumer.partitions_for_topic(name) or set[int]() for name in names}
        kafka_access.refuse_hidden(self._settings, [name for name in names if not parts[name]])
        self._known = all(parts.values())
        if not grouped:
            self._assign_all(consumer, [TopicPartition(name, number) for name in names for number in parts[name]])

    def _assign_all(self, consumer: KafkaConsumer, parts: Sequence[TopicPartition]) -> None:
        consumer.assign(parts)
        ends = consumer.end_offsets(parts) if self._what.start == "latest" else consumer.beginning_offsets(parts)
        for part, offset in ends.items():
            consumer.seek(part, offset)

    def _throttle(self, consumer: KafkaConsumer) -> bool:
        """Pause while enough is in hand; whether it is."""
        paused = consumer.paused()
        in_hand = sum(part.in_hand for part in self._parts.values())
        full = not self._fetching or in_hand >= 2 * self._what.concurrency
        if full:
            consumer.pause(*(consumer.assignment() - paused))
        elif paused:
            consumer.resume(*paused)
        return full

    def _drop_lost(self, consumer: KafkaConsumer) -> None:
        """Retained partitions keep their position through a rebalance, so only those that are gone are forgotten."""
        lost = set(self._parts) - consumer.assignment()
        for part in lost:
            del self._parts[part]
            self._committed.pop(part, None)
        for name in {part.topic for part in lost}:
            gone = frozenset(part.partition for part in lost if part.topic == name)
            self._loop.call_soon_threadsafe(self._what.revoked, name.removeprefix(self._settings.prefix), gone)

    def _announce(self, consumer: KafkaConsumer) -> None:
        for part in consumer.assignment() - set(self._parts):
            self._parts[part] = Offsets()
        if not self._ready and (consumer.assignment() or self._what.group is None or self._stands_by(consumer)):
            self._ready = True
            self._loop.call_soon_threadsafe(self._what.ready)

    def _stands_by(self, consumer: KafkaConsumer) -> bool:
        """Whether the group is settled, and has none of the partitions that there are for this member: others have them, and it takes over from them."""
        before, self._settled = self._settled, self._known and consumer.group_metadata().state == MemberState.STABLE
        if before and self._settled:
            log.info("no partition is left", action="stand by", topics=list(self._what.topics), group=self._what.group)
        return before and self._settled

    def _hand(self, batch: Mapping[TopicPartition, list[ConsumerRecord]]) -> None:
        if batch:
            handed = [one for part, records in batch.items() for one in self._taken(part, records)]
            self._loop.call_soon_threadsafe(self._handed.put_nowait, handed)

    def _taken(self, part: TopicPartition, records: list[ConsumerRecord]) -> list[tuple[Delivery, Taken]]:
        if part not in self._parts or self._parts[part].rewound(records[0].offset):
            self._parts[part] = Offsets()
        offsets = self._parts[part]
        for record in records:
            offsets.take(record.offset, record.timestamp / 1000)
        return [(delivery_of(record, self._settings.prefix), (part, offsets, record.offset)) for record in records]

    def _collect(self, wait_s: float = 0.0) -> None:
        """Note what is finished; where nothing is yet, wait so long for it."""
        with suppress(queue.Empty):
            _, offsets, offset = self._finished.get(block=wait_s > 0, timeout=wait_s)
            offsets.finish(offset)
        while not self._finished.empty():
            _, offsets, offset = self._finished.get_nowait()
            offsets.finish(offset)

    def _commit(self, consumer: KafkaConsumer) -> None:
        if self._what.group is None:
            return
        due = {part: offsets.committable for part, offsets in self._parts.items() if offsets.committable > 0}
        due = {part: offset for part, offset in due.items() if self._committed.get(part) != offset}
        if not due:
            return
        try:
            consumer.commit({part: OffsetAndMetadata(offset, "", -1) for part, offset in due.items()}, timeout_ms=5_000)
            self._committed.update(due)
        except (CommitFailedError, RebalanceInProgressError) as error:
            log.info("commit put off", action="rebalance", group=self._what.group, reason=type(error).__name__)

    def _look(self, consumer: KafkaConsumer) -> None:
        """See what is left, for who asks from another thread."""
        if metrics.on() and self._ready and self._what.group is not None:
            self._left[self._what.group] = self._backlog.of(consumer, self._parts, self._committed)
