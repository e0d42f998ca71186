"""Under what an agent acts, as it stands on its events and spans. `compose` puts it on the agents' cards, the worker on what they do."""

from __future__ import annotations

from metier_agents.safety import Bundle
from metier_agents.spec import AgentSpec
from metier_infra.words import Stamp
from metier_tools.tool import digest_of


def stamp(spec: AgentSpec, bundle: Bundle | None = None) -> Stamp:
    """The stamp of an agent under its bundle. The agent's digest changes with the bundle's: it acts otherwise under another."""
    if bundle is None:
        return Stamp(agent=spec.name, digest=spec.digest)
    digest = digest_of([spec.digest, bundle.digest])[:12]
    return Stamp(agent=spec.name, digest=digest, safety=bundle.key, safety_digest=bundle.digest)
