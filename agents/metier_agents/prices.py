"""What a reply costs, and what a request may come to before it is sent.

`models` puts `Priced` round every model; the worker gives `estimate` to the purse. Prices come from `model_table`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, Unpack

from metier_agents.model import Asking, Model
from metier_agents.model_table import Known, Price
from metier_agents.purse import Need
from metier_agents.spec import AgentSpec
from metier_agents.turns import History, Message, ModelTurn, ToolTurn, Usage
from metier_agents.wording import observation
from metier_tools.tool import ToolSpec

OWN_COST: Final = ("recorded", "scripted")
"""Kinds of models whose replies say themselves what they cost."""
BYTES_PER_TOKEN: Final = 3
MESSAGE_TOKENS: Final = 16
"""A message's frame: role, ids, separators. Providers tell of 3 to 7 for text and some more for calls of tools."""
TOOL_TOKENS: Final = 32
"""What surrounds the schema of one tool."""


def cost(price: Price | None, usage: Usage | None) -> float | None:
    """What the provider will ask for the reply, in USD; None when the price, or what was used, is not known."""
    if price is None:
        return None
    if usage is None:
        return 0.0 if _free(price) else None
    cached = min(usage.cached_tokens, usage.input_tokens)
    put = min(usage.cache_written_tokens, usage.input_tokens - cached)
    read = (usage.input_tokens - cached - put) * price.input + cached * _cached(price) + put * _written(price)
    return (read + usage.output_tokens * price.output) / 1_000_000


def _free(price: Price) -> bool:
    return not (price.input or _cached(price) or _written(price) or price.output)


def _cached(price: Price) -> float:
    return price.input if price.cached_input is None else price.cached_input


def _written(price: Price) -> float:
    return price.input if price.cache_write is None else price.cache_write


def dearest(price: Price | None, input_tokens: int, output_tokens: int) -> float | None:
    """The most that so many tokens cost, in USD, whether they come from a cache, go into it, or neither. None when the price is not known."""
    if price is None:
        return None
    return (input_tokens * max(price.input, _cached(price), _written(price)) + output_tokens * price.output) / 1_000_000


def estimate(prices: Iterable[Price | None], history: History, tools: Sequence[ToolSpec], output_tokens: int) -> Need:
    """What a request may come to at the most, whichever of the models answers it.

    A token is taken for 3 bytes of UTF-8, where providers tell of about 4 of English prose and 1 to 3 for most other text; with it goes a frame for
    each message and tool. Text that no tokeniser knows (random bytes, rare scripts) can come to more. It is never less than what the
    provider counted for the request before, with what was added since.

    Args:
        prices: of the models that may answer. Where any is unknown, so is the money.
        history: the prompt.
        tools: those that are bound.
        output_tokens: the most that the reply may take.
    """
    read = max(_by_text(history, tools), _by_count(history))
    usd = [dearest(price, read, output_tokens) for price in prices]
    known = [one for one in usd if one is not None]
    return Need(read + output_tokens, max(known) if known and len(known) == len(usd) else None)


def _by_text(history: History, tools: Sequence[ToolSpec]) -> int:
    bound = sum(_size(f"{tool.name} {tool.description} {tool.parameters}") + TOOL_TOKENS for tool in tools)
    return bound + sum(_size(_text(message)) + MESSAGE_TOKENS for message in history)


def _by_count(history: History) -> int:
    """What was counted last, with the reply itself and what came after it."""
    for at in range(len(history) - 1, -1, -1):
        turn = history[at]
        if isinstance(turn, ModelTurn) and turn.usage is not None and not turn.usage.estimated:
            return turn.usage.input_tokens + _by_text(history[at:], ())
    return 0


def _size(text: str) -> int:
    length = len(text) if text.isascii() else len(text.encode(errors="replace"))
    return -(-length // BYTES_PER_TOKEN)


def _text(message: Message) -> str:
    """What a model reads of a message."""
    if isinstance(message, ModelTurn):
        return message.text + "".join(f" {use.tool} {use.arguments}" for use in message.uses)
    if isinstance(message, ToolTurn):
        return observation(message.result)
    return str(getattr(message, "text", ""))


def unpriced(spec: AgentSpec, known: Known) -> tuple[str, ...]:
    """The models for whose want of a price the agent's limit on money cannot be kept; none where there is no such limit."""
    return () if spec.limits.cost_usd is None else without_price(spec, known)


def without_price(spec: AgentSpec, known: Known) -> tuple[str, ...]:
    """The agent's models of which nobody told what they cost."""
    named = dict.fromkeys((spec.model, *spec.fallbacks))
    return tuple(one for one in named if one.partition(":")[0] not in OWN_COST and known.price(one) is None)


def thrifty(spec: AgentSpec, known: Known) -> AgentSpec:
    """The agent on the cheapest of its models alone, by the price of 3 tokens read and 1 written; of equal ones, and where no price is known, the one named first.

    What is read is most of what an agent uses; the blend of 3 to 1 is that of artificialanalysis.ai, by which models are commonly compared.
    """
    ids = (spec.model, *spec.fallbacks)
    asked = {one: dearest(known.price(one), 3, 1) for one in ids}
    cheapest = min(ids, key=lambda one: math.inf if (price := asked[one]) is None else price)
    return AgentSpec.model_validate({**spec.model_dump(), "model": cheapest, "fallbacks": ()})


class Priced:
    """A layer round a model: a reply that does not say what it cost gets the price of what the provider counted."""

    def __init__(self, inner: Model, price: Price | None) -> None:
        self.name = inner.name
        self.inner = inner
        self.price = price

    async def ask(self, messages: History, **asked: Unpack[Asking]) -> ModelTurn:
        """See `Model.ask`."""
        turn = await self.inner.ask(messages, **asked)
        if turn.cost_usd is not None:
            return turn
        return turn.model_copy(update={"cost_usd": cost(self.price, turn.usage)})
