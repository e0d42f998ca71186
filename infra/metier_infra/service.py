"""What every long-running role does with its records, as layers: decode, then handle; retry, contain or bury; acknowledge.

`orchestrator` and `worker` give it a handler; it stands between them and the bus. A role ends by SIGTERM through `stop`.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import structlog

from metier_infra import standing, telemetry
from metier_infra.bus import Bus, Consumption, Handler
from metier_infra.errors import BuryRecord, BusGone, BusRefused, Defect, FarFuture, MetierError, TooLarge, UnknownEvent
from metier_infra.events import DEAD_LETTERS, Event
from metier_infra.messages import Delivery, Envelope, Record, decode, encode
from metier_infra.poison import Rule, doubted
from metier_infra.retry import Backoff, persist

log = structlog.get_logger()

T = TypeVar("T")
EventHandler = Callable[[Envelope[Any], Delivery], Awaitable[None]]
"""Takes the event of the one type that it is registered for."""


_group: ContextVar[str | None] = ContextVar("consumer group", default=None)
"""The group for which this task handles records; its spans say so."""


def _nothing() -> None:
    return


PATIENT = Backoff(first_s=0.05, ceiling_s=5.0)
POISON = Rule()
AHEAD = timedelta(days=1)
"""How far an event's time may be ahead of the clock here."""
LONGEST_REASON = 2000
"""The most characters of a dead letter's reason."""


def retried(handle: Handler, backoff: Backoff = PATIENT) -> Handler:
    """A layer: a record whose handler raises `RetryLater` is handled again, in place, until it works."""

    async def layer(delivery: Delivery) -> None:
        await persist(f"{delivery.topic}@{delivery.partition}:{delivery.offset}", lambda: handle(delivery), backoff)

    return layer


