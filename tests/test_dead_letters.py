"""Dead letters: whatever was buried is found, shown safely, and sent again byte for byte, once. Over every bus, the real Kafka too.

Not here: what is buried and when; `test_service` and `test_bad_input` have that.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import threading
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from typer.testing import CliRunner, Result

from metier.cli import app
from metier.moments import since_of
from metier_infra import kafka_scan
from metier_infra.blobs import FolderBlobs
from metier_infra.bus import Bus, Consumption, MemoryBus
from metier_infra.claims import ClaimCheck
from metier_infra.dead_letters import Scan, Wanted, in_parts, letter_of, redrive, summaries, whole
from metier_infra.errors import BadSettings, BusGone, LetterIncomplete, MissingLetter, MissingService, Undecodable
from metier_infra.events import DEAD_LETTERS, REQUESTS, RUNS
from metier_infra.kafka_bus import KafkaBus
from metier_infra.messages import Delivery, Headers, Nothing, Record
from metier_infra.service import buried, dead_letter
from metier_infra.settings import KafkaSettings, load
from metier_infra.socket_bus import SocketBus, serve_bus

HUNG = 30
ODD: Headers = (
    ("metier-dead-redriven", b"metier.requests@0:0"),
    ("twice", b"1"),
    ("twice", b"2"),
    ("", b""),
    ("raw", b"\xff\x00\x1b[31m"),
    ("traceparent", b"00-not-one"),
    ("metier-dead-reason", b"the original said so itself"),
)
RECORDS = {
    "odd headers": Record(REQUESTS, b"key", b"value", ODD),
    "not UTF-8": Record(REQUESTS, b"\xff\x80", b"\xff\x00\x80" * 50),
    "no key": Record(REQUESTS, None, b"value"),
    "an empty key": Record(REQUESTS, b"", b"value"),
    "an empty value": Record(RUNS, b"key", b""),
    "no value": Record(RUNS, b"key", Nothing()),
    "no header": Record(REQUESTS, b"key", b"value", ()),
    "large": Record(REQUESTS, b"key", secrets.token_bytes(700_000)),
}


@dataclass
class Post:
    """A bus, and a look at what lies on its topics."""

    bus: Bus
    scan: Scan

    async def lie(self, topic: str) -> list[Delivery]:
        """All that lies on a topic."""
        found: list[Delivery] = []
        await self.scan(topic, found.append)
        return found

    async def bury(self, *records: Record) -> list[str]:
        """Publish records that nobody can handle and let them be buried; the ids of their letters."""
        await self.bus.publish(*records)
        return [one for topic in {one.topic for one in records} for one in await self.bury_there(topic)]

    async def bury_there(self, topic: str) -> list[str]:
        """Let all that lies on a topic be buried."""
        stop = asyncio.Event()
        left = len(await self.lie(topic))

        async def refuse(delivery: Delivery) -> None:
            raise Undecodable(f"it cannot be read: {delivery.offset}\x1b[2J")

        async def handle(delivery: Delivery) -> None:
            nonlocal left
            await buried(refuse, self.bus)(delivery)
            left -= 1
            if left == 0:
                stop.set()

        async with asyncio.timeout(HUNG):
            await self.bus.consume(Consumption([topic], None), handle, stop)
        return [one.id for one in await summaries(self.scan, Wanted(topic=topic))]


@pytest.fixture(params=["memory", "socket", "kafka"])
async def post(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Post]:
    async with AsyncExitStack() as after:
        if request.param == "memory":
            memory = MemoryBus()
            yield Post(memory, memory.scan)
        elif request.param == "socket":
            await after.enter_async_context(serve_bus(MemoryBus(), tmp_path / "bus.sock"))
            socket = SocketBus(tmp_path / "bus.sock")
            yield Post(socket, socket.scan)
        else:
            settings: KafkaSettings = request.getfixturevalue("topics")
            kafka = KafkaBus(settings, client="metier-tests")
            after.push_async_callback(kafka.close)
            yield Post(kafka, partial(kafka_scan.scan, settings))


@pytest.fixture
def memory() -> Post:
    bus = MemoryBus()
    return Post(bus, bus.scan)


def as_sent(one: Record | Delivery) -> tuple[object, ...]:
    """All that a record is, nothings told from empty bytes."""
    return one.topic, one.key, bytes(one.value), isinstance(one.value, Nothing), one.headers


@pytest.mark.parametrize("name", RECORDS)
async def test_a_record_that_was_buried_and_sent_again_is_to_the_byte_what_it_was(post: Post, name: str) -> None:
    # Given
    record = RECORDS[name]
    (letter_id,) = await post.bury(record)
    # When
    await redrive(post.bus, (await whole(post.scan, [letter_id]))[letter_id])
    # Then
    first, again = await post.lie(record.topic)
    assert as_sent(again) == as_sent(first) == as_sent(record)


async def test_a_record_without_key_and_value_is_buried_and_sent_too(post: Post) -> None:
    (letter_id,) = await post.bury(Record(REQUESTS, None, Nothing(), ODD))
    await redrive(post.bus, (await whole(post.scan, [letter_id]))[letter_id])
    assert [(one.key, bytes(one.value), one.headers) for one in await post.lie(REQUESTS)] == [(None, b"", ODD)] * 2


@pytest.mark.parametrize("value", [b"x" * 5000, json.dumps({"run_id": "x" * 5000}).encode()], ids=["inline", "claimed"])
async def test_what_a_role_buries_beside_a_blob_store_is_sent_again_as_it_lay_on_the_topic(
    post: Post, tmp_path: Path, value: bytes
) -> None:
    """A role publishes and consumes through the claim check; who sends letters again does not."""
    role = ClaimCheck(post.bus, FolderBlobs(tmp_path), 1000)
    large = Record(REQUESTS, b"k", value, ODD)
    await (post.bus.publish(large) if value.startswith(b"x") else role.publish(large))
    (first,) = await post.lie(REQUESTS)
    assert bool(first.value) == value.startswith(b"x")
    (letter_id,) = await Post(role, post.scan).bury_there(REQUESTS)
    await redrive(post.bus, (await whole(post.scan, [letter_id]))[letter_id])
    _, again = await post.lie(REQUESTS)
    assert as_sent(again) == as_sent(first)


async def test_kafkas_own_client_sees_the_same_bytes_again(topics: KafkaSettings) -> None:
    """Not by our reading: another's producer wrote it, another's consumer reads both."""
    producer = KafkaProducer(bootstrap_servers=topics.bootstrap)
    headers = [("twice", b"1"), ("twice", b"2"), ("raw", b"\xff")]
    for value in (None, b"", b"\xff"):
        producer.send(topics.prefix + REQUESTS, value=value, key=b"\x00", headers=headers).get(timeout=HUNG)
    producer.close()
    bus = KafkaBus(topics, client="metier-tests")
    post = Post(bus, partial(kafka_scan.scan, topics))
    for letter in (await whole(post.scan, await post.bury_there(REQUESTS))).values():
        await redrive(bus, letter)
    await bus.close()
    consumer = KafkaConsumer(bootstrap_servers=topics.bootstrap)
    parts = [TopicPartition(topics.prefix + REQUESTS, number) for number in range(2)]
    consumer.assign(parts)
    consumer.seek_to_beginning(*parts)
    found: list[Any] = []
    while len(found) < 6:
        found += [record for batch in consumer.poll(500).values() for record in batch]
    consumer.close()
    assert [(one.value, one.key, list(one.headers or ())) for one in found] == [
        (value, b"\x00", headers) for value in (None, b"", b"\xff")
    ] * 2


async def test_a_letter_says_where_it_lay_why_and_when(post: Post) -> None:
    (letter_id,) = await post.bury(RECORDS["odd headers"])
    (original,) = await post.lie(REQUESTS)
    (found,) = await summaries(post.scan, Wanted())
    assert letter_id == f"{REQUESTS}@{original.partition}:{original.offset}"
    assert (found.reason, found.message) == ("undecodable", f"it cannot be read: {original.offset}\x1b[2J")
    assert (found.size, found.key, found.redriven, found.complete) == (5, b"key", False, True)
    assert found.at > 1.7e9


async def test_letters_are_found_by_reason_topic_and_time(memory: Post) -> None:
    for n, (topic, reason, at) in enumerate(
        [(REQUESTS, "undecodable", 100), (RUNS, "undecodable", 200), (REQUESTS, "defect", 300)]
    ):
        await memory.bus.publish(a_letter(topic, n, reason=reason, at=at))

    async def found(**wanted: Any) -> list[int]:
        return [one.offset for one in await summaries(memory.scan, Wanted(**wanted))]

    assert await found() == [0, 1, 2]
    assert await found(reason="undecodable") == [0, 1]
    assert await found(topic=REQUESTS) == [0, 2]
    assert await found(since=200) == [1, 2]
    assert await found(topic=REQUESTS, reason="undecodable", since=101) == []


def a_letter(topic: str, offset: int, *, reason: str = "undecodable", at: float = 1.0, value: bytes = b"v") -> Record:
    own = {"reason": reason, "message": "m", "topic": topic, "partition": "0", "offset": str(offset), "at": str(at)}
    return Record(
        DEAD_LETTERS, b"k", value, tuple((f"metier-dead-{name}", text.encode()) for name, text in own.items())
    )


async def test_a_record_that_was_buried_twice_is_one_letter(memory: Post) -> None:
    await memory.bus.publish(a_letter(REQUESTS, 7), a_letter(REQUESTS, 7, at=2.0))
    assert [one.at for one in await summaries(memory.scan, Wanted())] == [1.0]


async def test_what_others_wrote_on_the_topic_is_shown_and_cannot_be_sent_anywhere(memory: Post) -> None:
    hostile = (("metier-dead-reason", b"x"), ("metier-dead-partition", b"-1"), ("metier-dead-at", b"nan?"))
    await memory.bus.publish(Record(DEAD_LETTERS, None, b"junk"), Record(DEAD_LETTERS, None, b"junk", hostile))
    found = await summaries(memory.scan, Wanted())
    assert [one.id.partition("@")[0] for one in found] == [DEAD_LETTERS] * 2
    for one in found:
        with pytest.raises(LetterIncomplete, match="was not buried by Métier"):
            await redrive(memory.bus, one)


async def test_a_letter_that_was_not_kept_whole_is_not_sent(memory: Post) -> None:
    delivery = Delivery(REQUESTS, 0, 3, b"k", b"x" * 10)
    await memory.bus.publish(dead_letter(delivery, Undecodable("no"), without=["value"]))
    (one,) = (await whole(memory.scan, [f"{REQUESTS}@0:3"])).values()
    with pytest.raises(LetterIncomplete, match="without its value"):
        await redrive(memory.bus, one)
    assert await memory.lie(REQUESTS) == []


async def test_a_summary_holds_little_of_a_large_record(memory: Post) -> None:
    await memory.bury(replace(RECORDS["large"], headers=ODD))
    (one,) = await summaries(memory.scan, Wanted())
    assert (len(one.value), one.headers, one.size) == (200, (), 700_000)


async def test_a_topic_that_is_not_there_is_a_sentence(kafka: KafkaSettings) -> None:
    with pytest.raises(MissingService, match="metier topics"):
        await kafka_scan.scan(kafka, DEAD_LETTERS, print)


async def test_a_broker_that_is_not_there_is_a_sentence() -> None:
    nobody = load(KafkaSettings).model_copy(update={"bootstrap": "127.0.0.1:9"})
    with pytest.raises(BusGone):
        await kafka_scan.scan(nobody, DEAD_LETTERS, print)


async def test_a_scan_ends_where_the_topic_ended_when_it_began(topics: KafkaSettings) -> None:
    bus, seen = KafkaBus(topics, client="metier-tests"), list[Delivery]()
    await bus.publish(*[Record(DEAD_LETTERS, b"%d" % n, b"%d" % n) for n in range(50)])
    await kafka_scan.scan(topics, DEAD_LETTERS, seen.append)
    await bus.close()
    assert sorted(int(one.value) for one in seen) == list(range(50))


@pytest.mark.parametrize(
    ("text", "since"),
    [(None, 0), ("30s", 970), ("2m", 880), ("0.5h", -800), ("1d", -85400), ("1970-01-01T00:01", 60),
     ("1970-01-01T01:01+01:00", 60)],
)  # fmt: skip
def test_a_moment_is_so_long_ago_or_a_time(text: str | None, since: float) -> None:
    assert since_of(text, 1000) == since


@pytest.mark.parametrize("text", ["", "soon", "-1h", "1w", "1h "])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(BadSettings, match="is no moment"):
        since_of(text, 1000)


class Served:
    """A bus in memory that a thread serves at this folder's socket, as `metier dev` does, and the commands beside it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, bus: MemoryBus) -> None:
        self.loop, self.bus = loop, bus

    def publish(self, *records: Record) -> None:
        asyncio.run_coroutine_threadsafe(self.bus.publish(*records), self.loop).result(HUNG)

    def lie(self, topic: str) -> Sequence[Delivery]:
        return self.bus.records(topic)

    def say(self, *words: str) -> Result:
        return CliRunner().invoke(app, ["dead-letters", *words])

    def json(self, *words: str) -> Any:
        said = self.say(*words, "--json")
        assert said.exit_code == 0, said.output
        return json.loads(said.stdout)


