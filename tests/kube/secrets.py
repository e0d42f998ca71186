"""Which role may hold which secret, and what a secret in plain sight looks like.

Used by `policies`. The table is that of "Run the roles apart": whoever adds a secret to a role's template must add it here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from .manifests import Container

KAFKA, POSTGRES, REDIS, GRANT = "METIER_KAFKA_", "METIER_POSTGRES_", "METIER_REDIS_", "METIER_GRANT_KEY"
ENGINE = "DOCKER_"
MODELS = "the models' keys"
MAY: Mapping[str, set[str]] = {
    "migrate": {POSTGRES},
    "topics": {KAFKA},
    "orchestrator": {KAFKA, POSTGRES},
    "agent": {KAFKA, POSTGRES, REDIS, GRANT, MODELS},
    "tools": {REDIS, GRANT, ENGINE},
    "doctor": {KAFKA, POSTGRES, REDIS, GRANT, MODELS},
    "publish": {KAFKA, POSTGRES},
}
"""What each command of Métier may be given."""

_FAMILIES = (KAFKA, POSTGRES, REDIS, GRANT, ENGINE)
_SECRET_NAME = re.compile(r"(KEY|PASSWORD|TOKEN|SECRET|CREDENTIALS)$")
_PASSWORD_IN_ADDRESS = re.compile(r"://[^/@\s$]*:[^@$/\s]+@")


def strays(container: Container) -> Iterator[str]:
    """Yield the secrets, and the addresses of services, that a role of ours is given without need."""
    if container.ours:
        role = container.words[1]
        given = {_family(name) for name in container.literals.keys() | container.secrets.keys()} - {None}
        if any("secretRef" in source for source in container.spec.get("envFrom") or ()):
            given.add(MODELS)
        for one in sorted(map(str, given - MAY.get(role, set()))):
            yield f"{container.where}: {role} has no need of {one}"


def _family(name: str) -> str | None:
    return next((one for one in _FAMILIES if name.startswith(one)), None)


def leaks(container: Container) -> Iterator[str]:
    """Yield the variables of any container that hold a secret which everybody can read who can read the manifest."""
    for name, text in container.literals.items():
        if text and _SECRET_NAME.search(name):
            yield f"{container.where}: {name} stands in the manifest"
        elif _PASSWORD_IN_ADDRESS.search(text):
            yield f"{container.where}: {name} holds a password in its address"
