"""When a record that fails as if a service were away is poison, and that an outage buries nothing.

Not tested: how long ten minutes are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from metier_infra.bus import Consumption, Handler, MemoryBus
from metier_infra.errors import BusGone, Held, JournalGone, ModelBusy, Poison, RetryLater
from metier_infra.events import DEAD_LETTERS, RUNS, RunAccepted
from metier_infra.messages import Delivery, Envelope
from metier_infra.poison import Rule, doubted
from metier_infra.service import send, serve
from metier_infra.words import RunId

HUNG = 60
BAD = b"bad"


def record(offset: int, value: bytes = b"good") -> Delivery:
    return Delivery(RUNS, 0, offset, b"k%d" % offset, value)


class Stand:
    """A layer round a handler at which some records fail, and a clock."""

    def __init__(self, rule: Rule, error: RetryLater, most: int = 1_000) -> None:
        self.now = 0.0
        self.error = error
        self.away = False
        self.layer: Handler = doubted(self._handle, rule, lambda: self.now, most)

    async def _handle(self, delivery: Delivery) -> None:
        if self.away or delivery.value == BAD:
            raise self.error

    async def fails(self, offset: int = 0) -> bool:
        """Handle the bad record once: it is poison, or fails as it does."""
        with pytest.raises((Poison, type(self.error))) as raised:
            await self.layer(record(offset, BAD))
        return isinstance(raised.value, Poison)

    async def passes(self) -> None:
        """Another record is handled."""
        await self.layer(record(99))


async def test_a_record_that_fails_so_often_while_others_are_handled_is_poison() -> None:
    stand = Stand(Rule(failures=3, after_s=0), JournalGone("x"))
    told = [await stand.fails()]
    for _ in range(3):
        await stand.passes()
        told.append(await stand.fails())
    assert told == [False, False, False, True]


async def test_poison_says_how_often_and_how_long_and_why() -> None:
    stand = Stand(Rule(failures=1, after_s=0), JournalGone("a row too wide"))
    assert not await stand.fails()
    stand.now = 42
    await stand.passes()
    with pytest.raises(Poison, match=r"failed 1 times in 42 s while other records were handled, .* a row too wide"):
        await stand.layer(record(0, BAD))


async def test_an_outage_however_long_is_held_against_no_record() -> None:
    stand = Stand(Rule(failures=3, after_s=0), BusGone("away"))
    await stand.passes()
    for _ in range(1_000):
        stand.now += 60
        assert not await stand.fails()
    stand.away = True
    for _ in range(1_000):
        with pytest.raises(BusGone):
            await stand.layer(record(7))
        assert not await stand.fails()


async def test_a_failure_counts_once_however_many_others_were_handled_before_it() -> None:
    stand = Stand(Rule(failures=2, after_s=0), BusGone("x"))
    assert not await stand.fails()
    for _ in range(50):
        await stand.passes()
    assert not await stand.fails()
    assert not await stand.fails()


async def test_nothing_is_poison_before_its_time() -> None:
    stand = Stand(Rule(failures=1, after_s=600), JournalGone("x"))
    assert not await stand.fails()
    stand.now = 599
    await stand.passes()
    assert not await stand.fails()
    stand.now = 600
    assert await stand.fails()


@pytest.mark.parametrize("error", [Held("x"), ModelBusy("x"), RetryLater("x")])
async def test_what_waits_for_something_that_others_do_without_is_no_poison(error: RetryLater) -> None:
    stand = Stand(Rule(failures=1, after_s=0), error)
    for _ in range(10):
        await stand.passes()
        assert not await stand.fails()


async def test_what_was_held_against_a_record_is_forgotten_once_it_is_handled() -> None:
    stand = Stand(Rule(failures=1, after_s=0), JournalGone("x"))
    assert not await stand.fails()
    await stand.passes()
    await stand.layer(record(0))  # the same place
    assert not await stand.fails()


async def test_no_more_records_are_remembered_than_may_be() -> None:
    stand = Stand(Rule(failures=1, after_s=0), JournalGone("x"), most=2)
    for offset in (0, 1, 2):
        assert not await stand.fails(offset)
    await stand.passes()
    assert [await stand.fails(offset) for offset in (2, 1, 0)] == [True, True, False]


def accepted(name: str) -> Envelope[RunAccepted]:
    return Envelope(RunAccepted(run_id=RunId(name), workflow="w"), name, "/test", name)


async def until(bus: MemoryBus, topic: str, seen: Callable[[Delivery], bool]) -> Delivery:
    """The first record on a topic of which it is true."""
    found, stop = list[Delivery](), asyncio.Event()

    async def look(delivery: Delivery) -> None:
        if seen(delivery) and not found:
            found.append(delivery)
            stop.set()

    async with asyncio.timeout(HUNG):
        await bus.consume(Consumption([topic], None), look, stop)
    return found[0]


async def test_poison_lies_among_the_dead_letters_as_it_was_and_those_behind_it_have_passed() -> None:
    bus, stop, handled = MemoryBus(), asyncio.Event(), list[str]()

    async def handle(envelope: Envelope[Any], delivery: Delivery) -> None:
        if envelope.id == "bad":
            await send(bus, RUNS, accepted(f"after {len(handled)}"))
            raise JournalGone("always, at this one")
        handled.append(envelope.id)

    await send(bus, RUNS, accepted("bad"))
    rule = Rule(failures=2, after_s=0)
    serving = asyncio.create_task(serve(bus, Consumption([RUNS], "g"), {RunAccepted: handle}, stop, rule=rule))
    dead = await until(bus, DEAD_LETTERS, lambda _: True)
    stop.set()
    await serving
    sent = await until(bus, RUNS, lambda one: one.key == b"bad")
    assert (dead.key, dead.value) == (sent.key, sent.value)
    assert dead.headers[: len(sent.headers)] == sent.headers
    assert dict(dead.headers)["metier-dead-reason"] == b"poison"
    assert handled