@contextmanager
def served(folder: Path) -> Generator[Served]:
    ready, stop = threading.Event(), asyncio.Event()
    made: list[Served] = []

    async def serve() -> None:
        bus = MemoryBus()
        async with serve_bus(bus, folder / ".metier" / "dev.sock"):
            made.append(Served(asyncio.get_running_loop(), bus))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(HUNG)
    yield made[0]
    made[0].loop.call_soon_threadsafe(stop.set)
    thread.join(HUNG)


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.chdir(tmp_path)
    for name in ("METIER_KAFKA_BOOTSTRAP", "METIER_POSTGRES_URL", "METIER_SQLITE_PATH"):
        monkeypatch.delenv(name, raising=False)
    with served(tmp_path) as made:
        yield made


def test_the_list_shows_the_newest_and_escapes_what_others_wrote(dev: Served) -> None:
    dev.publish(*[a_letter(REQUESTS, n, reason="x\x1b[2J", at=n + 1) for n in range(5)])
    said = dev.say("list", "--limit", "2")
    assert said.exit_code == 0
    assert "\x1b" not in said.output
    assert [f"{REQUESTS}@0:{n}" in said.output for n in range(5)] == [False, False, False, True, True]
    assert [one["offset"] for one in dev.json("list", "--since", "1970-01-01T00:00:04")] == [3, 4]


