"""What every bus promises, held by all that ship: in memory, over a socket, and real Kafka. Kafka's own promises: `test_kafka_bus`."""

from __future__ import annotations

import asyncio
import socket
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Literal

import pytest

from metier_infra.bus import Bus, Consumption, Handler, MemoryBus
from metier_infra.errors import BusGone, MissingService
from metier_infra.events import EVENTS_TOPIC, RUNS
from metier_infra.messages import Delivery, Record
from metier_infra.socket_bus import SocketBus, serve_bus

HUNG = 30
"""Seconds after which something is taken to hang."""


def word(n: int, key: bytes | None = b"k", topic: str = RUNS) -> Record:
    return Record(topic, key, str(n).encode())


def number(delivery: Delivery) -> int:
    return int(delivery.value)


async def read(
    bus: Bus, count: int, *topics: str, group: str | None = None, handle: Handler | None = None, concurrency: int = 16
) -> list[Delivery]:
    """Consume from the start, or from where the group stopped, until `count` records were handled."""
    seen: list[Delivery] = []
    enough = asyncio.Event()

    async def keep(delivery: Delivery) -> None:
        if handle is not None:
            await handle(delivery)
        seen.append(delivery)
        if len(seen) >= count:
            enough.set()

    async with asyncio.timeout(HUNG):
        await bus.consume(Consumption(topics or (RUNS,), group, concurrency=concurrency), keep, enough)
    return seen


class Consuming:
    """A consumption in the background, and whether it is ready."""

    def __init__(
        self, bus: Bus, handle: Handler, group: str | None, start: Literal["earliest", "latest"] = "earliest"
    ) -> None:
        self.stop = asyncio.Event()
        self.ready = asyncio.Event()
        self.task = asyncio.create_task(
            bus.consume(Consumption([RUNS], group, start, ready=self.ready.set), handle, self.stop)
        )

    async def end(self) -> None:
        self.stop.set()
        async with asyncio.timeout(HUNG):
            await self.task


async def happened(event: asyncio.Event) -> None:
    async with asyncio.timeout(HUNG):
        await event.wait()


async def test_records_come_as_they_were_published_byte_for_byte(bus: Bus) -> None:
    every_byte = bytes(range(256))
    odd = Record(RUNS, b"\xff\x00\xfe", every_byte, (("plain", b"x"), ("not-utf8", b"\xff\x00"), ("empty", b"")))
    bare = Record(RUNS, None, b"")
    await bus.publish(odd, bare)
    seen = await read(bus, 2)
    assert {Record(one.topic, one.key, one.value, one.headers) for one in seen} == {odd, bare}


async def test_one_publication_may_fill_several_topics_and_one_consumption_read_them(bus: Bus) -> None:
    await bus.publish(word(1), word(2, topic=EVENTS_TOPIC))
    seen = await read(bus, 2, RUNS, EVENTS_TOPIC)
    assert {(one.topic, number(one)) for one in seen} == {(RUNS, 1), (EVENTS_TOPIC, 2)}


async def test_records_of_one_key_are_handled_one_after_another_in_their_order(bus: Bus) -> None:
    busy: set[bytes | None] = set()

    async def handle(delivery: Delivery) -> None:
        assert delivery.key not in busy
        busy.add(delivery.key)
        for _ in range(number(delivery) % 7):
            await asyncio.sleep(0)
        busy.discard(delivery.key)

    await bus.publish(*[word(n, b"key%d" % (n % 5)) for n in range(60)])
    order: defaultdict[bytes | None, list[int]] = defaultdict(list)
    for delivery in await read(bus, 60, handle=handle):
        order[delivery.key].append(number(delivery))
    assert dict(order) == {b"key%d" % k: list(range(k, 60, 5)) for k in range(5)}


async def test_records_of_different_keys_are_handled_at_the_same_time(bus: Bus) -> None:
    together = asyncio.Barrier(4)

    async def handle(_: Delivery) -> None:
        await together.wait()

    await bus.publish(*[word(n, b"key%d" % n) for n in range(4)])
    assert len(await read(bus, 4, handle=handle)) == 4


async def test_never_more_are_in_hand_than_the_consumer_allows(bus: Bus) -> None:
    inside: set[int] = set()
    most = 0
    together = asyncio.Barrier(3)

    async def handle(delivery: Delivery) -> None:
        nonlocal most
        inside.add(number(delivery))
        most = max(most, len(inside))
        await together.wait()
        inside.discard(number(delivery))

    await bus.publish(*[word(n, b"key%d" % n) for n in range(9)])
    await read(bus, 9, handle=handle, concurrency=3)
    assert most == 3


async def test_a_handler_that_raises_ends_the_consumption_and_its_record_comes_again(bus: Bus) -> None:
    async def handle(delivery: Delivery) -> None:
        if number(delivery) == 1:
            raise ZeroDivisionError("a defect")

    await bus.publish(*[word(n) for n in range(3)])
    with pytest.raises(ZeroDivisionError, match="a defect"):
        await read(bus, 3, group="g", handle=handle)
    assert [number(one) for one in await read(bus, 2, group="g")] == [1, 2]


