"""The bus of another process on this machine, over a unix socket: how `metier publish` reaches a `metier dev`.

`serve_bus` lends a bus out; `SocketBus` is the bus as its clients see it. One JSON object a line in both directions.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from metier_infra.bus import Bus, Consumption, Handler, Lanes, MemoryBus
from metier_infra.errors import BusGone, MissingService
from metier_infra.messages import Delivery, Nothing, Record

LINE_LIMIT = 32 << 20
"""The longest line that is read, in bytes; a record's value grows by a third in base64."""


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    fields = dict(value)
    fields["key"] = None if fields["key"] is None else base64.b64encode(fields["key"]).decode()
    fields["value"] = _told(fields["value"])
    fields["headers"] = [[name, base64.b64encode(header).decode()] for name, header in fields["headers"]]
    return fields


def _told(value: bytes) -> str | None:
    return None if isinstance(value, Nothing) else base64.b64encode(value).decode()


def _heard(value: str | None) -> bytes:
    return Nothing() if value is None else base64.b64decode(value)


def _rich(fields: Mapping[str, Any]) -> dict[str, Any]:
    key = None if fields["key"] is None else base64.b64decode(fields["key"])
    headers = tuple((name, base64.b64decode(header)) for name, header in fields["headers"])
    return {**fields, "key": key, "value": _heard(fields["value"]), "headers": headers}


