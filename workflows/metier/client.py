"""What a user of a running system does: publish a request, wait for its end, follow a run.

`cli` and `demo` call it. It finds the system in this order: the environment's broker, the stack that `make up` started in this
folder, a `metier dev` that runs in this folder.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from pydantic import JsonValue, ValidationError

from metier import compose
from metier.configuration import Config, System, standalone
from metier.past import past
from metier_infra.bus import Bus, Consumption
from metier_infra.dead_letters import Scan
from metier_infra.errors import BadSettings, BuryRecord, MissingService, TooLarge
from metier_infra.events import (
    EVENTS_TOPIC,
    REQUESTS,
    Event,
    RunCancelled,
    RunFailed,
    RunRequested,
    RunSucceeded,
)
from metier_infra.journal import Journal
from metier_infra.messages import Delivery, Envelope, decode, encode
from metier_infra.service import send
from metier_infra.socket_bus import SocketBus
from metier_infra.words import Limits, RunId, stable_id

E = TypeVar("E", bound=Event)
SOURCE = "/metier/cli"
Ended = RunSucceeded | RunFailed | RunCancelled


def dev_socket(config: Config) -> Path:
    """Where a `metier dev` of this folder is reached."""
    return config.journal.sqlite_path.with_name("dev.sock")


@asynccontextmanager
async def reading(config: Config) -> AsyncGenerator[Journal]:
    """The journal, to read. Raises `MissingService` when there is none."""
    journal = await compose.open_journal(config, size=2, read_only=not config.distributed, patience=compose.BRIEF)
    try:
        yield journal
    finally:
        await journal.db.close()


@asynccontextmanager
async def connect(config: Config) -> AsyncGenerator[System]:
    """The running system. Raises `MissingService` when there is none."""
    async with AsyncExitStack() as stack:
        bus = _bus(config)
        stack.push_async_callback(bus.close)
        yield System(bus, await stack.enter_async_context(reading(config)))


@dataclass(frozen=True)
class Letters:
    """Where dead letters lie, and where they go when they are sent again."""

    bus: Bus
    scan: Scan


@asynccontextmanager
async def letters(config: Config) -> AsyncGenerator[Letters]:
    """The dead letters of the running system. Of a `metier dev` they are those since it started. Raises `MissingService` when there is none."""
    if config.distributed:
        found = Letters(*compose.open_raw(config))
    else:
        socket = _socket_bus(config)
        found = Letters(socket, socket.scan)
    try:
        yield found
    finally:
        await found.bus.close()


def _bus(config: Config) -> Bus:
    if config.distributed:
        return compose.open_bus(config, "cli")
    return compose.by_claim(standalone(config), _socket_bus(config))


def _socket_bus(config: Config) -> SocketBus:
    if not dev_socket(config).is_socket():
        raise MissingService("nothing runs here: start `metier dev` or `make up`, or set METIER_KAFKA_BOOTSTRAP")
    return SocketBus(dev_socket(config))


def run_id_of(source: str, event_id: str) -> RunId:
    """The id of the run that a request starts: known before it is sent."""
    return RunId(stable_id("run", source, event_id))


async def publish(
    bus: Bus,
    workflow: str,
    value: Mapping[str, JsonValue],
    *,
    event_id: str | None = None,
    limits: Limits | None = None,
    tenant: str = "default",
) -> Envelope[RunRequested]:
    """Publish a request; the event that was sent. The same `event_id` again starts nothing."""
    asked = request(workflow, value, event_id=event_id, limits=limits, tenant=tenant)
    await send(bus, REQUESTS, asked)
    return asked


def request(
    workflow: str,
    value: Mapping[str, JsonValue],
    *,
    event_id: str | None = None,
    limits: Limits | None = None,
    tenant: str = "default",
) -> Envelope[RunRequested]:
    """The event that asks for a run. Raises `BadSettings` where no workflow can be called so."""
    name = event_id or str(uuid4())
    try:
        asked = RunRequested(workflow=workflow, input=dict(value), limits=limits, tenant=tenant)
        return Envelope(asked, name, SOURCE, key=name)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BadSettings(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def readable(event: Envelope[E]) -> Envelope[E]:
    """The same event. Raises `BadSettings` where whoever takes it could only bury it: NaN, half a character, an id with control characters."""
    try:
        record = encode(REQUESTS, event)
        decode(Delivery(record.topic, 0, 0, record.key, record.value, record.headers))
    except (BuryRecord, TooLarge, UnicodeEncodeError) as error:
        raise BadSettings(f"nobody could read this request: {error}") from error
    return event


@asynccontextmanager
async def following(bus: Bus, seen: Callable[[Envelope[Event]], None]) -> AsyncGenerator[None]:
    """Call `seen` with every event that is published from now on, until the context closes."""
    ready, stop = asyncio.Event(), asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        try:
            seen(decode(delivery))
        except BuryRecord:
            return  # not ours to judge: a consumer of events ignores what it does not understand

    what = Consumption([EVENTS_TOPIC], None, "latest", ready=ready.set)
    consuming = asyncio.create_task(bus.consume(what, handle, stop))
    try:
        await _first(ready, consuming)
        yield
    finally:
        stop.set()
        consuming.cancel()
        await asyncio.gather(consuming, return_exceptions=True)


async def _first(ready: asyncio.Event, consuming: asyncio.Task[None]) -> None:
    """Wait until the consumption has begun; raise what ended it before."""
    begun = asyncio.create_task(ready.wait())
    waits: list[asyncio.Future[Any]] = [begun, consuming]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    begun.cancel()
    if consuming.done():
        consuming.result()


async def publish_and_wait(
    bus: Bus,
    workflow: str,
    value: Mapping[str, JsonValue],
    *,
    event_id: str | None,
    timeout_s: float,
    journal: Journal | None = None,
    limits: Limits | None = None,
) -> Ended:
    """Publish a request and wait for its run's terminal event. Raises `TimeoutError`.

    With a `journal`, a run of this id that ended before gives its end at once.
    """
    ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
    wanted = event_id or str(uuid4())

    def seen(event: Envelope[Event]) -> None:
        if isinstance(event.data, Ended) and event.data.run_id == run_id_of(SOURCE, wanted) and not ended.done():
            ended.set_result(event.data)

    async with following(bus, seen):
        await publish(bus, workflow, value, event_id=wanted, limits=limits)
        run = await journal.runs.get(run_id_of(SOURCE, wanted)) if journal else None
        return run.end if run and run.ended else await asyncio.wait_for(ended, timeout_s)


async def watch(system: System, run_id: RunId, show: Callable[[Envelope[Event]], None]) -> None:
    """Show what happened in a run so far, by the journal, and then what is told of it, each event once, until its end."""
    live: asyncio.Queue[Envelope[Event]] = asyncio.Queue()
    shown: set[str] = set()

    def seen(event: Envelope[Event]) -> None:
        if getattr(event.data, "run_id", None) == run_id:
            live.put_nowait(event)

    def once(event: Envelope[Event]) -> bool:
        """Show it unless it was; whether it is the last."""
        if event.id not in shown:
            shown.add(event.id)
            show(event)
        return isinstance(event.data, Ended)

    async with following(system.bus, seen):
        run = await system.journal.runs.get(run_id)
        over = [once(event) for event in (await past(system.journal, run) if run else ())]
        while not any(over):
            over = [once(await live.get())]
