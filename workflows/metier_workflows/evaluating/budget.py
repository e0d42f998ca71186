"""What an evaluation may spend: whether one more pair may be started. Pure; `metier.eval_run` asks it before each pair and tells it after.

The price of an answer is known only once it is there. So every pair that is under way is thought to cost what the dearest of its agent's
pairs came to so far, and of an agent of which nothing is known, one is tried before others are started beside it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Purse:
    """`usd` and `tokens` are the most that may be spent, those of judges with them; None: no limit."""

    usd: float | None = None
    tokens: int | None = None
    spent_usd: float = 0.0
    spent_tokens: int = 0
    _under_way: Counter[str] = field(default_factory=Counter[str])
    _dearest: dict[str, tuple[float, int]] = field(default_factory=dict[str, tuple[float, int]])

    @property
    def limited(self) -> bool:
        """Whether there is a limit at all."""
        return self.usd is not None or self.tokens is not None

    @property
    def empty(self) -> bool:
        """Whether nothing is left, whatever comes of what is under way."""
        return _reached(self.spent_usd, self.usd) or _reached(self.spent_tokens, self.tokens)

    def may_start(self, agent: str) -> bool:
        """Whether what was spent and what is under way leave anything for a pair of this agent."""
        if not self.limited:
            return True
        if agent not in self._dearest and self._under_way[agent]:
            return False
        dear = [(count, self._dearest.get(name, (0.0, 0))) for name, count in self._under_way.items()]
        usd = self.spent_usd + sum(count * one for count, (one, _) in dear)
        tokens = self.spent_tokens + sum(count * one for count, (_, one) in dear)
        return not (_reached(usd, self.usd) or _reached(tokens, self.tokens))

    def start(self, agent: str) -> None:
        """A pair of this agent is under way."""
        self._under_way[agent] += 1

    def gave_up(self, agent: str) -> None:
        """It is not any more, and nothing is known of what it took."""
        self._under_way[agent] -= 1

    def spend(self, agent: str, usd: float, tokens: int) -> None:
        """A pair of this agent took so much."""
        dear_usd, dear_tokens = self._dearest.get(agent, (0.0, 0))
        self._dearest[agent] = max(dear_usd, usd), max(dear_tokens, tokens)
        self.spent_usd += usd
        self.spent_tokens += tokens


def _reached(spent: float, limit: float | None) -> bool:
    return limit is not None and spent >= limit
