"""The chain of fallbacks: when it goes on to the next model, what it writes down, and what is raised when nobody replies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from metier_agents import fallback
from metier_agents.fallback import SENTENCE, Chain, pause, together
from metier_agents.model import Model, Options, ScriptedModel
from metier_agents.model_table import Patience
from metier_agents.turns import ModelTurn, PassedOver, User
from metier_infra.errors import (
    BadSettings,
    CircuitOpen,
    ContextTooLong,
    MetierError,
    ModelBusy,
    ModelFailed,
    ModelMalformed,
)
from metier_infra.retry import Backoff

PATIENCE = Patience.model_validate({"tries": 3, "wait_s": 5})


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "BACKOFF", Backoff(first_s=0.001))


def model(name: str, *errors: MetierError, refused: bool = False) -> ScriptedModel:
    turn = ModelTurn(text=f"from {name}", refused=refused)
    return ScriptedModel([turn], name=name, errors=errors)


async def ask(models: Sequence[Model], *, on_refusal: bool = False, left_s: float = 60.0) -> ModelTurn:
    chain, options = Chain(models, PATIENCE), Options(next_on_refusal=on_refusal)
    return await chain.ask(
        [User(text="?")], tools=(), tool_choice="none", deadline=time.time() + left_s, options=options
    )


# ---- the rule


@pytest.mark.parametrize(
    ("error", "tries", "left_s", "wait_s"),
    [
        (ModelBusy("500"), 1, 60, 0.001),
        (ModelBusy("500"), 2, 60, 0.002),
        (ModelBusy("500"), 3, 60, None),
        (ModelBusy("429", after_s=5.0), 1, 60, 5.0),
        (ModelBusy("429", after_s=5.1), 1, 60, None),
        (ModelBusy("429", after_s=4.0), 1, 3, None),
        (ModelBusy("429", after_s=0.0), 1, 60, 0.0),
        (CircuitOpen("open", after_s=0.1), 1, 60, None),
    ],
)
def test_how_long_a_busy_model_is_worth_waiting_for(
    error: ModelBusy, tries: int, left_s: float, wait_s: float | None
) -> None:
    assert pause(error, tries, left_s, PATIENCE) == wait_s


async def test_the_first_model_that_replies_is_the_one_and_no_other_is_asked() -> None:
    first, second = model("a"), model("b")
    turn = await ask([first, second])
    assert (turn.text, turn.model, turn.passed_over) == ("from a", "a", ())
    assert second.asked == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ModelFailed("no"), "model_failed"),
        (ModelMalformed("no"), "model_malformed"),
        (ContextTooLong("no"), "context_too_long"),
        (BadSettings("no"), "bad_settings"),
        (CircuitOpen("no", after_s=0.01), "circuit_open"),
        (ModelBusy("no", after_s=600.0), "model_busy"),
    ],
)
async def test_a_model_that_cannot_reply_is_passed_over_at_once_and_written_down(error: MetierError, code: str) -> None:
    first = model("a", error)
    turn = await ask([first, model("b")])
    assert turn.text == "from b"
    assert turn.passed_over == (PassedOver(model="a", code=code, message="no"),)
    assert len(first.asked) == 1


async def test_those_that_were_passed_over_stand_in_order() -> None:
    turn = await ask([model("a", ModelFailed("1")), model("b", BadSettings("2")), model("c")])
    assert [(one.model, one.message) for one in turn.passed_over] == [("a", "1"), ("b", "2")]
    assert turn.model == "c"


async def test_a_hiccup_of_the_first_model_is_sat_out() -> None:
    first, second = model("a", ModelBusy("500")), model("b")
    turn = await ask([first, second])
    assert (turn.model, turn.passed_over) == ("a", ())
    assert (len(first.asked), len(second.asked)) == (2, 0)


async def test_a_model_that_stays_busy_is_tried_as_often_as_patience_says() -> None:
    first = model("a", *[ModelBusy("500")] * 9)
    turn = await ask([first, model("b")])
    assert turn.model == "b"
    assert len(first.asked) == PATIENCE.tries
    assert [one.code for one in turn.passed_over] == ["model_busy"]


async def test_the_next_request_begins_with_the_first_model_again() -> None:
    first = model("a", *[ModelBusy("500")] * PATIENCE.tries)
    chain = Chain([first, model("b")], PATIENCE)
    asked = [
        await chain.ask([User(text="?")], tools=(), tool_choice="none", deadline=time.time() + 60) for _ in range(2)
    ]
    assert [turn.model for turn in asked] == ["b", "a"]


async def test_every_model_is_asked_the_same() -> None:
    first, second = model("a", ModelFailed("no")), model("b")
    options = Options(output_tokens=7, effort="low")
    await Chain([first, second], PATIENCE).ask(
        [User(text="?")], tools=(), tool_choice="none", deadline=time.time() + 60, options=options
    )
    assert first.asked == second.asked
    assert first.asked[0].options == options


class Broken(ScriptedModel):
    """Raises what no model may raise."""

    def __init__(self, error: BaseException) -> None:
        super().__init__([])
        self._error = error

    async def ask(self, *args: object, **kwargs: object) -> ModelTurn:
        raise self._error


@pytest.mark.parametrize("error", [RuntimeError("defect"), asyncio.CancelledError()])
async def test_defects_and_cancels_are_not_passed_over(error: BaseException) -> None:
    second = model("b")
    with pytest.raises(type(error)):
        await ask([Broken(error), second])
    assert second.asked == []


# ---- refusals


async def test_a_refusal_is_a_reply_unless_others_are_to_be_asked() -> None:
    assert (await ask([model("a", refused=True), model("b")])).model == "a"
    turn = await ask([model("a", refused=True), model("b")], on_refusal=True)
    assert turn.model == "b"
    assert [(one.model, one.code) for one in turn.passed_over] == [("a", "refused")]


async def test_when_nobody_else_replies_the_first_refusal_is_the_reply() -> None:
    both = await ask([model("a", refused=True), model("b", refused=True)], on_refusal=True)
    failed = await ask([model("x", ModelFailed("no")), model("a", refused=True), model("b", ModelBusy("500"))], on_refusal=True)  # fmt: skip
    assert (both.model, both.refused, [one.model for one in both.passed_over]) == ("a", True, ["b"])
    assert (failed.model, [one.model for one in failed.passed_over]) == ("a", ["x", "b"])


# ---- when all fail


async def test_the_last_model_is_asked_once_and_all_are_named() -> None:
    last = model("c", *[ModelBusy("500")] * 9)
    with pytest.raises(ModelBusy) as caught:
        await ask([model("a", ModelFailed("too odd")), model("b", CircuitOpen("away", after_s=9.0)), last])
    assert str(caught.value) == "no model of the chain replied: a: too odd; b: away; c: 500"
    assert len(last.asked) == 1


@pytest.mark.parametrize(
    ("errors", "kind", "after_s"),
    [
        ([ModelBusy("x", after_s=9.0), ModelBusy("x", after_s=4.0)], ModelBusy, 4.0),
        ([ModelBusy("x", after_s=9.0), ModelBusy("x")], ModelBusy, None),
        ([CircuitOpen("x", after_s=9.0), ModelFailed("x")], ModelBusy, 9.0),
        ([ModelFailed("x"), ContextTooLong("x")], ContextTooLong, None),
        ([ContextTooLong("x"), BadSettings("x")], BadSettings, None),
    ],
)
def test_what_can_be_tried_again_wins_over_what_cannot(
    errors: list[MetierError], kind: type[MetierError], after_s: float | None
) -> None:
    raised = together([("m", error) for error in errors])
    assert type(raised) is kind
    assert getattr(raised, "after_s", None) == after_s


async def test_a_long_sentence_is_cut() -> None:
    turn = await ask([model("a", ModelFailed("x" * 9_000)), model("b")])
    assert len(turn.passed_over[0].message) == SENTENCE
