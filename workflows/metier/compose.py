"""The one place that names adapters: settings in, wired parts out.

`cli` and `roles` call it. Everything is imported where it is used, so that a role loads only what it needs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shlex
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import structlog
import yaml
from pydantic import SecretStr

from metier_infra.bus import Bus
from metier_infra.database import Database, RetryingDatabase, check_schema, migrate
from metier_infra.errors import BadSettings, BadSpec, MissingService, UnknownAgent
from metier_infra.events import tasks_topic
from metier_infra.journal import Journal
from metier_infra.retry import Backoff, persist
from metier_infra.settings import (
    JournalSettings,
    KafkaSettings,
    LaneSettings,
    ModelSettings,
    RoleSettings,
    SandboxSettings,
    ToolSettings,
    load,
    model_overrides,
    refuse_unknown,
)
from metier_infra.words import AgentCard

if TYPE_CHECKING:
    from metier_agents.attempt import Estimate
    from metier_agents.buckets import Buckets
    from metier_agents.model import Model
    from metier_agents.safety import Bundle
    from metier_agents.spec import AgentSpec
    from metier_infra.kafka_topics import TopicChange
    from metier_tools.docker_sandbox import DockerSandbox
    from metier_tools.execution import Execution
    from metier_tools.lane import ToolLane
    from metier_tools.sandbox import Recipe, Sandbox, Script
    from metier_tools.tool import Kind
    from metier_tools.tool_files import Catalogue
    from metier_tools.toolbox import Toolbox
    from metier_tools.vault import Vault

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


PATIENT = Backoff(first_s=0.1, ceiling_s=5.0)
"""How a role waits for a database that is away: as long as it takes, saying so."""
BRIEF = Backoff(first_s=0.2, ceiling_s=1.0, attempts=3)
"""How a command waits for it."""


async def open_database(config: Config, patience: Backoff, *, size: int = 8, read_only: bool = False) -> Database:
    """Postgres where a URL is set, else the SQLite file; with a layer that tries again while it is away."""
    if config.journal.postgres_url is not None:
        from metier_infra.postgres_journal import PostgresDatabase

        postgres = PostgresDatabase(config.journal.postgres_url.get_secret_value(), size)
        return RetryingDatabase(await persist("connect to the journal", postgres.open, patience), patience)
    from metier_infra.sqlite_journal import SqliteDatabase

    return RetryingDatabase(SqliteDatabase(config.journal.sqlite_path, read_only=read_only), patience)


async def open_journal(
    config: Config, *, size: int = 8, read_only: bool = False, patience: Backoff = PATIENT
) -> Journal:
    """The journal. An embedded one is brought up to date; Postgres must be migrated already (`SchemaBehind`)."""
    db = await open_database(config, patience, size=size, read_only=read_only)
    if config.journal.postgres_url is None and not read_only:
        await migrate(db)
    await check_schema(db)
    return Journal(db, config.journal.lease_s)


def open_bus(config: Config, role: str) -> Bus:
    """Kafka. A name set by METIER_INSTANCE makes the role a static member of its groups."""
    from metier_infra.kafka_bus import KafkaBus

    member = config.role.instance if "METIER_INSTANCE" in os.environ else None
    return KafkaBus(config.kafka, client=f"metier-{role}", member=member)


def agents_folder(config: Config) -> Path:
    """Where the agents are declared: the three that ship, where nothing is said."""
    return config.role.agents or Path(str(resources.files("metier.examples") / "agents"))


def agent_specs(config: Config, models: Mapping[str, str] | None = None) -> dict[str, AgentSpec]:
    """The agents that are declared, with their models replaced where `METIER_MODEL_<AGENT>` or `models` say so."""
    from metier_agents.spec import load_agents, with_model

    folder = agents_folder(config)
    specs = load_agents(folder)
    wanted = {**{_agent_name(name, specs): model for name, model in model_overrides().items()}, **(models or {})}
    for name in wanted.keys() - specs.keys():
        raise UnknownAgent(f"no agent is called {name!r}; there are: {', '.join(sorted(specs))}")
    return {name: with_model(spec, wanted[name]) if name in wanted else spec for name, spec in specs.items()}


def _agent_name(variable: str, specs: Mapping[str, object]) -> str:
    """An environment variable cannot hold `-`: `METIER_MODEL_DEEP_THINKER` is the agent `deep-thinker`."""
    return next((name for name in specs if name.replace("-", "_") == variable), variable)


def safety_folder(config: Config) -> Path:
    """Where the safety bundles are: the examples that ship, where nothing is said."""
    return config.role.safety or Path(str(resources.files("metier.examples") / "safety"))


def bundles(config: Config, specs: Mapping[str, AgentSpec]) -> dict[str, Bundle]:
    """The safety bundles of the agents that name one, by the agent's name. Raises `BadSpec` where an agent and its bundle do not go together."""
    from metier_agents.safety import find_bundle, load_bundles
    from metier_agents.safety_check import problems

    named = {name: spec.safety for name, spec in specs.items() if spec.safety is not None}
    if not named:
        return {}
    known, tools = load_bundles(safety_folder(config)), toolbox(config)
    found = {name: find_bundle(known, wanted) for name, wanted in named.items()}
    wrong = [one for name, bundle in found.items() for one in problems(specs[name], bundle, tools)]
    if wrong:
        raise BadSpec("; ".join(wrong))
    return found


