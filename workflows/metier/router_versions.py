"""Which router version a command means, and on what one is fitted or judged by. `cli_routers` and `cli_replay` use it; `router_work` does what takes numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from metier_infra.errors import MissingRouter
from metier_infra.journal import Journal
from metier_infra.routers import RouterVersion


@dataclass(frozen=True)
class Source:
    """What a version is fitted on, or judged by: outcomes of a tenant (None: of all), a folder of `metier eval run`, or a matrix as DIR/NAME. One of them, for fitting.

    `names` takes these columns only, each under its agent's name.
    """

    outcomes: bool = False
    eval_set: Path | None = None
    matrix: Path | None = None
    tenant: str | None = None
    names: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def given(self) -> int:
        """How many are named."""
        return sum([self.outcomes, self.eval_set is not None, self.matrix is not None])


async def find(journal: Journal, name: str) -> RouterVersion:
    """The version of this name, or the only one that begins so. Raises `MissingRouter`."""
    every = await journal.routers.all()
    found = [one for one in every if one.version == name] or [one for one in every if one.version.startswith(name)]
    if len(found) != 1:
        raise MissingRouter(
            f"{len(found) or 'no'} router versions begin with {name!r}; `metier routers list` shows them"
        )
    return found[0]
