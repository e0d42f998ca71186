"""What one call may still spend, all its explorations together: set aside before a request, settled after it.

`trail` asks it round each model request and the loop round each tool call; after a crash it is filled again from the recorded steps.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from metier_agents.spec import Limits
from metier_agents.turns import History, ModelTurn, ToolTurn, of_kind


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


@dataclass
class Purse:
    """The limits of one call, and what was spent and set aside of them. Money is USD."""

    limits: Limits
    tokens: int = 0
    usd: float = 0.0
    tool_calls: int = 0

    def replay(self, history: History) -> None:
        """Take over what recorded turns came to."""
        for turn in of_kind(history, ModelTurn):
            self._spend(turn)
        self.tool_calls += made(of_kind(history, ToolTurn))

    @property
    def left(self) -> Left:
        """What may still be set aside."""
        limits = self.limits
        return Left(
            limits.tool_calls - self.tool_calls,
            None if limits.tokens is None else limits.tokens - self.tokens,
            None if limits.cost_usd is None else limits.cost_usd - self.usd,
        )

    @contextmanager
    def reserved(self, need: Need) -> Generator[None]:
        """Set `need` aside for a request that is made inside, and give it back when that has ended. Raises `Exhausted` before it is made."""
        left = self.left
        if left.tokens is not None and need.tokens > left.tokens:
            raise Exhausted("token_limit")
        if left.usd is not None and (need.usd or 0.0) > left.usd:
            raise Exhausted("cost_limit")
        self.tokens, self.usd = self.tokens + need.tokens, self.usd + (need.usd or 0.0)
        try:
            yield
        finally:
            self.tokens, self.usd = self.tokens - need.tokens, self.usd - (need.usd or 0.0)

    def settle(self, turn: ModelTurn) -> None:
        """What the request came to in the end."""
        self._spend(turn)

    def lose(self, need: Need) -> None:
        """A request that may have been billed, and whose answer was lost, counts as what was set aside for it."""
        self.tokens, self.usd = self.tokens + need.tokens, self.usd + (need.usd or 0.0)

    @contextmanager
    def calling(self, wanted: int) -> Generator[int]:
        """Set aside up to `wanted` tool calls, which are made inside; how many they may be. `settle_calls` keeps those that were made."""
        granted = max(0, min(wanted, self.left.tool_calls))
        self.tool_calls += granted
        try:
            yield granted
        finally:
            self.tool_calls -= granted

    def settle_calls(self, results: Sequence[ToolTurn]) -> None:
        """The tool calls that were really made."""
        self.tool_calls += made(results)

    def _spend(self, turn: ModelTurn) -> None:
        self.usd += turn.cost_usd or 0.0
        if turn.usage is not None:
            self.tokens += turn.usage.input_tokens + turn.usage.output_tokens


def made(results: Sequence[ToolTurn]) -> int:
    """How many of them are tool calls that were really made."""
    return sum(result.tool_call_id is not None for result in results)
