"""Claim check: large data stays in a store, and nobody who publishes or handles sees it; one contract for the folder and for Postgres.

Not here: how the folder itself expires and is read (`test_blobs`).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from metier import client, compose_tools, configuration, roles
from metier_infra.blobs import Blobs, FolderBlobs, digest
from metier_infra.bus import Bus, Consumption, MemoryBus
from metier_infra.claims import ClaimCheck
from metier_infra.errors import BusGone, MissingBlob, MissingService, TooLarge, Undecodable
from metier_infra.events import DEAD_LETTERS, REQUESTS, Event, RunRequested, RunSucceeded
from metier_infra.kafka_bus import KafkaBus
from metier_infra.messages import DATAREF, DATASIZE, LARGEST_VALUE, Delivery, Envelope, Record, decode, encode
from metier_infra.postgres_blobs import PostgresBlobs
from metier_infra.service import send, serve
from metier_infra.settings import KafkaSettings
from metier_infra.socket_bus import serve_bus

HUNG = 60
INLINE = 1 << 10


@pytest.fixture(params=["folder", "postgres"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "folder":
        return FolderBlobs(tmp_path)
    return PostgresBlobs(str(request.getfixturevalue("postgres_url")))


def asking(text: str, event_id: str = "e") -> Envelope[RunRequested]:
    return Envelope(RunRequested(workflow="w", input={"text": text}), event_id, "/shop", "k")


async def taken(bus: Bus, count: int, topic: str = REQUESTS) -> list[Delivery]:
    """The first records of a topic, as a consumer gets them."""
    found: list[Delivery] = []
    stop = asyncio.Event()

    async def keep(delivery: Delivery) -> None:
        found.append(delivery)
        if len(found) == count:
            stop.set()

    async with asyncio.timeout(HUNG):
        await bus.consume(Consumption([topic], None), keep, stop)
    return found


def claim_of(record: Record | Delivery) -> bytes | None:
    return dict(record.headers).get(DATAREF)


def claiming(sha256: str, *more: tuple[str, bytes]) -> Record:
    """What a backend sends that put the data itself."""
    bare = encode(REQUESTS, asking("x"))
    return replace(bare, value=b"", headers=(*bare.headers, (DATAREF, f"sha256:{sha256}".encode()), *more))


def test_what_was_put_is_got_back_unchanged_and_putting_again_is_harmless(blobs: Blobs) -> None:
    data = bytes(range(256)) * 5000
    assert [blobs.put(data), blobs.put(data), blobs.put(b"")] == [digest(data), digest(data), digest(b"")]
    assert (blobs.get(digest(data)), blobs.get(digest(b""))) == (data, b"")


@pytest.mark.parametrize("claim", ["0" * 64, "", "../../etc/passwd", "A" * 64, "0" * 63 + "\n", "'; DROP TABLE blobs"])
def test_a_digest_that_is_not_there_or_is_none_is_said_so(blobs: Blobs, claim: str) -> None:
    with pytest.raises(MissingBlob):
        blobs.get(claim)


def test_bytes_of_postgres_that_were_changed_are_not_given_out_and_are_whole_when_put_again(postgres_url: str) -> None:
    blobs = PostgresBlobs(postgres_url)
    claim = blobs.put(b"true")
    with psycopg.connect(postgres_url) as connection:
        connection.execute("UPDATE blobs SET body = 'false'")
    with pytest.raises(MissingBlob, match="not what was put there"):
        blobs.get(claim)
    assert blobs.put(b"true") == claim
    assert blobs.get(claim) == b"true"


def age(blobs: Blobs, claim: str, request: pytest.FixtureRequest) -> None:
    """As if it had been put 100 s before."""
    if isinstance(blobs, FolderBlobs):
        place = request.getfixturevalue("tmp_path") / claim[:2] / claim[2:]
        then = time.time() - 100
        os.utime(place, (then, then))
        return
    with psycopg.connect(request.getfixturevalue("postgres_url")) as connection:
        connection.execute("UPDATE blobs SET put_at = put_at - 100 WHERE sha256 = %s", (claim,))


def test_what_nobody_put_for_so_long_is_pruned_and_nothing_else(blobs: Blobs, request: pytest.FixtureRequest) -> None:
    old, again, young = (blobs.put(data) for data in (b"old", b"again", b"young"))
    for claim in (old, again):
        age(blobs, claim, request)
    blobs.put(b"again")
    assert [blobs.prune(200), blobs.prune(50), blobs.prune(50)] == [0, 1, 0]
    assert (blobs.get(again), blobs.get(young)) == (b"again", b"young")
    with pytest.raises(MissingBlob):
        blobs.get(old)


def test_a_postgres_that_does_not_answer_is_said_in_a_sentence() -> None:
    blobs = PostgresBlobs("postgresql://nobody@127.0.0.1:1/none")
    for use in (lambda: blobs.put(b"x"), lambda: blobs.get("0" * 64), lambda: blobs.prune(1)):
        with pytest.raises(MissingService, match=r"blob store in Postgres cannot be used: .*refused"):
            use()


async def test_large_data_travels_as_a_claim_and_is_whole_again_where_it_is_handled(blobs: Blobs) -> None:
    inner = MemoryBus()
    bus, text = ClaimCheck(inner, blobs, INLINE), "6·7" * 1000
    await send(bus, REQUESTS, asking("short"), asking(text))
    short, long = await taken(inner, 2)
    assert (claim_of(short), json.loads(short.value)["input"]) == (None, {"text": "short"})
    assert long.value == b""
    data = blobs.get((claim_of(long) or b"").decode().removeprefix("sha256:"))
    assert json.loads(data)["input"] == {"text": text}
    assert dict(long.headers)[DATASIZE] == b"%d" % len(data)
    handled = [decode(delivery).data for delivery in await taken(bus, 2)]
    assert handled == [asking("short").data, asking(text).data]


async def test_what_is_just_as_long_as_a_record_may_be_goes_in_the_record(tmp_path: Path) -> None:
    inner = MemoryBus()
    bus = ClaimCheck(inner, FolderBlobs(tmp_path), INLINE)
    await bus.publish(Record(REQUESTS, b"k", b"x" * INLINE), Record(REQUESTS, b"k", b"x" * (INLINE + 1)))
    assert [len(one.value) for one in await taken(inner, 2)] == [INLINE, 0]


async def test_twenty_megabytes_pass_through_the_real_broker(blobs: Blobs, topics: KafkaSettings) -> None:
    kafka = KafkaBus(topics, client="metier-tests")
    bus, text = ClaimCheck(kafka, blobs), "x" * 20_000_000
    try:
        await send(bus, REQUESTS, asking(text))
        (delivery,) = await taken(bus, 1)
    finally:
        await bus.close()
    assert decode(delivery).data == asking(text).data


async def test_a_backend_may_send_a_claim_on_what_it_put(blobs: Blobs) -> None:
    inner = MemoryBus()
    await inner.publish(claiming(blobs.put(b'{"workflow": "w", "input": {"text": "by claim"}}')))
    (delivery,) = await taken(ClaimCheck(inner, blobs, INLINE), 1)
    assert decode(delivery).data == asking("by claim").data


async def test_data_that_came_in_the_record_is_taken_from_it_whatever_is_claimed(tmp_path: Path) -> None:
    inner, record = MemoryBus(), encode(REQUESTS, asking("here"))
    blobs = FolderBlobs(tmp_path)
    claim = f"sha256:{blobs.put(encode(REQUESTS, asking('elsewhere')).value)}".encode()
    await inner.publish(replace(record, headers=(*record.headers, (DATAREF, claim))))
    (delivery,) = await taken(ClaimCheck(inner, blobs, INLINE), 1)
    assert decode(delivery).data == asking("here").data


async def handled_or_buried(bus: Bus, *records: Record, dead: int = 1) -> tuple[list[Event], Sequence[Delivery]]:
    """What a role does with records, and a good one after them: what it handled, and so many dead letters."""
    seen: list[Event] = []
    stop = asyncio.Event()

    async def handle(envelope: Envelope[RunRequested], _: Delivery) -> None:
        seen.append(envelope.data)
        if envelope.id == "last":
            stop.set()

    await bus.publish(*records, encode(REQUESTS, asking("good", "last")))
    async with asyncio.timeout(HUNG):
        await serve(bus, Consumption([REQUESTS], "g", concurrency=1), {RunRequested: handle}, stop)
    return seen, await taken(bus, dead, DEAD_LETTERS) if dead else []


@pytest.mark.parametrize(
    "claim", ["0" * 64, "", "../../etc/passwd", "x" * 1000, "\x00", "file:///etc/passwd"], ids=ascii
)
async def test_a_claim_that_cannot_be_redeemed_is_buried_as_it_came_and_stops_nothing(
    tmp_path: Path, claim: str
) -> None:
    record = claiming(claim)
    seen, (dead,) = await handled_or_buried(ClaimCheck(MemoryBus(), FolderBlobs(tmp_path), INLINE), record)
    headers = dict(dead.headers)
    assert seen == [asking("good").data]
    assert (dead.key, dead.value, dead.headers[: len(record.headers)]) == (record.key, b"", record.headers)
    assert headers["metier-dead-reason"] == b"undecodable"
    assert b"in no blob store of ours" in headers["metier-dead-message"]


@pytest.fixture
def most(monkeypatch: pytest.MonkeyPatch) -> int:
    """An event takes so little, so that the tests need not make one of many megabytes."""
    for module in ("messages", "claims"):
        assert vars(sys.modules[f"metier_infra.{module}"])["LARGEST_VALUE"] == LARGEST_VALUE
        monkeypatch.setattr(f"metier_infra.{module}.LARGEST_VALUE", 4096)
    return 4096


async def test_the_largest_that_can_be_sent_is_not_too_large_to_be_handled(tmp_path: Path, most: int) -> None:
    bus = ClaimCheck(MemoryBus(), FolderBlobs(tmp_path), INLINE)
    around = len(encode(REQUESTS, asking("")).value)
    largest = asking("x" * (most - around))
    with pytest.raises(TooLarge):
        encode(REQUESTS, asking("x" * (most - around + 1)))
    await send(bus, REQUESTS, largest)
    (delivery,) = await taken(bus, 1)
    assert decode(delivery).data == largest.data


async def test_more_than_an_event_may_carry_is_buried_and_not_read_as_one(tmp_path: Path, most: int) -> None:
    blobs = FolderBlobs(tmp_path)
    fitting = encode(REQUESTS, asking("")).value.ljust(most)
    bus = ClaimCheck(MemoryBus(), blobs, INLINE)
    records = [claiming(blobs.put(data)) for data in (fitting + b" ", fitting)]
    seen, (dead,) = await handled_or_buried(bus, *records)
    assert seen == [asking("").data, asking("good").data]
    assert b"too large" in dict(dead.headers)["metier-dead-message"]


async def test_large_bytes_that_cannot_be_read_are_whole_among_the_dead_letters(tmp_path: Path) -> None:
    inner, junk = MemoryBus(), b"\xff" * (INLINE * 3)
    bus = ClaimCheck(inner, FolderBlobs(tmp_path), INLINE)
    record = replace(encode(REQUESTS, asking("x")), value=junk)
    _, (dead,) = await handled_or_buried(bus, record)
    assert dead.value == junk
    await bus.publish(Record(REQUESTS, dead.key, dead.value, dead.headers))
    again = (await taken(inner, 3))[-1]
    assert [name for name, _ in again.headers].count(DATAREF) == 1


class Away:
    """A store that does not answer the first time."""

    def __init__(self, inner: Blobs) -> None:
        self._inner, self.asked = inner, 0

    def _here(self) -> Blobs:
        self.asked += 1
        if self.asked == 1:
            raise MissingService("the blob store is away")
        return self._inner

    def put(self, data: bytes) -> str:
        return self._here().put(data)

    def get(self, sha256: str) -> bytes:
        return self._here().get(sha256)

    def prune(self, older_s: float) -> int:
        return self._here().prune(older_s)


async def test_a_store_that_is_away_loses_nothing_in_either_direction(tmp_path: Path) -> None:
    folder = FolderBlobs(tmp_path)
    inner, store = MemoryBus(), Away(folder)
    with pytest.raises(BusGone, match="the blob store is away"):
        await send(ClaimCheck(inner, store, INLINE), REQUESTS, asking("y" * 5000))
    await send(ClaimCheck(inner, store, INLINE), REQUESTS, asking("z" * 5000))
    bus = ClaimCheck(inner, Away(folder), INLINE)
    seen, _ = await handled_or_buried(bus, dead=0)
    assert seen == [asking("z" * 5000).data, asking("good").data]


def test_without_a_store_a_claim_is_undecodable_and_data_beside_it_is_not() -> None:
    record = claiming("0" * 64)
    with pytest.raises(Undecodable, match="no blob store of ours under 'sha256:000"):
        decode(Delivery(REQUESTS, 0, 0, None, record.value, record.headers))
    value = encode(REQUESTS, asking("x")).value
    assert decode(Delivery(REQUESTS, 0, 0, None, value, record.headers)).data == asking("x").data


ECHO = """
from typing import TypedDict
from langgraph.graph import END, START, StateGraph
from pydantic import BaseModel
from metier import workflow

