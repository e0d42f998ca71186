"""The LangChain adapter: what a chat model is sent, what is read from it, and what its errors become; and what stays unimported."""

from __future__ import annotations

import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from pydantic import Field

from metier_agents.langchain_errors import translate
from metier_agents.langchain_model import LangChainModel
from metier_agents.langchain_prompt import render
from metier_agents.models import open_model
from metier_agents.turns import Assessed, Message, ModelTurn, Note, System, ToolTurn, ToolUse, Usage, User
from metier_infra.errors import BadSettings, BadSpec, MetierError, MissingPackage, ModelBusy, ModelFailed
from metier_tools.builtin import BUILTIN
from metier_tools.tool import ToolResult

REPOSITORY = Path(__file__).parents[1]
PYTHON = BUILTIN.specs(["python"])
USE = ToolUse(id="u1", tool="python", arguments={"code": "1"})
TRAJECTORY: list[Message] = [
    System(text="s"),
    User(text="q"),
    ModelTurn(text="", uses=(USE,)),
    ToolTurn(use_id="u1", tool="python", result=ToolResult(status="error", exit_code=1, stdout="out", stderr="bad")),
    Assessed(tools=()),
    Note(text="n"),
]


class Chat(BaseChatModel):
    """A chat model that keeps what it was sent, and gives or raises what it is told."""

    reply: AIMessage | None = None
    error: Exception | None = None
    seen: list[list[BaseMessage]] = Field(default_factory=list[list[BaseMessage]])
    bound: list[tuple[list[Any], str | None]] = Field(default_factory=list[tuple[list[Any], str | None]])

    @property
    def _llm_type(self) -> str:
        return "chat"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self.seen.append(messages)
        if self.error is not None:
            raise self.error
        assert self.reply is not None
        return ChatResult(generations=[ChatGeneration(message=self.reply)])

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: str | None = None, **kwargs: Any
    ) -> Runnable[Any, AIMessage]:
        self.bound.append((list(tools), tool_choice))
        return self


def model(reply: AIMessage | None = None, error: Exception | None = None) -> tuple[LangChainModel, Chat]:
    chat = Chat(reply=reply, error=error)
    return LangChainModel(chat, "fake:chat"), chat


async def test_usage_is_read_and_an_unknown_price_stays_unknown() -> None:
    usage = UsageMetadata(input_tokens=7, output_tokens=3, total_tokens=10)
    fake, _ = model(AIMessage("ANSWER: 4\nCONFIDENCE: 80%", usage_metadata=usage))
    turn = await fake.ask([User(text="q")], tools=(), tool_choice="none", deadline=time.time() + 5)
    assert (turn.answer, turn.confidence, turn.usage) == ("4", 0.8, Usage(input_tokens=7, output_tokens=3))
    assert turn.cost_usd is None
    assert not turn.rule_written


async def test_text_in_blocks_is_read() -> None:
    fake, _ = model(AIMessage([{"type": "text", "text": "ANSWER: 4"}, {"type": "text", "text": "\nCONFIDENCE: 0.5"}]))
    turn = await fake.ask([User(text="q")], tools=(), tool_choice="none", deadline=time.time() + 5)
    assert (turn.answer, turn.confidence) == ("4", 0.5)


