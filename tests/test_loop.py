"""The loop over a scripted model, a scripted lane and a real SQLite journal: what is asked, what is called, and what a crash costs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from metier_agents import wording
from metier_agents.attempt import Attempt, Estimate
from metier_agents.hands import Hands
from metier_agents.loop import Loop
from metier_agents.model import Model, ScriptedModel
from metier_agents.purse import Need
from metier_agents.spec import AgentSpec
from metier_agents.testing import Reply, ScriptedLane
from metier_agents.timed import Timed
from metier_agents.turns import (
    Assessed,
    History,
    ModelTurn,
    Note,
    Realised,
    ToolTurn,
    ToolUse,
    load,
    of_kind,
    open_uses,
)
from metier_infra.database import migrate
from metier_infra.errors import (
    DeadlineMissed,
    EngineGone,
    LaneGone,
    LimitReached,
    ModelBusy,
    ModelFailed,
    ModelMalformed,
    ToolGone,
)
from metier_infra.journal import Journal
from metier_infra.rows import Call
from metier_infra.sqlite_journal import SqliteDatabase
from metier_infra.testing import Crash, Dying
from metier_infra.words import Answer, CallId, RunId, Spent, Task
from metier_tools.builtin import BUILTIN
from metier_tools.grant import verify
from metier_tools.tool import ToolCall, ToolResult, ToolSpec

KEY = b"k" * 32
CALL = CallId("c" * 32)
OK = ToolResult(status="ok", stdout="42\n", wall_ms=3.0)
BAD = ToolResult(status="error", exit_code=1, stderr="boom", wall_ms=3.0)


@dataclass
class Bench:
    """What the loops of one test share."""

    db: Dying
    journal: Journal
    lane: ScriptedLane = field(default_factory=lambda: ScriptedLane(lambda _: OK))
    attempts: list[Attempt] = field(default_factory=list[Attempt])

    async def attempt(
        self, spec: AgentSpec, model: Model, deadline: float | None = None, need: Need | None = None
    ) -> Answer:
        """One more try at the call, as the worker makes it."""
        until = deadline or time.time() + 30
        task = Task(text="6*7?", category="code")
        await self.journal.calls.request(
            Call(call_id=CALL, run_id=RunId("r"), agent=spec.name, task=task, deadline=until)
        )
        call = await self.journal.calls.claim(CALL, "me")
        assert call is not None
        attempt = Attempt(call, spec, model, self.journal, self.hands, until, estimate=_always(need or Need(0)))
        self.attempts.append(attempt)
        return await Loop(attempt).run()

    @property
    def hands(self) -> Hands:
        return Hands(self.journal, self.lane, BUILTIN, KEY)

    def replies(self, *replies: Reply) -> None:
        """The lane's replies, one after another; the last one is repeated."""
        left = list(replies)
        self.lane = ScriptedLane(lambda _: left.pop(0) if len(left) > 1 else left[0])

    async def messages(self) -> list[Any]:
        return [message for step in await self.journal.steps.of_call(CALL) for message in load(step.body)]


def _always(need: Need) -> Estimate:
    def estimate(history: History, tools: Sequence[ToolSpec], output_tokens: int) -> Need:
        return need

    return estimate


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    db = Dying(SqliteDatabase(":memory:"))
    await migrate(db)
    db.writes = 0
    yield Bench(db, Journal(db))
    await db.close()


def agent(kind: str, **limits: float) -> AgentSpec:
    return AgentSpec.model_validate(
        {"name": "a", "model": "scripted:x", "policy": {"kind": kind}, "tools": [{"name": "python"}], "limits": limits}
    )


def says(answer: str, confidence: float = 0.9, **more: Any) -> ModelTurn:
    return ModelTurn.model_validate({"text": f"ANSWER: {answer}\nCONFIDENCE: {confidence}", "cost_usd": 0.01, **more})


def uses(*codes: str, tool: str = "python", **more: Any) -> ModelTurn:
    wished = tuple(ToolUse(id=f"u{n}", tool=tool, arguments={"code": code}) for n, code in enumerate(codes))
    return ModelTurn.model_validate({"uses": wished, "cost_usd": 0.01, **more})


ASSESSES = ModelTurn(text='{"python": {"gain": 0.5, "noise": 0.05}}', cost_usd=0.01)
SCRIPTS = {
    "autonomous": (says("41", 0.3), uses("print(6*7)"), says("42", 0.95)),
    "collaborative": (uses("print(6*7)", "print(7*6)"), says("42", 0.95)),
    "meta_reasoned": (ASSESSES, uses("print(6*7)"), says("42", 0.95)),
}
BOUND = {
    "autonomous": [("none", ()), ("auto", ("python",)), ("none", ())],
    "collaborative": [("required", ("python",)), ("auto", ("python",))],
    "meta_reasoned": [("none", ()), ("auto", ("python",)), ("none", ())],
}