class _Line:
    """One connection: whole lines in, whole lines out. Raises `BusGone` when the other side is gone in the middle."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def say(self, what: Mapping[str, Any]) -> None:
        try:
            self._writer.write(json.dumps(what).encode() + b"\n")
            await self._writer.drain()
        except ConnectionError as error:
            raise BusGone(f"the other side of the bus's socket hung up: {error}") from error

    async def hear(self) -> dict[str, Any] | None:
        try:
            line = await self._reader.readline()
        except ConnectionError as error:
            raise BusGone(f"the other side of the bus's socket hung up: {error}") from error
        return json.loads(line) if line.endswith(b"\n") else None

    async def hang_up(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


@asynccontextmanager
async def serve_bus(bus: Bus, path: Path) -> AsyncGenerator[None]:
    """Lend `bus` to other processes of this user at a unix socket, for as long as the context is open.

    Raises:
        MissingService: another process serves there already.
    """
    if await _answers(path):
        raise MissingService(
            f"another `metier dev` already runs in this folder (it answers at {path}); end it, or use another folder"
        )
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    calls: set[asyncio.Task[None]] = set()

    async def call(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(_attend(bus, _Line(reader, writer)))
        calls.add(task)
        task.add_done_callback(calls.discard)

    server = await asyncio.start_unix_server(call, path, limit=LINE_LIMIT)
    path.chmod(0o600)
    try:
        yield
    finally:
        server.close()
        for task in list(calls):
            task.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        path.unlink(missing_ok=True)


async def _answers(path: Path) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return False
    writer.close()
    return True


async def _attend(bus: Bus, line: _Line) -> None:
    """One client: it publishes, or it consumes."""
    try:
        while (asked := await line.hear()) is not None:
            if asked["do"] == "publish":
                await bus.publish(*[Record(**_rich(record)) for record in asked["records"]])
                await line.say({"done": "publish"})
            elif asked["do"] == "scan":
                await _lend_scan(bus, line, asked["topic"])
            else:
                await _lend_consumption(bus, line, asked)
    except (BusGone, OSError, ValueError, KeyError, TypeError):
        return  # a client that left in the middle, or is not one of ours, costs only its own connection
    finally:
        await line.hang_up()


async def _lend_scan(bus: Bus, line: _Line, topic: str) -> None:
    """Show all that a topic holds. Only a bus in memory is lent out: it has a topic at hand."""
    if not isinstance(bus, MemoryBus):
        raise TypeError(f"a {type(bus).__name__} cannot be scanned through a socket")
    for delivery in bus.records(topic):
        await line.say({"delivery": _plain(asdict(delivery))})
    await line.say({"done": "scan"})


async def _lend_consumption(bus: Bus, line: _Line, asked: Mapping[str, Any]) -> None:
    waiting: dict[int, asyncio.Future[None]] = {}
    stop = asyncio.Event()

    numbers = count()

    async def forward(delivery: Delivery) -> None:
        number = next(numbers)
        acknowledged = waiting[number] = asyncio.get_running_loop().create_future()
        await line.say({"number": number, "delivery": _plain(asdict(delivery))})
        await acknowledged

    async def acknowledge() -> None:
        while (said := await line.hear()) is not None and said["do"] == "acknowledge":
            waiting.pop(said["number"]).set_result(None)
        stop.set()

    ready = asyncio.Event()
    what = Consumption(asked["topics"], asked["group"], asked["start"], asked["concurrency"], ready.set)
    consuming = asyncio.create_task(bus.consume(what, forward, stop))
    hearing = asyncio.create_task(acknowledge())
    try:
        await ready.wait()
        await line.say({"done": "ready"})
        await asyncio.wait([consuming, hearing], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (consuming, hearing):
            task.cancel()
        await asyncio.gather(consuming, hearing, return_exceptions=True)


class SocketBus:
    """See `metier_infra.bus.Bus`: the bus that another process lends at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def _call(self) -> _Line:
        try:
            return _Line(*await asyncio.open_unix_connection(self._path, limit=LINE_LIMIT))
        except OSError as error:
            raise BusGone(f"no `metier dev` answers at {self._path}: {error}") from error

    async def publish(self, *records: Record) -> None:
        """See `Bus.publish`."""
        line = await self._call()
        try:
            await line.say({"do": "publish", "records": [_plain(asdict(record)) for record in records]})
            if await line.hear() is None:
                raise BusGone(f"the `metier dev` at {self._path} ended before it took the record")
        finally:
            await line.hang_up()

    async def scan(self, topic: str, look: Callable[[Delivery], None]) -> None:
        """See `metier_infra.dead_letters.Scan`: what the other process's bus holds in memory."""
        line = await self._call()
        try:
            await line.say({"do": "scan", "topic": topic})
            while (said := await line.hear()) is not None and "delivery" in said:
                look(Delivery(**_rich(said["delivery"])))
            if said is None:
                raise BusGone(f"the `metier dev` at {self._path} ended")
        finally:
            await line.hang_up()

    async def consume(self, what: Consumption, handle: Handler, stop: asyncio.Event) -> None:
        """See `Bus.consume`."""
        line = await self._call()
        lanes = Lanes(handle, what.concurrency)
        await line.say(
            {
                "do": "consume",
                "topics": list(what.topics),
                "group": what.group,
                "start": what.start,
                "concurrency": what.concurrency,
            }
        )
        hearing = asyncio.create_task(self._hear(line, what, lanes))
        stopping = asyncio.create_task(stop.wait())
        try:
            waits: list[asyncio.Future[Any]] = [hearing, stopping, lanes.failed]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            await lanes.drain()
            if lanes.failed.done():
                lanes.failed.result()
            if hearing.done():
                hearing.result()
        finally:
            for task in (hearing, stopping):
                task.cancel()
            await lanes.cancel()
            await line.hang_up()

    async def _hear(self, line: _Line, what: Consumption, lanes: Lanes) -> None:
        saying: set[asyncio.Task[None]] = set()
        while (said := await line.hear()) is not None:
            if "delivery" not in said:
                what.ready()
                continue

            def done(number: int = said["number"]) -> None:
                task = asyncio.create_task(line.say({"do": "acknowledge", "number": number}))
                saying.add(task)
                task.add_done_callback(saying.discard)

            await lanes.admit(Delivery(**_rich(said["delivery"])), done)
        raise BusGone(f"the `metier dev` at {self._path} ended")

    async def close(self) -> None:
        """Nothing is held between calls."""
