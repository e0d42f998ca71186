"""What every router is: a version, and a choice for a task. `routing` asks it for each task; `promotion` moves versions from shadow to promoted.

A choice depends on what is asked and on nothing else, so that a stored decision can be made again to the bit.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Topology = Literal["specialist", "cascade", "panel"]
"""One agent is asked; several one after the other until enough agree; several at once."""


@dataclass(frozen=True)
class Asked:
    """A task to choose for. `seed` is where all randomness of the choice comes from."""

    text: str
    category: str
    tenant: str = "default"
    seed: int = 0


@dataclass(frozen=True)
class Option:
    """One agent that was weighed: the chance that it answers right, that it is chosen first (both 0 to 1), and what it is thought to cost in USD."""

    agent: str
    score: float
    propensity: float
    cost_usd: float | None = None


@dataclass(frozen=True)
class Choice:
    """Whom to ask, in this order, and why.

    Attributes:
        chosen: one agent of a specialist; all members of a cascade or a panel.
        weights: how much each member's vote counts, in the order of `chosen`.
        enough: so much of the weight, 0 to 1, must stand behind one answer for the others not to be asked.
        confident: False where the router knows too little: the author's default is taken then.
    """

    topology: Topology
    chosen: tuple[str, ...]
    weights: tuple[float, ...]
    options: tuple[Option, ...]
    reason: str
    enough: float = 1.0
    confident: bool = True


class Router(Protocol):
    """A version of how to choose."""

    @property
    def version(self) -> str:
        """Its name; another one for any other behaviour."""
        ...

    def choose(self, asked: Asked, agents: Sequence[str], topologies: Collection[Topology]) -> Choice:
        """The choice among these agents and topologies. `agents` is never empty, and may hold some that the router does not know."""
        ...