def cards(specs: Mapping[str, AgentSpec], bundles: Mapping[str, Bundle]) -> dict[str, AgentCard]:
    """What workflows may know of the agents, which act under these bundles."""
    from metier_agents.stamp import stamp

    return {
        name: AgentCard(
            name=name,
            model=spec.model,
            policy=spec.policy.kind,
            skills=dict(spec.skills),
            stamp=stamp(spec, bundles.get(name)),
        )
        for name, spec in specs.items()
    }


def recordings_path() -> Path:
    """The recordings that ship with Métier."""
    return Path(str(resources.files("metier.examples") / "data" / "zeroeval.jsonl.gz"))


def open_models(config: Config, specs: Iterable[AgentSpec], buckets: Buckets) -> dict[str, Model]:
    """Every agent's model, by the agent's name, with its fallbacks, prices and limits (`metier_agents.models`). Raises `AskOperator`s."""
    from metier_agents.model_table import read_known
    from metier_agents.models import Shop, open_model

    shop = Shop(read_known(config.models.models), buckets, partial(open_model, recordings=recordings_path()))
    return {spec.name: shop.model_of(spec) for spec in specs}


def estimates(config: Config) -> Callable[[AgentSpec], Estimate]:
    """What a request of an agent may come to at the most, whichever of its models replies."""
    from metier_agents.model_table import read_known
    from metier_agents.prices import estimate

    known = read_known(config.models.models)
    return lambda spec: partial(estimate, [known.price(model) for model in (spec.model, *spec.fallbacks)])


def open_buckets(config: Config) -> Buckets:
    """Where rate limits are kept. Nothing is connected before the first request that falls under one. Raises `AskOperator`s."""
    if not config.distributed:
        from metier_agents.buckets import MemoryBuckets

        return MemoryBuckets()
    if config.models.limits_in == "journal":
        from metier_agents.journal_buckets import JournalBuckets

        return JournalBuckets(lambda: open_database(config, BRIEF, size=2))
    if config.lane.redis_url is None:
        raise MissingService(
            "METIER_REDIS_URL is not set: agent workers share their rate limits there, unless METIER_LIMITS_IN is journal"
        )
    from metier_agents.redis_buckets import RedisBuckets

    return RedisBuckets(config.lane.redis_url.get_secret_value(), namespace=config.lane.lane_namespace)


def grant_key(config: Config) -> bytes:
    """The key that signs tool calls. Raises `MissingService` when none is set."""
    if config.lane.grant_key is None:
        raise MissingService(
            "METIER_GRANT_KEY is not set: agents and tool runners share it to sign and verify tool calls"
        )
    return config.lane.grant_key.get_secret_value().encode()


def topics(config: Config) -> list[TopicChange]:
    """Create the declared topics, with one for each agent; what was done."""
    from metier_infra.kafka_topics import Topic, apply

    declared = yaml.safe_load((resources.files("metier_infra") / "topics.yaml").read_text())["topics"]
    names = [tasks_topic(name) for name in sorted(agent_specs(config))]
    wanted = [
        Topic(
            name,
            entry["partitions"] or config.kafka.partitions,
            config.kafka.replication,
            entry["retention_days"] * 86_400_000 if "retention_days" in entry else None,
            entry.get("max_message_bytes"),
        )
        for entry in declared
        for name in (names if "{agent}" in entry["name"] else [entry["name"]])
    ]
    return apply(config.kafka, wanted)


def tool_modules(config: Config) -> list[str]:
    """The Python modules that declare tools."""
    return [name.strip() for name in config.tools.modules.split(",") if name.strip()]


def tool_kinds(config: Config) -> list[Kind]:
    """The kinds of tools that are run here. Raises `BadSettings` for a word that is none."""
    from metier_tools.tool import Kind

    known: Mapping[str, Kind] = {kind: kind for kind in get_args(Kind)}
    named = [name.strip() for name in config.tools.kinds.split(",") if name.strip()]
    for name in named:
        if name not in known:
            raise BadSettings(f"METIER_TOOL_KINDS: there is no kind {name!r}; there are {', '.join(known)}")
    return [known[name] for name in named]


