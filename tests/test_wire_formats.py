"""OpenAI chat completions, OpenAI Responses and Anthropic messages, through our adapter, against the public mock server aimock.

What aimock cannot say (refusals in parts, torn arguments on Anthropic, marks for caching) is said by a bare server: `wire.test_edges`.
"""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Mapping
from typing import Any

import httpx2
import pytest

from metier_agents.langchain_model import LangChainModel
from metier_agents.model import PLAIN, Options
from metier_agents.models import open_model
from metier_agents.policy import ToolChoice
from metier_agents.turns import Message, ModelTurn, System, ToolTurn, Usage, User
from metier_infra.errors import BadSettings, ContextTooLong, MetierError, ModelBusy, ModelFailed
from metier_tools.builtin import BUILTIN
from metier_tools.tool import ToolResult

FORMATS = {
    "chat": "openai:gpt-5",
    "responses": "openai-responses:gpt-5",
    "messages": "anthropic:claude-opus-4-7",
    "local": "openai:a-local-model",
}
PATHS = {
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "local": "/v1/chat/completions",
}
KEY = "sk-this-key-must-never-be-told"
PYTHON = BUILTIN.specs(["python"])
TASK: tuple[Message, ...] = (System(text="Be brief."), User(text="What is 6 x 7?"))
USAGE = {"prompt_tokens": 11, "completion_tokens": 5, "input_tokens": 11, "output_tokens": 5}
FORM: Mapping[str, Any] = {
    "title": "Answer",
    "type": "object",
    "properties": {"answer": {"type": "integer"}},
    "required": ["answer"],
    "additionalProperties": False,
}
TWO_CALLS = [
    {"id": "c1", "name": "python", "arguments": {"code": "print(6 * 7)"}},
    {"id": "c2", "name": "python", "arguments": {"code": "print(7 * 6)"}},
]
COUNTED = Usage(input_tokens=11, output_tokens=5)
each_format = pytest.mark.parametrize("form", FORMATS)
pytestmark = pytest.mark.asyncio(loop_scope="module")  # LangChain keeps one HTTP client per address, and that its loop


