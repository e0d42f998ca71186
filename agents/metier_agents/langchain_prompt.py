"""A call's messages and tools in LangChain's words.

`langchain_model` makes each request with it; what comes back is read by `langchain_reply`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolCall, ToolMessage

from metier_agents.turns import AssessmentWanted, History, Message, ModelTurn, Note, System, ToolTurn, User
from metier_agents.wording import observation
from metier_tools.tool import ToolSpec

MARK: Mapping[str, str] = {"type": "ephemeral"}
"""What tells Anthropic to keep a prompt up to here, for five minutes."""


def render(messages: History, *, as_calls: bool, marked: bool = False) -> list[BaseMessage]:
    """The prompt. Where no tool is bound, past tool uses become plain text: several providers refuse calls of tools that are not bound.

    `marked`: the system message ends what the provider is to keep for other calls of this agent.
    """
    return [rendered for message in messages if (rendered := _rendered(message, as_calls, marked)) is not None]


def _rendered(message: Message, as_calls: bool, marked: bool) -> BaseMessage | None:
    match message:
        case System():
            return _system(message.text, marked)
        case User() | Note() | AssessmentWanted():
            return HumanMessage(message.text)
        case ModelTurn():
            return _own_turn(message, as_calls)
        case ToolTurn():
            return _tool_turn(message, as_calls)
        case _:
            return None


def _system(text: str, marked: bool) -> SystemMessage:
    if not marked or not text:
        return SystemMessage(text)
    return SystemMessage([{"type": "text", "text": text, "cache_control": dict(MARK)}])


def _own_turn(turn: ModelTurn, as_calls: bool) -> AIMessage | None:
    if as_calls and turn.uses:
        calls = [ToolCall(name=use.tool, args=use.arguments, id=use.id) for use in turn.uses]
        return AIMessage(turn.text, tool_calls=calls)
    called = "".join(f"\n[called {use.tool} with {json.dumps(use.arguments)}]" for use in turn.uses)
    said = (turn.text + called).strip()
    return AIMessage(said) if said else None  # providers refuse an empty turn


def _tool_turn(turn: ToolTurn, as_calls: bool) -> BaseMessage:
    if as_calls:
        status = "success" if turn.result.ok else "error"
        return ToolMessage(observation(turn.result), tool_call_id=turn.use_id, status=status)
    return HumanMessage(f"[{turn.tool} returned]\n{observation(turn.result)}")


def schema(tool: ToolSpec) -> dict[str, Any]:
    """The tool in the form that every LangChain adapter takes."""
    described = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": described}


def beginning(messages: History) -> str:
    """A key that all requests of one task share, and that does not tell what they say: of what the agent is told, and of its task."""
    first = [message.text for message in messages if isinstance(message, System | User)][:2]
    return hashlib.sha256(json.dumps(first).encode()).hexdigest()[:32]