@pytest.mark.parametrize("kind", SCRIPTS)
async def test_each_policy_binds_what_it_offers_and_nothing_else(bench: Bench, kind: str) -> None:
    model = ScriptedModel(SCRIPTS[kind])
    answer = await bench.attempt(agent(kind), model)
    assert [(asked.tool_choice, asked.tools) for asked in model.asked] == BOUND[kind]
    assert (answer.text, answer.confidence, answer.stopped) == ("42", 0.95, "answered")
    assert (answer.model_turns, answer.tool_calls) == (len(SCRIPTS[kind]), len(bench.lane.calls))
    assert answer.cost_usd == pytest.approx(0.01 * len(SCRIPTS[kind]))
    assert answer.cost_known


async def test_a_sure_answer_takes_one_turn_and_no_tool(bench: Bench) -> None:
    answer = await bench.attempt(agent("autonomous"), ScriptedModel([says("42", 0.9)]))
    assert (answer.text, answer.model_turns, answer.tool_calls) == ("42", 1, 0)


async def test_an_unknown_price_is_not_nought(bench: Bench) -> None:
    answer = await bench.attempt(agent("autonomous"), ScriptedModel([says("42", cost_usd=None)]))
    assert (answer.cost_usd, answer.cost_known) == (0.0, False)


async def test_a_tool_call_is_written_down_signed_and_carries_its_span(bench: Bench) -> None:
    def reply(call: ToolCall) -> ToolResult:
        verify(KEY, call)
        return OK

    bench.lane = ScriptedLane(reply)
    await bench.attempt(agent("collaborative"), ScriptedModel(SCRIPTS["collaborative"]))
    rows = await bench.journal.tools.of_run(RunId("r"))
    assert {row.tool_call_id for row in rows} == {call.tool_call_id for call in bench.lane.calls}
    assert [(row.ok, row.category, row.agent) for row in rows] == [(True, "code", "a")] * 2
    assert all(call.traceparent for call in bench.lane.calls)
    assert len({call.traceparent for call in bench.lane.calls}) == 2


async def test_predicted_and_realised_value_are_recorded(bench: Bench) -> None:
    bench.replies(BAD, OK)
    script = (ASSESSES, uses("1"), uses("2"), says("42"))
    await bench.attempt(agent("meta_reasoned"), ScriptedModel(script))
    found = await bench.messages()
    assert len(of_kind(found, Assessed)) == 1
    first, second = of_kind(found, Realised)
    assert first.predicted == second.predicted > 0 > first.realised
    assert second.realised > second.predicted


# ---- crashes


@pytest.mark.parametrize("committed", [False, True], ids=["before the write", "after the write"])
@pytest.mark.parametrize("kind", SCRIPTS)
async def test_after_a_crash_at_any_write_nothing_recorded_is_asked_again(kind: str, committed: bool) -> None:
    at = 0
    while True:
        at += 1
        db = Dying(SqliteDatabase(":memory:"))
        await migrate(db)
        bench = Bench(db, Journal(db))
        db.writes, db.at, db.committed = -2, at, committed  # the call is requested and claimed before the loop begins
        model = ScriptedModel(SCRIPTS[kind])
        try:
            await bench.attempt(agent(kind), model)
        except Crash:
            await resumed(bench, kind, model)
            await db.close()
        else:
            await db.close()
            break
    assert at > len(SCRIPTS[kind]) + 2  # a write for each turn, and two for each tool call


async def resumed(bench: Bench, kind: str, before: ScriptedModel) -> None:
    before_it = await bench.messages()
    recorded, in_its_tools = of_kind(before_it, ModelTurn), bool(open_uses(before_it))
    finished = {row.tool_call_id for row in await bench.journal.tools.of_run(RunId("r")) if row.finished_at}
    sent_before = [call.tool_call_id for call in bench.lane.calls]
    again = ScriptedModel(SCRIPTS[kind])
    answer = await bench.attempt(agent(kind), again)
    assert (answer.text, answer.model_turns) == ("42", len(SCRIPTS[kind]))
    assert len(again.asked) == len(SCRIPTS[kind]) - len(recorded)
    assert len(before.asked) <= len(recorded) + 1
    sent_again = [call.tool_call_id for call in bench.lane.calls[len(sent_before) :]]
    assert finished.isdisjoint(sent_again)
    assert len(set(sent_before + sent_again)) == answer.tool_calls
    after = of_kind(await bench.messages(), ModelTurn)
    twice = [n == len(recorded) and not in_its_tools for n in range(len(after))]
    assert [turn.asked_again for turn in after] == twice