def test_a_letter_is_shown_as_it_was(dev: Served) -> None:
    headers: Headers = (("twice", b"1"), ("twice", b"\xff"), ("metier-dead-reason", b"its own"))
    letter = dead_letter(Delivery(REQUESTS, 1, 10, None, b"a\x1b[31m\xe2\x80\xaeb", headers), Undecodable("no"))
    dev.publish(letter)
    said = dev.say("show", f"{REQUESTS}@1:10")
    assert "twice: 1" in said.output
    assert "twice: hex ff" in said.output
    assert "a\\x1b[31m\\u202eb" in said.output
    assert "none" in said.output
    told = dev.json("show", f"{REQUESTS}@1:10")
    assert told["headers"] == [
        ["twice", {"text": "1"}],
        ["twice", {"base64": base64.b64encode(b"\xff").decode()}],
        ["metier-dead-reason", {"text": "its own"}],
    ]
    assert (told["key"], told["value"], told["reason"]) == (None, {"text": "a\x1b[31m\u202eb"}, "undecodable")


def test_a_long_value_is_cut_on_the_terminal_and_whole_in_json(dev: Served) -> None:
    dev.publish(a_letter(REQUESTS, 0, value=b"x" * 100_000), a_letter(REQUESTS, 1, value=b"\xff" * 100_000))
    for n in range(2):
        assert len(dev.say("show", f"{REQUESTS}@0:{n}").output) < 6000
    assert len(dev.json("show", f"{REQUESTS}@0:0")["value"]["text"]) == 100_000


