"""Router versions as they are stored: the bytes that `LearnedRouter.dump` gives, under the version that follows from them. `metier routers` makes them, `promotion` loads them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import JsonValue

from metier_infra.errors import BadSpec, RouterBroken
from metier_infra.routers import Fitted, RouterVersion, digest_of
from metier_workflows.choosing.matrix import Matrix
from metier_workflows.choosing.router import Asked, Choice, Router, Topology

if TYPE_CHECKING:
    from metier_workflows.choosing.learned import LearnedRouter

KIND = "learned"
LARGEST = 32 * 1024**2
"""A version may not take more than this; bytes."""


@dataclass(frozen=True)
class Stored:
    """A learned router under the version by which it is stored."""

    version: str
    learned: LearnedRouter

    def choose(self, asked: Asked, agents: Sequence[str], topologies: Collection[Topology]) -> Choice:
        """See `Router.choose`."""
        return self.learned.choose(asked, agents, topologies)


def fit(
    matrix: Matrix, fitted_on: Mapping[str, JsonValue], *, by: str, seed: int = 0, explores: bool = False
) -> Fitted:
    """A version fitted on a matrix, not stored yet: the same rows and seed give the same one. `explores`: it draws among agents that may be the best, so that its log can judge others.

    Raises `BadSpec` where there is nothing to learn from, or too much.
    """
    from metier_workflows.choosing import fitting

    try:
        router = replace(fitting.fit(matrix, seed=seed), explores=explores)
    except ValueError as error:
        raise BadSpec(str(error)) from error
    body = router.dump()
    if len(body) > LARGEST:
        raise BadSpec(f"the router takes {len(body)} bytes, and {LARGEST} are kept; fit it on fewer rows")
    digest = digest_of(KIND, body)
    known = RouterVersion(version=router.version, kind=KIND, digest=digest, fitted_on=dict(fitted_on), fitted_by=by)
    return Fitted(known, body)


def load(fitted: Fitted) -> Router:
    """The router of a stored version. Raises `RouterBroken`."""
    known = fitted.known
    if known.kind != KIND:
        raise RouterBroken(f"the router {known.version} is of a kind that is not known here: {known.kind!r}")
    if not fitted.whole:
        raise RouterBroken(f"the router {known.version} in the journal is not what was stored")
    from metier_workflows.choosing import router_files

    try:
        router = router_files.load(fitted.body)
    except Exception as error:
        raise RouterBroken(
            f"the router {known.version} cannot be read here: {type(error).__name__}: {error}"
        ) from error
    if router.version != known.version:
        raise RouterBroken(f"the router {known.version} calls itself {router.version} here")
    return Stored(known.version, router)
