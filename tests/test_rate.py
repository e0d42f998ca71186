"""Rate limits: what a bucket lets pass, in any order of draws; all stores of buckets; how requests wait at a gate, and what is settled.

Not tested: that providers count as we do.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from metier_agents.buckets import Buckets, Draw, MemoryBuckets, emptied, given_back, settled, share
from metier_agents.journal_buckets import JournalBuckets
from metier_agents.model import PLAIN, Model, Options, ScriptedModel
from metier_agents.model_table import Limit
from metier_agents.prices import estimate
from metier_agents.rate import TELL_S, Gate, Limited, bucket_name
from metier_agents.redis_buckets import RedisBuckets
from metier_agents.turns import ModelTurn, Usage, User
from metier_infra.database import Database, migrate
from metier_infra.errors import BadSettings, CircuitOpen, JournalGone, MetierError, ModelBusy, RetryLater
from metier_infra.postgres_journal import PostgresDatabase
from metier_infra.sqlite_journal import SqliteDatabase


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def limit(requests: float | None = None, tokens: float | None = None, burst_s: float = 60.0) -> Limit:
    return Limit(model="openai:*", requests_per_minute=requests, tokens_per_minute=tokens, burst_s=burst_s)


# ---- what a bucket lets pass


async def test_a_full_bucket_gives_its_burst_at_once_and_then_says_how_long_it_takes() -> None:
    clock = Clock()
    buckets, rule = MemoryBuckets(clock), limit(requests=6, burst_s=30)
    assert [await buckets.draw("b", share(rule, 0)) for _ in range(4)] == [0, 0, 0, 10]
    clock.now += 9
    assert await buckets.draw("b", share(rule, 0)) == pytest.approx(1)
    clock.now += 1
    assert [await buckets.draw("b", share(rule, 0)) for _ in range(2)] == [0, pytest.approx(10)]


async def test_the_scarcer_of_requests_and_tokens_decides_and_nothing_is_drawn_in_part() -> None:
    clock = Clock()
    buckets, rule = MemoryBuckets(clock), limit(requests=60, tokens=600)
    assert await buckets.draw("b", share(rule, 500)) == 0
    assert await buckets.draw("b", share(rule, 200)) == pytest.approx(10)
    assert await buckets.draw("b", share(rule, 100)) == 0
    assert [await buckets.draw("b", share(rule, 0)) for _ in range(59)] == [0] * 58 + [pytest.approx(1)]


async def test_a_request_larger_than_the_bucket_waits_until_it_is_full_and_is_then_owed() -> None:
    clock = Clock()
    buckets, rule = MemoryBuckets(clock), limit(tokens=60, burst_s=10)
    assert await buckets.draw("b", share(rule, 1)) == 0
    assert await buckets.draw("b", share(rule, 40)) == pytest.approx(1)
    clock.now += 1
    assert await buckets.draw("b", share(rule, 40)) == 0
    assert await buckets.draw("b", share(rule, 1)) == pytest.approx(31)


async def test_a_request_rarer_than_the_burst_passes_when_the_bucket_is_full() -> None:
    buckets, rule = MemoryBuckets(Clock()), limit(requests=1, burst_s=10)
    assert [await buckets.draw("b", share(rule, 0)) for _ in range(2)] == [0, 60]


def test_only_tokens_are_settled() -> None:
    assert settled(limit(requests=60, tokens=120), 10) == (0, 5)


async def test_what_was_not_used_is_there_for_others_and_what_was_used_beyond_is_owed() -> None:
    buckets, rule = MemoryBuckets(Clock()), limit(tokens=60)
    await buckets.draw("b", share(rule, 60))
    await buckets.draw("b", Draw(owed=settled(rule, -20)))
    assert await buckets.draw("b", share(rule, 20)) == 0
    await buckets.draw("b", Draw(owed=settled(rule, 5)))
    assert await buckets.draw("b", share(rule, 1)) == pytest.approx(6)


async def test_what_is_given_back_to_a_full_bucket_is_no_more_than_full() -> None:
    buckets, rule = MemoryBuckets(Clock()), limit(requests=60, burst_s=2)
    await buckets.draw("b", Draw(owed=given_back(share(rule, 0))))
    assert [await buckets.draw("b", share(rule, 0)) for _ in range(3)] == [0, 0, 1]


@pytest.mark.parametrize("rule", [limit(requests=60), limit(tokens=60), limit(requests=60, tokens=600)])
async def test_an_emptied_bucket_lets_nothing_pass_before_the_time_and_fills_from_then(rule: Limit) -> None:
    clock = Clock()
    buckets = MemoryBuckets(clock)
    await buckets.draw("b", emptied(rule, 20))
    assert await buckets.draw("b", share(rule, 1)) == pytest.approx(21, abs=1)
    clock.now += 19.9
    assert await buckets.draw("b", share(rule, 1)) > 0
    clock.now += 1.2
    assert await buckets.draw("b", share(rule, 1)) == 0


async def test_an_emptied_bucket_is_not_filled_by_a_shorter_word() -> None:
    buckets, rule = MemoryBuckets(Clock()), limit(requests=60)
    await buckets.draw("b", emptied(rule, 20))
    await buckets.draw("b", emptied(rule, 5))
    assert await buckets.draw("b", share(rule, 1)) == pytest.approx(21)


asks = st.tuples(st.just("ask"), st.integers(0, 400), st.floats(0, 1))
pauses = st.tuples(st.just("pause"), st.floats(0, 90), st.just(0.0))
shuts = st.tuples(st.just("shut"), st.floats(0, 30), st.just(0.0))


@given(
    st.lists(st.one_of(asks, asks, pauses, shuts), max_size=40),
    st.floats(1, 600),
    st.floats(10, 6000),
    st.floats(0.5, 120),
)
async def test_never_more_passes_in_any_window_than_the_burst_and_what_was_refilled(
    ops: list[tuple[str, float, float]], requests: float, tokens: float, burst_s: float
) -> None:
    """Draws are whole, so every interleaving of workers is one such list. A reply that used less gives the rest back with a later draw."""
    clock, rule = Clock(), limit(requests, tokens, burst_s)
    buckets, owed = MemoryBuckets(clock), (0.0, 0.0)
    passed: list[tuple[float, float, float]] = []
    for kind, amount, used in ops:
        if kind == "pause":
            clock.now += amount
        elif kind == "shut":
            await buckets.draw("b", emptied(rule, amount))
        elif await buckets.draw("b", replace(share(rule, int(amount)), owed=owed)) == 0:
            real = int(amount * used)
            owed = settled(rule, real - int(amount))
            passed.append((clock.now, 1.0, float(real)))
    largest = max([amount for kind, amount, _ in ops if kind == "ask"], default=0.0)
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            window_s = passed[last][0] - passed[first][0]
            inside = passed[first : last + 1]
            assert sum(one[1] for one in inside) <= max(requests / 60 * burst_s, 1) + requests / 60 * window_s + 1e-6
            assert sum(one[2] for one in inside) <= max(tokens / 60 * burst_s, largest) + tokens / 60 * window_s + 1e-6


@given(st.floats(0.1, 100), st.integers(0, 50))
async def test_the_wait_that_is_told_is_enough_and_not_too_long(rate: float, before: int) -> None:
    clock, rule = Clock(), limit(rate * 60, burst_s=5 / rate)
    buckets = MemoryBuckets(clock)
    for _ in range(before):
        await buckets.draw("b", share(rule, 0))
    told = await buckets.draw("b", share(rule, 0))
    if told > 1e-6:
        clock.now += told * 0.99
        assert await buckets.draw("b", share(rule, 0)) > 0
        clock.now += told * 0.01 + 1e-6
        assert await buckets.draw("b", share(rule, 0)) == 0


# ---- every store


def redis_url() -> str:
    return os.environ.get("METIER_REDIS_URL", "redis://METIER_REDIS_URL.is.not.set")


def _ready(db: Database) -> Callable[[], Any]:
    async def opened() -> Database:
        return db

    return opened


@pytest.fixture(params=["memory", "redis", "sqlite", "postgres"])
async def workers(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[list[Buckets]]:
    """The same buckets as two workers see them."""
    corner = f"t-{secrets.token_hex(6)}"
    if request.param == "memory":
        yield [MemoryBuckets()] * 2
        return
    if request.param == "redis":
        both: list[Buckets] = [RedisBuckets(redis_url(), namespace=corner) for _ in range(2)]
    elif request.param == "sqlite":
        db = SqliteDatabase(tmp_path / "journal.db")
        await migrate(db)
        both = [JournalBuckets(_ready(db))] * 2
    else:
        url = str(request.getfixturevalue("empty_postgres_url"))
        dbs = [await PostgresDatabase(url).open() for _ in range(2)]
        await migrate(dbs[0])
        both = [JournalBuckets(_ready(db)) for db in dbs]
    yield both
    for one in dict.fromkeys(both):
        await one.close()
    if request.param == "redis":
        with redis.Redis.from_url(redis_url()) as client:
            client.delete(*(f"{corner}:bucket:{name}" for name in "abc"))


async def test_two_workers_share_one_burst_to_the_last_request(workers: list[Buckets]) -> None:
    rule = limit(requests=0.6, burst_s=1000)
    got = await asyncio.gather(*(workers[at % 2].draw("b", share(rule, 0)) for at in range(40)))
    assert sum(one == 0 for one in got) == 10
    assert all(90 < one <= 100 for one in got if one)


async def test_buckets_of_other_names_are_other_buckets(workers: list[Buckets]) -> None:
    rule = limit(requests=0.6, burst_s=100)
    assert [await workers[0].draw(name, share(rule, 0)) > 0 for name in ("a", "a", "b")] == [False, True, False]


async def test_tokens_are_drawn_settled_and_given_back_in_every_store(workers: list[Buckets]) -> None:
    one, other = workers
    rule = limit(requests=6, tokens=6, burst_s=1000)
    assert await one.draw("b", share(rule, 60)) == 0
    assert 195 < await other.draw("b", share(rule, 60)) <= 200
    await one.draw("b", Draw(owed=settled(rule, -20)))
    assert await other.draw("b", share(rule, 60)) == 0
    await other.draw("b", Draw(owed=given_back(share(rule, 60))))
    assert await one.draw("b", share(rule, 50)) == 0
    await other.draw("b", Draw(owed=settled(rule, 10)))
    assert 95 < await other.draw("b", share(rule, 10)) <= 100


async def test_what_is_owed_comes_before_what_is_drawn_and_overfills_nothing(workers: list[Buckets]) -> None:
    one, other = workers
    rule = limit(requests=0.6, burst_s=1000)
    assert await one.draw("b", replace(share(rule, 0), owed=(-500, 0))) == 0
    assert await other.draw("b", replace(share(rule, 0), owed=(-500, 0))) == 0
    assert [await one.draw("b", share(rule, 0)) for _ in range(9)] == [0] * 9
    assert 90 < await other.draw("b", share(rule, 0)) <= 100
    assert await other.draw("b", replace(share(rule, 0), owed=(-100, 0))) == 0
    assert 290 < await one.draw("b", replace(share(rule, 0), owed=(200, 0))) <= 300
    assert await one.draw("c", Draw(owed=(1000, 0))) == 0
    assert 90 < await other.draw("c", share(rule, 0)) <= 100


async def test_what_one_worker_was_told_holds_for_all(workers: list[Buckets]) -> None:
    one, other = workers
    rule = limit(requests=60, tokens=600)
    await one.draw("b", emptied(rule, 300))
    assert 290 < await other.draw("b", share(rule, 1)) <= 301
    assert await other.draw("c", share(rule, 1)) == 0


async def test_a_bucket_fills_while_time_passes(workers: list[Buckets]) -> None:
    one, other = workers
    rule = limit(requests=300, burst_s=0.2)
    assert await one.draw("b", share(rule, 0)) == 0
    told = await other.draw("b", share(rule, 0))
    assert 0 < told <= 0.2
    await asyncio.sleep(told + 0.002)
    assert await other.draw("b", share(rule, 0)) == 0


async def test_a_worker_whose_clock_is_wrong_agrees_with_the_others(
    workers: list[Buckets], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = workers
    rule = limit(requests=0.6, burst_s=100)
    assert await one.draw("b", share(rule, 0)) == 0
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + 5_000)
    assert 90 < await other.draw("b", share(rule, 0)) <= 100


async def test_many_waiters_of_several_workers_pass_at_the_rate_that_is_allowed(workers: list[Buckets]) -> None:
    rule = limit(requests=6000, burst_s=0.05)
    gates = [Gate(workers[at % 2], "b", rule) for at in range(4)]
    begun = time.monotonic()
    passed: list[float] = []

    async def one(gate: Gate) -> None:
        await gate.enter(0, 60.0)
        passed.append(time.monotonic() - begun)

    await asyncio.gather(*(one(gates[at % 4]) for at in range(24)))
    assert len(passed) == 24
    assert all(count <= 5 + 100 * at + 1e-6 for count, at in enumerate(sorted(passed), start=1))


async def test_a_bucket_in_redis_that_is_full_again_is_forgotten() -> None:
    corner = f"t-{secrets.token_hex(6)}"
    buckets = RedisBuckets(redis_url(), namespace=corner)
    await buckets.draw("b", share(limit(requests=60), 0))
    with redis.Redis.from_url(redis_url()) as client:
        left_ms = client.pttl(f"{corner}:bucket:b")
        client.delete(f"{corner}:bucket:b")
    await buckets.close()
    assert 0 < int(str(left_ms)) <= 2_001


async def test_a_redis_that_is_away_is_tried_later_and_no_url_is_said_at_the_start(unused_port: int) -> None:
    buckets = RedisBuckets(f"redis://127.0.0.1:{unused_port}/0")
    with pytest.raises(RetryLater, match="does not answer"):
        await buckets.draw("b", share(limit(requests=1), 0))
    await buckets.close()
    with pytest.raises(BadSettings, match="METIER_REDIS_URL"):
        RedisBuckets("127.0.0.1:6379")


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def test_a_journal_is_opened_once_when_it_is_first_drawn_from_and_again_after_a_failure(tmp_path: Path) -> None:
    opened: list[Database] = []

    async def open_database() -> Database:
        opened.append(SqliteDatabase(tmp_path / f"{len(opened)}.db"))
        if len(opened) == 1:
            await opened[0].close()
            raise JournalGone("away")
        await migrate(opened[-1])
        return opened[-1]

    buckets = JournalBuckets(open_database)
    assert not opened
    with pytest.raises(JournalGone):
        await buckets.draw("b", share(limit(requests=60), 0))
    assert await asyncio.gather(*(buckets.draw("b", share(limit(requests=60), 0)) for _ in range(3))) == [0, 0, 0]
    assert len(opened) == 2
    await buckets.close()


# ---- a gate


class HeldBuckets(MemoryBuckets):
    """Answers when it is let go."""

    def __init__(self) -> None:
        super().__init__(Clock())
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def draw(self, name: str, draw: Draw) -> float:
        wait_s = await super().draw(name, draw)
        self.asked.set()
        await self.go.wait()
        return wait_s


class AwayBuckets(MemoryBuckets):
    """Is away after the first `works` draws."""

    def __init__(self, works: int = 0) -> None:
        super().__init__()
        self._works = works

    async def draw(self, name: str, draw: Draw) -> float:
        self._works -= 1
        if self._works < 0:
            raise RetryLater("the store is away", after_s=3.0)
        return await super().draw(name, draw)


async def test_requests_pass_a_gate_in_the_order_in_which_they_came() -> None:
    gate, order = Gate(MemoryBuckets(), "b", limit(requests=6000, burst_s=0.01)), list[int]()

    async def one(number: int) -> None:
        await gate.enter(0, 10.0)
        order.append(number)

    await asyncio.gather(*(one(number) for number in range(10)))
    assert order == list(range(10))


async def test_a_wait_beyond_ones_patience_is_said_at_once_with_its_length() -> None:
    gate = Gate(MemoryBuckets(), "b", limit(requests=1, burst_s=60))
    await gate.enter(0, 1.0)
    with pytest.raises(ModelBusy, match="no room") as caught:
        await asyncio.wait_for(gate.enter(0, 30.0), 5)
    assert caught.value.after_s == pytest.approx(60, abs=1)


async def test_who_stands_behind_a_long_line_is_told_at_once_too() -> None:
    gate = Gate(MemoryBuckets(), "b", limit(requests=60, burst_s=1))
    await gate.enter(0, 1.0)
    line = [asyncio.create_task(gate.enter(0, 60.0)) for _ in range(8)]
    await asyncio.sleep(0.05)
    with pytest.raises(ModelBusy) as caught:
        await asyncio.wait_for(gate.enter(0, 3.0), 1)
    assert caught.value.after_s is not None
    assert 7 < caught.value.after_s < 10
    for one in line:
        one.cancel()
    await asyncio.wait(line)


async def test_a_waiter_that_is_cancelled_leaves_its_place_and_its_share_to_others() -> None:
    clock = Clock()
    buckets, rule = MemoryBuckets(clock), limit(requests=1, burst_s=60)
    gate = Gate(buckets, "b", rule)
    await gate.enter(0, 1.0)
    waiting = [asyncio.create_task(gate.enter(0, 1e6)) for _ in range(3)]
    await asyncio.sleep(0.01)
    for one in waiting:
        one.cancel()
    await asyncio.wait(waiting)
    clock.now += 60
    await asyncio.wait_for(gate.enter(0, 1.0), 1)


async def test_who_is_cancelled_while_the_store_is_at_it_gives_back_what_it_got() -> None:
    buckets, rule = HeldBuckets(), limit(requests=1, burst_s=60)
    entering = asyncio.create_task(Gate(buckets, "b", rule).enter(0, 1.0))
    await buckets.asked.wait()
    entering.cancel()
    await asyncio.sleep(0)
    buckets.go.set()
    await asyncio.wait({entering})
    assert entering.cancelled()
    assert await left_s(buckets) == 0


async def test_a_store_that_is_away_makes_the_model_busy() -> None:
    with pytest.raises(ModelBusy, match="the store is away") as caught:
        await Gate(AwayBuckets(), "b", limit(requests=1)).enter(0, 5.0)
    assert caught.value.after_s == 3.0


async def test_a_store_that_does_not_answer_ends_the_wait_and_no_request_hangs() -> None:
    with pytest.raises(ModelBusy):
        await asyncio.wait_for(_enter_and_let_go(HeldBuckets()), 5)


async def _enter_and_let_go(buckets: HeldBuckets) -> None:
    asyncio.get_running_loop().call_later(0.1, buckets.go.set)
    await Gate(buckets, "b", limit(requests=1)).enter(0, 0.02)


async def test_what_is_owed_goes_with_the_next_request_so_that_one_draw_does_for_both() -> None:
    buckets, rule = SeenDraws(), limit(tokens=60)
    gate = Gate(buckets, "b", rule)
    drawn = await gate.enter(60, 1.0)
    gate.owe(given_back(drawn))
    await gate.enter(60, 1.0)
    assert [(one.cost, one.owed) for one in buckets.seen] == [((0, 60), (0, 0)), ((0, 60), (0, -60))]
    await asyncio.sleep(TELL_S + 0.05)
    assert len(buckets.seen) == 2


async def test_what_is_owed_is_not_forgotten_when_there_was_no_room() -> None:
    buckets, rule = SeenDraws(), limit(tokens=60)
    gate = Gate(buckets, "b", rule)
    await gate.enter(60, 1.0)
    gate.owe(settled(rule, -20))
    with pytest.raises(ModelBusy):
        await gate.enter(60, 1.0)
    await gate.enter(20, 1.0)
    assert [one.owed for one in buckets.seen] == [(0, 0), (0, -20), (0, -20)]


class SeenDraws(MemoryBuckets):
    """Remembers what was drawn."""

    def __init__(self) -> None:
        super().__init__(Clock())
        self.seen: list[Draw] = []

    async def draw(self, name: str, draw: Draw) -> float:
        self.seen.append(draw)
        return await super().draw(name, draw)


# ---- the layer

TASK = [User(text="x" * 300)]
DRAWN = estimate((), TASK, (), 100).tokens


async def ask(model: Model, left_s: float = 60.0) -> ModelTurn:
    options = Options(output_tokens=100)
    return await model.ask(TASK, tools=(), tool_choice="none", deadline=time.time() + left_s, options=options)


def limited(
    rule: Limit, *, usage: Usage | None = None, errors: Sequence[MetierError] = (), longest_s: float | None = None
) -> tuple[Limited, MemoryBuckets]:
    buckets = MemoryBuckets(Clock())
    model = ScriptedModel([ModelTurn(text="42", usage=usage)], errors=errors)
    return Limited(model, Gate(buckets, "b", rule), longest_s=longest_s), buckets


async def left_s(buckets: MemoryBuckets) -> float:
    """Seconds until the bucket is full, when all was told that is owed."""
    await asyncio.sleep(TELL_S + 0.05)
    return round(await buckets.draw("b", Draw(room=(-1, -1))) - 1, 6)


async def test_a_request_takes_its_estimate_and_settles_by_what_was_counted() -> None:
    model, buckets = limited(limit(tokens=60), usage=Usage(input_tokens=30, output_tokens=7))
    await ask(model)
    assert await left_s(buckets) == 37


async def test_a_request_whose_tokens_nobody_counted_keeps_what_it_took() -> None:
    model, buckets = limited(limit(tokens=60))
    await ask(model)
    assert await left_s(buckets) == DRAWN


async def test_a_request_that_nobody_bounds_is_taken_for_a_long_one() -> None:
    model, buckets = limited(limit(tokens=60))
    await model.ask(TASK, tools=(), tool_choice="none", deadline=time.time() + 5, options=PLAIN)
    assert await left_s(buckets) == DRAWN - 100 + 4096


async def test_a_provider_that_says_wait_empties_the_bucket_for_everybody() -> None:
    rule = limit(requests=60)
    model, buckets = limited(rule, errors=[ModelBusy("429", after_s=40.0)])
    with pytest.raises(ModelBusy, match="429"):
        await ask(model)
    assert await buckets.draw("b", share(rule, 0)) == pytest.approx(41)


async def test_a_busy_model_that_names_no_time_empties_nothing() -> None:
    rule = limit(requests=60)
    model, buckets = limited(rule, errors=[ModelBusy("500")])
    with pytest.raises(ModelBusy):
        await ask(model)
    assert await left_s(buckets) == 1


async def test_a_request_that_an_open_circuit_kept_back_costs_nothing_and_empties_nothing() -> None:
    model, buckets = limited(limit(requests=60, tokens=60), errors=[CircuitOpen("open", after_s=40.0)])
    with pytest.raises(CircuitOpen):
        await ask(model)
    assert await left_s(buckets) == 0


async def test_a_request_waits_no_longer_than_its_deadline_or_its_place_in_the_chain_allows() -> None:
    rule = limit(requests=1, burst_s=60)
    for longest_s, left in ((None, 2.0), (2.0, 600.0)):
        model, _ = limited(rule, longest_s=longest_s)
        await ask(model)
        with pytest.raises(ModelBusy, match="no room"):
            await asyncio.wait_for(ask(model, left), 1)


async def test_a_reply_that_was_paid_for_is_kept_when_its_share_cannot_be_settled() -> None:
    script = ScriptedModel([ModelTurn(text="42", usage=Usage(input_tokens=1, output_tokens=1))])
    model = Limited(script, Gate(AwayBuckets(works=1), "b", limit(tokens=60_000)))
    assert (await ask(model)).text == "42"


async def test_a_busy_model_is_busy_also_when_the_bucket_cannot_be_emptied() -> None:
    script = ScriptedModel([], errors=[ModelBusy("429", after_s=40.0)])
    with pytest.raises(ModelBusy, match="429"):
        await ask(Limited(script, Gate(AwayBuckets(works=1), "b", limit(tokens=60_000))))


def test_a_buckets_name_tells_keys_limits_and_providers_apart_and_no_key() -> None:
    other = limit(requests=1).model_copy(update={"model": "openai:gpt-5"})
    names = [
        bucket_name(limit(requests=1), "openai", "sk-secret"),
        bucket_name(limit(requests=1), "openai", "sk-other"),
        bucket_name(limit(requests=1), "azure_openai", "sk-secret"),
        bucket_name(other, "openai", "sk-secret"),
    ]
    assert len(set(names)) == 4
    assert bucket_name(limit(requests=9), "openai", "sk-secret") == names[0]
    assert not any("secret" in name for name in names)
