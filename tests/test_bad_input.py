"""Bad input, from whoever may write a topic: each record is handled, rejected or buried with its bytes, at once, and a good one after it still runs.

Through the real layers and a real orchestrator: ten thousand in memory, a few hundred, large ones among them, over Kafka and Postgres.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict, cast

import pytest
import structlog
from langgraph.graph import END, START, StateGraph

from metier_infra import kafka_topics
from metier_infra.bus import Bus, Consumption, MemoryBus
from metier_infra.database import migrate
from metier_infra.errors import BuryRecord, TooLarge, Undecodable
from metier_infra.event_types import EVENTS
from metier_infra.events import (
    DEAD_LETTERS,
    EVENTS_TOPIC,
    REQUESTS,
    RUNS,
    Event,
    RunAccepted,
    RunFailed,
    RunRequested,
    RunStarted,
    RunSucceeded,
)
from metier_infra.journal import Journal
from metier_infra.kafka_bus import KafkaBus
from metier_infra.kafka_topics import Topic
from metier_infra.messages import LARGEST_HEADERS, MOST_HEADERS, Delivery, Envelope, Record, decode, encode
from metier_infra.postgres_journal import PostgresDatabase
from metier_infra.service import Ready, buried
from metier_infra.settings import KafkaSettings
from metier_infra.sqlite_journal import SqliteDatabase
from metier_infra.words import RunId, stable_id
from metier_workflows.orchestrator import Orchestrator
from metier_workflows.workflow import Graph, Workflows, workflow

HUNG = 250
SEED = 20_261_128
pytestmark = pytest.mark.timeout(800)  # ten thousand records on a machine that has other things to do


@pytest.fixture(autouse=True)
def quiet() -> None:
    """Thousands of log lines say nothing more."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))


class State(TypedDict):
    """What the one workflow holds."""

    text: str


async def same(state: State) -> State:
    return state


def graph() -> Graph:
    made = StateGraph(State)
    made.add_node("same", same)
    made.add_edge(START, "same")
    made.add_edge("same", END)
    return made


def good(name: str, **fields: Any) -> Record:
    """A request that runs."""
    asked = RunRequested.model_validate({"workflow": "w", "input": {"text": name}} | fields)
    return encode(REQUESTS, Envelope(asked, name, "/s", name))


def run_id_of(name: str) -> RunId:
    return RunId(stable_id("run", "/s", name))


def with_header(record: Record, name: str, *values: bytes) -> Record:
    kept = [one for one in record.headers if one[0] != name]
    return replace(record, headers=(*kept, *((name, value) for value in values)))


def with_data(text: str | bytes) -> Record:
    return replace(good("bad"), value=text if isinstance(text, bytes) else text.encode())


def request(inside: str) -> Record:
    """A request whose input is spelt so."""
    return with_data(f'{{"workflow": "w", "input": {{"text": {inside}}}}}')


class Role:
    """An orchestrator at work, and all that the topics hold."""

    def __init__(self, bus: Bus, journal: Journal) -> None:
        self.bus, self.journal = bus, journal
        self.stop, self.ready = asyncio.Event(), asyncio.Event()
        served = Workflows([workflow("w")(graph)])
        made = Orchestrator(bus, journal, served, {}, instance="one", drain_s=30)
        self.task = asyncio.create_task(made.run(self.stop, Ready(None, 2, self.ready.set)))

    async def read(self, topic: str, enough: Callable[[list[Delivery]], bool]) -> list[Delivery]:
        """A topic from its beginning, until there is enough."""
        seen: list[Delivery] = []
        stop = asyncio.Event()

        async def keep(delivery: Delivery) -> None:
            seen.append(delivery)
            if enough(seen):
                stop.set()

        async with asyncio.timeout(HUNG):
            await self.bus.consume(Consumption([topic], None), keep, stop)
        return seen

    async def buried(self, count: int = 1) -> list[Delivery]:
        return await self.read(DEAD_LETTERS, lambda seen: len(seen) >= count)

    async def ended(self, *names: str) -> dict[str, RunSucceeded | RunFailed]:
        """The ends of these runs, when all are there."""
        wanted = {run_id_of(name) for name in names}
        ends: dict[str, RunSucceeded | RunFailed] = {}

        def enough(seen: Sequence[Delivery]) -> bool:
            told = decode(seen[-1]).data
            if isinstance(told, RunSucceeded | RunFailed):
                ends[told.run_id] = told
            return ends.keys() >= wanted

        await self.read(EVENTS_TOPIC, enough)
        return ends

    async def runs_still(self, *names: str) -> None:
        """A good request runs, on whatever partition it lies."""
        await self.bus.publish(*[good(name) for name in names])
        ended = await self.ended(*names)
        assert all(isinstance(ended[run_id_of(name)], RunSucceeded) for name in names)

    async def end(self) -> None:
        self.stop.set()
        async with asyncio.timeout(HUNG):
            await self.task