async def test_a_consumption_that_is_cancelled_leaves_its_records_to_the_next(bus: Bus) -> None:
    begun = asyncio.Event()

    async def hang(_: Delivery) -> None:
        begun.set()
        await asyncio.Event().wait()

    await bus.publish(word(0), word(1))
    consuming = Consuming(bus, hang, "g")
    await happened(begun)
    consuming.task.cancel()
    with suppress(asyncio.CancelledError):
        await consuming.task
    assert [number(one) for one in await read(bus, 2, group="g")] == [0, 1]


async def test_a_group_goes_on_where_it_stopped_without_a_gap_or_a_repetition(bus: Bus) -> None:
    await bus.publish(*[word(n, b"key%d" % (n % 3)) for n in range(9)])
    first = await read(bus, 4, group="g", concurrency=2)
    await bus.publish(*[word(n, b"key%d" % (n % 3)) for n in range(9, 12)])
    second = await read(bus, 12 - len(first), group="g")
    assert sorted(number(one) for one in (*first, *second)) == list(range(12))


async def test_each_group_gets_every_record(bus: Bus) -> None:
    await bus.publish(word(0), word(1))
    for group in ("one", "two"):
        assert [number(one) for one in await read(bus, 2, group=group)] == [0, 1]


async def test_without_a_group_every_reader_sees_everything_from_the_beginning(bus: Bus) -> None:
    await bus.publish(word(0), word(1))
    for _ in range(2):
        assert [number(one) for one in await read(bus, 2)] == [0, 1]


async def test_a_reader_of_the_latest_sees_what_came_after_it_was_ready_and_nothing_before(bus: Bus) -> None:
    seen: list[int] = []
    third = asyncio.Event()

    async def keep(delivery: Delivery) -> None:
        seen.append(number(delivery))
        if number(delivery) == 3:
            third.set()

    await bus.publish(word(0), word(1))
    consuming = Consuming(bus, keep, None, "latest")
    await happened(consuming.ready)
    await bus.publish(word(2), word(3))
    await happened(third)
    await consuming.end()
    assert seen == [2, 3]


async def test_after_stop_what_is_in_hand_is_finished_and_acknowledged(bus: Bus) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow(_: Delivery) -> None:
        begun.set()
        await go.wait()

    await bus.publish(word(0))
    consuming = Consuming(bus, slow, "g")
    await happened(begun)
    consuming.stop.set()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not consuming.task.done()
    go.set()
    await consuming.end()
    await bus.publish(word(1))
    assert [number(one) for one in await read(bus, 1, group="g")] == [1]


async def test_a_consumer_waits_for_records_that_are_not_there_yet(bus: Bus) -> None:
    got = asyncio.Event()

    async def keep(_: Delivery) -> None:
        got.set()

    consuming = Consuming(bus, keep, "g")
    await happened(consuming.ready)
    await bus.publish(word(0))
    await happened(got)
    await consuming.end()


async def test_where_nobody_serves_the_socket_the_bus_is_gone(tmp_path: Path) -> None:
    bus = SocketBus(tmp_path / "none.sock")
    with pytest.raises(BusGone, match="no `metier dev` answers"):
        await bus.publish(word(0))
    with pytest.raises(BusGone, match="no `metier dev` answers"):
        await read(bus, 1)


async def test_a_second_server_on_one_socket_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "bus.sock"
    async with serve_bus(MemoryBus(), path):
        with pytest.raises(MissingService, match="already runs in this folder"):
            async with serve_bus(MemoryBus(), path):
                pass
        await SocketBus(path).publish(word(0))


async def test_a_socket_that_a_killed_server_left_behind_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "bus.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with serve_bus(MemoryBus(), path):
        await SocketBus(path).publish(word(0))


async def test_a_consumer_whose_server_ends_learns_that_the_bus_is_gone(tmp_path: Path) -> None:
    async def ignore(_: Delivery) -> None:
        return

    async with serve_bus(MemoryBus(), tmp_path / "bus.sock"):
        consuming = Consuming(SocketBus(tmp_path / "bus.sock"), ignore, "g")
        await happened(consuming.ready)
    with pytest.raises(BusGone, match="ended"):
        await consuming.end()


async def test_a_server_that_hangs_up_in_the_middle_is_a_bus_that_is_gone(tmp_path: Path) -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    bus = SocketBus(tmp_path / "bus.sock")
    async with await asyncio.start_unix_server(hang_up, tmp_path / "bus.sock"):
        with pytest.raises(BusGone):
            await bus.publish(Record(RUNS, b"k", b"x" * 5_000_000))
        with pytest.raises(BusGone):
            await read(bus, 1)


@pytest.mark.parametrize(
    "line", [b"\xff\x00\n", b"{}\n", b'{"do": "publish"}\n', b"[1]\n", b'{"do": "publish", "records": [{}]}\n']
)
async def test_a_client_that_speaks_nonsense_costs_only_its_own_connection(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "bus.sock"
    async with serve_bus(MemoryBus(), path), asyncio.timeout(HUNG):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(line)
        assert await reader.read() == b""
        writer.close()
        bus = SocketBus(path)
        await bus.publish(word(7))
        assert [number(one) for one in await read(bus, 1)] == [7]
