"""What the mock server aimock cannot say of the three wire formats, said by a bare server on 127.0.0.1 in the providers' own shapes.

Those are: refusals in parts, torn arguments, counts in detail, replies that are none, streams that break off, connections that we close, and the
request as it really was sent: aimock's journal keeps only what the formats share.
"""

from __future__ import annotations

import asyncio
import json
import time
import traceback
from typing import Any

import pytest
import structlog

from metier_agents.langchain_model import LangChainModel
from metier_agents.model import PLAIN, Options
from metier_agents.models import open_model
from metier_agents.policy import ToolChoice
from metier_agents.turns import History, ModelTurn, System, Usage, User
from metier_infra.errors import BadSettings, ContextTooLong, MetierError, ModelBusy, ModelFailed
from metier_tools.builtin import BUILTIN

from .shapes import (
    HELLO,
    KEY,
    TEXT_BLOCK,
    TEXT_EVENTS,
    chat,
    chat_stream,
    http,
    message,
    message_stream,
    output_text,
    response,
    response_stream,
    said,
    serving,
    stream,
    whole,
)

PYTHON = BUILTIN.specs(["python"])
TASK = (System(text="Be brief."), User(text="What is 6 x 7?"))
FORMATS = {"chat": "openai:gpt-5", "responses": "openai-responses:gpt-5", "messages": "anthropic:claude-opus-4-7"}
FORM: dict[str, Any] = {"title": "An answer", "type": "object", "properties": {"answer": {"type": "integer"}}}
each_format = pytest.mark.parametrize("form", FORMATS)
pytestmark = pytest.mark.asyncio(loop_scope="module")  # LangChain keeps one HTTP client per address, and that its loop


async def ask(
    form: str, *, choice: ToolChoice = "none", options: Options = PLAIN, messages: History = TASK, model: str = ""
) -> ModelTurn:
    opened = open_model(model or FORMATS[form], timeout_s=20)
    assert isinstance(opened, LangChainModel)
    tools = PYTHON if choice != "none" else ()
    return await opened.ask(messages, tools=tools, tool_choice=choice, deadline=time.time() + 20, options=options)


def options_of(pieces: list[str], *, streamed: bool) -> Options:
    return Options(on_text=pieces.append if streamed else None)


# ---- what is counted

CHAT_USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 20,
    "total_tokens": 120,
    "prompt_tokens_details": {"cached_tokens": 64},
    "completion_tokens_details": {"reasoning_tokens": 12},
}
RESPONSES_USAGE = {
    "input_tokens": 100,
    "output_tokens": 20,
    "total_tokens": 120,
    "input_tokens_details": {"cached_tokens": 64},
    "output_tokens_details": {"reasoning_tokens": 12},
}
MESSAGES_USAGE = {
    "input_tokens": 30,
    "cache_read_input_tokens": 64,
    "cache_creation_input_tokens": 6,
    "output_tokens": 20,
    "output_tokens_details": {"thinking_tokens": 12},
}
DETAILED = {
    "chat": chat({"content": "forty-two"}, usage=CHAT_USAGE),
    "chat-streamed": chat_stream([{"role": "assistant", "content": "forty-two"}], usage=CHAT_USAGE),
    "responses": whole(response([said(output_text("forty-two"))], RESPONSES_USAGE)),
    "responses-streamed": response_stream(TEXT_EVENTS, response([said(output_text("forty-two"))], RESPONSES_USAGE)),
    "messages": message([{"type": "text", "text": "forty-two"}], usage=MESSAGES_USAGE),
    "messages-streamed": message_stream([TEXT_BLOCK], usage=MESSAGES_USAGE),
}