@asynccontextmanager
async def role_of(bus: Bus, journal: Journal) -> AsyncGenerator[Role]:
    role = Role(bus, journal)
    async with asyncio.timeout(HUNG):
        await role.ready.wait()
    yield role
    await role.end()


@pytest.fixture
async def role() -> AsyncGenerator[Role]:
    """In memory."""
    db = SqliteDatabase(":memory:")
    await migrate(db)
    async with role_of(MemoryBus(), Journal(db, lease_s=600)) as made:
        yield made
    await db.close()


@pytest.fixture
async def real_role(kafka: KafkaSettings, postgres_url: str) -> AsyncGenerator[Role]:
    """Over Kafka and Postgres; the topics take what those that `metier topics` makes take."""
    sizes = {REQUESTS: 8 << 20, RUNS: 8 << 20, EVENTS_TOPIC: 8 << 20, DEAD_LETTERS: 10 << 20}
    kafka_topics.apply(kafka, [Topic(name, 2, 1, max_message_bytes=size) for name, size in sizes.items()])
    bus, db = KafkaBus(kafka, client="metier-tests"), await PostgresDatabase(postgres_url).open()
    async with role_of(bus, Journal(db, lease_s=600)) as made:
        yield made
    await bus.close()
    await db.close()


BOMB = tuple((f"x{n}", b"y" * 20) for n in range(MOST_HEADERS + 1))
IN_TWO_DAYS = (datetime.now(UTC) + timedelta(days=2)).isoformat().encode()
BAD = {
    "no event": (Record(REQUESTS, b"k", b"\x00\xff not an event"), "undecodable", "not a CloudEvent"),
    "nothing at all": (Record(REQUESTS, None, b""), "undecodable", "not a CloudEvent"),
    "no data": (with_data(""), "undecodable", "not JSON"),
    "bytes for data": (with_data(b"\xff\xfe\x00"), "undecodable", "not JSON"),
    "half of the data": (with_data('{"workflow": "w", "inp'), "undecodable", "not JSON"),
    "a list": (with_data("[1, 2]"), "undecodable", "data: Input should be a valid dictionary"),
    "a number for a name": (with_data('{"workflow": 7, "input": {}}'), "undecodable", "workflow: "),
    "a list for an object": (with_data('{"workflow": "w", "input": []}'), "undecodable", "input: "),
    "priority beyond": (with_data('{"workflow": "w", "input": {}, "priority": 10}'), "undecodable", "priority: "),
    "not a number": (request("NaN"), "undecodable", "not JSON"),
    "endless": (request("-Infinity"), "undecodable", "not JSON"),
    "too large for a double": (request("1e999"), "undecodable", "no double can hold"),
    "too long for a double": (request("9" * 400 + ".0"), "undecodable", "no double can hold"),
    "half of a character": (request('"\\ud800"'), "undecodable", "not JSON"),
    "a hundred thousand deep": (request("[" * 100_000 + "]" * 100_000), "undecodable", "recursion"),
    "five thousand digits": (request("1" * 5000), "undecodable", "not JSON"),
    "a strange type": (with_header(good("bad"), "ce_type", b"com.shop.sold"), "unknown_event", "not one of ours"),
    "a type of another topic": (encode(REQUESTS, Envelope(RunStarted(run_id=RunId("r"), workflow="w", version="v"), "i", "/s", "r")), "unknown_event", "does not belong on"),
    "no id": (with_header(good("bad"), "ce_id"), "undecodable", "no ce_id"),
    "no source": (with_header(good("bad"), "ce_source"), "undecodable", "not a CloudEvent"),
    "two ids": (with_header(good("bad"), "ce_id", b"a", b"b"), "undecodable", "ce_id stands there twice"),
    "two ids, one in capitals": (with_header(with_header(good("bad"), "ce_id", b"a"), "CE_ID", b"b"), "undecodable", "CE_ID stands there twice"),
    "an id that cannot be printed": (with_header(good("bad"), "ce_id", b"a\x00"), "undecodable", "ce_id must be"),
    "an id without an end": (with_header(good("bad"), "ce_id", b"a" * 1001), "undecodable", "ce_id must be"),
    "another version": (with_header(good("bad"), "ce_specversion", b"9"), "undecodable", "not a CloudEvent"),
    "no time": (with_header(good("bad"), "ce_time", b"yesterday"), "undecodable", "not a CloudEvent"),
    "a day to come": (with_header(good("bad"), "ce_time", IN_TWO_DAYS), "far_future", "behind that by more than a day"),
    "the last day of all": (with_header(good("bad"), "ce_time", b"9999-12-31T23:59:59-12:00"), "far_future", "9999"),
    "more headers than any event needs": (replace(good("bad"), headers=(*good("bad").headers, *BOMB)), "undecodable", "headers of"),
    "a header without an end": (with_header(good("bad"), "x", b"y" * LARGEST_HEADERS), "undecodable", "headers of"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
async def test_what_cannot_be_read_is_buried_with_its_bytes_and_the_reason_and_the_next_one_runs(
    role: Role, name: str
) -> None:
    record, reason, sentence = BAD[name]
    await role.bus.publish(record)
    (dead,) = await role.buried()
    assert (dead.key, dead.value) == (record.key, record.value)
    assert dead.headers[: len(record.headers)] == record.headers
    why = dict(dead.headers)
    assert why["metier-dead-reason"].decode() == reason
    assert sentence in why["metier-dead-message"].decode()
    await role.runs_still("after")


async def test_an_event_of_this_very_day_to_come_is_taken(role: Role) -> None:
    """Clocks differ."""
    soon = (datetime.now(UTC) + timedelta(hours=23)).isoformat().encode()
    await role.bus.publish(with_header(good("soon"), "ce_time", soon))
    assert isinstance((await role.ended("soon"))[run_id_of("soon")], RunSucceeded)


async def test_as_many_headers_as_an_event_may_have_are_no_bomb(role: Role) -> None:
    record = good("many")
    room = MOST_HEADERS - len(record.headers)
    await role.bus.publish(replace(record, headers=(*record.headers, *BOMB[:room])))
    assert isinstance((await role.ended("many"))[run_id_of("many")], RunSucceeded)


async def test_an_unknown_workflow_ends_its_run_with_a_sentence_that_says_what_there_is(role: Role) -> None:
    await role.bus.publish(good("odd", workflow="nothing"))
    end = (await role.ended("odd"))[run_id_of("odd")]
    assert isinstance(end, RunFailed)
    assert (end.failure.code, "serves: w" in end.failure.message) == ("unknown_workflow", True)
    await role.runs_still("after")


def test_fifty_megabytes_are_refused_before_they_are_sent() -> None:
    with pytest.raises(TooLarge, match=r"io\.metier\.run\.requested\.v1 takes 5\d{7} bytes; an event carries"):
        good("big", input={"text": "x" * (50 << 20)})


def test_numbers_that_fit_are_kept_as_they_are() -> None:
    """What looks huge and is not: the check that is taken then must not refuse it."""
    record = request('[1e308, 1e-400, 123456789012345678901234567890, "1e999", "%s"]' % ("1" * 400))
    data = decode(Delivery(REQUESTS, 0, 0, None, record.value, record.headers)).data
    assert isinstance(data, RunRequested)
    assert data.input["text"] == [1e308, 0.0, 123456789012345678901234567890, "1e999", "1" * 400]


def test_a_number_too_large_is_found_however_deep_it_lies() -> None:
    record = request('{"a": [{"b": [1.5, {"c": 1E+9999}]}]}')
    with pytest.raises(Undecodable, match="no double"):
        decode(Delivery(REQUESTS, 0, 0, None, record.value, record.headers))


ODD_TEXT = ["", "\x00", "\ud800", "💥" * 50, "x" * 5000, "../..", "'; DROP TABLE runs", "{}", "NaN", "\u202e", "-0"]
ODD_JSON = ["NaN", "Infinity", "1e999", "-1e-999", "9" * 5000, "9" * 300, "[" * 5000, "null", "true", '""', "{}", "[]",
            '"\\ud800"', '"\\u0000"', "0.1e", "{" * 300, '{"a": 1, "a": 2}', "\ufeff{}"]  # fmt: skip


def fuzzed(chance: random.Random) -> Record:
    """A record that was good, or never was."""
    record = _somewhere(chance)
    for _ in range(chance.choice([0, 1, 1, 1, 2, 3])):
        record = chance.choice(MUTATIONS)(record, chance)
    return record


def _somewhere(chance: random.Random) -> Record:
    name = f"fuzz{chance.randrange(60)}"
    if chance.random() < 0.2:
        told = RunAccepted(run_id=RunId(run_id_of(name)), workflow=chance.choice(["w", "x"]))
        return encode(RUNS, Envelope(told, name, "/s", name))
    return good(name, workflow=chance.choice(["w", "nothing"]), input={"text": chance.choice(ODD_TEXT[3:])})


def _noise(record: Record, chance: random.Random) -> Record:
    return replace(record, value=chance.randbytes(chance.randrange(200)))


def _flip(record: Record, chance: random.Random) -> Record:
    value = bytearray(record.value or b"x")
    value[chance.randrange(len(value))] ^= chance.randrange(1, 256)
    return replace(record, value=bytes(value))


def _cut(record: Record, chance: random.Random) -> Record:
    return replace(record, value=record.value[: chance.randrange(len(record.value) + 1)])


def _field(record: Record, chance: random.Random) -> Record:
    """One field of the data is spelt oddly, or a new one is."""
    try:
        found: object = json.loads(record.value)
    except (ValueError, RecursionError):
        return record
    data = cast("dict[str, object]", found) if isinstance(found, dict) else {}
    name = chance.choice([*data, "run_id", "tenant", "limits", "version", "x" * 300])
    fields = [f"{json.dumps(one)}: {json.dumps(value)}" for one, value in data.items() if one != name]
    fields.append(f"{json.dumps(name)}: {chance.choice(ODD_JSON)}")
    return replace(record, value=f"{{{', '.join(fields)}}}".encode(errors="surrogatepass"))


def _header(record: Record, chance: random.Random) -> Record:
    """One header more, or one that says something else, or one less."""
    names = [one for one, _ in record.headers] or ["ce_id"]
    name = chance.choice([*names, "CE_TYPE", "ce_", "ce_time", "ce_data", "ce_é", "", "traceparent", "content-type"])
    value = chance.choice([b"", b"\xff\xfe", b"1.0", b"x" * 2000, chance.randbytes(20), b"9999-01-01T00:00:00Z",
                           chance.choice(list(EVENTS)).encode()])  # fmt: skip
    if chance.random() < 0.3:
        return replace(record, headers=tuple(one for one in record.headers if one[0] != name))
    return replace(record, headers=(*record.headers, (name, value)))


def _bomb(record: Record, chance: random.Random) -> Record:
    return replace(record, headers=record.headers * chance.randrange(2, 100))


def _key(record: Record, chance: random.Random) -> Record:
    return replace(record, key=chance.choice([None, b"", b"\xff", chance.randbytes(8)]))


def _elsewhere(record: Record, chance: random.Random) -> Record:
    return replace(record, topic=chance.choice([REQUESTS, RUNS]))


def _type(record: Record, chance: random.Random) -> Record:
    return with_header(record, "ce_type", chance.choice(list(EVENTS)).encode())


MUTATIONS = (_noise, _flip, _cut, _field, _field, _field, _header, _header, _bomb, _key, _elsewhere, _type)


def records(count: int, seed: int) -> Iterator[Record]:
    chance = random.Random(seed)
    return (fuzzed(chance) for _ in range(count))


def data_of(delivery: Delivery) -> Event | None:
    """What it says; None where it cannot be read."""
    try:
        return decode(delivery).data
    except BuryRecord:
        return None


Place = tuple[bytes, bytes, bytes]


def places(letters: Sequence[Delivery]) -> dict[Place, Delivery]:
    """Dead letters by the topic, partition and offset where their records lay."""
    names = ("metier-dead-topic", "metier-dead-partition", "metier-dead-offset")
    found: dict[Place, Delivery] = {}
    for letter in letters:
        why = dict(letter.headers)
        found[why[names[0]], why[names[1]], why[names[2]]] = letter
    return found


async def check(role: Role, sent: int) -> None:
    """Each record of both topics is buried as it was, or could be read; and nothing else is buried."""
    await role.runs_still(*[f"after{n}" for n in range(24)])
    await role.end()
    end = Record(DEAD_LETTERS, b"end", b"")
    await role.bus.publish(end)
    letters = await role.read(DEAD_LETTERS, lambda seen: seen[-1].key == b"end" and not seen[-1].headers)
    dead = places([one for one in letters if one.headers])
    lay: list[Delivery] = []
    for topic in (REQUESTS, RUNS):
        await role.bus.publish(Record(topic, b"end", b"", (("end", b"end"),)))
        lay += await role.read(topic, lambda seen: seen[-1].headers == (("end", b"end"),))
    lay = [one for one in lay if one.headers != (("end", b"end"),)]
    assert len(lay) >= sent
    read = 0
    for one in lay:
        letter = dead.get((one.topic.encode(), str(one.partition).encode(), str(one.offset).encode()))
        if letter is None:
            assert data_of(one) is not None, one
            read += 1
        else:
            assert (letter.key, letter.value, letter.headers[: len(one.headers)]) == (one.key, one.value, one.headers)
            assert dict(letter.headers)["metier-dead-reason"] != b"defect", letter
    assert min(read, len(dead)) > sent / 20


async def test_of_ten_thousand_fuzzed_records_each_is_read_or_buried_as_it_was_and_good_ones_run(role: Role) -> None:
    await role.bus.publish(*records(10_000, SEED))
    await check(role, 10_000)


class Bytes(str):
    """A header's name as these bytes: kafka-python encodes what it is given."""

    __slots__ = ("raw",)

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        del encoding, errors
        return b"\xff\xfe" + super().encode()


def large(chance: random.Random) -> list[Record]:
    """As large as the broker takes: data, a key, headers by number and by size."""
    many = tuple((f"x{n}", b"y" * 60) for n in range(60_000))
    return [
        good("large", input={"text": "x" * (5 << 20)}),
        replace(good("bad"), value=chance.randbytes(8_300_000)),
        replace(good("bad"), key=chance.randbytes(7 << 20)),
        replace(good("bad"), headers=(*good("bad").headers, *many)),
        replace(good("bad"), value=chance.randbytes(4 << 20), headers=many[:40_000]),
        with_header(good("bad"), "x", b"y" * 8_300_000),
    ]


async def test_over_kafka_each_is_read_or_buried_as_it_was_the_largest_too_and_good_ones_run(real_role: Role) -> None:
    chance = random.Random(SEED)
    sent = [*records(300, SEED), *large(chance)]
    for record in sent:
        await real_role.bus.publish(record)
    await check(real_role, len(sent))
    assert isinstance((await real_role.ended("large"))[run_id_of("large")], RunSucceeded)


async def test_a_header_whose_name_is_no_text_stops_no_partition(real_role: Role) -> None:
    for n in range(4):
        await real_role.bus.publish(replace(good(f"odd{n}"), headers=((Bytes("name"), b"x"), *good(f"odd{n}").headers)))
    await real_role.runs_still(*[f"after{n}" for n in range(8)])


async def test_twenty_megabytes_are_more_than_the_broker_takes_and_the_next_one_goes_through(real_role: Role) -> None:
    with pytest.raises(TooLarge, match="takes no record of 20971520 bytes"):
        await real_role.bus.publish(Record(REQUESTS, b"k", b"x" * (20 << 20)))
    await real_role.runs_still("after")


class SmallBus(MemoryBus):
    """A broker that takes records of so many bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    async def publish(self, *records: Record) -> None:
        for record in records:
            sizes = [
                len(record.value),
                len(record.key or b""),
                *(len(name) + len(value) for name, value in record.headers),
            ]
            if sum(sizes) > self.limit:
                raise TooLarge("too large")
        await super().publish(*records)


@pytest.mark.parametrize(
    ("value", "key", "header", "without"),
    [
        (10, 10, 10, None),
        (9000, 10, 10, b"value"),
        (10, 9000, 10, b"key"),
        (10, 10, 9000, b"headers"),
        (1500, 10, 3000, b"headers"),
        (5000, 10, 6000, b"headers value"),
        (5000, 6000, 7000, b"headers key value"),
    ],
)
async def test_a_dead_letter_leaves_out_what_does_not_fit_the_largest_first_and_says_so(
    value: int, key: int, header: int, without: bytes | None
) -> None:
    bus = SmallBus(4000)
    bad = Delivery(REQUESTS, 1, 7, b"k" * key, b"v" * value, (("x", b"h" * header),))

    async def cannot(delivery: Delivery) -> None:
        raise Undecodable("no " * 5000)

    await buried(cannot, bus)(bad)
    stop, seen = asyncio.Event(), list[Delivery]()

    async def keep(delivery: Delivery) -> None:
        seen.append(delivery)
        stop.set()

    await bus.consume(Consumption([DEAD_LETTERS], None), keep, stop)
    (letter,) = seen
    why, left = dict(letter.headers), (without or b"").split()
    assert why.get("metier-dead-without") == without
    assert letter.value == (b"" if b"value" in left else bad.value)
    assert letter.key == (None if b"key" in left else bad.key)
    assert (letter.headers[:1] == bad.headers) is (b"headers" not in left)
    assert (why["metier-dead-reason"], why["metier-dead-offset"]) == (b"undecodable", b"7")