def toolbox(config: Config) -> Toolbox:
    """The tools that there are: those that ship, and those that are declared, disabled where they are not approved."""
    from metier_tools import tool_files

    return tool_files.toolbox(config.tools.files, tool_modules(config))


def served(config: Config) -> Toolbox:
    """The same tools; those of kinds that are not run here are disabled too. Raises `BadSettings` as `tool_kinds` does."""
    from metier_tools.toolbox import Toolbox

    kinds = tool_kinds(config)
    strange = f"its kind is not among those that are run here: METIER_TOOL_KINDS says {', '.join(kinds) or 'none'}"
    every = toolbox(config)
    here = (tool if tool.spec.kind in kinds else replace(tool, disabled=tool.disabled or strange) for tool in every)
    return Toolbox(here, every.profiles)


def catalogue(config: Config) -> Catalogue:
    """The tools, profiles and MCP servers that are declared."""
    from metier_tools import tool_files

    return tool_files.load(config.tools.files, tool_modules(config))


def open_sandbox(config: Config, **change: float) -> DockerSandbox:
    """The sandbox on the container engine. `change` replaces settings of it. Raises `MissingService` when there is no engine or image."""
    from metier_tools.docker_sandbox import DockerSandbox

    return DockerSandbox(config.sandbox.model_copy(update=change))


def open_checked_sandbox(config: Config, **change: float) -> DockerSandbox:
    """The same, for programs that nobody has read: an engine that does not enforce our limits is refused. Raises `MissingService`."""
    sandbox = open_sandbox(config, **change)
    try:
        sandbox.check()
    except BaseException:
        sandbox.close()
        raise
    return sandbox


def server_recipe(config: Config, known: Catalogue, name: str) -> Recipe:
    """The container of a declared MCP server. Raises `MissingService` for a secret that is not there."""
    from metier_tools.sandbox import Recipe, Server

    file, secrets = known.servers[name], vault(config)
    values = [(secret, secrets.value(secret)) for secret in file.secrets]
    for secret, value in values:
        if value is None:
            raise MissingService(f"the MCP server {name} needs the secret {secret}: put it into METIER_TOOL_SECRETS")
    given = tuple((secret, value) for secret, value in values if value is not None)
    return Recipe(known.profile(file.profile), Server(name, file.command, given))


def vault(config: Config) -> Vault:
    """Where the tools' secrets are. Raises `BadSettings` when the folder is not there."""
    from metier_tools.vault import FolderVault

    if config.tools.secrets is not None and not config.tools.secrets.is_dir():
        raise BadSettings(f"METIER_TOOL_SECRETS: there is no folder {config.tools.secrets}")
    return FolderVault(config.tools.secrets)


def execution(config: Config, tools: Toolbox, sandbox: Sandbox) -> Execution:
    """What runs tool calls, in this process's containers."""
    from metier_infra.blobs import FolderBlobs
    from metier_tools.execution import Execution

    return Execution(tools, sandbox, vault(config), FolderBlobs(config.tools.blobs))


def open_lane(config: Config) -> ToolLane:
    """The Celery lane to the tool runners."""
    from metier_tools.celery_lane import CeleryLane

    if config.lane.redis_url is None:
        raise MissingService(
            "METIER_REDIS_URL is not set: it names the Redis that carries tool calls, redis://host:port/0"
        )
    kinds = {tool.spec.name: tool.spec.kind for tool in toolbox(config)}
    url, namespace = config.lane.redis_url.get_secret_value(), config.lane.lane_namespace
    return CeleryLane(url, grant_key(config), namespace=namespace, kinds=kinds)


async def open_inline_lane(config: Config) -> ToolLane:
    """Tools called from this process, in the engine's containers. Raises as `served`, `vault` and `open_checked_sandbox` do."""
    from metier_tools.inline_lane import InlineLane
    from metier_tools.runner import Runner

    tools, _ = served(config), vault(config)  # what can be wrong with these is said before there are containers
    sandbox = await asyncio.to_thread(open_checked_sandbox, config)
    runner = Runner(execution(config, tools, sandbox).run, grant_key(config))
    return InlineLane(runner, sandbox, threads=config.sandbox.limit)


def scripted_lane(script: Script | None = None) -> Callable[[Config], Awaitable[ToolLane]]:
    """Opens a lane whose tools run in no container and do what `script` says (None: nothing), for tests and benchmarks."""

    async def opener(config: Config) -> ToolLane:
        from metier_tools.inline_lane import InlineLane
        from metier_tools.runner import Runner
        from metier_tools.sandbox import Outcome, ScriptedSandbox

        sandbox = ScriptedSandbox(script or (lambda _: Outcome("ok")))
        return InlineLane(Runner(execution(config, toolbox(config), sandbox).run, grant_key(config)), sandbox)

    return opener
