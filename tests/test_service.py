"""The layers between the bus and a role: what is tried again, what is buried and with what, and when a role is ready."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metier_infra.bus import Consumption, Handler, MemoryBus
from metier_infra.errors import (
    BuryRecord,
    BusGone,
    Defect,
    FencedOff,
    JournalGone,
    RetryLater,
    Undecodable,
    UnknownEvent,
)
from metier_infra.events import DEAD_LETTERS, RUNS, RunAccepted, RunStarted
from metier_infra.messages import Delivery, Envelope, Record, decode, encode
from metier_infra.retry import Backoff
from metier_infra.service import Ready, buried, contain_exits, contained, dispatch, on_sigterm, retried, send, serve
from metier_infra.words import RunId

AT_ONCE = Backoff(first_s=0, attempts=3)
ODD = Delivery(RUNS, 3, 17, b"\xff\x00", b"\x00not json\xff", (("ce_id", b"\xfe"), ("traceparent", b"x"), ("twice", b"1"), ("twice", b"2")))  # fmt: skip
HUNG = 20


def accepted(n: int = 1) -> Envelope[RunAccepted]:
    return Envelope(RunAccepted(run_id=RunId(f"run{n}"), workflow="w"), f"id{n}", "/test", f"run{n}")


def delivered(record: Record) -> Delivery:
    return Delivery(record.topic, 0, 0, record.key, record.value, record.headers)


async def read(bus: MemoryBus, topic: str, count: int) -> list[Delivery]:
    seen: list[Delivery] = []
    enough = asyncio.Event()

    async def keep(delivery: Delivery) -> None:
        seen.append(delivery)
        if len(seen) >= count:
            enough.set()

    async with asyncio.timeout(HUNG):
        await bus.consume(Consumption([topic], None), keep, enough)
    return seen


def raising(*errors: Exception) -> tuple[Handler, list[Delivery]]:
    """A handler that raises these, one a time, and then works."""
    seen: list[Delivery] = []

    async def handle(delivery: Delivery) -> None:
        seen.append(delivery)
        if len(seen) <= len(errors):
            raise errors[len(seen) - 1]

    return handle, seen


async def test_a_record_is_handled_again_in_place_until_it_works() -> None:
    handle, seen = raising(JournalGone("away"), BusGone("away"))
    await retried(handle, AT_ONCE)(ODD)
    assert seen == [ODD] * 3


@pytest.mark.parametrize("error", [Undecodable("no"), FencedOff("no"), ZeroDivisionError("no")])
async def test_what_cannot_get_better_passes_the_retry_layer(error: Exception) -> None:
    handle, seen = raising(error)
    with pytest.raises(type(error)):
        await retried(handle, AT_ONCE)(ODD)
    assert len(seen) == 1


async def test_a_record_that_can_never_be_handled_is_buried_whole_with_its_place_and_reason() -> None:
    bus = MemoryBus()
    handle, _ = raising(Undecodable("not a CloudEvent: “?”"))
    await buried(handle, bus)(ODD)
    (dead,) = await read(bus, DEAD_LETTERS, 1)
    assert (dead.key, dead.value) == (ODD.key, ODD.value)
    assert dead.headers[: len(ODD.headers)] == ODD.headers
    why = dict(dead.headers[len(ODD.headers) :])
    assert abs(float(why.pop("metier-dead-at")) - time.time()) < 3600
    assert why == {
        "metier-dead-reason": b"undecodable",
        "metier-dead-message": "not a CloudEvent: “?”".encode(),
        "metier-dead-topic": RUNS.encode(),
        "metier-dead-partition": b"3",
        "metier-dead-offset": b"17",
    }


@pytest.mark.parametrize("error", [RetryLater("later"), FencedOff("no"), ZeroDivisionError("defect")])
async def test_only_what_says_so_is_buried(error: Exception) -> None:
    bus = MemoryBus()
    handle, _ = raising(error)
    with pytest.raises(type(error)):
        await buried(handle, bus)(ODD)
    await bus.publish(Record(DEAD_LETTERS, None, b"the first"))
    assert [one.value for one in await read(bus, DEAD_LETTERS, 1)] == [b"the first"]


async def test_a_record_at_which_our_code_breaks_is_tried_three_times_and_then_can_never_be_handled() -> None:
    handle, seen = raising(*[ZeroDivisionError("by \ud800 zero")] * 3)
    with pytest.raises(Defect, match="ZeroDivisionError: by"):
        await contained(handle)(ODD)
    assert seen == [ODD] * 3
    await contained(raising(ZeroDivisionError("once"), ZeroDivisionError("twice"))[0])(ODD)


@pytest.mark.parametrize("error", [RetryLater("later"), FencedOff("no"), Undecodable("no")])
async def test_what_has_a_type_of_ours_is_no_defect(error: Exception) -> None:
    handle, seen = raising(error)
    with pytest.raises(type(error)):
        await contained(handle)(ODD)
    assert len(seen) == 1


async def test_an_event_reaches_the_handler_of_its_type_with_its_envelope() -> None:
    got: list[tuple[Envelope[Any], Delivery]] = []

    async def handle(envelope: Envelope[RunAccepted], delivery: Delivery) -> None:
        got.append((envelope, delivery))

    delivery = delivered(encode(RUNS, accepted()))
    await dispatch({RunAccepted: handle})(delivery)
    assert got == [(decode(delivery), delivery)]


async def test_an_event_that_its_topic_does_not_carry_is_unknown() -> None:
    async def handle(envelope: Envelope[RunStarted], delivery: Delivery) -> None:
        raise AssertionError

    with pytest.raises(UnknownEvent, match=r"io\.metier\.run\.accepted\.v1 does not belong on metier\.runs"):
        await dispatch({RunStarted: handle})(delivered(encode(RUNS, accepted())))


class Serving:
    """`serve` over a bus, in the background."""

    def __init__(self, bus: MemoryBus, handle: Callable[[Envelope[RunAccepted]], None]) -> None:
        self.stop = asyncio.Event()

        async def take(envelope: Envelope[RunAccepted], delivery: Delivery) -> None:
            handle(envelope)

        self.task = asyncio.create_task(serve(bus, Consumption([RUNS], "g"), {RunAccepted: take}, self.stop))

    async def end(self) -> None:
        self.stop.set()
        async with asyncio.timeout(HUNG):
            await self.task


async def test_a_poison_record_goes_to_the_dead_letters_and_the_partition_goes_on() -> None:
    bus, handled, done = MemoryBus(), list[str](), asyncio.Event()

    def handle(envelope: Envelope[RunAccepted]) -> None:
        handled.append(envelope.id)
        if envelope.id == "id2":
            done.set()

    await send(bus, RUNS, accepted(1))
    await bus.publish(Record(RUNS, b"run1", b"\xff", (("ce_id", b"poison"),)))
    await send(bus, RUNS, accepted(2))
    serving = Serving(bus, handle)
    async with asyncio.timeout(HUNG):
        await done.wait()
    await serving.end()
    (dead,) = await read(bus, DEAD_LETTERS, 1)
    assert (dead.value, handled) == (b"\xff", ["id1", "id2"])


class AwayBus(MemoryBus):
    """A broker that is away for so many consumptions and publications."""

    def __init__(self, *, consumptions: int = 0, publications: int = 0) -> None:
        super().__init__()
        self.consumptions = consumptions
        self.publications = publications

    async def publish(self, *records: Record) -> None:
        self.publications -= 1
        if self.publications >= 0:
            raise BusGone("away")
        await super().publish(*records)

    async def consume(self, what: Consumption, handle: Handler, stop: asyncio.Event) -> None:
        self.consumptions -= 1
        if self.consumptions >= 0:
            raise BusGone("away")
        await super().consume(what, handle, stop)


async def test_a_defect_blocks_no_partition() -> None:
    bus, done = MemoryBus(), asyncio.Event()

    def handle(envelope: Envelope[RunAccepted]) -> None:
        if envelope.id == "id1":
            raise ZeroDivisionError("\ud800")
        done.set()

    await send(bus, RUNS, accepted(1), accepted(2))
    serving = Serving(bus, handle)
    async with asyncio.timeout(HUNG):
        await done.wait()
    (dead,) = await read(bus, DEAD_LETTERS, 1)
    await serving.end()
    assert decode(dead).id == "id1"
    assert dict(dead.headers)["metier-dead-reason"] == b"defect"


async def test_a_broker_that_is_away_is_waited_for() -> None:
    bus, done = AwayBus(consumptions=1), asyncio.Event()
    await send(bus, RUNS, accepted())
    serving = Serving(bus, lambda _: done.set())
    async with asyncio.timeout(HUNG):
        await done.wait()
    await serving.end()


async def test_a_role_that_waits_for_its_broker_can_be_stopped() -> None:
    serving = Serving(AwayBus(consumptions=1_000_000), lambda _: None)
    await asyncio.sleep(0)
    await serving.end()


async def test_a_dead_letter_is_not_lost_while_the_broker_is_away() -> None:
    bus = AwayBus()
    await bus.publish(Record(RUNS, b"k", b"\xff"))
    bus.publications = 2
    serving = Serving(bus, lambda _: None)
    (dead,) = await read(bus, DEAD_LETTERS, 1)
    assert (dead.value, bus.publications) == (b"\xff", -1)
    await serving.end()


async def test_sigterm_asks_the_role_to_stop() -> None:
    stop = asyncio.Event()
    on_sigterm(stop)
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(HUNG):
            await stop.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)


def test_a_role_is_ready_when_all_it_waits_for_is_there_and_not_when_it_drains(tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "run" / "ready"
    ready = Ready(path, 2, lambda: said.append("ready"))
    ready.one()
    assert (path.exists(), said) == (False, [])
    ready.one()
    assert (path.exists(), said) == (True, ["ready"])
    ready.one()
    assert said == ["ready"]
    ready.gone()
    ready.gone()
    assert not path.exists()


def test_a_role_without_a_ready_file_still_says_so() -> None:
    said: list[str] = []
    ready = Ready(None, then=lambda: said.append("ready"))
    ready.one()
    ready.gone()
    assert said == ["ready"]


def test_every_buried_error_has_a_reason_of_its_own() -> None:
    codes = [kind("x").code for kind in BuryRecord.__subclasses__()]
    assert len(set(codes)) == len(codes)


async def leaves() -> None:
    sys.exit(3)


async def test_a_task_that_asks_for_the_end_of_the_process_ends_alone() -> None:
    contain_exits()
    with pytest.raises(RuntimeError, match=r"SystemExit\(3\)"):
        await asyncio.create_task(leaves())


async def test_a_task_that_is_cancelled_before_it_begins_leaves_nothing_open() -> None:
    contain_exits()
    work = leaves()
    task = asyncio.create_task(work)
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert inspect.getcoroutinestate(work) == inspect.CORO_CLOSED
