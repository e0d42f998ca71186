"""All settings, loaded once; and how a process that has them logs.

`cli`, `roles` and `compose` start from it.
"""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import structlog
from pydantic import SecretStr

from metier_infra.bus import Bus
from metier_infra.journal import Journal
from metier_infra.settings import (
    JournalSettings,
    KafkaSettings,
    LaneSettings,
    ModelSettings,
    RoleSettings,
    S,
    SandboxSettings,
    ToolSettings,
    load,
    refuse_unknown,
)

LOCAL_ENV = Path(".metier/env")
"""What `make up` writes: where its services are. Read when the environment does not say."""


@dataclass(frozen=True)
class Config:
    """All settings, loaded once."""

    kafka: KafkaSettings
    journal: JournalSettings
    lane: LaneSettings
    sandbox: SandboxSettings
    tools: ToolSettings
    models: ModelSettings
    role: RoleSettings

    @property
    def distributed(self) -> bool:
        """Whether a broker is named; without one everything runs in this process."""
        return self.kafka.bootstrap is not None


@dataclass(frozen=True)
class System:
    """A running system as its users see it."""

    bus: Bus
    journal: Journal


def configure() -> Config:
    """Read the environment. Raises `BadSettings`."""
    refuse_unknown()
    return read(load)


class Load(Protocol):
    """Reads the settings of one concern."""

    def __call__(self, kind: type[S], /) -> S:
        """The settings."""
        ...


def read(load: Load) -> Config:
    """All settings, each concern by `load`."""
    return Config(
        load(KafkaSettings),
        load(JournalSettings),
        load(LaneSettings),
        load(SandboxSettings),
        load(ToolSettings),
        load(ModelSettings),
        load(RoleSettings),
    )


def standalone(config: Config) -> Config:
    """The same settings for a system in one process: no broker, SQLite, a grant key that ends with the process."""
    return replace(
        config,
        kafka=config.kafka.model_copy(update={"bootstrap": None}),
        journal=config.journal.model_copy(update={"postgres_url": None}),
        lane=config.lane.model_copy(update={"redis_url": None, "grant_key": SecretStr(secrets.token_hex(32))}),
    )


def use_local_stack() -> bool:
    """Take over where `make up` put its services, unless the environment names a broker; whether a broker is known now."""
    if "METIER_KAFKA_BOOTSTRAP" in os.environ:
        return True
    lines = LOCAL_ENV.read_text().splitlines() if LOCAL_ENV.is_file() else []
    found = dict(word.split("=", 1) for line in lines for word in shlex.split(line.removeprefix("export ")))
    if "METIER_KAFKA_BOOTSTRAP" not in found:
        return False
    for name, value in found.items():
        os.environ.setdefault(name, value)
    return True


def configure_logs(level: str) -> None:
    """Log lines to standard error: for people on a terminal, as JSON elsewhere."""
    renderer = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    for vendor in ("kafka", "psycopg.pool", "opentelemetry", "celery", "urllib3"):
        logging.getLogger(vendor).setLevel(logging.CRITICAL if level != "debug" else logging.DEBUG)
