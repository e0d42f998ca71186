"""Settings: a frozen class per concern, read from `METIER_…` environment variables.

`compose` loads them, once, at the edge; nothing below reads the environment. Unknown `METIER_` names are refused, with the nearest
known name, so that a misspelt setting is never silently ignored.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from metier_infra.errors import BadSettings

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class KafkaSettings(BaseSettings):
    """Where the broker is, how it is told who comes, and how a consumer behaves."""

    model_config = SettingsConfigDict(frozen=True, env_prefix="METIER_KAFKA_", hide_input_in_errors=True)

    bootstrap: str | None = Field(
        None, description="host:port of one or more brokers, comma-separated; none: everything in one process"
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="what the broker's listener speaks, by Kafka's names"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        None, description="how the password is shown, with SASL"
    )
    username: str | None = Field(None, description="who comes, with SASL")
    password: SecretStr | None = Field(None, description="the password, with SASL")
    ca_file: Path | None = Field(
        None, description="PEM file of the authority that the broker's certificate is by; none: those of the system"
    )
    cert_file: Path | None = Field(
        None, description="PEM file of this client's certificate, where the broker asks for one"
    )
    key_file: Path | None = Field(None, description="PEM file of its key")
    prefix: str = Field(
        "", pattern=r"^[a-zA-Z0-9._-]*$", description="put before every topic and group: several systems on one cluster"
    )
    session_timeout_ms: int = Field(
        10_000, ge=1_000, description="a consumer silent for this long loses its partitions; milliseconds"
    )
    partitions: int = Field(6, ge=1, description="partitions of a topic that `metier topics` creates")
    replication: int = Field(1, ge=1, description="replicas of a topic that `metier topics` creates")

    @field_validator("bootstrap")
    @classmethod
    def _names_brokers(cls, value: str | None) -> str | None:
        for place in value.split(",") if value else ():
            if not BROKER.fullmatch(place.strip()):
                raise ValueError(f"{place.strip()!r} names no broker: set host:port, as broker:9092, with commas between several")  # fmt: skip
        return value

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if said := _contradiction(self):
            raise ValueError(said)
        return self


BROKER = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[\w-]{1,63}(?:\.[\w-]{1,63})*\.?):[0-9]{1,5}", re.ASCII)
"""host:port, where an IPv6 address stands in brackets."""


def _contradiction(kafka: KafkaSettings) -> str | None:
    """What does not go together of how a broker is told who comes, and what to set."""
    chosen = f"METIER_KAFKA_SECURITY_PROTOCOL={kafka.security_protocol}"
    known = {"SASL_MECHANISM": kafka.sasl_mechanism, "USERNAME": kafka.username, "PASSWORD": kafka.password}
    files = {"CA_FILE": kafka.ca_file, "CERT_FILE": kafka.cert_file, "KEY_FILE": kafka.key_file}
    with_password, with_tls = kafka.security_protocol.startswith("SASL"), kafka.security_protocol.endswith("SSL")
    if with_password and (name := _first(known, there=False)):
        return f"METIER_KAFKA_{name} is not set: {chosen} needs METIER_KAFKA_SASL_MECHANISM, METIER_KAFKA_USERNAME and METIER_KAFKA_PASSWORD"
    if not with_password and (name := _first(known, there=True)):
        return f"METIER_KAFKA_{name} is set, and {chosen} shows nobody a password: set that to SASL_SSL, or unset METIER_KAFKA_{name}"
    if not with_tls and (name := _first(files, there=True)):
        return f"METIER_KAFKA_{name} is set, and {chosen} uses no certificate: set that to SASL_SSL or SSL, or unset METIER_KAFKA_{name}"
    if (kafka.cert_file is None) != (kafka.key_file is None):
        return "METIER_KAFKA_CERT_FILE and METIER_KAFKA_KEY_FILE belong together: set both, or neither"
    return None


def _first(values: Mapping[str, object], *, there: bool) -> str | None:
    return next((name for name, value in values.items() if bool(value) is there), None)


class JournalSettings(BaseSettings):
    """Where the journal is: Postgres when a URL is given, else a SQLite file."""

    model_config = SettingsConfigDict(frozen=True, env_prefix="METIER_")

    postgres_url: SecretStr | None = Field(
        None, description="postgresql://user:password@host:port/database; none: SQLite"
    )
    sqlite_path: Path = Field(Path(".metier/journal.db"), description="the embedded journal's file")
    lease_s: float = Field(
        15.0, gt=0, description="a run or call whose holder was silent for this long may be taken over; seconds"
    )


class LaneSettings(BaseSettings):
    """The tool lane: Redis as Celery's broker, and the key that signs call grants."""

    model_config = SettingsConfigDict(frozen=True, env_prefix="METIER_")

    redis_url: SecretStr | None = Field(None, description="redis://host:port/db; none: tools run in this process")
    lane_namespace: str = Field(
        "metier",
        pattern=r"^[a-zA-Z0-9._-]+$",
        description="before every queue and reply list: several systems on one Redis",
    )
    grant_key: SecretStr | None = Field(
        None, description="secret shared by agents and tool runners; signs each tool call's grant"
    )


