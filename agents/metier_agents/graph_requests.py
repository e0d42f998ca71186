"""The requests that a graph makes to its models: stopped ahead where a guard says so, counted and paid for when they end.

`graph_agent` makes one for each run of a graph, and `graph_border.Ear` tells it of each request, in whatever thread of the graph it is made.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from uuid import UUID

from langchain_core.messages import AIMessage

from metier_agents import prices
from metier_agents.attempt import Attempt
from metier_agents.langchain_reply import read_reply
from metier_agents.model_table import Price
from metier_agents.policy import guard
from metier_agents.purse import Exhausted, Need
from metier_agents.trail import Purpose, Trail
from metier_agents.turns import History, ModelTurn, Usage
from metier_agents.view import see
from metier_infra.errors import MetierError
from metier_tools.tool import ToolSpec

PART: Purpose = "selection"
"""The purpose of a model turn inside a graph that is not its answer."""


@dataclass(frozen=True)
class Open:
    """A request that is being made: what was set aside for it, and since when."""

    need: Need
    aside: AbstractContextManager[None]
    started_at: float = field(default_factory=time.time)


@dataclass
class Requests:
    """Those of one run. `tools` are ours that the graph has, `own` the names of those that it brought; `name` is the graph's.

    `ended_by` is why the run must end: no further request is made then, even if the graph goes on.
    """

    trail: Trail
    tools: Sequence[ToolSpec]
    own: tuple[str, ...]
    name: str
    ended_by: Exhausted | MetierError | None = None
    _open: dict[UUID, Open] = field(default_factory=dict[UUID, Open])
    _ended: list[tuple[AIMessage, ModelTurn]] = field(default_factory=list[tuple[AIMessage, ModelTurn]])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def attempt(self) -> Attempt:
        """The try at the call."""
        return self.trail.attempt

    def begin(self, request: UUID) -> None:
        """Ahead of a request. Raises `Exhausted`, or what ended the run before: then it is not made."""
        attempt = self.attempt
        with self._lock:
            try:
                self._check()
                need = attempt.estimate(self.trail.history, self.tools, attempt.spec.limits.output_tokens)
                aside = attempt.purse.reserved(need)
                aside.__enter__()
            except Exhausted as limit:
                self.ended_by = limit
                raise
            self._open[request] = Open(need, aside)

    def _check(self) -> None:
        """The guards of every loop, which look at what was recorded, what was heard since, and what is under way."""
        if self.ended_by is not None:
            raise self.ended_by
        attempt = self.attempt
        history: History = [*self.trail.history, *(turn for _, turn in self._ended), *(ModelTurn() for _ in self._open)]
        reason = guard(see(history, attempt.spec, attempt.call.task.category, {}, attempt.purse.left))
        if reason:
            raise Exhausted(reason)

    def end(self, request: UUID, reply: AIMessage) -> None:
        """A request has its reply."""
        with self._lock:
            asked = self._open.pop(request)
            asked.aside.__exit__(None, None, None)
            self._ended.append((reply, self._paid(reply, asked.need, asked.started_at)))

    def fail(self, request: UUID) -> None:
        """A request has none."""
        with self._lock:
            if asked := self._open.pop(request, None):
                asked.aside.__exit__(None, None, None)

    def close(self) -> None:
        """The run has ended, and so has what it asked; that may be billed all the same."""
        for request, asked in [*self._open.items()]:
            self.fail(request)
            self.attempt.purse.lose(asked.need)

    def turn_of(self, message: AIMessage) -> ModelTurn:
        """The turn that stands in the graph's messages: as it was heard, or where no model was heard to say it, the message alone."""
        with self._lock:
            for n, (reply, turn) in enumerate(self._ended):
                if _same(reply, message):
                    del self._ended[n]
                    return turn
            return self._paid(message, Need(0), time.time())

    def left_over(self) -> list[ModelTurn]:
        """Replies that stand in no message: they count, without their words."""
        with self._lock:
            ended, self._ended = self._ended, []
        return [turn.model_copy(update={"text": "", "uses": ()}) for _, turn in ended]

    def _paid(self, reply: AIMessage, need: Need, started_at: float) -> ModelTurn:
        """The reply as a turn that is paid for."""
        turn = read_reply(reply, self.name, len(self.trail.history) + len(self._ended))
        usage, again, self.trail.resumed = turn.usage, self.trail.resumed, False
        if usage is None and need.tokens:
            usage = Usage(input_tokens=need.tokens, output_tokens=0, estimated=True)
        stamp = {
            "usage": usage,
            "cost_usd": prices.cost(_price(self.attempt), usage),
            "purpose": "answer" if turn.uses else PART,
            "offered": (*(tool.name for tool in self.tools), *self.own),
            "asked_again": again,
            "started_at": started_at,
            "ended_at": time.time(),
        }
        turn = turn.model_copy(update=stamp)
        self.attempt.purse.settle(turn)
        return turn


def _same(reply: AIMessage, message: AIMessage) -> bool:
    named = reply.id is not None and reply.id == message.id
    return named or (reply.content == message.content and reply.tool_calls == message.tool_calls)


def _price(attempt: Attempt) -> Price | None:
    """What the graph's tokens cost: the price that is told for its id."""
    found: object = getattr(attempt.model, "price", None)
    return found if isinstance(found, Price) else None