async def test_the_list_after_a_crash_is_the_list_without_one(bench: Bench) -> None:
    bench.db.writes, bench.db.at = -2, 4
    with pytest.raises(Crash):
        await bench.attempt(agent("autonomous"), ScriptedModel(SCRIPTS["autonomous"]))
    await bench.attempt(agent("autonomous"), ScriptedModel(SCRIPTS["autonomous"]))
    tags = [message.tag for message in await bench.messages()]
    assert tags == ["system", "user", "model", "note", "model", "tool", "note", "model"]


# ---- guards


async def test_a_tool_that_was_not_offered_is_refused_as_an_observation_and_stops_when_repeated(bench: Bench) -> None:
    turn = uses("1", tool="shell")
    answer = await bench.attempt(agent("autonomous"), ScriptedModel([says("41", 0.1), turn, turn, says("42")]))
    assert (answer.text, answer.stopped, answer.tool_calls) == ("41", "unoffered_tool", 0)
    refused = of_kind(await bench.messages(), ToolTurn)
    assert [(one.result.status, one.tool_call_id) for one in refused] == [("refused", None)] * 2
    assert "was not offered" in refused[0].result.stderr
    assert bench.lane.calls == []


async def test_a_tool_call_without_an_offer_in_the_first_turn_calls_nothing(bench: Bench) -> None:
    answer = await bench.attempt(agent("autonomous"), ScriptedModel([uses("1"), says("42")]))
    assert (answer.text, answer.tool_calls, bench.lane.calls) == ("42", 0, [])


async def test_arguments_that_do_not_fit_are_refused_before_anything_is_sent(bench: Bench) -> None:
    wrong = ModelTurn(uses=(ToolUse(id="u", tool="python", arguments={"cod": "1"}),))
    torn = ModelTurn(uses=(ToolUse(id="u", tool="python", problem="not JSON"),))
    answer = await bench.attempt(agent("collaborative"), ScriptedModel([wrong, torn, says("42")]))
    assert (answer.text, bench.lane.calls) == ("42", [])
    reasons = [one.result.stderr for one in of_kind(await bench.messages(), ToolTurn)]
    assert "do not fit" in reasons[0]
    assert "not JSON" in reasons[1]


async def test_the_same_call_again_and_again_is_stopped(bench: Bench) -> None:
    script = (says("41", 0.1), *[turn for _ in range(9) for turn in (uses("1"), says("41", 0.1))])
    answer = await bench.attempt(agent("autonomous", turns=50, tool_calls=50), ScriptedModel(script))
    assert (answer.stopped, answer.tool_calls) == ("repeated_call", 3)


async def test_a_failing_tool_is_withdrawn_after_its_tries(bench: Bench) -> None:
    bench.replies(BAD)
    model = ScriptedModel([says("41", 0.1), uses("1"), says("41", 0.1), uses("2"), says("41", 0.1)])
    answer = await bench.attempt(agent("autonomous"), model)
    assert (answer.stopped, answer.tool_calls, answer.model_turns) == ("answered", 2, 5)


async def test_parallel_calls_beyond_the_limit_are_refused(bench: Bench) -> None:
    model = ScriptedModel([uses("1", "2", "3"), says("42")])
    answer = await bench.attempt(agent("collaborative", tool_calls=2), model)
    assert (answer.tool_calls, len(bench.lane.calls)) == (2, 2)
    statuses = [turn.result.status for turn in of_kind(await bench.messages(), ToolTurn)]
    assert statuses == ["ok", "ok", "refused"]
    assert model.asked[-1].tools == ()


async def test_the_turn_limit_keeps_the_last_answer(bench: Bench) -> None:
    answer = await bench.attempt(agent("autonomous", turns=2), ScriptedModel([says("41", 0.1), uses("1")]))
    assert (answer.text, answer.stopped, answer.model_turns) == ("41", "turn_limit", 2)


async def test_a_limit_before_any_answer_is_a_failure(bench: Bench) -> None:
    with pytest.raises(LimitReached, match="turn_limit"):
        await bench.attempt(agent("collaborative", turns=1), ScriptedModel([uses("1")]))


