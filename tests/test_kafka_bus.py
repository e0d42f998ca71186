"""What only real Kafka can show: commits, rebalances, dead members, a broker that is not there, and two systems on one cluster."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable

import pytest

from metier_infra import kafka_bus
from metier_infra.bus import Consumption, Handler, Revoked
from metier_infra.errors import BadSettings, BusGone, TooLarge
from metier_infra.events import RUNS
from metier_infra.kafka_bus import KafkaBus
from metier_infra.kafka_topics import Topic, apply
from metier_infra.messages import Delivery, Record
from metier_infra.settings import KafkaSettings

HUNG = 30
Open = Callable[..., KafkaBus]


def word(n: int, key: bytes) -> Record:
    return Record(RUNS, key, str(n).encode())


@pytest.fixture
async def opened(kafka: KafkaSettings) -> AsyncIterator[Callable[[KafkaSettings, str | None], KafkaBus]]:
    """Opens buses, and closes them after the test."""
    buses: list[KafkaBus] = []

    def open_bus(settings: KafkaSettings, member: str | None = None) -> KafkaBus:
        buses.append(KafkaBus(settings, client="metier-tests", member=member))
        return buses[-1]

    yield open_bus
    for bus in buses:
        await bus.close()


class Member:
    """A consumer of the group `g` that goes on in the background, and keeps what it handled."""

    def __init__(
        self,
        bus: KafkaBus,
        handle: Handler | None = None,
        *,
        on: tuple[int, Callable[[], None]] | None = None,
        revoked: Revoked | None = None,
    ) -> None:
        self.seen: list[int] = []
        self.lost: list[tuple[str, frozenset[int]]] = []
        self.stop, self.ready, self.revoked = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._handle = handle
        self._on = on
        what = Consumption([RUNS], "g", ready=self.ready.set, revoked=revoked or self._revoked)
        self.task = asyncio.create_task(bus.consume(what, self._keep, self.stop))

    def _revoked(self, topic: str, partitions: frozenset[int]) -> None:
        self.lost.append((topic, partitions))
        self.revoked.set()

    async def _keep(self, delivery: Delivery) -> None:
        if self._handle is not None:
            await self._handle(delivery)
        self.seen.append(int(delivery.value))
        if self._on is not None and len(self.seen) == self._on[0]:
            self._on[1]()

    async def end(self) -> None:
        self.stop.set()
        async with asyncio.timeout(HUNG):
            await self.task


async def happened(event: asyncio.Event) -> None:
    async with asyncio.timeout(HUNG):
        await event.wait()


async def rest(bus: KafkaBus, count: int) -> list[int]:
    """The next `count` records of the group."""
    enough = asyncio.Event()
    member = Member(bus, on=(count, enough.set))
    await happened(enough)
    await member.end()
    return member.seen


async def test_a_commit_stops_at_the_first_record_that_is_not_finished(kafka: KafkaSettings, opened: Open) -> None:
    apply(kafka, [Topic(RUNS, 1, 1)])
    bus, blocked, others = opened(kafka), asyncio.Event(), asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        if int(delivery.value) == 2:
            blocked.set()
            await asyncio.Event().wait()

    await bus.publish(*[word(n, b"%d" % n) for n in range(5)])
    member = Member(bus, handle, on=(4, others.set))
    await happened(blocked)
    await happened(others)
    member.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await member.task
    assert sorted(member.seen) == [0, 1, 3, 4]
    assert await rest(bus, 3) == [2, 3, 4]


async def test_members_that_join_and_leave_lose_nothing_and_are_told_what_they_lost(
    kafka: KafkaSettings, opened: Open
) -> None:
    kafka = kafka.model_copy(update={"session_timeout_ms": 2_000})
    apply(kafka, [Topic(RUNS, 4, 1)])
    bus, seen, some, everything = opened(kafka), set[int](), asyncio.Event(), asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        await asyncio.sleep(0.03)  # so long that both members are full, and partitions paused, while they move
        seen.add(int(delivery.value))
        if len(seen) >= 50:
            some.set()
        if len(seen) == 1_000:
            everything.set()

    await bus.publish(*[word(n, b"key%d" % (n % 40)) for n in range(1_000)])
    stays = Member(bus, handle)
    await happened(some)
    leaves = Member(opened(kafka), handle)
    await happened(stays.revoked)
    await happened(leaves.ready)
    await leaves.end()
    await happened(everything)
    await stays.end()
    assert seen == set(range(1_000))
    (topic, partitions), *_ = stays.lost
    assert topic == RUNS
    assert 0 < len(partitions) < 4


async def test_a_member_for_which_no_partition_is_left_is_ready_to_take_over(
    kafka: KafkaSettings, opened: Open
) -> None:
    apply(kafka, [Topic(RUNS, 1, 1)])
    bus, taken = opened(kafka), asyncio.Event()
    first = Member(bus)
    await happened(first.ready)
    # Given a second member, to which nothing can be given
    second = Member(opened(kafka), on=(1, taken.set))
    await happened(second.ready)
    assert not first.lost
    # When the one that has the partition leaves
    await first.end()
    # Then the other one handles what comes
    await bus.publish(word(1, b"k"))
    await happened(taken)
    await second.end()


class Trio:
    """Members of one group on twelve partitions, and what each started. The first record of each partition stays in hand until `release`."""

    def __init__(self, settings: KafkaSettings, opened: Open) -> None:
        self.starts: dict[tuple[int, int], list[str]] = {}
        self.lost: dict[str, set[int]] = {}
        self.done: set[int] = set()
        self.release, self.changed = asyncio.Event(), asyncio.Event()
        self._held: set[int] = set()
        self._settings, self._opened = settings, opened

    def join(self, name: str) -> Member:
        """A new member under this name."""

        async def handle(delivery: Delivery) -> None:
            self.starts.setdefault((delivery.partition, delivery.offset), []).append(name)
            self.changed.set()
            if delivery.partition not in self._held:
                self._held.add(delivery.partition)
                await self.release.wait()
            self.done.add(int(delivery.value))
            self.changed.set()

        def lose(_: str, partitions: frozenset[int]) -> None:
            self.lost[name] |= partitions
            self.changed.set()

        self.lost[name] = set()
        return Member(self._opened(self._settings), handle, revoked=lose)

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until it is so."""
        async with asyncio.timeout(2 * HUNG):
            while not true():
                self.changed.clear()
                await self.changed.wait()

    @property
    def in_hand(self) -> set[int]:
        """The partitions of which a record is held."""
        return self._held


