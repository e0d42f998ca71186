"""One try at a call, with all that it needs. The worker makes it; the loop, its trail and `explorations` work on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from metier_agents.hands import Hands
from metier_agents.model import Model
from metier_agents.purse import Need, Purse, bounded
from metier_agents.spec import AgentSpec
from metier_agents.telling import Teller
from metier_agents.turns import History, load
from metier_infra.journal import Journal
from metier_infra.rows import Call
from metier_infra.words import Stamp
from metier_tools.tool import ToolSpec

Estimate: TypeAlias = Callable[[History, Sequence[ToolSpec], int], Need]
"""What a request with this prompt, these tools and at most so many tokens of reply may come to."""


def free(history: History, tools: Sequence[ToolSpec], output_tokens: int) -> Need:
    """For models that count nothing."""
    del history, tools, output_tokens
    return Need(0)


@dataclass(frozen=True)
class Attempt:
    """Work on `call` by the agent `spec`. `deadline` is seconds since the epoch; the purse is one for all explorations."""

    call: Call
    spec: AgentSpec
    model: Model
    journal: Journal
    hands: Hands
    deadline: float
    stamp: Stamp | None = None
    estimate: Estimate = free
    teller: Teller | None = None
    purse: Purse = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "purse", Purse(bounded(self.spec.limits, self.call.allowance)))

    async def recall(self) -> None:
        """Fill the purse of a call that is not worked on any more with what earlier attempts spent."""
        for step in await self.journal.steps.of_call(self.call.call_id) if self.call.attempt > 1 else ():
            self.purse.replay(load(step.body))
