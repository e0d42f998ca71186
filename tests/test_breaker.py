"""The circuit breaker: its states as a table, and the layer that keeps a model from being asked while it is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest

from metier_agents.breaker import CLOSED, PROBE_S, Circuit, Fuse, Guarded, Outcome, admit, judge
from metier_agents.model import Model, ScriptedModel
from metier_agents.model_table import Breaker
from metier_agents.timed import Timed
from metier_agents.turns import ModelTurn, User
from metier_infra.errors import BadSettings, CircuitOpen, ContextTooLong, MetierError, ModelBusy, ModelFailed

RULE = Breaker.model_validate({"failures": 3, "cool_down_s": 30})
OPEN = Circuit(3, opens_at=100.0)
PROBED = Circuit(3, opens_at=100.0, probing=True)


@pytest.mark.parametrize(
    ("circuit", "now", "after", "wait_s"),
    [
        (CLOSED, 0, CLOSED, 0),
        (Circuit(2), 0, Circuit(2), 0),
        (OPEN, 90, OPEN, 10),
        (OPEN, 100, PROBED, 0),
        (OPEN, 500, PROBED, 0),
        (PROBED, 101, PROBED, PROBE_S),
        (PROBED, 90, PROBED, 10),
    ],
)
def test_who_is_let_through(circuit: Circuit, now: float, after: Circuit, wait_s: float) -> None:
    assert admit(circuit, now) == (after, wait_s)


@pytest.mark.parametrize(
    ("circuit", "outcome", "probe", "after_s", "after"),
    [
        (CLOSED, "busy", False, None, Circuit(1)),
        (Circuit(1), "busy", False, None, Circuit(2)),
        (Circuit(2), "busy", False, None, Circuit(3, opens_at=230)),
        (Circuit(2), "busy", False, 90, Circuit(3, opens_at=290)),
        (Circuit(2), "busy", False, 5, Circuit(3, opens_at=230)),
        (Circuit(2), "replied", False, None, CLOSED),
        (Circuit(2), "refused", False, None, Circuit(2)),
        (Circuit(2), "given_up", False, None, Circuit(2)),
        (PROBED, "replied", True, None, CLOSED),
        (PROBED, "refused", True, None, CLOSED),
        (PROBED, "busy", True, None, Circuit(4, opens_at=230)),
        (PROBED, "busy", True, 60, Circuit(4, opens_at=260)),
        (PROBED, "given_up", True, None, OPEN),
        (PROBED, "replied", False, None, PROBED),
        (OPEN, "busy", False, 500, OPEN),
        (OPEN, "replied", False, None, OPEN),
    ],
)
def test_what_a_request_says_of_its_model(
    circuit: Circuit, outcome: Outcome, probe: bool, after_s: float | None, after: Circuit
) -> None:
    assert judge(circuit, outcome, 200, RULE, probe=probe, after_s=after_s) == after


def test_one_failure_may_be_enough() -> None:
    rule = Breaker.model_validate({"failures": 1})
    assert judge(CLOSED, "busy", 0, rule, probe=False) == Circuit(1, opens_at=30)


# ---- the layer


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class HeldModel(ScriptedModel):
    """Replies when it is let go."""

    def __init__(self, turns: Sequence[ModelTurn], errors: Sequence[MetierError] = ()) -> None:
        super().__init__(turns, errors=errors)
        self.go = asyncio.Event()

    async def ask(self, *args: Any, **kwargs: Any) -> ModelTurn:
        await self.go.wait()
        return await super().ask(*args, **kwargs)


async def ask(model: Model) -> ModelTurn:
    return await model.ask([User(text="?")], tools=(), tool_choice="none", deadline=time.time() + 60)


def guarded(*errors: MetierError) -> tuple[Guarded, ScriptedModel, Clock]:
    clock, model = Clock(), ScriptedModel([ModelTurn(text="42")], errors=errors)
    return Guarded(model, Fuse(RULE, clock)), model, clock


async def test_a_model_that_was_away_again_and_again_is_asked_no_more_until_it_cooled_down() -> None:
    model, inner, clock = guarded(*[ModelBusy("500")] * 3)
    for _ in range(3):
        with pytest.raises(ModelBusy, match="500"):
            await ask(model)
    with pytest.raises(CircuitOpen, match="3 times in a row") as caught:
        await ask(model)
    assert caught.value.after_s == 30
    assert isinstance(caught.value, ModelBusy)
    assert len(inner.asked) == 3
    clock.now += 30
    assert (await ask(model)).text == "42"
    assert (await ask(model)).text == "42"


async def test_a_model_that_says_when_it_will_be_back_is_left_alone_until_then() -> None:
    model, _, _ = guarded(*[ModelBusy("429", after_s=90)] * 3)
    for _ in range(3):
        with pytest.raises(ModelBusy, match="429"):
            await ask(model)
    with pytest.raises(CircuitOpen) as caught:
        await ask(model)
    assert caught.value.after_s == 90


async def test_a_reply_between_failures_begins_the_count_anew() -> None:
    clock = Clock()
    fuse = Fuse(RULE, clock)
    for _ in range(4):
        model = Guarded(ScriptedModel([ModelTurn(text="42")], errors=[ModelBusy("500")] * 2), fuse)
        for _ in range(2):
            with pytest.raises(ModelBusy, match="500"):
                await ask(model)
        assert (await ask(model)).text == "42"


@pytest.mark.parametrize("error", [ModelFailed("no"), ContextTooLong("long"), BadSettings("key")])
async def test_our_own_faults_open_nothing(error: MetierError) -> None:
    model, inner, _ = guarded(*[error] * 9)
    for _ in range(9):
        with pytest.raises(type(error)):
            await ask(model)
    assert (await ask(model)).text == "42"
    assert len(inner.asked) == 10


async def test_requests_that_were_cancelled_open_nothing() -> None:
    inner = HeldModel([ModelTurn(text="42")])
    fuse = Fuse(RULE, Clock())
    for _ in range(5):
        asking = asyncio.create_task(ask(Guarded(inner, fuse)))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait({asking})
    assert fuse.circuit == CLOSED


async def test_only_one_request_tries_a_model_that_cooled_down_and_if_it_is_cancelled_the_next_does() -> None:
    clock, inner = Clock(), HeldModel([ModelTurn(text="42")])
    fuse = Fuse(RULE, clock)
    fuse.circuit = Circuit(3, opens_at=clock.now)
    model = Guarded(inner, fuse)
    probe = asyncio.create_task(ask(model))
    await asyncio.sleep(0)
    with pytest.raises(CircuitOpen) as caught:
        await ask(model)
    assert caught.value.after_s == PROBE_S
    probe.cancel()
    await asyncio.wait({probe})
    inner.go.set()
    assert (await ask(model)).text == "42"
    assert fuse.circuit == CLOSED


async def test_a_request_from_before_the_circuit_opened_does_not_close_it() -> None:
    clock, slow = Clock(), HeldModel([ModelTurn(text="42")])
    fuse = Fuse(RULE, clock)
    early = asyncio.create_task(ask(Guarded(slow, fuse)))
    await asyncio.sleep(0)
    away = Guarded(ScriptedModel([], errors=[ModelBusy("500")] * 3), fuse)
    for _ in range(3):
        with pytest.raises(ModelBusy):
            await ask(away)
    slow.go.set()
    assert (await early).text == "42"
    with pytest.raises(CircuitOpen):
        await ask(away)


async def test_a_request_that_takes_too_long_is_given_up_and_counts_as_a_failure() -> None:
    fuse = Fuse(RULE, Clock())
    model = Guarded(Timed(HeldModel([ModelTurn(text="42")]), 0.01), fuse)
    with pytest.raises(ModelBusy, match=r"gave no reply within 0\.01 s"):
        await ask(model)
    assert fuse.circuit == Circuit(1)


async def test_a_reply_in_time_passes_as_it_is() -> None:
    assert (await ask(Timed(ScriptedModel([ModelTurn(text="42")]), 5.0))).text == "42"
