"""LangChain, fenced: any `init_chat_model` id as a `Model`. `open_model` imports this module only when such a model is asked for.

A request is put together by `langchain_prompt` and `langchain_options`, its reply read by `langchain_reply`, and what fails goes to
`langchain_errors`; what differs between providers stands in `providers`. Retries are not LangChain's business (`max_retries=0`): whoever asks makes them, under the call's deadline. A turn's cost is
None here: prices are looked up by the layer that wraps this one.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.runnables import Runnable
from pydantic import SecretStr, ValidationError

from metier_agents import providers
from metier_agents.langchain_errors import filtered, secrets_of, short, translate
from metier_agents.langchain_options import can_be_forced, settle, words
from metier_agents.langchain_prompt import render, schema
from metier_agents.langchain_reply import LONGEST, ended, fit, read_reply, salvage
from metier_agents.model import PLAIN, Options
from metier_agents.policy import ToolChoice
from metier_agents.turns import History, ModelTurn, of_kind
from metier_infra.errors import BadSettings, BadSpec, MetierError, MissingPackage, ModelBusy, ModelFailed
from metier_tools.tool import ToolSpec

Asked = Runnable[Any, AIMessage]
# A vendor's model of a reply that does not fit it warns with that reply, on the standard error: content is never logged.
warnings.filterwarnings("ignore", message="Pydantic serializer warnings")


class LangChainModel:
    """A LangChain chat model, `chat`, behind the port. `name` is the id by which it was asked for."""

    def __init__(self, chat: BaseChatModel, name: str) -> None:
        self.name = name
        self.chat = chat
        self._provider = providers.of_class(type(chat))

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
        del deadline
        offered = tools if tool_choice != "none" else ()
        prompt = render(messages, as_calls=bool(offered), marked=self._provider.caching == "marks")
        forced = tool_choice == "required" and can_be_forced(self.chat, self._provider)
        chat = settle(self.chat, self._provider, options, forced=forced and bool(offered))
        asked = _bound(chat, offered, forced).bind(**words(chat, self._provider, options, messages))
        outcome = await self._outcome(asked, prompt, len(of_kind(messages, ModelTurn)), options.on_text)
        if isinstance(outcome, MetierError):
            raise outcome
        if not (outcome.text.strip() or outcome.uses or outcome.refused or outcome.cut):
            raise ModelFailed(f"{self.name} gave neither text nor a tool call")
        return outcome

    async def _outcome(
        self, asked: Asked, prompt: list[BaseMessage], turn: int, on_text: Callable[[str], None] | None
    ) -> ModelTurn | MetierError:
        """A turn, or the error to raise: it is raised elsewhere, so that a vendor's error that tells a key is not its context."""
        try:
            if on_text is None:
                return read_reply(await asked.ainvoke(prompt), self.name, turn)
            return await self._streamed(asked, prompt, turn, on_text)
        except MetierError as error:
            return error
        except Exception as error:  # every vendor has its own tree; none of them passes
            secrets = secrets_of(self.chat)
            if filtered(error):
                return ModelTurn(text=short(error, secrets), model=self.name, refused=True)
            left = salvage(error, self.name, turn) if isinstance(error, ValidationError) else None
            return left or translate(error, self.name, secrets)

    async def _streamed(
        self, asked: Asked, prompt: list[BaseMessage], turn: int, on_text: Callable[[str], None]
    ) -> ModelTurn:
        """The turn, told piece by piece. What is no text on the wire (a refusal) is told at the end."""
        chunks: list[AIMessageChunk] = []
        told = 0
        async for chunk in _chunks(asked.astream(prompt)):
            chunks.append(chunk)
            piece = fit(str(chunk.text), LONGEST - told)
            if piece:
                told += len(piece)
                on_text(piece)
        reply = chunks[0] + chunks[1:] if len(chunks) > 1 else chunks[0]
        if not ended(reply):
            raise ModelBusy(f"{self.name} broke off in the middle of its reply")
        read = read_reply(reply, self.name, turn)
        if rest := read.text[told:]:
            on_text(rest)
        return read


