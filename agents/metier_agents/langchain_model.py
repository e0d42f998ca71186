"""LangChain, fenced: any `init_chat_model` id as a `Model`. `open_model` imports this module only when such a model is asked for.

Retries are not LangChain's business (`max_retries=0`): the loop makes them, under the call's deadline. There is no price table yet, so a
turn's cost is None: unknown, and never 0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolCall, ToolMessage
from pydantic import SecretStr, ValidationError

from metier_agents.model import PLAIN, Options
from metier_agents.policy import ToolChoice
from metier_agents.turns import (
    AssessmentWanted,
    History,
    Message,
    ModelTurn,
    Note,
    System,
    ToolTurn,
    ToolUse,
    Usage,
    User,
    of_kind,
)
from metier_agents.wording import observation
from metier_infra.errors import BadSettings, BadSpec, MetierError, MissingPackage, ModelBusy, ModelFailed
from metier_tools.tool import ToolSpec

EXTRAS = frozenset({"openai", "anthropic"})
BUSY = frozenset({408, 409, 425, 429})


class LangChainModel:
    """A LangChain chat model, `chat`, behind the port. `name` is the id by which it was asked for."""

    def __init__(self, chat: BaseChatModel, name: str) -> None:
        self.name = name
        self.chat = chat

    async def ask(
        self,
        messages: History,
        *,
        tools: Sequence[ToolSpec],
        tool_choice: ToolChoice,
        deadline: float,
        options: Options = PLAIN,
    ) -> ModelTurn:
        """See `Model.ask`. The deadline is kept by whoever cancels."""
        del deadline, options
        bound = bool(tools) and tool_choice != "none"
        try:
            reply = await self._invoke(render(messages, as_calls=bound), tools if bound else (), tool_choice)
        except Exception as error:  # every vendor has its own tree; none of them passes
            raise translate(error, self.name) from error
        turn = read_reply(reply, self.name, len(of_kind(messages, ModelTurn)))
        if not turn.text.strip() and not turn.uses:
            raise ModelFailed(f"{self.name} gave neither text nor a tool call")
        return turn

    async def _invoke(self, prompt: list[BaseMessage], tools: Sequence[ToolSpec], choice: ToolChoice) -> AIMessage:
        if not tools:
            return await self.chat.ainvoke(prompt)
        wished = "any" if choice == "required" else "auto"
        return await self.chat.bind_tools([schema(tool) for tool in tools], tool_choice=wished).ainvoke(prompt)


def open_chat_model(model: str, *, timeout_s: float) -> LangChainModel:
    """The model with this id. Raises `MissingPackage`, `BadSettings` (no key) or `BadSpec` (no such provider)."""
    try:
        from langchain.chat_models import init_chat_model

        chat = init_chat_model(model, max_retries=0, timeout=timeout_s)
    except ImportError as error:
        raise MissingPackage(_missing(model, error)) from error
    except ValidationError as error:
        raise BadSettings(f"the model {model} cannot be opened: {_short(error)}") from error
    except ValueError as error:
        raise BadSpec(f"no provider for the model {model!r}: {_short(error)}") from error
    except (
        Exception
    ) as error:  # a provider's constructor raises its own kinds; what they have in common is a missing key
        raise BadSettings(f"the model {model} cannot be opened: {_short(error)}") from error
    _check_keys(chat, model)
    return LangChainModel(chat, model)


def _missing(model: str, error: ImportError) -> str:
    provider = model.partition(":")[0] if ":" in model else ""
    if provider in EXTRAS or not provider:
        return f"the model {model} needs a provider's package: pip install 'metier[{provider or 'openai'}]'"
    return f"the model {model} needs a package that is not installed: {_short(error)}"


def _check_keys(chat: BaseChatModel, model: str) -> None:
    """Some providers notice a missing key only at the first request; that is too late for a role that starts."""
    for field, variable in chat.lc_secrets.items():
        value: object = getattr(chat, field, None)
        if isinstance(value, SecretStr) and not value.get_secret_value():
            raise BadSettings(f"the model {model} needs a key: set {variable}")


def render(messages: History, *, as_calls: bool) -> list[BaseMessage]:
    """The prompt. Where no tool is bound, past tool uses become plain text: several providers refuse calls of tools that are not bound."""
    return [rendered for message in messages if (rendered := _rendered(message, as_calls)) is not None]


def _rendered(message: Message, as_calls: bool) -> BaseMessage | None:
    match message:
        case System():
            return SystemMessage(message.text)
        case User() | Note() | AssessmentWanted():
            return HumanMessage(message.text)
        case ModelTurn():
            return _own_turn(message, as_calls)
        case ToolTurn():
            return _tool_turn(message, as_calls)
        case _:
            return None


def _own_turn(turn: ModelTurn, as_calls: bool) -> AIMessage:
    if as_calls:
        calls = [ToolCall(name=use.tool, args=use.arguments, id=use.id) for use in turn.uses]
        return AIMessage(turn.text, tool_calls=calls)
    called = "".join(f"\n[called {use.tool} with {json.dumps(use.arguments)}]" for use in turn.uses)
    return AIMessage((turn.text + called).strip())


def _tool_turn(turn: ToolTurn, as_calls: bool) -> BaseMessage:
    if as_calls:
        status = "success" if turn.result.ok else "error"
        return ToolMessage(observation(turn.result), tool_call_id=turn.use_id, status=status)
    return HumanMessage(f"[{turn.tool} returned]\n{observation(turn.result)}")


def schema(tool: ToolSpec) -> dict[str, Any]:
    """The tool in the form that every LangChain adapter takes."""
    described = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": described}


def read_reply(reply: AIMessage, name: str, turn: int) -> ModelTurn:
    """The reply as a model turn; `turn` numbers tool uses to which the provider gave no id."""
    uses = [
        ToolUse(id=call["id"] or f"use-{turn}-{index}", tool=call["name"], arguments=call["args"])
        for index, call in enumerate(reply.tool_calls)
    ]
    bad = [
        ToolUse(id=call["id"] or f"bad-{turn}-{index}", tool=call["name"] or "?", problem=call["error"] or "not JSON")
        for index, call in enumerate(reply.invalid_tool_calls)
    ]
    usage = reply.usage_metadata
    return ModelTurn(
        text=str(reply.text),
        uses=(*uses, *bad),
        model=name,
        usage=Usage(input_tokens=usage["input_tokens"], output_tokens=usage["output_tokens"]) if usage else None,
    )


def translate(error: Exception, name: str) -> MetierError:
    """The error of ours that says what happens next."""
    status = next(
        (code for code in (getattr(error, "status_code", None), getattr(error, "code", None)) if isinstance(code, int)),
        None,
    )
    if status in {401, 403}:
        return BadSettings(f"{name} refuses the key ({status}): check the provider's key in this role's environment")
    if status is not None and (status in BUSY or status >= 500):
        return ModelBusy(f"{name} is busy ({status}): {_short(error)}", after_s=_retry_after(error))
    if status is None and _cut(error):
        return ModelBusy(f"{name} does not answer: {_short(error)}")
    return ModelFailed(f"{name} refused the request: {_short(error)}")


def _cut(error: Exception) -> bool:
    """Whether the connection failed; vendors share no class for it, but all of them name it so."""
    names = " ".join(kind.__name__ for kind in type(error).__mro__)
    return isinstance(error, OSError) or any(
        word in names for word in ("Connect", "Timeout", "ReadError", "RemoteProtocol")
    )


def _retry_after(error: Exception) -> float | None:
    read: object = getattr(getattr(getattr(error, "response", None), "headers", None), "get", None)
    try:
        return float(str(read("retry-after"))) if callable(read) else None
    except ValueError:
        return None


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