def test_a_letter_is_sent_again_once_unless_it_is_said_so(dev: Served) -> None:
    dev.publish(a_letter(REQUESTS, 0), a_letter(REQUESTS, 1), a_letter(RUNS, 2))
    name = f"{REQUESTS}@0:0"
    assert dev.json("redrive", name) == [{"id": name, "state": "redriven"}]
    assert dev.json("redrive", name) == [{"id": name, "state": "redriven before"}]
    assert dev.json("redrive", "--topic", REQUESTS) == [{"id": f"{REQUESTS}@0:1", "state": "redriven"}]
    assert len(dev.lie(REQUESTS)) == 2
    assert [one["redriven"] for one in dev.json("list")] == [True, True, False]
    assert dev.json("redrive", name, "--again") == [{"id": name, "state": "redriven"}]
    assert len(dev.json("redrive", "--topic", REQUESTS, "--again")) == 2
    assert len(dev.lie(REQUESTS)) == 5


def test_so_many_of_the_oldest_are_sent_in_their_order(dev: Served) -> None:
    dev.publish(*[a_letter(REQUESTS, n, value=b"%d" % n, at=n + 1) for n in range(60)])
    assert len(dev.json("redrive", "--reason", "undecodable", "--limit", "45")) == 45
    assert [int(one.value) for one in dev.lie(REQUESTS)] == list(range(45))


