"""Under what an agent acts, as it stands on its events and spans. `compose` makes an agent's stamp, once."""

from __future__ import annotations

import hashlib

from metier_agents.spec import AgentSpec
from metier_infra.messages import Stamp


def stamp(spec: AgentSpec, safety: str = "", safety_digest: str = "") -> Stamp:
    """The agent's stamp; `safety` is NAME@VERSION of its bundle. The agent's digest changes with the bundle's: it acts otherwise under another."""
    under = hashlib.sha256(f"{spec.digest} {safety_digest}".encode()).hexdigest()[:12]
    digest = under if safety_digest else spec.digest
    return Stamp(agent=spec.name, digest=digest, safety=safety, safety_digest=safety_digest)
