"""What a request wishes, in the words of the chat model that gets it. What that model does not know is left out, with a debug line.

`langchain_model` calls it for each request; what differs between providers stands in `providers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog
from langchain_core.language_models import BaseChatModel

from metier_agents import providers
from metier_agents.langchain_prompt import MARK, beginning
from metier_agents.model import Options
from metier_agents.providers import Provider
from metier_agents.turns import History

LIMITS = ("max_tokens", "max_output_tokens", "num_predict")
"""What LangChain's chat models call the most that a reply may take."""

_log = structlog.get_logger(__name__)


def settle(chat: BaseChatModel, provider: Provider, options: Options, *, forced: bool) -> BaseChatModel:
    """The chat model with those options that are settings of it. `forced`: this request must call a tool."""
    changes: dict[str, Any] = {}
    if options.output_tokens is not None:
        limit = next((one for one in LIMITS if one in type(chat).model_fields), None)
        changes |= {limit: options.output_tokens} if limit else _without(chat, "limit of output tokens")
    if options.effort is not None:
        changes |= _effort(chat, provider, options.effort, forced) or _without(chat, "effort")
    return chat.model_copy(update=changes) if changes else chat


def _effort(chat: BaseChatModel, provider: Provider, wished: str, forced: bool) -> dict[str, Any]:
    """Empty: the model takes none. With `reasoning_effort`, LangChain has Anthropic think, which a forced tool forbids."""
    known = type(chat).model_fields
    effort = providers.effort(wished, profile(chat), provider)
    if effort is None or "reasoning_effort" not in known:
        return {}
    if forced and "output_config" in known:
        return {"output_config": {"effort": effort}}
    return {"reasoning_effort": effort}


def words(chat: BaseChatModel, provider: Provider, options: Options, messages: History) -> dict[str, Any]:
    """The options that are arguments of a request, and what to keep of its prompt."""
    found = _caching(provider, messages)
    if options.form is not None:
        how = "response_format" if getattr(chat, "use_responses_api", None) else provider.form
        able = how is not None and profile(chat).get("structured_output") is not False
        found |= providers.form(options.form, how) if how and able else _without(chat, "form of the reply")
    return found


def _caching(provider: Provider, messages: History) -> dict[str, Any]:
    match provider.caching:
        case "marks":
            return {"cache_control": dict(MARK)}
        case "key":
            return {"prompt_cache_key": beginning(messages)}
        case None:
            return {}


def can_be_forced(chat: BaseChatModel, provider: Provider) -> bool:
    """Whether the model takes the order to call a tool."""
    return not str(getattr(chat, "model", "")).startswith(provider.unforced)


def profile(chat: BaseChatModel) -> Mapping[str, Any]:
    """What LangChain's list of models says of this one; empty: it does not know it."""
    return dict(chat.profile or {})


def _without(chat: BaseChatModel, option: str) -> dict[str, Any]:
    _log.debug("the model has no such option", model=type(chat).__name__, option=option, action="asking without it")
    return {}