async def test_the_cost_limit_stops(bench: Bench) -> None:
    model = ScriptedModel([says("41", 0.1), uses("1"), says("42")])
    answer = await bench.attempt(agent("autonomous", cost_usd=0.015), model)
    assert (answer.text, answer.stopped, answer.cost_usd) == ("41", "cost_limit", 0.02)


# ---- trouble


async def test_a_busy_model_is_asked_again(bench: Bench) -> None:
    model = ScriptedModel([says("42")], errors=[ModelBusy("busy", after_s=0.0), ModelBusy("busy", after_s=0.0)])
    assert (await bench.attempt(agent("autonomous"), model)).text == "42"
    assert len(model.asked) == 3


async def test_a_model_that_stays_busy_ends_with_the_deadline_and_says_why(bench: Bench) -> None:
    model = ScriptedModel([], errors=[ModelBusy("429 from the provider")] * 50)
    with pytest.raises(DeadlineMissed, match=r"a request to scripted.*429 from the provider"):
        await bench.attempt(agent("autonomous"), model, time.time() + 0.4)


async def test_a_model_that_gives_nothing_fails_the_call(bench: Bench) -> None:
    with pytest.raises(ModelFailed):
        await bench.attempt(agent("autonomous"), ScriptedModel([]))


@pytest.mark.parametrize(
    "error", [LaneGone("gone", after_s=0.0), EngineGone("gone", after_s=0.0), DeadlineMissed("late")]
)
async def test_a_call_that_no_runner_took_is_sent_again_under_the_same_id(
    bench: Bench, error: LaneGone | EngineGone | DeadlineMissed
) -> None:
    bench.replies(error, OK)
    answer = await bench.attempt(agent("collaborative"), ScriptedModel([uses("1"), says("42")]), time.time() + 100)
    assert (answer.text, answer.tool_calls) == ("42", 1)
    assert len({call.tool_call_id for call in bench.lane.calls}) == 1
    assert len(bench.lane.calls) == 2


async def test_a_lane_that_stays_away_ends_with_the_deadline(bench: Bench) -> None:
    bench.replies(LaneGone("no runner"))
    with pytest.raises(DeadlineMissed, match=r"the call of python.*no runner"):
        await bench.attempt(agent("collaborative"), ScriptedModel([uses("1")]), time.time() + 0.4)


async def test_a_call_that_goes_to_and_fro_between_two_uses_is_stopped(bench: Bench) -> None:
    model = ScriptedModel([uses("1"), uses("2"), uses("1"), uses("2"), says("5")])
    with pytest.raises(LimitReached, match="ping_pong"):
        await bench.attempt(agent("collaborative", turns=20, tool_calls=20), model)
    assert (len(model.asked), len(bench.lane.calls)) == (4, 4)


async def test_a_call_that_only_comes_back_to_a_use_once_goes_on(bench: Bench) -> None:
    model = ScriptedModel([uses("1"), uses("2"), uses("1"), uses("3"), says("5")])
    assert (await bench.attempt(agent("collaborative", turns=20, tool_calls=20), model)).text == "5"


async def test_what_cannot_be_read_for_the_third_time_is_a_typed_failure(bench: Bench) -> None:
    bad = ModelTurn(uses=(ToolUse(id="u", tool="python", problem="Expecting value"),), cost_usd=0.01)
    model = ScriptedModel([bad, bad, bad, says("5")])
    with pytest.raises(ModelMalformed, match=r"third time.*arguments of python: Expecting value"):
        await bench.attempt(agent("collaborative", turns=20), model)
    assert (len(model.asked), bench.lane.calls) == (3, [])


async def test_a_request_that_takes_too_long_is_given_up_made_again_and_marked(bench: Bench) -> None:
    model = Sleepy([says("5")])
    found = await bench.attempt(agent("autonomous"), Timed(model, 0.05))
    assert (found.text, model.slept) == ("5", 1)
    turn = next(message for message in await bench.messages() if isinstance(message, ModelTurn))
    assert turn.asked_again


async def test_a_request_that_was_lost_counts_where_the_time_is_over_before_it_can_be_made_again(bench: Bench) -> None:
    bench.db.writes, bench.db.at, bench.db.committed = -2, 1, False
    with pytest.raises(Crash):
        await bench.attempt(agent("autonomous"), ScriptedModel([says("5")]))

    with pytest.raises(DeadlineMissed):
        await bench.attempt(agent("autonomous"), ScriptedModel([]), time.time() - 1, Need(50, 0.01))

    assert bench.attempts[-1].purse.took == Spent(usd=0.01, tokens=50)