class SandboxSettings(BaseSettings):
    """The containers that untrusted code runs in."""

    model_config = SettingsConfigDict(frozen=True, env_prefix="METIER_SANDBOX_")

    image: str = Field(
        "metier-sandbox:latest", description="image reference; it is resolved to its content id at start"
    )
    pool: int = Field(2, ge=0, description="containers kept warm")
    limit: int = Field(8, ge=1, description="containers at one time in this runner")
    wait_s: float = Field(30.0, gt=0, description="how long a call may wait for a container; seconds")
    idle_s: float = Field(
        20.0, gt=0, description="a run's container that served no call for this long is ended; seconds"
    )
    cgroup_parent: str | None = Field(
        None, description="the cgroup under which all sandboxes together are limited; none: the engine's default"
    )
    runtime: str | None = Field(
        None, description="an OCI runtime by its name in the engine, such as runsc; none: the engine's default"
    )


class ToolSettings(BaseSettings):
    """Which tools there are, and what they may need."""

    model_config = SettingsConfigDict(frozen=True, env_prefix="METIER_TOOL_")

    files: Path | None = Field(None, description="folder of tool files; none: only the tools that ship")
    modules: str = Field("", description="Python modules that declare tools with `@tool`, comma-separated")
    secrets: Path | None = Field(
        None, description="folder with a file for each secret that tools may name; read by tool runners only"
    )
    kinds: str = Field(
        "code,command,mcp,function", description="kinds of tools that this tool runner serves, comma-separated"
    )
    blobs: Path = Field(
        Path(".metier/blobs"),
        description="folder for files too large to travel inside a result, shared by roles; and for data of events, where there is no Postgres",
    )


class ModelSettings(BaseSettings):
    """What is known of models, and where their rate limits are kept."""

    model_config = SettingsConfigDict(frozen=True, env_prefix="METIER_")

    models: Path | None = Field(
        None, description="file with prices and rate limits of models, before those that ship; none: those that ship"
    )
    limits_in: Literal["redis", "journal"] = Field(
        "redis",
        description="where agent workers share what is left of rate limits; a system in one process needs neither",
    )


class RoleSettings(BaseSettings):
    """What every long-running role shares."""

    model_config = SettingsConfigDict(frozen=True, env_prefix="METIER_")

    inline_bytes: int = Field(
        256 << 10,
        ge=1 << 10,
        le=4 << 20,
        description="data of an event that is larger goes into the blob store, and the event carries a claim on it; bytes",
    )
    instance: str = Field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}",
        description="this process's name; a name that survives a restart (a StatefulSet pod) lets it take its own work up at once",
    )
    ready_file: Path | None = Field(None, description="created when the role is ready, removed when it drains")
    http_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="where the role answers `/livez`, `/readyz` and `/metrics`; 0: any free port, which the log names; none: nowhere",
    )
    http_host: str = Field("127.0.0.1", description="the address that it answers at; 0.0.0.0 or :: for all")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="what a role writes to standard error"
    )
    drain_s: float = Field(25.0, gt=0, description="after SIGTERM, running work has this long to end; seconds")
    park_after_s: float = Field(
        60.0,
        gt=0,
        description="a run that did nothing but wait for so long leaves the orchestrator's memory until there is news; seconds",
    )
    runs: int = Field(
        1000, ge=1, description="runs that one orchestrator has in flight at a time; others wait for their turn"
    )
    concurrency: int = Field(16, ge=1, description="records that one role handles at a time")
    workflows: str = Field("metier.examples.specialists", description="modules that declare workflows, comma-separated")
    agents: Path | None = Field(None, description="folder of agent files; none: the three that ship as examples")
    safety: Path | None = Field(None, description="folder of safety bundles; none: those that ship as examples")
    failpoints: str = Field(
        "", description="for tests alone: where this process dies or stalls, `POINT=crash@3;POINT=sleep:2`"
    )
    tenants: Path | None = Field(
        None, description="file that says what each tenant may take; none: all alike, without limits"
    )
    schedules: Path | None = Field(None, description="file of runs that start by the clock; none: none do")
    progress: Literal["all", "few", "none"] = Field(
        "all",
        description="what is told of a run on `metier.events` while it is under way: `few` leaves out nodes, tool calls and text, `none` also calls and parking",
    )
    trace_window_s: float = Field(
        600.0,
        gt=0,
        description="a run that is taken up later than this after its trace began goes on in a new one, linked with it; seconds",
    )
    version_grace_s: float = Field(
        300.0,
        ge=0,
        description="a run whose version of its workflow no orchestrator has served for this long ends failed; seconds",
    )


