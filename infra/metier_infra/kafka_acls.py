"""What each role may do on the broker: `kafka-acls.yaml` as access control lists. `metier acls` prints them; nothing here talks to a broker."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Literal

import yaml

PRINCIPAL = "User:metier-{role}"
_AGENT = "{agent}"


@dataclass(frozen=True)
class Access:
    """What one role may do with one resource.

    Attributes:
        role: `orchestrator`, `agent-coder`, …
        principal: who the broker takes it for, as `User:metier-orchestrator`.
        resource: what kind of thing it is.
        name: its name, with the prefix of the system; of several, how they begin.
        pattern: whether that is the whole name or how it begins.
        operations: by Kafka's names, in their order in the file.
    """

    role: str
    principal: str
    resource: Literal["topic", "group"]
    name: str
    pattern: Literal["literal", "prefixed"]
    operations: Sequence[str]


def accesses(agents: Iterable[str], *, prefix: str = "", principal: str = PRINCIPAL) -> list[Access]:
    """What all roles need.

    Args:
        agents: the declared agents' names.
        prefix: METIER_KAFKA_PREFIX.
        principal: `{role}` in it is the role's name.
    """
    declared: Mapping[str, Mapping[str, Mapping[str, Sequence[str]]]] = yaml.safe_load(_text())["roles"]
    names = sorted(agents)
    return [
        Access(role, principal.replace("{role}", role), kind, prefix + name.rstrip("*"), pattern, operations)
        for one, parts in declared.items()
        for role, agent in _roles(one, names)
        for kind, name, operations in _parts(parts, agent)
        for pattern in (_pattern(name),)
    ]


def _text() -> str:
    return (resources.files("metier_infra") / "kafka-acls.yaml").read_text(encoding="utf-8")


def _roles(role: str, agents: Sequence[str]) -> Iterator[tuple[str, str]]:
    for agent in agents if _AGENT in role else [""]:
        yield role.replace(_AGENT, agent), agent


def _parts(
    parts: Mapping[str, Mapping[str, Sequence[str]]], agent: str
) -> Iterator[tuple[Literal["topic", "group"], str, Sequence[str]]]:
    kinds: Sequence[tuple[str, Literal["topic", "group"]]] = (("topics", "topic"), ("groups", "group"))
    for key, kind in kinds:
        for name, operations in parts.get(key, {}).items():
            yield kind, name.replace(_AGENT, agent), operations


def _pattern(name: str) -> Literal["literal", "prefixed"]:
    return "prefixed" if name.endswith("*") else "literal"


def shell(one: Access) -> str:
    """The words for Kafka's own `kafka-acls.sh`, after what says where the broker is."""
    operations = [word for operation in one.operations for word in ("--operation", operation)]
    words = ["--add", "--allow-principal", one.principal, *operations]
    return shlex.join([*words, f"--{one.resource}", one.name, "--resource-pattern-type", one.pattern])