async def test_what_stays_is_not_dropped_nor_started_twice_and_no_more_moves_than_must(
    kafka: KafkaSettings, opened: Open
) -> None:
    """A third member comes and goes while each partition has a record in hand. By ranges, partitions of the first two would change places too."""
    kafka = kafka.model_copy(update={"session_timeout_ms": 60_000})  # nobody is slow enough to be given up
    apply(kafka, [Topic(RUNS, 12, 1)])
    bus, trio = opened(kafka), Trio(kafka, opened)
    one = trio.join("one")
    await happened(one.ready)
    two = trio.join("two")
    await happened(two.ready)
    await trio.until(lambda: len(trio.lost["one"]) == 6)
    trio.lost["one"].clear()
    await bus.publish(*[word(n, b"held%d" % n) for n in range(400)])
    await trio.until(lambda: len(trio.in_hand) == 12 and len(trio.done) == 388)

    three = trio.join("three")
    await happened(three.ready)
    await trio.until(lambda: len(trio.lost["one"] | trio.lost["two"]) >= 4)
    await bus.publish(*[word(n, b"free%d" % n) for n in range(400, 800)])
    await trio.until(lambda: set(range(400, 800)) <= trio.done)  # with what is in hand still in hand
    trio.release.set()
    await trio.until(lambda: trio.done == set(range(800)))
    await three.end()
    await bus.publish(*[word(n, b"late%d" % n) for n in range(800, 1_000)])
    await trio.until(lambda: trio.done == set(range(1_000)))
    await one.end()
    await two.end()

    moved = trio.lost["one"] | trio.lost["two"]
    assert len(moved) == 4
    stayed = {place: names for place, names in trio.starts.items() if place[0] not in moved}
    assert [names for names in stayed.values() if len(names) > 1] == []


async def test_records_of_one_key_keep_their_order_through_a_rebalance(kafka: KafkaSettings, opened: Open) -> None:
    """A record may come twice; but what is seen for the first time comes in the order of the log."""
    kafka = kafka.model_copy(update={"session_timeout_ms": 2_000})
    apply(kafka, [Topic(RUNS, 2, 1)])
    bus, last, some, first_seen = opened(kafka), asyncio.Event(), asyncio.Event(), list[int]()

    async def handle(delivery: Delivery) -> None:
        await asyncio.sleep(0.001)
        if int(delivery.value) not in first_seen:
            first_seen.append(int(delivery.value))
        if len(first_seen) >= 20:
            some.set()
        if len(first_seen) == 200:
            last.set()

    await bus.publish(*[word(n, b"the only key") for n in range(200)])
    one = Member(bus, handle)
    await happened(some)
    two = Member(opened(kafka), handle)
    await happened(last)
    await one.end()
    await two.end()
    assert first_seen == list(range(200))


