"""The one place that names adapters: settings in, wired parts out.

`cli` and `roles` call it. Everything is imported where it is used, so that a role loads only what it needs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from metier_infra.bus import Bus
from metier_infra.database import Database, RetryingDatabase, check_schema, migrate
from metier_infra.dead_letters import Scan
from metier_infra.errors import BadSpec, MissingService, UnknownAgent
from metier_infra.events import tasks_topic
from metier_infra.journal import Journal
from metier_infra.retry import Backoff, persist
from metier_infra.settings import (
    model_overrides,
)
from metier_infra.words import AgentCard, Allowance

if TYPE_CHECKING:
    from metier_agents.attempt import Estimate
    from metier_agents.buckets import Buckets
    from metier_agents.model import Model
    from metier_agents.safety import Bundle
    from metier_agents.spec import AgentSpec
    from metier_infra.blobs import Blobs
    from metier_infra.kafka_topics import Drift, Topic
    from metier_workflows.schedules import Schedule
    from metier_workflows.tenants import Tenants

from metier import compose_tools
from metier.configuration import Config

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
    return by_claim(config, KafkaBus(config.kafka, client=f"metier-{role}", member=member))


def by_claim(config: Config, bus: Bus) -> Bus:
    """The same bus, with what is too large for a record in the blob store, and what goes through it counted."""
    from metier_infra.claims import ClaimCheck
    from metier_infra.metered import MeteredBus

    return MeteredBus(ClaimCheck(bus, open_blobs(config), config.role.inline_bytes))


def open_blobs(config: Config) -> Blobs:
    """Where the data of events is kept that is too large for a record: the journal's Postgres, or a folder where there is none."""
    if config.journal.postgres_url is not None:
        from metier_infra.postgres_blobs import PostgresBlobs

        return PostgresBlobs(config.journal.postgres_url.get_secret_value())
    from metier_infra.blobs import FolderBlobs

    return FolderBlobs(config.tools.blobs)


def open_raw(config: Config) -> tuple[Bus, Scan]:
    """Kafka as it is, where records are read and written byte for byte; and what shows all that lies on a topic."""
    from metier_infra.kafka_bus import KafkaBus
    from metier_infra.kafka_scan import scan

    return KafkaBus(config.kafka, client="metier-cli"), partial(scan, config.kafka)


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
    known, tools = load_bundles(safety_folder(config)), compose_tools.toolbox(config)
    found = {name: find_bundle(known, wanted) for name, wanted in named.items()}
    wrong = [one for name, bundle in found.items() for one in problems(specs[name], bundle, tools)]
    if wrong:
        raise BadSpec("; ".join(wrong))
    return found


def cards(config: Config, specs: Mapping[str, AgentSpec], bundles: Mapping[str, Bundle]) -> dict[str, AgentCard]:
    """What workflows may know of the agents, which act under these bundles."""
    from metier_agents.model_table import read_known
    from metier_agents.prices import without_price
    from metier_agents.stamp import stamp

    known = read_known(config.models.models)
    return {
        name: AgentCard(
            name=name,
            model=spec.model,
            policy=spec.policy.kind,
            skills=dict(spec.skills),
            takes=Allowance(
                usd=spec.limits.cost_usd,
                tokens=spec.limits.tokens,
                tool_calls=spec.limits.tool_calls if spec.tools else 0,
            ),
            priced=not without_price(spec, known),
            stamp=stamp(spec, bundles.get(name)),
            reasoning=spec.reasoning.kind,
            retrieval=spec.retrieval.strategy if spec.retrieval else "",
        )
        for name, spec in specs.items()
    }


def tenants(config: Config) -> Tenants:
    """What each tenant may take. Raises `BadSpec`."""
    from metier_workflows.tenants import Tenants, load_tenants

    return load_tenants(config.role.tenants) if config.role.tenants else Tenants()


def schedules(config: Config) -> Sequence[Schedule]:
    """The runs that start by the clock. Raises `BadSpec`."""
    from metier_workflows.schedules import load_schedules

    return load_schedules(config.role.schedules) if config.role.schedules else ()


def recordings_path() -> Path:
    """The recordings that ship with Métier."""
    return Path(str(resources.files("metier.examples") / "data" / "zeroeval.jsonl.gz"))


def open_models(config: Config, specs: Iterable[AgentSpec], buckets: Buckets) -> Callable[[AgentSpec], Model]:
    """Opens every agent's model now, and gives it when it is asked for, with its fallbacks, prices and limits (`metier_agents.models`). Raises `AskOperator`s."""
    from metier_agents.model_table import read_known
    from metier_agents.models import Shop, open_model

    shop = Shop(read_known(config.models.models), buckets, partial(open_model, recordings=recordings_path()))
    opened = {_chain(spec): shop.model_of(spec) for spec in specs}
    return lambda spec: opened.get(_chain(spec)) or shop.model_of(spec)


def _chain(spec: AgentSpec) -> tuple[str, ...]:
    return spec.name, spec.model, *spec.fallbacks


def thrifty(config: Config) -> Callable[[AgentSpec], AgentSpec]:
    """What makes of an agent the same on the cheapest of its models."""
    from metier_agents import prices
    from metier_agents.model_table import read_known

    known = read_known(config.models.models)
    return lambda spec: prices.thrifty(spec, known)


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


def topics(config: Config) -> list[Drift]:
    """Make the broker's topics what is declared, with one for each agent; what was done, and what is left to do."""
    from metier_infra import kafka_topics

    return kafka_topics.apply(config.kafka, declared_topics(config, agent_specs(config)))


def topic_drift(config: Config) -> list[Drift]:
    """Where the broker's topics are not what is declared; changes nothing."""
    from metier_infra import kafka_topics

    return kafka_topics.check(config.kafka, declared_topics(config, agent_specs(config)))


def declared_topics(config: Config, agents: Iterable[str]) -> list[Topic]:
    """The topics as they should be, without prefix, with one for each of the agents."""
    from metier_infra.kafka_topics import Topic

    declared = yaml.safe_load((resources.files("metier_infra") / "topics.yaml").read_text())["topics"]
    names = [tasks_topic(name) for name in sorted(agents)]
    return [
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