@pytest.mark.parametrize("case", DETAILED)
async def test_what_was_read_from_the_cache_and_what_was_thought_is_counted(
    monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    pieces: list[str] = []
    async with serving(monkeypatch, DETAILED[case]):
        turn = await ask(case.partition("-")[0], options=options_of(pieces, streamed="-" in case))
    put = 6 if case.startswith("messages") else 0
    assert turn.text == "forty-two"
    assert turn.usage == Usage(
        input_tokens=100, output_tokens=20, cached_tokens=64, cache_written_tokens=put, reasoning_tokens=12
    )
    assert pieces == (["forty-two"] if "-" in case else [])


async def test_a_dearer_tier_of_service_is_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    body = response([said(output_text("forty-two"))], RESPONSES_USAGE, service_tier="priority")
    async with serving(monkeypatch, whole(body)):
        turn = await ask("responses")
    assert turn.usage == Usage(input_tokens=100, output_tokens=20, cached_tokens=64, reasoning_tokens=12)


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}], ids=str)
async def test_nothing_counted_is_unknown_and_not_nothing(monkeypatch: pytest.MonkeyPatch, usage: Any) -> None:
    async with serving(monkeypatch, chat({"content": "forty-two"}, usage=usage)):
        assert (await ask("chat")).usage is None


# ---- refusals