CONSUMER = """
import asyncio, sys
from metier_infra.bus import Consumption
from metier_infra.kafka_bus import KafkaBus
from metier_infra.settings import KafkaSettings

settings = KafkaSettings().model_copy(update={"bootstrap": sys.argv[1], "prefix": sys.argv[2], "session_timeout_ms": 60_000})

async def hang(delivery):
    print("in hand", flush=True)
    await asyncio.Event().wait()

bus = KafkaBus(settings, client="victim", member="pod-0")
asyncio.run(bus.consume(Consumption([sys.argv[3]], "g"), hang, asyncio.Event()))
"""


async def test_a_killed_member_that_comes_back_under_its_name_need_not_wait_for_its_own_death(
    kafka: KafkaSettings, opened: Open
) -> None:
    """Without the name, the broker would keep the partitions for the dead member for its session timeout: a minute."""
    apply(kafka, [Topic(RUNS, 1, 1)])
    patient = kafka.model_copy(update={"session_timeout_ms": 60_000})
    bus = opened(patient, "pod-0")
    await bus.publish(word(0, b"k"))
    place = (str(kafka.bootstrap), kafka.prefix, RUNS)
    victim = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CONSUMER, *place, stdout=asyncio.subprocess.PIPE
    )
    assert victim.stdout is not None
    assert await victim.stdout.readline() == b"in hand\n"
    victim.kill()
    await victim.wait()
    assert await rest(bus, 1) == [0]


async def test_two_systems_on_one_cluster_do_not_see_each_other(kafka: KafkaSettings, opened: Open) -> None:
    here, there = [kafka.model_copy(update={"prefix": kafka.prefix + name}) for name in ("here.", "there.")]
    for settings in (here, there):
        apply(settings, [Topic(RUNS, 1, 1)])
    await opened(here).publish(word(1, b"k"))
    await opened(there).publish(word(2, b"k"))
    assert await rest(opened(here), 1) == [1]
    assert await rest(opened(there), 1) == [2]


@pytest.fixture
def nowhere(kafka: KafkaSettings) -> KafkaSettings:
    """Settings that name a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return kafka.model_copy(update={"bootstrap": f"127.0.0.1:{probe.getsockname()[1]}"})


async def test_where_no_broker_answers_the_bus_is_gone(nowhere: KafkaSettings, opened: Open) -> None:
    bus = opened(nowhere)

    async def ignore(_: Delivery) -> None:
        return

    async with asyncio.timeout(HUNG):
        errors = await asyncio.gather(
            bus.publish(word(0, b"k")),
            bus.consume(Consumption([RUNS], "g"), ignore, asyncio.Event()),
            asyncio.to_thread(apply, nowhere, []),
            return_exceptions=True,
        )
    for error in errors:
        assert isinstance(error, BusGone)
        assert str(nowhere.bootstrap) in str(error)


async def test_without_an_address_the_setting_is_named(kafka: KafkaSettings, opened: Open) -> None:
    with pytest.raises(BadSettings, match="METIER_KAFKA_BOOTSTRAP is not set"):
        await opened(kafka.model_copy(update={"bootstrap": None})).publish(word(0, b"k"))


async def test_a_consumption_that_is_cancelled_while_the_broker_is_away_ends_as_cancelled(
    nowhere: KafkaSettings,
) -> None:
    bus = KafkaBus(nowhere, client="tests")

    async def never(_: Delivery) -> None:
        raise AssertionError

    consuming = asyncio.create_task(bus.consume(Consumption(["t"], "g"), never, asyncio.Event()))
    await asyncio.sleep(0)
    consuming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consuming
    await bus.close()


async def test_a_record_that_the_broker_never_takes_is_not_tried_for_ever(kafka: KafkaSettings) -> None:
    apply(kafka, [Topic("small", 1, 1, max_message_bytes=100_000)])
    bus = KafkaBus(kafka, client="tests")
    with pytest.raises(TooLarge):
        await bus.publish(Record("small", None, bytes(300_000)))
    await bus.publish(Record("small", None, b"fits"))
    await bus.close()


def idle(sender: object) -> None:
    time.sleep(0.05)


async def test_a_record_of_which_the_producer_lost_sight_is_given_up_and_a_new_producer_takes_the_next(
    kafka: KafkaSettings, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(kafka, [Topic(RUNS, 1, 1)])
    monkeypatch.setattr(kafka_bus, "SETTLED_S", 1.0)
    bus = opened(kafka)
    await bus.publish(word(0, b"k"))
    # Given a producer that neither sends a record nor gives it up
    with monkeypatch.context() as lost:
        lost.setattr("kafka.producer.sender.Sender.run_once", idle)
        with pytest.raises(BusGone):
            await asyncio.wait_for(bus.publish(word(1, b"k")), HUNG)
    # Then what is published again is sent
    await asyncio.wait_for(bus.publish(word(1, b"k")), HUNG)
