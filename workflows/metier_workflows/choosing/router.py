"""What every router is: a version, and a choice for a task. `routing` asks it for each task; `promotion` moves versions from shadow to promoted.

A choice depends on what is asked and on nothing else, so that a stored decision can be made again to the bit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Serving:
    """The versions that stand for a tenant now.

    Attributes:
        promoted: decides; None: nobody does, and what agents declare of themselves decides.
        canary: decides in its place for a `share` (0 to 1) of the tasks.
        share: which tasks those are follows from each task's seed, so that it is the same after a crash.
        shadows: are asked too, and what they say is kept and never followed.
    """

    promoted: Router | None = None
    canary: Router | None = None
    share: float = 0.0
    shadows: tuple[Router, ...] = ()


class Routers(Protocol):
    """Where decisions find the versions that stand. The promotion of routers keeps it up to date; each decision asks, so it answers from memory."""

    def serving(self, tenant: str) -> Serving:
        """What stands for this tenant."""
        ...


@dataclass(frozen=True)
class Standing:
    """Routers that do not move: `everywhere`, but for the tenants that are named."""

    everywhere: Serving = Serving()
    tenants: Mapping[str, Serving] = field(default_factory=dict[str, Serving])

    def serving(self, tenant: str) -> Serving:
        """See `Routers.serving`."""
        return self.tenants.get(tenant, self.everywhere)