def contained(handle: Handler, attempts: int = 3) -> Handler:
    """A layer: a record at which our own code breaks is tried `attempts` times, then raises `Defect`: it must not block the others."""

    async def layer(delivery: Delivery) -> None:
        for attempt in range(1, attempts + 1):
            try:
                await handle(delivery)
            except MetierError:
                raise
            except Exception as error:
                last = attempt == attempts
                log.exception("a defect of Métier", action="bury" if last else "retry", topic=delivery.topic,
                              partition=delivery.partition, offset=delivery.offset, attempt=attempt)  # fmt: skip
                if last:
                    raise Defect(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
            else:
                return

    return layer


def buried(handle: Handler, bus: Bus) -> Handler:
    """A layer: a record that can never be handled goes to the dead letters, with original bytes and headers and the reason."""

    async def layer(delivery: Delivery) -> None:
        try:
            await handle(delivery)
        except BuryRecord as error:
            log.warning("record buried", action="bury", topic=delivery.topic, partition=delivery.partition, offset=delivery.offset,
                        reason=error.code, error=str(error))  # fmt: skip
            await _bury(bus, delivery, error)

    return layer


async def _bury(bus: Bus, delivery: Delivery, error: BuryRecord) -> None:
    """Publish the dead letter. What does not fit is left out, the largest part first: the original lies at its place, which the letter names."""
    sizes = {"value": len(delivery.value), "key": len(delivery.key or b""), "headers": _size(delivery.headers)}
    parts = sorted(sizes, key=lambda part: -sizes[part])
    for count in range(len(parts)):
        with suppress(TooLarge):
            await bus.publish(dead_letter(delivery, error, without=parts[:count]))
            return
    await bus.publish(dead_letter(delivery, error, without=parts))


def _size(headers: Sequence[tuple[str, bytes]]) -> int:
    return sum(len(name) + len(value) for name, value in headers)


def dead_letter(delivery: Delivery, error: BuryRecord, without: Sequence[str] = ()) -> Record:
    """The record that keeps `delivery` as it was, with where it lay and why it could not be handled.

    `without` are those of its parts (value, key, headers) that are too large to be kept; a header says which.
    """
    why = {
        "metier-dead-reason": error.code,
        "metier-dead-message": str(error)[:LONGEST_REASON],
        "metier-dead-topic": delivery.topic,
        "metier-dead-partition": str(delivery.partition),
        "metier-dead-offset": str(delivery.offset),
        "metier-dead-at": f"{time.time():.3f}",
    }
    why |= {"metier-dead-without": " ".join(sorted(without))} if without else {}
    told = tuple((name, value.encode(errors="backslashreplace")) for name, value in why.items())
    return Record(
        DEAD_LETTERS,
        None if "key" in without else delivery.key,
        b"" if "value" in without else delivery.value,
        told if "headers" in without else (*delivery.headers, *told),
    )


def dispatch(handlers: Mapping[type[Event], EventHandler]) -> Handler:
    """Decode a record and hand it to the handler of its type. Raises `Undecodable`, `UnknownEvent` or `FarFuture`."""

    async def handle(delivery: Delivery) -> None:
        envelope = decode(delivery)
        if envelope.time > datetime.now(UTC) + AHEAD:
            raise FarFuture(f"the event says that it is of {envelope.time.isoformat()}; the clock here is behind that by more than a day")  # fmt: skip
        handler = handlers.get(type(envelope.data))
        if handler is None:
            raise UnknownEvent(f"{envelope.data.TYPE} does not belong on {delivery.topic}")
        await handler(envelope, delivery)

    return handle


@contextmanager
def processing(
    envelope: Envelope[Event], delivery: Delivery, *, parent: str | None = None
) -> Generator[telemetry.Span]:
    """The consumer's span of a hop: linked to the send; its child too, unless `parent` (a run's root) says otherwise."""
    attributes: Mapping[str, telemetry.Value | None] = {
        **telemetry.messaging(delivery.topic, "process"),
        telemetry.GROUP: _group.get(),
        telemetry.MESSAGE_KEY: envelope.key or None,
        telemetry.MESSAGE_CONVERSATION_ID: getattr(envelope.data, "run_id", None),
        telemetry.PARTITION: str(delivery.partition),
        telemetry.OFFSET: delivery.offset,
    }
    with telemetry.span(
        telemetry.process(delivery.topic),
        "consumer",
        parent=parent or envelope.traceparent,
        links=[envelope.traceparent],
        attributes=attributes,
    ) as span:
        yield span


async def send(bus: Bus, topic: str, *events: Envelope[Any], parent: str | None = None) -> None:
    """Publish events on a topic, each with the context of its producer span; `parent` is where that lies outside any span."""
    with ExitStack() as spans:
        opened = [spans.enter_context(_sending(topic, event, parent)) for event in events]
        records = [
            encode(topic, replace(event, traceparent=span.traceparent))
            for event, span in zip(events, opened, strict=True)
        ]
        await bus.publish(*records)


def _sending(topic: str, event: Envelope[Any], parent: str | None) -> AbstractContextManager[telemetry.Span]:
    attributes = {
        **telemetry.messaging(topic, "send"),
        telemetry.MESSAGE_KEY: event.key,
        telemetry.MESSAGE_CONVERSATION_ID: getattr(event.data, "run_id", None),
    }
    above = None if telemetry.current() else parent
    return telemetry.span(telemetry.send(topic), "producer", parent=above, attributes=attributes)


async def serve(
    bus: Bus,
    what: Consumption,
    handlers: Mapping[type[Event], EventHandler],
    stop: asyncio.Event,
    *,
    rule: Rule = POISON,
) -> None:
    """Hand events to their handlers until `stop`, as `follow` does with records. `rule` says when a record that always fails is buried."""
    handle = buried(contained(retried(doubted(dispatch(handlers), rule))), bus)
    await follow(bus, what, retried(handle), stop)


async def follow(bus: Bus, what: Consumption, handle: Handler, stop: asyncio.Event) -> None:
    """Hand over records until `stop`; a broker that is away is waited for, with back-off."""
    topics = " and ".join(what.topics)

    def assigned() -> None:
        standing.here.has(topics)
        what.ready()

    _group.set(what.group)
    while not stop.is_set():
        try:
            await bus.consume(replace(what, ready=assigned), handle, stop)
        except BusGone as error:
            refused = isinstance(error, BusRefused)
            tell, said = (log.error, "broker refuses") if refused else (log.warning, "broker away")
            tell(said, action="reconnect", topics=list(what.topics), group=what.group, error=str(error), after_s=1.0)
            standing.here.lacks(topics, f"it reads nothing from {topics}: {error}")
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 1.0)


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """What the work gives; None where `stop` came first, and the work was cancelled."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        stopping.cancel()


def on_sigterm(stop: asyncio.Event) -> None:
    """SIGTERM and SIGINT set `stop`: the role takes no more work, ends what it has, and returns."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


def contain_exits() -> None:
    """From now on no task ends this process by `SystemExit`: an author's code that calls `sys.exit`, or a library under it, ends its own run or call as any error does."""
    loop = asyncio.get_running_loop()
    make: Any = loop.get_task_factory() or _task

    def contained(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = make(loop, _without_exit(work), **options)
        task.add_done_callback(lambda _: work.close())  # one that was cancelled before it began never awaited it
        return task

    loop.set_task_factory(contained)


def _task(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
    return asyncio.Task(work, loop=loop, **options)


async def _without_exit(work: Awaitable[Any]) -> Any:
    try:
        return await work
    except SystemExit as error:
        raise RuntimeError(f"it asked for the end of the process, which goes on: SystemExit({error.code})") from error


class Ready:
    """Says that a role is ready, once everything that it waits for is there: by a file, and to who asks over HTTP (`standing`).

    Args:
        path: the file to create (`METIER_READY_FILE`), for `make up`; removed when the role drains.
        waits_for: how many times `one` must be called.
        then: called when the last one is there.
    """

    def __init__(self, path: Path | None, waits_for: int = 1, then: Callable[[], None] = _nothing) -> None:
        self._path = path
        self._left = waits_for
        self._then = then

    def one(self) -> None:
        """One of the things that were waited for is there."""
        self._left -= 1
        if self._left != 0:
            return
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()
        log.info("ready", action="serve")
        standing.here.ready()
        self._then()

    def gone(self, why: str = "") -> None:
        """The role is not ready any more: it drains, or means to be ready again, and `why` says what it waits for."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        if why:
            standing.here.starting(why)
        else:
            standing.here.draining()