class Sleepy(ScriptedModel):
    """Its first request never ends by itself."""

    slept = 0

    async def ask(self, messages: Any, **asked: Any) -> ModelTurn:
        if not self.slept:
            self.slept += 1
            await asyncio.Event().wait()
        return await super().ask(messages, **asked)


async def test_a_request_that_was_answered_busy_is_not_marked_as_billed_twice(bench: Bench) -> None:
    await bench.attempt(agent("autonomous"), ScriptedModel([says("5")], errors=[ModelBusy("429", after_s=0.01)]))
    turn = next(message for message in await bench.messages() if isinstance(message, ModelTurn))
    assert not turn.asked_again


async def test_the_token_limit_stops_before_the_request_that_might_pass_it(bench: Bench) -> None:
    usage = {"input_tokens": 30, "output_tokens": 20}
    model = ScriptedModel([says("1", 0.1, usage=usage), says("2", 0.1, usage=usage)])
    found = await bench.attempt(agent("autonomous", tokens=90), model, need=Need(50))
    assert (found.text, found.stopped, len(model.asked)) == ("1", "token_limit", 1)


async def test_a_reply_without_usage_counts_as_what_was_set_aside_and_says_so(bench: Bench) -> None:
    await bench.attempt(agent("autonomous", tokens=90), ScriptedModel([says("1")]), need=Need(50))
    turn = next(message for message in await bench.messages() if isinstance(message, ModelTurn))
    assert turn.usage is not None
    assert (turn.usage.input_tokens, turn.usage.estimated) == (50, True)


async def test_the_model_is_told_how_much_it_may_write_and_how_hard_to_think(bench: Bench) -> None:
    spec = AgentSpec.model_validate(
        {**agent("autonomous", output_tokens=77).model_dump(), "reasoning": {"kind": "plain", "effort": "high"}}
    )
    model = ScriptedModel([says("1")])
    await bench.attempt(spec, model)
    assert (model.asked[0].options.output_tokens, model.asked[0].options.effort) == (77, "high")


async def test_a_tool_that_no_runner_knows_any_more_ends_the_call_typed(bench: Bench) -> None:
    bench.replies(ToolResult(status="refused", gone=True, stderr="there is no tool 'python'; there are shell"))
    with pytest.raises(ToolGone, match="the tool python of the agent a is gone: there is no tool"):
        await bench.attempt(agent("collaborative"), ScriptedModel([uses("1"), says("5")]))


async def test_a_model_that_declines_has_answered_under_every_policy(bench: Bench) -> None:
    declines = ModelTurn(text="I cannot help with that.", refused=True, cost_usd=0.01)
    found = await bench.attempt(agent("autonomous"), ScriptedModel([declines]))
    assert (found.text, found.stopped) == ("I cannot help with that.", "declined")


async def test_a_reply_that_was_cut_is_asked_for_once_more_and_then_taken_as_cut(bench: Bench) -> None:
    cut = ModelTurn(text="First, let us", cut=True, cost_usd=0.01)
    model = ScriptedModel([cut, says("42")])
    found = await bench.attempt(agent("autonomous", turns=9), model)
    assert (found.text, found.stopped) == ("42", "answered")
    assert model.asked[1].messages[-1] == Note(text=wording.CUT)


async def test_a_reply_that_is_cut_again_is_taken_and_called_cut(bench: Bench) -> None:
    cut = says("4", cut=True)
    model = ScriptedModel([cut, cut, says("42")])
    found = await bench.attempt(agent("autonomous"), model)
    assert (found.text, found.stopped, len(model.asked)) == ("4", "cut", 2)


async def test_a_request_that_was_lost_counts_as_what_was_set_aside_for_it(bench: Bench) -> None:
    spec = AgentSpec.model_validate(
        {**agent("autonomous", cost_usd=0.025).model_dump(), "reasoning": {"kind": "deep", "rounds": 5}}
    )
    found = await bench.attempt(spec, Timed(Sleepy([says("1"), says("2")]), 0.05), need=Need(0, 0.01))
    assert (found.text, found.stopped) == ("1", "cost_limit")


async def test_what_was_spent_before_a_crash_is_missing_after_it(bench: Bench) -> None:
    spec, script = agent("autonomous", cost_usd=0.015), [says("1", 0.1), says("2", 0.1)]
    bench.db.writes, bench.db.at, bench.db.committed = -2, 1, True
    with pytest.raises(Crash):
        await bench.attempt(spec, ScriptedModel(script), need=Need(0, 0.01))
    again = ScriptedModel(script)
    found = await bench.attempt(spec, again, need=Need(0, 0.01))
    assert (found.text, found.stopped, again.asked) == ("1", "cost_limit", [])
