"""What one call may still spend, all its explorations together: set aside before a request, settled after it.

`trail` asks it round each model request and the loop round each tool call; after a crash it is filled again from the recorded steps.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from metier_agents.spec import Limits
from metier_agents.turns import History, ModelTurn, ToolTurn, of_kind
from metier_infra.words import Allowance, Spent


class Exhausted(Exception):
    """A request might cost more than is left: it was not made, and the loop ends with what it has. `reason` is the limit."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Need:
    """What a request may come to at the most. `usd` None: its price is not known."""

    tokens: int
    usd: float | None = None


@dataclass(frozen=True)
class Left:
    """What is left of a call's limits; None: no such limit."""

    tool_calls: int
    tokens: int | None = None
    usd: float | None = None


def bounded(limits: Limits, allowance: Allowance | None) -> Limits:
    """An agent's own limits, or what the run has set aside for the call, whichever is less of each."""
    if allowance is None:
        return limits
    less = {
        "cost_usd": _less(limits.cost_usd, allowance.usd),
        "tokens": _less(limits.tokens, allowance.tokens),
        "tool_calls": _less(limits.tool_calls, allowance.tool_calls),
    }
    return limits.model_copy(update=less)


N = TypeVar("N", int, float)


def _less(one: N | None, other: N | None) -> N | None:
    """The less of two limits; None is none."""
    return min((limit for limit in (one, other) if limit is not None), default=None)


@dataclass
class Purse:
    """The limits of one call; what was spent of them, and beside it what is set aside. Money is USD."""

    limits: Limits
    tokens: int = 0
    usd: float = 0.0
    tool_calls: int = 0
    aside: Need = Need(0, 0.0)
    aside_calls: int = 0

    def replay(self, history: History) -> None:
        """Take over what recorded turns came to."""
        for turn in of_kind(history, ModelTurn):
            self.settle(turn)
        self.settle_calls(of_kind(history, ToolTurn))

    @property
    def took(self) -> Spent:
        """What was spent."""
        return Spent(usd=self.usd, tokens=self.tokens, tool_calls=self.tool_calls)

    @property
    def left(self) -> Left:
        """What may still be set aside."""
        limits = self.limits
        return Left(
            limits.tool_calls - self.tool_calls - self.aside_calls,
            None if limits.tokens is None else limits.tokens - self.tokens - self.aside.tokens,
            None if limits.cost_usd is None else limits.cost_usd - self.usd - (self.aside.usd or 0.0),
        )

    @contextmanager
    def reserved(self, need: Need) -> Generator[None]:
        """Set `need` aside for a request that is made inside, and give it back when that has ended. Raises `Exhausted` before it is made."""
        left = self.left
        if left.tokens is not None and need.tokens > left.tokens:
            raise Exhausted("token_limit")
        if left.usd is not None and (need.usd or 0.0) > left.usd:
            raise Exhausted("cost_limit")
        self._set_aside(need.tokens, need.usd or 0.0)
        try:
            yield
        finally:
            self._set_aside(-need.tokens, -(need.usd or 0.0))

    def _set_aside(self, tokens: int, usd: float) -> None:
        self.aside = Need(self.aside.tokens + tokens, (self.aside.usd or 0.0) + usd)

    def settle(self, turn: ModelTurn) -> None:
        """What a request came to in the end."""
        self.usd += turn.cost_usd or 0.0
        if turn.usage is not None:
            self.tokens += turn.usage.input_tokens + turn.usage.output_tokens

    def lose(self, need: Need) -> None:
        """A request that may have been billed, and whose answer was lost, counts as what was set aside for it."""
        self.tokens, self.usd = self.tokens + need.tokens, self.usd + (need.usd or 0.0)

    @contextmanager
    def calling(self, wanted: int) -> Generator[int]:
        """Set aside up to `wanted` tool calls, which are made inside; how many they may be. `settle_calls` keeps those that were made."""
        granted = max(0, min(wanted, self.left.tool_calls))
        self.aside_calls += granted
        try:
            yield granted
        finally:
            self.aside_calls -= granted

    def settle_calls(self, results: Sequence[ToolTurn]) -> None:
        """The tool calls that were really made."""
        self.tool_calls += made(results)


def made(results: Sequence[ToolTurn]) -> int:
    """How many of them are tool calls that were really made."""
    return sum(result.tool_call_id is not None for result in results)
