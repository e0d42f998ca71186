"""The long-running roles, wired and run to their end; and all of them in one process.

`cli` starts them. Each takes work until SIGTERM, ends what it has, and returns.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing, contextmanager
from functools import partial
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from metier import compose, compose_tools, configuration
from metier.configuration import Config, System
from metier_infra import failpoints, metrics, standing, telemetry
from metier_infra.bus import Bus, MemoryBus
from metier_infra.errors import MissingService, UnknownAgent
from metier_infra.journal import Journal
from metier_infra.service import Ready, contain_exits, on_sigterm, unless
from metier_infra.settings import RoleSettings
from metier_infra.words import AgentCard
from metier_tools.lane import ToolLane

if TYPE_CHECKING:
    from metier_agents.model import Model
    from metier_agents.spec import AgentSpec
    from metier_agents.worker import AgentWorker

log = structlog.get_logger()

Work = Callable[[asyncio.Event], Awaitable[None]]
JOURNAL = "it waits for the journal"
TOPICS = "it waits until the broker gives it partitions of its topics"
COLLECT_AFTER = (50_000, 20, 20)
"""New objects until garbage is looked for, and how often the older ones are spared (`gc.set_threshold`; Python's own: 700, 10, 10)."""
SWITCH_S = 0.0005
"""How long the Kafka clients' threads, which do a little and often, wait for the event loop to let them in (`sys.setswitchinterval`; Python's own: 0.005)."""


def run_role(config: Config, role: str, work: Work) -> None:
    """Run `work` in this process until SIGTERM, with logs, telemetry and health; spans are flushed at the end."""
    configuration.configure_logs(config.role.log_level)
    sys.setswitchinterval(SWITCH_S)
    telemetry.start(role, config.role.instance)
    failpoints.arm(config.role.failpoints)

    async def main() -> None:
        stop = asyncio.Event()
        on_sigterm(stop)
        contain_exits()
        standing.here.beat()
        log.info("starting", action="start", role=role, instance=config.role.instance)
        await work(stop)
        log.info("ended", action="end", role=role)

    try:
        with _measured(config.role, role), _runner() as runner:
            runner.run(main())
    finally:
        telemetry.stop()


@contextmanager
def _measured(settings: RoleSettings, role: str) -> Generator[None]:
    """With metrics, for whoever takes them, and health where a port is set. Raises `BadSettings`."""
    with ExitStack() as after:
        after.callback(metrics.stop)
        if settings.http_port is None:
            metrics.start(role, settings.instance)
        else:
            from metier_infra.health import Health
            from metier_infra.health_http import HealthServer
            from metier_infra.prometheus import Prometheus

            prometheus = Prometheus()
            metrics.start(role, settings.instance, prometheus.reader)
            health = Health(standing.here, prometheus.exposition)
            after.enter_context(closing(HealthServer(settings.http_host, settings.http_port, health.answer)))
        _introduce(role)
        yield


def _introduce(role: str) -> None:
    """Which Métier this is and how it stands, as metrics."""
    metrics.level(metrics.BUILD, 1, {metrics.ROLE: role, metrics.VERSION: installed("metier")})
    for state in standing.STATES:
        labels = {metrics.ROLE: role, metrics.ROLE_STANDING: state}
        metrics.watch(metrics.ROLE_STATE, partial(_is, state), labels)


def _is(state: standing.State) -> int:
    return int(standing.here.state == state)


def _runner() -> asyncio.Runner:
    """A loop on libuv where there is one, and a garbage collector that leaves alone what lives as long as the process: a fifth less CPU a call, together."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    if sys.platform == "win32":
        return asyncio.Runner()
    import uvloop

    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


async def orchestrator(config: Config, stop: asyncio.Event) -> None:
    """The role `metier orchestrator`, over Kafka."""
    _need_broker(config)
    standing.here.starting(JOURNAL)
    journal = await unless(stop, compose.open_journal(config, size=16))
    if journal is None:
        return
    standing.here.starting(TOPICS)
    bus = compose.open_bus(config, "orchestrator")
    try:
        ready = Ready(config.role.ready_file, 2)
        await _orchestrate(config, System(bus, journal), _cards(config), stop, ready)
    finally:
        await bus.close()
        await journal.db.close()


def _cards(config: Config) -> Mapping[str, AgentCard]:
    specs = compose.agent_specs(config)
    return compose.cards(config, specs, compose.bundles(config, specs))


async def _orchestrate(
    config: Config, system: System, cards: Mapping[str, AgentCard], stop: asyncio.Event, ready: Ready
) -> None:
    from metier_workflows.evaluating import asking
    from metier_workflows.orchestrator import Orchestrator
    from metier_workflows.workflow import load_workflows

    workflows = load_workflows([asking.MODULE, *(name.strip() for name in config.role.workflows.split(","))])
    replica = Orchestrator(
        system.bus,
        system.journal,
        workflows,
        cards,
        instance=config.role.instance,
        drain_s=config.role.drain_s,
        limit=config.role.runs,
        park_after_s=config.role.park_after_s,
        tenants=compose.tenants(config),
        version_grace_s=config.role.version_grace_s,
        schedules=compose.schedules(config),
        level=config.role.progress,
        trace_window_s=config.role.trace_window_s,
    )
    await replica.run(stop, ready)


async def agents(config: Config, names: Sequence[str], stop: asyncio.Event) -> None:
    """The role `metier agent NAME…`, over Kafka and Celery."""
    _need_broker(config)
    ready = Ready(config.role.ready_file)
    specs = compose.agent_specs(config)
    for name in set(names) - specs.keys():
        raise UnknownAgent(f"no agent is called {name!r}; there are: {', '.join(sorted(specs))}")
    served = {name: specs[name] for name in names}
    buckets = compose.open_buckets(config)
    opened = compose.open_models(config, served.values(), buckets)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(buckets.close)
        standing.here.starting(JOURNAL)
        journal = await unless(stop, compose.open_journal(config))
        if journal is None:
            return
        stack.push_async_callback(journal.db.close)
        standing.here.starting(TOPICS)
        bus = compose.open_bus(config, "agent")
        stack.push_async_callback(bus.close)
        lane = compose_tools.open_lane(config)
        stack.push_async_callback(lane.close)
        unready = asyncio.create_task(_unready(stop, ready))
        stack.callback(unready.cancel)
        await _worker(config, System(bus, journal), lane, served, opened).run(stop, ready.one)


async def _unready(stop: asyncio.Event, ready: Ready) -> None:
    await stop.wait()
    ready.gone()


def _worker(
    config: Config,
    system: System,
    lane: ToolLane,
    served: Mapping[str, AgentSpec],
    open_model: Callable[[AgentSpec], Model],
) -> AgentWorker:
    from metier_agents.worker import AgentWorker

    return AgentWorker(
        bus=system.bus,
        journal=system.journal,
        lane=lane,
        toolbox=compose_tools.toolbox(config),
        agents=served,
        open_model=open_model,
        thrifty=compose.thrifty(config),
        bundles=compose.bundles(config, served),
        estimate=compose.estimates(config),
        grant_key=compose_tools.grant_key(config),
        instance=config.role.instance,
        concurrency=config.role.concurrency,
        level=config.role.progress,
        drain_s=config.role.drain_s,
    )


def _need_broker(config: Config) -> None:
    if not config.distributed:
        raise MissingService(
            "METIER_KAFKA_BOOTSTRAP is not set: this role talks over Kafka; `make up` starts one here, `metier dev` needs none"
        )


@asynccontextmanager
async def embedded(
    config: Config,
    *,
    journal: Path | str | None = None,
    models: Mapping[str, str] | None = None,
    lane: Callable[[Config], Awaitable[ToolLane]] = compose_tools.open_inline_lane,
    bus: Bus | None = None,
) -> AsyncGenerator[System]:
    """Every role in this process: in-memory bus, SQLite, tools called from here. The same code as the roles run apart.

    Args:
        config: the settings; those of Kafka, Postgres and Redis are not used.
        journal: a SQLite file, or `:memory:`; None takes METIER_SQLITE_PATH.
        models: agent name to model id, in place of what the agent's file says.
        lane: opens what carries the tool calls; by default, sandboxes in the container engine.
        bus: carries the events; None: one of its own, in memory.
    """
    from metier_infra.database import RetryingDatabase, migrate
    from metier_infra.sqlite_journal import SqliteDatabase

    alone = configuration.standalone(config)
    specs = compose.agent_specs(alone, models)
    opened = compose.open_models(alone, specs.values(), compose.open_buckets(alone))
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        db = RetryingDatabase(SqliteDatabase(journal or alone.journal.sqlite_path), compose.PATIENT)
        stack.push_async_callback(db.close)
        await migrate(db)
        tools_lane = await lane(alone)
        stack.push_async_callback(tools_lane.close)
        system = System(compose.by_claim(alone, bus or MemoryBus()), Journal(db, alone.journal.lease_s))
        await system.journal.runs.recall()
        ready = asyncio.Event()
        count = Ready(None, 3, ready.set)
        async with asyncio.TaskGroup() as group:
            cards = compose.cards(alone, specs, compose.bundles(alone, specs))
            group.create_task(_orchestrate(alone, system, cards, stop, count))
            group.create_task(_worker(alone, system, tools_lane, specs, opened).run(stop, count.one))
            await ready.wait()
            try:
                yield system
            finally:
                stop.set()


async def dev(config: Config, stop: asyncio.Event) -> None:
    """The role `metier dev`: everything in this process, and a socket at which the other commands find it."""
    from metier.client import dev_socket
    from metier_infra.socket_bus import serve_bus

    alone = configuration.standalone(config)
    ready = Ready(config.role.ready_file)
    bus = MemoryBus()
    async with embedded(alone, bus=bus), serve_bus(bus, dev_socket(alone)):
        log.info("ready", action="ready", socket=str(dev_socket(alone)), journal=str(alone.journal.sqlite_path))
        ready.one()
        await stop.wait()
        ready.gone()


async def tools(config: Config, stop: asyncio.Event) -> None:
    """The role `metier tools`: Celery in front, containers behind."""
    from metier_tools.serve import serve_tools

    toolbox = compose_tools.toolbox(config)
    await serve_tools(
        config.lane,
        config.sandbox,
        config.role,
        stop,
        execution=lambda sandbox: compose_tools.execution(config, toolbox, sandbox),
        kinds=compose_tools.tool_kinds(config),
    )