async def test_parallel_and_malformed_tool_uses_are_read() -> None:
    calls = [{"name": "python", "args": {"code": str(n)}, "id": f"id{n}", "type": "tool_call"} for n in (1, 2)]
    torn = {"name": "python", "args": "{co", "id": None, "error": "not JSON", "type": "invalid_tool_call"}
    fake, _ = model(AIMessage("", tool_calls=calls, invalid_tool_calls=[torn]))
    turn = await fake.ask([User(text="q")], tools=PYTHON, tool_choice="auto", deadline=time.time() + 5)
    assert [(use.id, use.arguments, use.problem) for use in turn.uses] == [
        ("id1", {"code": "1"}, None),
        ("id2", {"code": "2"}, None),
        ("bad-0-2", {}, "not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    ]


@pytest.mark.parametrize(("choice", "wished"), [("auto", "auto"), ("required", "any")])
async def test_what_is_offered_is_bound(choice: Any, wished: str) -> None:
    fake, chat = model(AIMessage("x"))
    await fake.ask([User(text="q")], tools=PYTHON, tool_choice=choice, deadline=time.time() + 5)
    ((schemas, bound),) = chat.bound
    assert bound == wished
    assert [one["function"]["name"] for one in schemas] == ["python"]
    assert schemas[0]["function"]["parameters"]["required"] == ["code"]


async def test_what_is_not_offered_is_not_bound() -> None:
    fake, chat = model(AIMessage("x"))
    await fake.ask([User(text="q")], tools=PYTHON, tool_choice="none", deadline=time.time() + 5)
    await fake.ask([User(text="q")], tools=(), tool_choice="none", deadline=time.time() + 5)
    assert chat.bound == []


def test_a_trajectory_is_rendered_with_its_calls_where_tools_are_bound() -> None:
    system, user, own, tool, note = render(TRAJECTORY, as_calls=True)
    assert isinstance(system, SystemMessage)
    assert (user.content, note.content) == ("q", "n")
    assert isinstance(own, AIMessage)
    assert own.tool_calls[0]["id"] == "u1"
    assert isinstance(tool, ToolMessage)
    assert (tool.tool_call_id, tool.status) == ("u1", "error")
    assert tool.content == "[error, exit code 1]\nout\n[stderr]\nbad"


def test_a_trajectory_is_rendered_as_text_where_no_tool_is_bound() -> None:
    _, _, own, tool, _ = render(TRAJECTORY, as_calls=False)
    assert isinstance(own, AIMessage)
    assert own.tool_calls == []
    assert own.content == '[called python with {"code": "1"}]'
    assert isinstance(tool, HumanMessage)


def test_a_turn_in_which_nothing_was_said_is_not_sent() -> None:
    for as_calls in (True, False):
        assert len(render([User(text="q"), ModelTurn(text="", cut=True), Note(text="n")], as_calls=as_calls)) == 2


async def test_more_uses_of_tools_than_anybody_needs_are_left_out() -> None:
    calls = [{"name": "python", "args": {"code": str(n)}, "id": f"id{n}", "type": "tool_call"} for n in range(100)]
    fake, _ = model(AIMessage("", tool_calls=calls))
    turn = await fake.ask([User(text="q")], tools=PYTHON, tool_choice="auto", deadline=time.time() + 5)
    assert [use.id for use in turn.uses] == [f"id{n}" for n in range(64)]


def test_a_vendor_does_not_print_what_it_could_not_read() -> None:
    program = (
        "import metier_agents.langchain_model, warnings; warnings.warn('Pydantic serializer warnings:\\n  content')"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert found.stderr == ""


# ---- errors

REQUEST = httpx2.Request("POST", "https://example.test")


def response(status: int, **headers: str) -> httpx2.Response:
    return httpx2.Response(status, headers=headers, request=REQUEST)


class Named(Exception):
    """A vendor's error that carries its status as `code`, as Google's do."""

    def __init__(self, code: int) -> None:
        super().__init__("vendor")
        self.code = code


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (openai.RateLimitError("slow down", response=response(429), body=None), ModelBusy),
        (openai.InternalServerError("oops", response=response(500), body=None), ModelBusy),
        (openai.APIConnectionError(request=REQUEST), ModelBusy),
        (openai.APITimeoutError(request=REQUEST), ModelBusy),
        (openai.AuthenticationError("bad key", response=response(401), body=None), BadSettings),
        (openai.PermissionDeniedError("no", response=response(403), body=None), BadSettings),
        (openai.BadRequestError("too long", response=response(400), body=None), ModelFailed),
        (openai.NotFoundError("no such model", response=response(404), body=None), ModelFailed),
        (anthropic.RateLimitError("slow down", response=response(429), body=None), ModelBusy),
        (anthropic.APIStatusError("overloaded", response=response(529), body=None), ModelBusy),
        (anthropic.APIConnectionError(request=REQUEST), ModelBusy),
        (anthropic.AuthenticationError("bad key", response=response(401), body=None), BadSettings),
        (httpx2.RemoteProtocolError("cut"), ModelBusy),
        (httpx2.ReadError("cut"), ModelBusy),
        (ConnectionResetError("cut"), ModelBusy),
        (httpx2.HTTPStatusError("Mistral's", request=REQUEST, response=response(503)), ModelBusy),
        (httpx2.HTTPStatusError("Mistral's", request=REQUEST, response=response(401)), BadSettings),
        (Named(503), ModelBusy),
        (Named(400), ModelFailed),
        (ValueError("odd"), ModelFailed),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_a_vendors_error_becomes_ours_and_is_chained(error: Exception, kind: type[MetierError]) -> None:
    fake, _ = model(error=error)
    with pytest.raises(kind) as caught:
        await fake.ask([User(text="q")], tools=(), tool_choice="none", deadline=time.time() + 5)
    assert type(caught.value) is kind
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    ("headers", "after"), [({"retry-after": "7"}, 7.0), ({"retry-after": "soon"}, None), ({}, None)]
)
def test_the_servers_delay_is_kept(headers: dict[str, str], after: float | None) -> None:
    error = openai.RateLimitError("slow down", response=response(429, **headers), body=None)
    found = translate(error, "fake:chat")
    assert isinstance(found, ModelBusy)
    assert found.after_s == after


# ---- opening


@pytest.mark.parametrize(
    ("model_id", "variable"), [("openai:gpt-5", "OPENAI_API_KEY"), ("anthropic:claude-x", "ANTHROPIC_API_KEY")]
)
def test_a_missing_key_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch, model_id: str, variable: str) -> None:
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(BadSettings, match=variable):
        open_model(model_id)


def test_no_retries_but_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    found = open_model("openai:gpt-5", timeout_s=12.0)
    assert isinstance(found, LangChainModel)
    chat: Any = found.chat
    assert (chat.max_retries, chat.request_timeout) == (0, 12.0)


def test_a_missing_package_of_an_extra_is_named() -> None:
    program = (
        "import sys\n"
        "from metier_agents.models import open_model\n"
        "from metier_infra.errors import MissingPackage\n"
        "sys.modules['langchain_openai'] = None\n"
        "try:\n    open_model('openai:gpt-5')\nexcept MissingPackage as error:\n    print(error)\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout == "the model openai:gpt-5 needs a provider's package: pip install 'metier[openai]'\n"


@pytest.mark.parametrize(
    ("provider", "extra"),
    [("groq", "groq"), ("google_genai", "google-genai"), ("mistralai", "mistralai"), ("ollama", "ollama")],
)
def test_a_missing_package_of_another_provider_is_named_by_the_extra_that_installs_it(
    provider: str, extra: str
) -> None:
    with pytest.raises(MissingPackage) as caught:
        open_model(f"{provider}:x")
    assert str(caught.value).endswith(f"needs a provider's package: pip install 'metier[{extra}]'")
    assert extra in tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_a_missing_package_of_a_provider_without_an_extra_is_named() -> None:
    with pytest.raises(MissingPackage, match="langchain-cohere"):
        open_model("cohere:x")


def test_an_unknown_provider_is_refused() -> None:
    with pytest.raises(BadSpec, match="nosuch"):
        open_model("nosuch:model")


def test_importing_the_agents_imports_no_vendor() -> None:
    program = (
        "import sys, metier_agents.worker, metier_agents.recorded_model, metier_agents.testing\n"
        "vendors = {'langchain', 'langchain_core', 'langgraph', 'openai', 'anthropic', 'docker', 'celery', 'kafka', 'psycopg'}\n"
        "print(sorted(vendors & {name.partition('.')[0] for name in sys.modules}))\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert found.stdout.strip() == "[]"
