"""What a model writes, told as it comes, through the real worker on the in-memory bus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from metier_agents import telling
from metier_agents.model import ScriptedModel
from metier_agents.turns import ModelTurn
from metier_infra.bus import MemoryBus
from metier_infra.errors import BusGone, ModelBusy
from metier_infra.events import EVENTS_TOPIC
from metier_infra.messages import Delivery, Record, decode
from metier_infra.outgoing import Outgoing
from metier_infra.progress_events import TextWritten
from metier_infra.rows import Call
from metier_infra.words import CallId, RunId, Stamp, Task

CALL = Call(call_id=CallId("c"), run_id=RunId("r"), agent="a", task=Task(text="t"), deadline=2e9, attempt=1)
STAMP = Stamp(agent="a", digest="d")


class Kept(MemoryBus):
    """A bus that shows what was published, and whose broker is away while `away`."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[Record] = []
        self.away = False
        self.heard = asyncio.Event()

    async def publish(self, *records: Record) -> None:
        if self.away:
            raise BusGone("no broker")
        self.taken += records
        self.heard.set()
        await super().publish(*records)

    @property
    def told(self) -> list[TextWritten]:
        found = [decode(Delivery(one.topic, 0, 0, one.key, one.value, one.headers)).data for one in self.taken]
        return [one for one in found if isinstance(one, TextWritten)]


@pytest.fixture
async def bus() -> AsyncIterator[Kept]:
    kept = Kept()
    yield kept
    await kept.close()


async def test_the_pieces_of_a_request_come_in_order_and_the_last_is_marked(bus: Kept) -> None:
    outgoing = Outgoing(bus)
    async with telling.Teller(outgoing, CALL, STAMP).telling(3) as say:
        say("Once ")
        say("upon ")
        await bus.heard.wait()
        say("a time")
    await outgoing.drain()
    assert "".join(one.text for one in bus.told) == "Once upon a time"
    assert [one.piece for one in bus.told] == [0, -1]
    assert {(one.step, one.attempt, one.stamp) for one in bus.told} == {(3, 1, STAMP)}
    assert {record.topic for record in bus.taken} == {EVENTS_TOPIC}
    assert {record.key for record in bus.taken} == {b"r"}


async def test_a_request_that_is_made_again_tells_under_a_higher_attempt_and_other_ids(bus: Kept) -> None:
    outgoing = Outgoing(bus)
    teller = telling.Teller(outgoing, CALL, STAMP)
    with suppress(ModelBusy):
        async with teller.telling(0) as say:
            say("half an ans")
            await bus.heard.wait()
            raise ModelBusy("cut")
    async with teller.telling(0) as say:
        say("a whole answer")
    await outgoing.drain()
    assert [(one.attempt, one.piece, one.text) for one in bus.told] == [
        (1, 0, "half an ans"),
        (2, -1, "a whole answer"),
    ]
    ids = [dict(record.headers)["ce_id"] for record in bus.taken]
    assert len(set(ids)) == len(ids)


async def test_a_broker_that_is_away_costs_pieces_and_not_the_answer(bus: Kept) -> None:
    bus.away = True
    outgoing = Outgoing(bus)
    async with telling.Teller(outgoing, CALL, STAMP).telling(0) as say:
        say("nobody hears this")
    await outgoing.drain(0)
    bus.away = False
    await outgoing.drain()
    assert bus.taken == []


async def test_a_scripted_model_writes_its_text_where_somebody_listens() -> None:
    from metier_agents.model import Options

    heard: list[str] = []
    model = ScriptedModel([ModelTurn(text="hello")])
    asked: Any = {"tools": (), "tool_choice": "none", "deadline": 2e9}
    await model.ask([], **asked, options=Options(on_text=heard.append))
    assert heard == ["hello"]
