"""The model port's contract over every adapter: scripted, recorded, LangChain on its own fake chat model, and on each wire format.

Not here: what each wire format has of its own (`test_wire_formats`, `wire.test_edges`), and live providers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable

from metier_agents.langchain_model import LangChainModel
from metier_agents.model import Model, ScriptedModel
from metier_agents.models import open_model
from metier_agents.policy import ToolChoice
from metier_agents.recordings import read_recordings
from metier_agents.turns import Message, ModelTurn, Note, System, ToolTurn, ToolUse, User, dump, load
from metier_infra.errors import BadSpec, ModelFailed
from metier_tools.builtin import BUILTIN
from metier_tools.tool import ToolResult
from metier_tools.toolbox import Tool

PATH = Path(__file__).parent.parent / "workflows/metier/examples/data/zeroeval.jsonl.gz"
QUERY = next(query for query in read_recordings(PATH).evaluation() if query.category == "code_reasoning")
PYTHON = BUILTIN.specs(["python"])
TASK: tuple[Message, ...] = (System(text="Answer."), User(text=QUERY.text))
ANSWER = "ANSWER: 1\nCONFIDENCE: 0.5"


class BindableChat(GenericFakeChatModel):
    """LangChain's fake, which cannot bind tools of its own accord."""

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: str | None = None, **kwargs: Any
    ) -> Runnable[Any, AIMessage]:
        return self


def scripted(*, calls: bool) -> Model:
    use = ToolUse(id="1", tool="python", arguments={"code": "1"})
    turn = ModelTurn(uses=(use,)) if calls else ModelTurn(text=ANSWER)
    return ScriptedModel([turn, ModelTurn(text=ANSWER)])


def recorded(*, calls: bool) -> Model:
    del calls
    return open_model("recorded:gpt-4o-2024-08-06", recordings=PATH)


def langchain(*, calls: bool) -> Model:
    call = {"name": "python", "args": {"code": "1"}, "id": "1", "type": "tool_call"}
    wished = AIMessage("", tool_calls=[call]) if calls else AIMessage(ANSWER)
    return LangChainModel(BindableChat(messages=iter([wished, AIMessage(ANSWER)])), "fake:model")


def wire(model: str) -> Callable[..., Model]:
    """The real adapter, asking the mock server."""

    def make(*, calls: bool) -> Model:
        url = os.environ["ANTHROPIC_BASE_URL"]
        wished = (
            {"toolCalls": [{"id": "1", "name": "python", "arguments": {"code": "1"}}]} if calls else {"content": ANSWER}
        )
        said = [
            {"match": {"turnIndex": 0}, "response": wished},
            {"match": {"turnIndex": 1}, "response": {"content": ANSWER}},
        ]
        httpx2.post(f"{url}/__aimock/fixtures", json={"fixtures": said}).raise_for_status()
        return open_model(model)

    make.__name__ = model
    return make


@pytest.fixture
def mocked(aimock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every provider is the mock server."""
    monkeypatch.setenv("OPENAI_BASE_URL", f"{aimock}/v1")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", aimock)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "none")


Maker = Callable[..., Model]
WIRES = [wire("openai:gpt-5"), wire("openai-responses:gpt-5"), wire("anthropic:claude-opus-4-7")]


def models(test: Callable[..., object]) -> Callable[..., object]:
    """The test over all of them, in one event loop: LangChain keeps one HTTP client per address, and that its loop."""
    each = pytest.mark.parametrize("make", [scripted, recorded, langchain, *WIRES])
    return pytest.mark.asyncio(loop_scope="module")(pytest.mark.usefixtures("mocked")(each(test)))


async def ask(model: Model, messages: Sequence[Message], choice: ToolChoice = "none") -> ModelTurn:
    tools = PYTHON if choice != "none" else ()
    return await model.ask(messages, tools=tools, tool_choice=choice, deadline=time.time() + 5)


@models
async def test_a_plain_turn_has_an_answer_a_confidence_and_a_name(make: Maker) -> None:
    model = make(calls=False)
    turn = await ask(model, TASK)
    assert turn.answer
    assert turn.confidence is not None
    assert 0 <= turn.confidence <= 1
    assert turn.uses == ()
    assert turn.model == model.name
    assert turn.cost_usd is None or turn.cost_usd > 0


@models
@pytest.mark.parametrize("choice", ["auto", "required"])
async def test_a_tool_that_is_offered_can_be_called_and_its_result_read(make: Maker, choice: ToolChoice) -> None:
    model = make(calls=True)
    turn = await ask(model, TASK, choice)
    (use,) = turn.uses
    assert use.id
    assert use.problem is None
    checked = BUILTIN.check(use.tool, use.arguments)
    assert isinstance(checked, Tool)
    assert checked.spec == PYTHON[0]
    result = ToolTurn(use_id=use.id, tool=use.tool, result=ToolResult(status="ok", stdout="1\n"))
    after = await ask(model, [*TASK, turn, result, Note(text="Answer now.")])
    assert (after.answer, after.uses) == ("1", ())


@models
async def test_a_turn_survives_the_journal(make: Maker) -> None:
    turn = await ask(make(calls=True), TASK, "auto")
    assert load(dump([turn])) == [turn]


@models
async def test_the_messages_are_left_alone(make: Maker) -> None:
    messages = list(TASK)
    await ask(make(calls=False), messages)
    assert messages == list(TASK)


@pytest.mark.parametrize(
    "model",
    [
        ScriptedModel([]),
        open_model("recorded:gemini-1.5-pro", recordings=PATH),
        LangChainModel(BindableChat(messages=iter([AIMessage("")])), "fake:model"),
    ],
    ids=["scripted", "recorded", "langchain"],
)
async def test_nothing_usable_is_a_typed_failure(model: Model) -> None:
    with pytest.raises(ModelFailed):
        await ask(model, [User(text="no such task")])


# ---- scripts


async def test_a_script_is_read_from_a_file_and_goes_on_where_a_call_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "script.yaml"
    path.write_text("- {uses: [{id: u, tool: python, arguments: {code: '1'}}]}\n- {text: 'ANSWER: 1', cost_usd: 0.5}\n")
    first = await ask(open_model(f"scripted:{path}"), TASK, "auto")
    second = await ask(open_model(f"scripted:{path}"), [*TASK, first])
    assert [use.tool for use in first.uses] == ["python"]
    assert (second.answer, second.cost_usd, second.model) == ("1", 0.5, "scripted:script.yaml")


@pytest.mark.parametrize("text", ["text: not a list", "- {text: [1]}", "- [", ""])
def test_a_file_that_is_no_script_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "script.yaml"
    path.write_text(text)
    with pytest.raises(BadSpec, match="not a script"):
        open_model(f"scripted:{path}")
    with pytest.raises(BadSpec, match="not a script"):
        open_model(f"scripted:{tmp_path / 'missing.yaml'}")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (b"text: hi", "a list of turns, such as"),
        (b"- txt: hi", "turn 1: txt: unknown field; there are"),
        (b"- text: hi\n- text: [1]", "turn 2: text: input should be a valid string"),
        (b"- text: \xff", "not UTF-8"),
    ],
)
def test_a_bad_script_is_told_by_turn_and_field_without_a_dump(tmp_path: Path, script: bytes, said: str) -> None:
    path = tmp_path / "script.yaml"
    path.write_bytes(script)
    with pytest.raises(BadSpec) as caught:
        open_model(f"scripted:{path}")
    assert str(caught.value).startswith(f"{path}: not a script of model turns: {said}")
    assert "pydantic" not in str(caught.value)
