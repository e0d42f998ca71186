"""What is to be examined: the settings, for which roles, how thoroughly. `cli_doctor` makes it of a command's words."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args
from urllib.parse import unquote

from metier.configuration import Config
from metier_infra.errors import BadSettings
from metier_tools.vault import scrubber

Role = Literal["orchestrator", "agent", "tools"]
ROLES: frozenset[Role] = frozenset(get_args(Role))
SYSTEM = ("METIER_KAFKA_BOOTSTRAP", "METIER_POSTGRES_URL", "METIER_REDIS_URL")
"""Where any of these is set, the roles are to run apart."""
SECRET_ENDS = ("_KEY", "_TOKEN", "_PASSWORD", "_SECRET", "_HEADERS")


@dataclass(frozen=True)
class Asked:
    """Which roles are to be able to run here. `agents` empty: every one that is declared. `named`: somebody named them."""

    roles: frozenset[Role] = ROLES
    agents: frozenset[str] = frozenset()
    named: bool = False


def asked(words: Iterable[str]) -> Asked:
    """What `--role` says: `orchestrator`, `agent`, `agent:NAME`, `tools` or `all`; no word is `all`. Raises `BadSettings`."""
    told = [_role(word) for word in words]
    roles = frozenset[Role]().union(*(found for found, _ in told)) or ROLES
    return Asked(roles, frozenset(name for _, name in told if name), named=len(roles) < len(ROLES))


def _role(word: str) -> tuple[frozenset[Role], str]:
    kind, _, name = word.partition(":")
    found = ROLES if word == "all" else frozenset[Role](role for role in ROLES if role == kind)
    if not found or (name and kind != "agent"):
        raise BadSettings(f"--role {word}: there are orchestrator, agent, agent:NAME, tools and all")
    return found, name


@dataclass(frozen=True)
class Case:
    """What is to be examined.

    Attributes:
        config: the settings, with defaults where they cannot be read.
        wrong: what cannot be read of them, a sentence each.
        unread: the settings classes of which nothing can be read, for what stands in them does not go together.
        environment: where they come from.
        asked: the roles.
        before_install: what `metier migrate` and `metier topics` will make is not missed yet.
        models: whether each model is to be asked.
        clock: this machine's, in seconds since the epoch.
    """

    config: Config
    wrong: tuple[str, ...] = ()
    unread: frozenset[str] = frozenset()
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    asked: Asked = field(default_factory=Asked)
    before_install: bool = False
    models: bool = False
    clock: Callable[[], float] = time.time

    @property
    def distributed(self) -> bool:
        """Whether the roles are to run apart, and so need what lies between them."""
        return self.asked.named or any(self.environment.get(name) for name in SYSTEM)

    def redacted(self, text: str) -> str:
        """The text without any secret of the environment."""
        return scrubber(_secrets(self.environment))(text.encode(errors="replace"), False).decode(errors="replace")


def _secrets(environment: Mapping[str, str]) -> set[str]:
    whole = {value for name, value in environment.items() if name.endswith(SECRET_ENDS)}
    passwords = {word for value in environment.values() if (word := _password(value))}
    return whole | passwords | set(map(unquote, passwords))


def _password(url: str) -> str:
    """The password in `scheme://user:password@host`, or in `password=…` of a connection string, as it stands there; else empty."""
    if "://" in url and "@" in url:
        return url.partition("://")[2].rpartition("@")[0].partition(":")[2]
    return url.partition("password=")[2].partition(" ")[0].strip("'") if "password=" in url else ""