@pytest.fixture(autouse=True)
def environment(aimock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every provider is the mock server."""
    monkeypatch.setenv("OPENAI_BASE_URL", f"{aimock}/v1")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", aimock)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


def say(aimock: str, response: Mapping[str, Any], *, match: Mapping[str, Any] | None = None, **more: Any) -> None:
    """Have the mock server answer so."""
    fixture = {"match": {"endpoint": "chat", **(match or {})}, "response": {**response}, **more}
    if "error" not in response:
        fixture["response"] = {"usage": USAGE, **response}
    httpx2.post(f"{aimock}/__aimock/fixtures", json={"fixtures": [fixture]}).raise_for_status()


def journal(aimock: str) -> list[Any]:
    """What the mock server got, as it understood it."""
    entries: list[Any] = httpx2.get(f"{aimock}/__aimock/journal").json()
    return entries


async def ask(
    form: str, messages: tuple[Message, ...] = TASK, *, choice: ToolChoice = "none", options: Options = PLAIN
) -> ModelTurn:
    model = open_model(FORMATS[form], timeout_s=20)
    assert isinstance(model, LangChainModel)
    tools = PYTHON if choice != "none" else ()
    return await model.ask(messages, tools=tools, tool_choice=choice, deadline=time.time() + 20, options=options)


def quietly(piece: str) -> None:
    """Listen to a stream, and keep nothing."""


def counted(form: str, *, streamed: bool) -> Usage | None:
    """aimock leaves the input out of the last event of a stream of Anthropic's, where Anthropic repeats it: half a count is none."""
    return None if streamed and form == "messages" else COUNTED


async def failing(form: str, kind: type[MetierError], options: Options = PLAIN) -> MetierError:
    with pytest.raises(kind) as caught:
        await ask(form, options=options)
    assert type(caught.value) is kind
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


# ---- replies


@each_format
async def test_a_plain_answer_comes_with_what_was_counted(aimock: str, form: str) -> None:
    say(aimock, {"content": "ANSWER: 42\nCONFIDENCE: 0.9"})
    turn = await ask(form)
    assert (turn.answer, turn.confidence, turn.uses) == ("42", 0.9, ())
    assert turn.usage == COUNTED
    assert (turn.cut, turn.refused, turn.cost_usd, turn.model) == (False, False, None, FORMATS[form])
    (entry,) = journal(aimock)
    assert entry["path"] == PATHS[form]
    assert [message["role"] for message in entry["body"]["messages"]] == ["system", "user"]
    assert not entry["body"].get("tools")


@each_format
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_two_tools_are_called_side_by_side_and_their_results_are_read(
    aimock: str, form: str, streamed: bool
) -> None:
    say(aimock, {"toolCalls": TWO_CALLS}, match={"hasToolResult": False})
    say(aimock, {"content": "ANSWER: 42\nCONFIDENCE: 1"}, match={"hasToolResult": True})
    options = Options(on_text=quietly) if streamed else PLAIN
    turn = await ask(form, choice="required", options=options)
    assert [(use.id, use.tool, use.arguments, use.problem) for use in turn.uses] == [
        ("c1", "python", {"code": "print(6 * 7)"}, None),
        ("c2", "python", {"code": "print(7 * 6)"}, None),
    ]
    assert turn.usage == counted(form, streamed=streamed)
    results = [
        ToolTurn(use_id=use.id, tool="python", result=ToolResult(status="ok", stdout="42\n")) for use in turn.uses
    ]
    after = await ask(form, (*TASK, turn, *results), choice="auto", options=options)
    assert (after.answer, after.uses) == ("42", ())
    first, second = journal(aimock)
    assert [tool["function"]["name"] for tool in first["body"]["tools"]] == ["python"]
    sent = [message for message in second["body"]["messages"] if message["role"] == "tool"]
    assert [message["tool_call_id"] for message in sent] == ["c1", "c2"]


@each_format
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_reply_in_a_form_is_the_json(aimock: str, form: str, streamed: bool) -> None:
    say(aimock, {"content": '{"answer": 42}'})
    pieces: list[str] = []
    turn = await ask(form, options=Options(form=FORM, on_text=pieces.append if streamed else None))
    assert json.loads(turn.text) == {"answer": 42}
    assert "".join(pieces) == (turn.text if streamed else "")
    assert turn.usage == counted(form, streamed=streamed)


@each_format
async def test_a_form_goes_with_tools(aimock: str, form: str) -> None:
    say(aimock, {"toolCalls": TWO_CALLS})
    turn = await ask(form, choice="auto", options=Options(form=FORM))
    assert len(turn.uses) == 2


@each_format
async def test_text_is_told_piece_by_piece_and_counted(aimock: str, form: str) -> None:
    text = "Six times seven is forty-two, ünïcödé 🙂 and all.\nANSWER: 42\nCONFIDENCE: 0.9"
    say(aimock, {"content": text}, chunkSize=7)
    pieces: list[str] = []
    turn = await ask(form, options=Options(on_text=pieces.append))
    assert len(pieces) > 5
    assert "".join(pieces) == turn.text == text
    assert turn.usage == counted(form, streamed=True)
    assert not turn.cut
    (entry,) = journal(aimock)
    assert entry["body"]["stream"] is True


@each_format
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_reply_that_ends_at_its_longest_is_cut(aimock: str, form: str, streamed: bool) -> None:
    say(aimock, {"content": "Six times sev", "finishReason": "length"})
    turn = await ask(form, options=Options(output_tokens=4, on_text=quietly if streamed else None))
    assert (turn.text, turn.cut, turn.refused) == ("Six times sev", True, False)


@pytest.mark.parametrize(("form", "why"), [("chat", "content_filter"), ("local", "content_filter"), ("messages", "refusal")])  # fmt: skip
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_reply_that_the_provider_ends_is_a_refusal(aimock: str, form: str, why: str, streamed: bool) -> None:
    say(aimock, {"content": "I cannot help with that.", "finishReason": why})
    turn = await ask(form, options=Options(on_text=quietly if streamed else None))
    assert (turn.text, turn.refused, turn.cut) == ("I cannot help with that.", True, False)


@pytest.mark.parametrize("form", ["chat", "responses", "local"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("torn", ["[1]", '"x"', "7", '{"code": "\\u0000"}', '{"code": "\\ud800"}'])
async def test_arguments_that_are_no_object_are_a_problem_of_that_use(
    aimock: str, form: str, streamed: bool, torn: str
) -> None:
    say(aimock, {"toolCalls": [{"id": "c1", "name": "python", "arguments": torn}]})
    turn = await ask(form, choice="auto", options=Options(on_text=quietly if streamed else None))
    (use,) = turn.uses
    assert use.problem
    assert use.arguments == {}


# ---- failures


@each_format
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("told", ["7", "date"])
async def test_a_limit_of_rate_is_busy_for_as_long_as_the_server_says(
    aimock: str, form: str, streamed: bool, told: str
) -> None:
    after = email.utils.formatdate(time.time() + 60, usegmt=True) if told == "date" else 7
    say(aimock, {"error": {"message": "slow down", "type": "rate_limit_error"}, "status": 429, "retryAfter": after})
    error = await failing(form, ModelBusy, Options(on_text=quietly if streamed else None))
    assert isinstance(error, ModelBusy)
    assert error.after_s is not None
    assert error.after_s == 7 or (told == "date" and 40 < error.after_s <= 60)
    assert len(journal(aimock)) == 1, "retries are not the adapter's business"


@each_format
@pytest.mark.parametrize("status", [500, 503, 529])
async def test_a_fault_of_the_server_is_busy(aimock: str, form: str, status: int) -> None:
    say(aimock, {"error": {"message": "oops", "type": "api_error"}, "status": status})
    await failing(form, ModelBusy)
    assert len(journal(aimock)) == 1


@each_format
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_connection_that_is_cut_before_the_reply_is_busy(aimock: str, form: str, streamed: bool) -> None:
    say(aimock, {"content": "never"}, chaos={"disconnectRate": 1.0})
    await failing(form, ModelBusy, Options(on_text=quietly if streamed else None))


@each_format
async def test_a_connection_that_is_cut_in_the_middle_of_a_stream_is_busy(aimock: str, form: str) -> None:
    say(aimock, {"content": "one two three four five six seven"}, chunkSize=4, truncateAfterChunks=8, latency=5)
    pieces: list[str] = []
    await failing(form, ModelBusy, Options(on_text=pieces.append))
    assert 0 < len("".join(pieces)) < len("one two three four five six seven")


TOO_LONG = {
    "chat": {"message": "This model's maximum context length is 8 tokens.", "code": "context_length_exceeded"},
    "responses": {"message": "Your input exceeds the context window of this model.", "code": "context_length_exceeded"},
    "messages": {"message": "prompt is too long: 210000 tokens > 200000 maximum", "type": "invalid_request_error"},
    "local": {"message": "the request exceeds the available context size", "type": "exceed_context_size_error"},
}


@each_format
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_request_that_is_too_long_is_said_to_be(aimock: str, form: str, streamed: bool) -> None:
    say(aimock, {"error": TOO_LONG[form], "status": 400})
    await failing(form, ContextTooLong, Options(on_text=quietly if streamed else None))


@each_format
async def test_a_request_that_is_refused_for_good_fails(aimock: str, form: str) -> None:
    say(aimock, {"error": {"message": "no such parameter", "type": "invalid_request_error"}, "status": 400})
    await failing(form, ModelFailed)


@each_format
async def test_a_key_that_is_refused_is_for_an_operator(aimock: str, form: str) -> None:
    say(aimock, {"error": {"message": f"bad key {KEY}", "type": "authentication_error"}, "status": 401})
    await failing(form, BadSettings)


@each_format
async def test_an_account_that_is_spent_is_no_matter_of_waiting(aimock: str, form: str) -> None:
    error = {"message": "You exceeded your current quota, check your billing", "code": "insufficient_quota"}
    say(aimock, {"error": error, "status": 429})
    await failing(form, ModelFailed)


# ---- what is sent


@pytest.mark.parametrize(
    ("form", "limit"), [("chat", "max_completion_tokens"), ("responses", "max_tokens"), ("messages", "max_tokens"), ("local", "max_tokens")]
)  # fmt: skip
async def test_a_limit_of_output_is_sent_by_the_name_that_the_server_knows(aimock: str, form: str, limit: str) -> None:
    say(aimock, {"content": "42"})
    await ask(form, options=Options(output_tokens=77))
    (entry,) = journal(aimock)
    names = [name for name in ("max_tokens", "max_completion_tokens", "max_output_tokens") if name in entry["body"]]
    assert [(name, entry["body"][name]) for name in names] == [(limit, 77)]


@pytest.mark.parametrize("form", ["chat", "local"])
async def test_chat_completions_are_sent_the_form_the_choice_and_the_key_of_the_prompt(aimock: str, form: str) -> None:
    say(aimock, {"content": '{"answer": 42}'})
    await ask(form, choice="required", options=Options(form=FORM, effort="low"))
    await ask(form, (*TASK, ModelTurn(text="Let me see."), User(text="Go on.")), choice="auto")
    await ask(form, (TASK[0], User(text="Something else.")))
    bodies = [entry["body"] for entry in journal(aimock)]
    assert [body.get("tool_choice") for body in bodies] == ["required", "auto", None]
    assert bodies[0]["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "Answer", "schema": FORM, "strict": True},
    }
    keys = [body.get("prompt_cache_key") for body in bodies]
    assert "Be brief" not in str(keys)
    if form == "chat":
        assert keys[0] == keys[1] != keys[2]
        assert bodies[0]["reasoning_effort"] == "low"
    else:
        assert keys == [None, None, None]


async def test_a_local_server_needs_no_key_of_its_own(aimock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL")
    monkeypatch.setenv("OPENAI_API_BASE", f"{aimock}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    say(aimock, {"content": "ANSWER: 42\nCONFIDENCE: 1"})
    assert (await ask("local", options=Options(output_tokens=77))).answer == "42"
    assert journal(aimock)[0]["body"]["max_tokens"] == 77