NO = "I will not."
FILTERED = {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}
REFUSAL_EVENT: dict[str, Any] = {
    "type": "response.refusal.done",
    "item_id": "msg_1",
    "output_index": 0,
    "content_index": 0,
    "refusal": NO,
}
REFUSAL_PART = said({"type": "refusal", "refusal": NO})
EXPLAINED = {"stop_details": {"type": "refusal", "category": "cyber", "explanation": NO}}
REFUSALS = {
    "chat": chat({"refusal": NO}),
    "chat-streamed": chat_stream([{"role": "assistant", "refusal": "I will "}, {"refusal": "not."}]),
    "responses": whole(response([REFUSAL_PART])),
    "responses-streamed": response_stream([REFUSAL_EVENT], response([REFUSAL_PART])),
    "responses/filter": whole(response([said(output_text(NO))], **FILTERED)),
    "messages": message([], "refusal", **EXPLAINED),
    "messages-streamed": message_stream([], "refusal", **EXPLAINED),
    "messages/silent": message([], "refusal"),
    "chat/silent": chat({}, "content_filter"),
    "chat/request": http(400, json.dumps({"error": {"message": NO, "code": "content_filter"}}).encode()),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_a_refusal_is_a_reply_with_what_was_said(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    pieces: list[str] = []
    form = case.partition("-")[0].partition("/")[0]
    async with serving(monkeypatch, REFUSALS[case]):
        turn = await ask(form, options=options_of(pieces, streamed="-" in case))
    assert turn.refused
    assert not turn.cut
    assert NO in turn.text or case.endswith("silent")
    assert "".join(pieces) == (turn.text if "-" in case else "")


async def test_a_reply_of_thoughts_alone_that_ends_at_its_longest_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    body = response([], RESPONSES_USAGE, status="incomplete", incomplete_details={"reason": "max_output_tokens"})
    async with serving(monkeypatch, whole(body)):
        turn = await ask("responses")
    assert (turn.text, turn.cut, turn.refused) == ("", True, False)


# ---- arguments that are torn


def calls(form: str, arguments: Any, *, streamed: bool) -> bytes:
    function = {"index": 0, "id": "c1", "type": "function", "function": {"name": "python", "arguments": arguments}}
    item = {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "c1",
        "name": "python",
        "arguments": arguments,
        "status": "completed",
    }
    block = {"type": "tool_use", "id": "c1", "name": "python"}
    match form, streamed:
        case "chat", False:
            return chat({"tool_calls": [function]}, "tool_calls")
        case "chat", True:
            return chat_stream([{"role": "assistant", "tool_calls": [function]}], "tool_calls")
        case "responses", False:
            return whole(response([item]))
        case "responses", True:
            added = {"type": "response.output_item.added", "output_index": 0, "item": {**item, "arguments": ""}}
            delta = {
                "type": "response.function_call_arguments.delta",
                "item_id": "fc_1",
                "output_index": 0,
                "delta": arguments,
            }
            return response_stream([added, delta], response([item]))
        case _, False:
            return message([{**block, "input": arguments}], "tool_use")
        case _:
            delta = {"type": "input_json_delta", "partial_json": arguments}
            return message_stream([({**block, "input": {}}, delta)], "tool_use")


@each_format
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    "torn",
    ['{"code": "rm -rf', "{'code': 1}", '{"code": NaN}', '{"code": 1}}'],
    ids=lambda text: text[:16],
)
async def test_torn_arguments_are_a_problem_of_that_use_and_are_not_completed(
    monkeypatch: pytest.MonkeyPatch, form: str, streamed: bool, torn: str
) -> None:
    async with serving(monkeypatch, calls(form, torn, streamed=streamed)):
        turn = await ask(form, choice="auto", options=options_of([], streamed=streamed))
    (use,) = turn.uses
    assert use.problem
    assert use.arguments == {}


@pytest.mark.parametrize(
    ("form", "streamed"), [("chat", False), ("chat", True), ("messages", False), ("messages", True)]
)
async def test_arguments_that_are_nested_without_end_hurt_nobody(
    monkeypatch: pytest.MonkeyPatch, form: str, streamed: bool
) -> None:
    async with serving(monkeypatch, calls(form, "[" * 100_000, streamed=streamed)):
        turn = await ask(form, choice="auto", options=options_of([], streamed=streamed))
    assert [bool(use.problem) for use in turn.uses] == [True]


async def test_arguments_of_responses_that_langchain_cannot_read_fail_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(monkeypatch, calls("responses", "[" * 100_000, streamed=False)):
        with pytest.raises(ModelFailed, match="gave a reply that cannot be read"):
            await ask("responses", choice="auto")


@each_format
async def test_a_tool_without_arguments_is_called_with_none(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    async with serving(monkeypatch, calls(form, "", streamed=True)):
        turn = await ask(form, choice="auto", options=options_of([], streamed=True))
    assert [(use.id, use.arguments, use.problem) for use in turn.uses] == [("c1", {}, None)]


# ---- replies that are none

NONE = {
    "chat": [b"", b"{}", b"<html>busy</html>", b'{"choices": []}', b'{"choices": null}', b'{"choices": [{"index": 0, "message": null}]}', b"[1]", b'{"choic'],
    "responses": [b"", b"{}", b"<html>busy</html>", b'{"output": null}', b'{"output": []}', b"[1]", b'{"outp'],
    "messages": [b"", b"{}", b"<html>busy</html>", b'{"content": null}', b'{"content": []}', b"[1]", b'{"cont'],
}  # fmt: skip


@pytest.mark.parametrize(("form", "body"), [(form, body) for form, bodies in NONE.items() for body in bodies])
async def test_what_is_no_reply_fails_in_one_sentence(monkeypatch: pytest.MonkeyPatch, form: str, body: bytes) -> None:
    async with serving(monkeypatch, http(200, body)):
        with pytest.raises(ModelFailed) as caught:
            await ask(form)
    sentence = str(caught.value)
    assert sentence.startswith(FORMATS[form])
    assert "\n" not in sentence
    assert len(sentence) < 400


@pytest.mark.parametrize("text", [None, "", "  \n"])
async def test_an_empty_reply_fails(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    async with serving(monkeypatch, chat({"content": text})):
        with pytest.raises(ModelFailed, match="neither text nor a tool call"):
            await ask("chat")


async def test_what_a_database_cannot_hold_is_no_part_of_a_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[str] = []
    reply = chat_stream([{"role": "assistant", "content": "a\0b"}, {"content": "\ud800c"}])
    async with serving(monkeypatch, reply):
        turn = await ask("chat", options=options_of(pieces, streamed=True))
    assert turn.text == "a\ufffdb\ufffdc" == "".join(pieces)


async def test_a_reply_without_an_end_is_kept_to_a_length(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[str] = []
    async with serving(monkeypatch, chat_stream([{"role": "assistant", "content": "x" * 600_000}] * 3)):
        turn = await ask("chat", options=options_of(pieces, streamed=True))
    assert len(turn.text) == 1_000_000 == len("".join(pieces))
    assert turn.cut


# ---- streams that break off

OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
FAILED = response([], status="failed", error={"code": "server_error", "message": "It broke."})
BROKEN = {
    "chat": chat_stream([{"role": "assistant", "content": "forty"}], end=None),
    "responses": response_stream(TEXT_EVENTS, None),
    "messages": message_stream([TEXT_BLOCK], stop=None),
    "chat/error": stream([{"error": {"message": "overloaded", "type": "server_error", "code": None}}]),
    "responses/failed": response_stream(TEXT_EVENTS, FAILED),
    "responses/error": stream(
        [{"type": "error", "code": "rate_limit_exceeded", "message": "wait", "param": None, "sequence_number": 0}]
    ),
    "messages/error": stream([OVERLOADED]),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_a_stream_that_breaks_off_is_busy_however_it_does(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    async with serving(monkeypatch, BROKEN[case]):
        with pytest.raises(ModelBusy):
            await ask(case.partition("/")[0], options=options_of([], streamed=True))


async def test_a_request_that_is_too_long_may_be_said_in_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    event = {
        "error": {"message": "Your input exceeds the context window of this model.", "code": "context_length_exceeded"}
    }
    async with serving(monkeypatch, stream([event])):
        with pytest.raises(ContextTooLong):
            await ask("chat", options=options_of([], streamed=True))


HALF = {
    "chat": chat_stream([{"role": "assistant", "content": "forty"}], end=None),
    "responses": response_stream(TEXT_EVENTS, None),
    "messages": message_stream([TEXT_BLOCK], stop=None),
}


@each_format
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("moment", range(0, 12, 2))
async def test_cancelling_closes_the_request_at_whatever_moment(
    monkeypatch: pytest.MonkeyPatch, form: str, streamed: bool, moment: int
) -> None:
    async with serving(monkeypatch, HALF[form] if streamed else b"", hold=True) as server:
        asking = asyncio.create_task(ask(form, options=options_of([], streamed=streamed)))
        await asyncio.wait_for(server.asked.wait(), 10)
        for _ in range(moment):
            await asyncio.sleep(0)
        assert not server.left.is_set()
        asking.cancel()
        await asyncio.wait([asking], timeout=10)
        assert asking.cancelled()
        await asyncio.wait_for(server.left.wait(), 10)
    assert len(server.bodies) == 1


# ---- what is really sent


async def sent(
    patch: pytest.MonkeyPatch, form: str, options: Options, choice: ToolChoice = "none", model: str = ""
) -> dict[str, Any]:
    async with serving(patch, HELLO[form]) as server:
        await ask(form, choice=choice, options=options, model=model)
    (body,) = server.bodies
    return body


async def test_anthropic_is_sent_marks_for_its_cache_and_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    body = await sent(monkeypatch, "messages", Options(output_tokens=77, effort="minimal", form=FORM), "auto")
    mark = {"type": "ephemeral"}
    assert body["system"] == [{"type": "text", "text": "Be brief.", "cache_control": mark}]
    assert body["cache_control"] == mark
    assert body["max_tokens"] == 77
    assert body["output_config"]["effort"] == "low"
    assert body["output_config"]["format"]["type"] == "json_schema"
    assert body["thinking"]["type"] == "adaptive"
    assert body["tool_choice"] == {"type": "auto"}


async def test_anthropic_is_not_asked_to_think_where_it_must_call_a_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    body = await sent(monkeypatch, "messages", Options(effort="high"), "required")
    assert (body["tool_choice"], body["output_config"]) == ({"type": "any"}, {"effort": "high"})
    assert "thinking" not in body


async def test_a_model_that_cannot_be_forced_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    body = await sent(monkeypatch, "messages", PLAIN, "required", model="anthropic:claude-opus-5-5")
    assert body["tool_choice"] == {"type": "auto"}


async def test_responses_is_sent_its_own_words_and_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    body = await sent(monkeypatch, "responses", Options(output_tokens=77, effort="high", form=FORM), "required")
    assert (body["max_output_tokens"], body["reasoning"], body["store"]) == (77, {"effort": "high"}, False)
    assert body["text"]["format"] == {"type": "json_schema", "name": "An_answer", "schema": FORM, "strict": False}
    assert body["tool_choice"] == "required"
    assert len(body["prompt_cache_key"]) == 32
    assert [tool["name"] for tool in body["tools"]] == ["python"]


async def test_a_model_that_has_no_form_of_replies_goes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    with structlog.testing.capture_logs() as logs:
        body = await sent(monkeypatch, "chat", Options(form=FORM), model="openai:gpt-4")
    assert "response_format" not in body
    assert [line["option"] for line in logs] == ["form of the reply"]


@pytest.mark.parametrize(("form", "model"), [("chat", "openai:gpt-4o"), ("chat", "openai:a-local-model"), ("messages", "anthropic:claude-haiku-4-5"), ("messages", "anthropic:claude-x")])  # fmt: skip
async def test_a_model_that_has_no_effort_goes_without_unless_only_its_server_knows(
    monkeypatch: pytest.MonkeyPatch, form: str, model: str
) -> None:
    with structlog.testing.capture_logs() as logs:
        body = await sent(monkeypatch, form, Options(effort="high"), model=model)
    asked = "reasoning_effort" in body or "effort" in body.get("output_config", {})
    assert asked == (model == "openai:a-local-model")
    assert [(line["log_level"], line["option"]) for line in logs] == ([] if asked else [("debug", "effort")])


# ---- keys


def echo(status: int) -> bytes:
    return http(
        status,
        json.dumps(
            {"type": "error", "error": {"type": "x", "message": f"your key {KEY} is odd", "code": KEY}}
        ).encode(),
    )


ECHOES = {
    "400": (echo(400), ModelFailed),
    "401": (echo(401), BadSettings),
    "404": (echo(404), ModelFailed),
    "429": (echo(429), ModelBusy),
    "500": (echo(500), ModelBusy),
    "stream": (
        stream([{"type": "error", "error": {"type": "overloaded_error", "message": f"busy with {KEY}"}}]),
        ModelBusy,
    ),
    "html": (http(200, f"<html>{KEY}</html>".encode(), "text/html"), ModelFailed),
}


@each_format
@pytest.mark.parametrize("case", ECHOES)
async def test_a_key_that_the_server_repeats_is_told_to_nobody(
    monkeypatch: pytest.MonkeyPatch, form: str, case: str
) -> None:
    reply, kind = ECHOES[case]
    with structlog.testing.capture_logs() as logs:
        async with serving(monkeypatch, reply):
            model = open_model(FORMATS[form], timeout_s=20)
            options = options_of([], streamed=case == "stream")
            with pytest.raises(MetierError) as caught:
                await model.ask(TASK, tools=(), tool_choice="none", deadline=time.time() + 20, options=options)
    error = caught.value
    assert isinstance(error, (kind, ModelFailed))
    told = [
        str(error),
        repr(error),
        repr(model),
        repr(vars(model)),
        "".join(traceback.format_exception(error)),
        str(logs),
    ]
    assert not [text for text in told if KEY in text]
    assert error.__context__ is None


@each_format
async def test_a_filter_that_repeats_the_key_does_not_tell_it(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    body = {"type": "error", "error": {"type": "x", "message": f"no, {KEY}", "code": "content_filter"}}
    async with serving(monkeypatch, http(400, json.dumps(body).encode())):
        turn = await ask(form)
    assert turn.refused
    assert KEY not in turn.text
