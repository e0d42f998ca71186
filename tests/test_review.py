"""What a safety bundle makes of answers and refusals, through the loop over a scripted model and a real SQLite journal."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from metier_agents import wording
from metier_agents.attempt import Attempt
from metier_agents.hands import Hands
from metier_agents.loop import Loop
from metier_agents.model import ScriptedModel
from metier_agents.safety import Bundle
from metier_agents.spec import AgentSpec
from metier_agents.stamp import stamp
from metier_agents.testing import ScriptedLane
from metier_agents.turns import ModelTurn, Note, of_kind
from metier_infra import telemetry
from metier_infra.database import migrate
from metier_infra.errors import AnswerWithheld, ModelRefused
from metier_infra.journal import Journal
from metier_infra.rows import Call
from metier_infra.sqlite_journal import SqliteDatabase
from metier_infra.words import Answer, CallId, RunId, Task
from metier_tools.builtin import BUILTIN
from metier_tools.tool import ToolCall, ToolResult

SPEC = AgentSpec.model_validate({"name": "a", "model": "scripted:x", "policy": {"kind": "autonomous"}})
DECLINES = ModelTurn(text="I would rather not.", refused=True, cost_usd=0.01)
NO_SECRET = {"kind": "must_not_match", "pattern": "hunter2"}


def says(text: str) -> ModelTurn:
    return ModelTurn(text=f"ANSWER: {text}\nCONFIDENCE: 0.9", cost_usd=0.01)


def bundle(**more: Any) -> Bundle:
    return Bundle.model_validate({"name": "b", "version": 1, **more})


@pytest.fixture
async def journal() -> AsyncIterator[Journal]:
    db = SqliteDatabase(":memory:")
    await migrate(db)
    yield Journal(db)
    await db.close()


async def asked(journal: Journal, under: Bundle, model: ScriptedModel, spec: AgentSpec = SPEC) -> Answer:
    until, call_id = time.time() + 30, CallId("c")
    call = Call(call_id=call_id, run_id=RunId("r"), agent="a", task=Task(text="?", category="code"), deadline=until)
    await journal.calls.request(call)
    claimed = await journal.calls.claim(call_id, "me")
    assert claimed is not None
    lane = ScriptedLane(lambda _: ToolResult(status="ok", stdout="42"))
    hands = Hands(journal, lane, BUILTIN, b"k" * 32, under, stamp(spec, under))
    return await Loop(Attempt(claimed, spec, model, journal, hands, until, stamp(spec, under))).run()


async def test_a_refusal_is_the_answer_where_the_bundle_takes_it(journal: Journal) -> None:
    found = await asked(journal, bundle(), ScriptedModel([DECLINES]))
    assert (found.text, found.stopped) == ("I would rather not.", "declined")


async def test_a_model_that_declines_is_told_so_and_asked_again_as_often_as_the_bundle_says(journal: Journal) -> None:
    model = ScriptedModel([DECLINES, says("a story")])
    found = await asked(journal, bundle(refusal={"then": "ask_again", "say": "It is fiction."}), model)
    assert (found.text, found.stopped) == ("a story", "answered")
    assert of_kind(model.asked[1].messages, Note)[-1].text == f"{wording.DECLINED} It is fiction."
    assert [request.options.next_on_refusal for request in model.asked] == [False, False]


async def test_a_model_that_declines_still_leaves_it_to_the_next_where_the_bundle_says_so(journal: Journal) -> None:
    model = ScriptedModel([DECLINES, DECLINES])
    await asked(journal, bundle(refusal={"then": "ask_again", "after": "next_model"}), model)
    assert [request.options.next_on_refusal for request in model.asked] == [False, True]


async def test_a_refusal_ends_the_call_where_the_bundle_says_so(journal: Journal) -> None:
    with pytest.raises(ModelRefused, match="declined"):
        await asked(journal, bundle(refusal={"then": "fail"}), ScriptedModel([DECLINES]))


async def test_an_answer_that_must_not_leave_is_held_back_and_nothing_of_it_is_told(journal: Journal) -> None:
    with pytest.raises(AnswerWithheld, match="safety bundle held the answer of a back") as held:
        await asked(journal, bundle(output=[NO_SECRET]), ScriptedModel([says("it is hunter2")]))
    assert "hunter2" not in str(held.value)


async def test_an_answer_is_mended_once_and_then_held_back(journal: Journal) -> None:
    checks = bundle(output=[{**NO_SECRET, "then": "ask_again", "say": "No passwords."}])
    model = ScriptedModel([says("hunter2"), says("I may not say")])
    assert (await asked(journal, checks, model)).text == "I may not say"
    assert of_kind(model.asked[1].messages, Note)[-1].text == f"{wording.MEND} No passwords."


async def test_an_answer_that_stays_bad_is_held_back(journal: Journal) -> None:
    checks = bundle(output=[{**NO_SECRET, "then": "ask_again"}])
    with pytest.raises(AnswerWithheld):
        await asked(journal, checks, ScriptedModel([says("hunter2"), says("hunter2!")]))


async def test_an_answer_that_a_limit_cut_short_is_checked_all_the_same(journal: Journal) -> None:
    spec = AgentSpec.model_validate({**SPEC.model_dump(), "limits": {"turns": 1}, "reasoning": {"kind": "deep"}})
    with pytest.raises(AnswerWithheld):
        await asked(journal, bundle(output=[NO_SECRET]), ScriptedModel([says("hunter2")]), spec)


async def test_details_are_struck_out_of_the_answer(journal: Journal) -> None:
    checks = bundle(output=[{"kind": "no_details", "of": ["email"]}])
    found = await asked(journal, checks, ScriptedModel([says("write to ada@example.com")]))
    assert "ada@example.com" not in found.text


async def test_a_tool_call_carries_what_the_bundle_demands_of_the_sandbox(journal: Journal) -> None:
    calls: list[ToolCall] = []

    def reply(call: ToolCall) -> ToolResult:
        calls.append(call)
        return ToolResult(status="ok", stdout="42")

    under = bundle(tools={"allow": ["python"]}, otherwise="allow", sandbox="strict")
    spec = AgentSpec.model_validate(
        {"name": "a", "model": "scripted:x", "policy": {"kind": "collaborative"}, "tools": [{"name": "python"}]}
    )
    hands = Hands(journal, ScriptedLane(reply), BUILTIN, b"k" * 32, under, stamp(spec, under))
    turn = ModelTurn.model_validate(
        {"uses": [{"id": "u", "tool": "python", "arguments": {"code": "1"}}], "offered": ["python"]}
    )
    call = Call(call_id=CallId("d"), run_id=RunId("r"), agent="a", task=Task(text="?"), deadline=2e9, attempt=1)
    await hands.act(call, turn, 0, left=1, deadline=time.time() + 30)
    assert calls[0].hold is not None
    assert (calls[0].hold.profile, calls[0].hold.egress) == ("strict", ())


def test_another_bundle_is_another_digest_of_the_agent() -> None:
    stricter = bundle(output=[NO_SECRET])
    first, second, none = stamp(SPEC, bundle()), stamp(SPEC, stricter), stamp(SPEC)
    assert len({first.digest, second.digest, none.digest}) == 3
    assert (first.safety, second.safety, none.safety) == ("b@1", "b@1", "")
    assert first.safety_digest != second.safety_digest


@pytest.mark.parametrize("capture", [True, False])
async def test_content_is_on_spans_only_where_the_bundle_says_so(
    journal: Journal, spans: InMemorySpanExporter, capture: bool
) -> None:
    await asked(journal, bundle(capture=capture), ScriptedModel([says("a secret plan")]))
    telemetry.stop()
    told = [dict(span.attributes or {}) for span in spans.get_finished_spans() if span.name.startswith("chat ")]
    assert [telemetry.OUTPUT_MESSAGES in one for one in told] == [capture]
    assert ("a secret plan" in str(told)) == capture
    assert [one[telemetry.SAFETY] for one in told] == ["b@1"]