SETTINGS: tuple[type[BaseSettings], ...] = (
    KafkaSettings,
    JournalSettings,
    LaneSettings,
    SandboxSettings,
    ToolSettings,
    ModelSettings,
    RoleSettings,
)
S = TypeVar("S", bound=BaseSettings)


FREE_PREFIXES = ("METIER_MODEL_", "METIER_LOCAL_")
"""`METIER_MODEL_<AGENT>` replaces an agent's model; `METIER_LOCAL_…` is read by the scripts under infra/local."""


def known_names() -> frozenset[str]:
    """Every environment variable that a settings class reads."""
    return frozenset((str(c.model_config.get("env_prefix", "")) + f).upper() for c in SETTINGS for f in c.model_fields)


def unknown(environment: Mapping[str, str]) -> list[str]:
    """A sentence for each `METIER_` name there that nothing reads, with the nearest known name."""
    known = known_names()
    strange = [one for one in sorted(environment) if one.startswith("METIER_") and one not in known]
    return [_strange(name, known) for name in strange if not name.startswith(FREE_PREFIXES)]


def _strange(name: str, known: frozenset[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"the environment variable {name} is not a setting of Métier{hint}"


def refuse_unknown() -> None:
    """Raise `BadSettings` when the environment holds a `METIER_` name that nothing reads."""
    for sentence in unknown(os.environ):
        raise BadSettings(sentence)


def load(kind: type[S]) -> S:
    """The settings of one concern. Raises `BadSettings` with the variable's name and what it must be."""
    try:
        return kind()
    except ValidationError as error:
        raise BadSettings(_sentence(kind, error.errors(include_url=False, include_input=False)[0])) from error


def load_what_fits(kind: type[S]) -> tuple[S, list[str], bool]:
    """The settings of one concern, with the default where one does not fit; a sentence for each; and whether they go together: else all are defaults."""
    try:
        return kind(), [], True
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)
    sentences = [_sentence(kind, one) for one in wrong]
    fields = {str(one["loc"][0]) for one in wrong if one["loc"]}
    if fields:
        with suppress(ValidationError):
            return kind(**_defaults(kind, fields)), sentences, True
    return kind(**_defaults(kind, kind.model_fields)), sentences, False


def _defaults(kind: type[BaseSettings], names: Iterable[str]) -> dict[str, Any]:
    return {name: kind.model_fields[name].get_default(call_default_factory=True) for name in names}


def _sentence(kind: type[BaseSettings], wrong: ErrorDetails) -> str:
    said = wrong["msg"].removeprefix("Value error, ")
    name = (str(kind.model_config.get("env_prefix", "")) + str(wrong["loc"][0])).upper() if wrong["loc"] else ""
    return f"{name}: {said}" if name else said


def model_overrides() -> dict[str, str]:
    """`METIER_MODEL_<AGENT>` variables: agent name (lower case, `_` for `-`) to model id."""
    prefix = "METIER_MODEL_"
    return {name[len(prefix) :].lower(): value for name, value in os.environ.items() if name.startswith(prefix)}