def test_one_that_cannot_be_sent_keeps_no_other_and_is_said(dev: Served) -> None:
    whole_one, cut = Delivery(REQUESTS, 0, 1, b"k", b"v"), Delivery(REQUESTS, 0, 2, b"k", b"v")
    dev.publish(
        dead_letter(cut, Undecodable("no"), without=["value"]),
        dead_letter(whole_one, Undecodable("no")),
    )
    said = dev.say("redrive", "--topic", REQUESTS)
    assert said.exit_code == 1
    assert "1 of 2 letters redriven" in said.output
    assert len(dev.lie(REQUESTS)) == 1


@pytest.mark.parametrize(
    "words", [("redrive",), ("redrive", "x@0:1", "--topic", REQUESTS), ("list", "--since", "soon")]
)
def test_what_is_not_clear_sends_nothing(dev: Served, words: tuple[str, ...]) -> None:
    dev.publish(a_letter(REQUESTS, 0))
    assert isinstance(dev.say(*words).exception, BadSettings)
    assert dev.lie(REQUESTS) == []


def test_many_are_sent_by_what_they_have_in_common_each_once_and_in_their_order(dev: Served) -> None:
    letters = [Delivery(REQUESTS, 0, n, b"k", b"%d" % n, ()) for n in range(1_000)]
    dev.publish(*[dead_letter(one, Undecodable("no")) for one in letters])

    done = dev.json("redrive", "--reason", "undecodable")

    assert [one["state"] for one in done] == ["redriven"] * 1_000
    assert [one.value for one in dev.lie(REQUESTS)] == [one.value for one in letters]
    assert dev.json("redrive", "--reason", "undecodable") == []


def test_letters_are_held_in_parts_of_so_many_bytes() -> None:
    sizes = [11, 3, 3, 4, 1]
    letters = [replace(letter_of(Delivery(REQUESTS, 0, n, None, b"", ())), size=size) for n, size in enumerate(sizes)]

    parts = [[int(name.rpartition(":")[2]) for name in part] for part in in_parts(letters, 10)]

    assert parts == [[0], [1, 2, 3], [4]]
    assert [*in_parts([], 10)] == []


@pytest.mark.parametrize("words", [("show", "nothing@0:1"), ("redrive", f"{REQUESTS}@0:0", "nothing@0:1")])
def test_a_letter_that_is_not_there_is_said_and_nothing_is_sent(dev: Served, words: tuple[str, ...]) -> None:
    dev.publish(a_letter(REQUESTS, 0))
    assert isinstance(dev.say(*words).exception, MissingLetter)
    assert dev.lie(REQUESTS) == []


def test_any_bytes_are_a_letter() -> None:
    for _ in range(200):
        names = [secrets.choice(["metier-dead-reason", "metier-dead-offset", "metier-dead-at", "x"]) for _ in range(4)]
        headers = tuple((name, secrets.token_bytes(secrets.randbelow(6))) for name in names)
        letter = letter_of(Delivery(DEAD_LETTERS, 0, 5, secrets.token_bytes(3), secrets.token_bytes(9), headers))
        assert letter.size == 9