class Text(BaseModel):
    text: str

class State(TypedDict):
    text: str

@workflow("echo", input=Text)
def echo():
    graph = StateGraph(State)
    graph.add_node("say", lambda state: {"text": state["text"]})
    graph.add_edge(START, "say")
    graph.add_edge("say", END)
    return graph
"""


async def test_twenty_megabytes_go_into_a_system_in_one_process_and_come_out_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "claim_check_echo.py").write_text(ECHO)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("METIER_KAFKA_BOOTSTRAP", "METIER_POSTGRES_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("METIER_SQLITE_PATH", str(tmp_path / "journal.db"))
    monkeypatch.setenv("METIER_TOOL_BLOBS", str(tmp_path / "blobs"))
    monkeypatch.setenv("METIER_WORKFLOWS", "claim_check_echo")
    config, bus = configuration.configure(), MemoryBus()
    socket, text = serve_bus(bus, client.dev_socket(config)), "x" * 20_000_000
    running = roles.embedded(config, lane=compose_tools.scripted_lane(), bus=bus)
    async with running, socket, client.connect(config) as system:
        end = await client.publish_and_wait(system.bus, "echo", {"text": text}, event_id="big", timeout_s=HUNG)
    assert isinstance(end, RunSucceeded)
    assert end.result == {"text": text}
    assert {one.value for one in await taken(bus, 1)} == {b""}
