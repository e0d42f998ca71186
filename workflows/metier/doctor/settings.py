"""The environment: names that nothing reads, values that do not fit, settings that contradict each other, and those that a role wants."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from metier import configuration
from metier.doctor.case import ROLES, Asked, Case, Role
from metier.doctor.examination import Part
from metier.doctor.finding import Finding, error, ok, warning
from metier_infra.settings import load_what_fits, unknown

if TYPE_CHECKING:
    from metier.configuration import Config
    from metier_infra.settings import S

KAFKA, POSTGRES = "METIER_KAFKA_BOOTSTRAP", "METIER_POSTGRES_URL"
REDIS, KEY = "METIER_REDIS_URL", "METIER_GRANT_KEY"
WANTED: Mapping[Role, Sequence[str]] = {
    "orchestrator": (KAFKA, POSTGRES),
    "agent": (KAFKA, POSTGRES, REDIS, KEY),
    "tools": (REDIS, KEY),
}
"""What a role does not run without, where the roles run apart."""
MEANS = {
    KAFKA: "host:port of the broker",
    POSTGRES: "postgresql://user:password@host:port/database; the roles share one journal, and SQLite serves one process",
    REDIS: "redis://host:port/db; it carries tool calls, and what is left of models' rate limits",
    KEY: "one secret for agents and tool runners alike, as from `openssl rand -hex 32`",
}
BEATS = 3
"""A consumer has so many heartbeats until it is taken for dead, as Kafka advises."""


def case(asked: Asked, *, before_install: bool, models: bool) -> Case:
    """What this process's environment says, with defaults where it says what cannot be read."""
    wrong, unread = list[str](), set[str]()

    def load(kind: type[S], /) -> S:
        found, sentences, together = load_what_fits(kind)
        wrong.extend(sentences)
        unread.update(() if together else (kind.__name__,))
        return found

    config = configuration.read(load)
    return Case(
        config,
        tuple(wrong),
        frozenset(unread),
        dict(os.environ),
        asked=asked,
        before_install=before_install,
        models=models,
    )


def examine(case: Case) -> list[Finding]:
    """See `Part`."""
    return [*names(case.environment), *values(case.wrong), *together(case.config, case.environment), *needed(case)]


def names(environment: Mapping[str, str]) -> list[Finding]:
    """Each `METIER_` name that nothing reads: a role refuses to start with it."""
    strange = unknown(environment)
    if not strange:
        return [ok("settings.names", "every METIER_ name is a setting")]
    return [error("settings.names", one, "correct the name, or unset it") for one in strange]


def values(wrong: Sequence[str]) -> list[Finding]:
    """Each value that does not fit."""
    if not wrong:
        return [ok("settings.values", "every value can be read")]
    return [
        error("settings.values", one, "correct it: docs/reference/settings.md says what each may be") for one in wrong
    ]


def together(config: Config, environment: Mapping[str, str]) -> list[Finding]:
    """What contradicts each other, or is meant for something else."""
    found = list(_contradictions(config, environment))
    return found or [ok("settings.together", "nothing contradicts anything else")]


def _contradictions(config: Config, environment: Mapping[str, str]) -> Iterator[Finding]:
    name, box, kafka = "settings.together", config.sandbox, config.kafka
    if "METIER_SQLITE_PATH" in environment and config.journal.postgres_url is not None:
        yield warning(
            name, f"METIER_SQLITE_PATH and {POSTGRES} are set: the journal is in Postgres", "unset METIER_SQLITE_PATH"
        )
    if box.pool > box.limit:
        yield warning(
            name,
            f"METIER_SANDBOX_POOL ({box.pool}) is more than METIER_SANDBOX_LIMIT ({box.limit}), which holds",
            "set the first to the second at the most",
        )
    if kafka.session_timeout_ms < BEATS * _heartbeat_ms():
        yield error(
            name,
            f"METIER_KAFKA_SESSION_TIMEOUT_MS is {kafka.session_timeout_ms}, and a consumer says each {_heartbeat_ms()} ms that it is there",
            f"set it to {BEATS * _heartbeat_ms()} at the least: a late heartbeat would cost a consumer its partitions",
        )
    if config.role.failpoints:
        yield warning(
            name, "METIER_FAILPOINTS is set: this process is to break where it says", "unset it: it is for tests alone"
        )


def _heartbeat_ms() -> int:
    from metier_infra.kafka_bus import HEARTBEAT_MS

    return HEARTBEAT_MS


def needed(case: Case) -> list[Finding]:
    """What the roles that are asked for want, and nobody set."""
    if not case.distributed:
        return [ok("settings.needed", "no service is named: everything runs in one process, by `metier dev`")]
    missing: dict[str, list[str]] = {}
    for role in sorted(case.asked.roles):
        for name in (one for one in WANTED[role] if not case.environment.get(one)):
            missing.setdefault(name, []).append(role)
    if not missing:
        return [ok("settings.needed", f"all that {', '.join(sorted(case.asked.roles))} cannot do without is set")]
    return [
        error(
            "settings.needed", f"{name} is not set, and {', '.join(roles)} cannot run without", f"set it: {MEANS[name]}"
        )
        for name, roles in missing.items()
    ]


PART = Part("settings", ("settings.names", "settings.values", "settings.together", "settings.needed"), examine, ROLES)