def _bound(chat: BaseChatModel, tools: Sequence[ToolSpec], forced: bool) -> Asked:
    if not tools:
        return chat
    return chat.bind_tools([schema(tool) for tool in tools], tool_choice="any" if forced else "auto")


async def _chunks(replies: AsyncIterator[AIMessage]) -> AsyncIterator[AIMessageChunk]:
    async for reply in replies:
        if isinstance(reply, AIMessageChunk):
            yield reply


def open_chat_model(model: str, *, timeout_s: float) -> LangChainModel:
    """The model with this id. Raises `MissingPackage`, `BadSettings` (no key) or `BadSpec` (no such provider)."""
    try:
        chat = _opened(model, timeout_s)
    except ImportError as error:
        raise MissingPackage(_missing(model, error)) from error
    except ValidationError as error:
        raise _unopened(model, error) from None  # it may quote what the environment holds
    except ValueError as error:
        raise BadSpec(f"no provider for the model {model!r}: {short(error, _keys())}") from error
    except Exception as error:  # a provider's constructor raises its own kinds; what they share is a missing key
        raise _unopened(model, error) from None
    _check_keys(chat, model)
    return LangChainModel(chat, model)


def _opened(model: str, timeout_s: float) -> BaseChatModel:
    kind, _, name = model.partition(":")
    if kind in {"openai", "openai-responses"}:
        return _openai(name, timeout_s, responses=kind == "openai-responses")
    from langchain.chat_models import init_chat_model

    chat: BaseChatModel = init_chat_model(model, max_retries=0, timeout=timeout_s)
    return _openai(model, timeout_s, responses=False) if type(chat).__name__ == "ChatOpenAI" else chat


def _openai(name: str, timeout_s: float, *, responses: bool) -> BaseChatModel:
    """Responses are not stored at OpenAI: the call's steps are ours to keep. Usage is counted in streams too, of servers like OpenAI's as well.

    LangChain's own timeout between two pieces of a stream is off: it is an `asyncio.wait_for`, which in Python 3.11 may lose a cancel
    that comes together with a piece (python/cpython#86296). The HTTP client's timeout stands. It is the model's own: the one that LangChain shares in a
    process, whatever the address, cannot be used in a second event loop.
    """
    from openai import DefaultAsyncHttpxClient

    from metier_agents.openai_chat import OpenAIChat

    more: dict[str, Any] = {"use_responses_api": True, "store": False} if responses else {}
    return OpenAIChat(
        model=name,
        max_retries=0,
        timeout=timeout_s,
        stream_usage=True,
        stream_chunk_timeout=None,
        http_async_client=DefaultAsyncHttpxClient(timeout=timeout_s),
        **more,
    )


def _missing(model: str, error: ImportError) -> str:
    extra = providers.of_id(model).extra or ("" if ":" in model else "openai")
    if extra:
        return f"the model {model} needs a provider's package: pip install 'metier[{extra}]'"
    return f"the model {model} needs a package that is not installed: {short(error)}"


def _unopened(model: str, error: Exception) -> BadSettings:
    key = providers.of_id(model).key
    if key and not os.environ.get(key):
        return BadSettings(f"the model {model} needs a key: set {key}")
    return BadSettings(f"the model {model} cannot be opened: {short(error, _keys())}")


def _keys() -> frozenset[str]:
    """The keys in the environment, of whatever provider."""
    return frozenset(text for name, text in os.environ.items() if name.endswith(("_KEY", "_TOKEN")) and text)


def _check_keys(chat: BaseChatModel, model: str) -> None:
    """Some providers notice a missing key only at the first request; that is too late for a role that starts."""
    key = providers.of_id(model).key
    empty = (variable for field, variable in chat.lc_secrets.items() if getattr(chat, field, None) == SecretStr(""))
    missing = key if key and not secrets_of(chat) else next(empty, "")
    if missing:
        raise BadSettings(f"the model {model} needs a key: set {missing}")
