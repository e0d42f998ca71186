"""`metier bench orchestrator`: what a durable call costs, embedded and over real services, beside the floors of the same run.

Distributed, it starts an orchestrator and an agent worker of its own, under a Kafka prefix and in a database of its own, so it may
run beside `make up`. The agent's model is scripted, so what is measured is the path and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import SecretStr
from rich.table import Table

from metier import client, compose, compose_tools, configuration
from metier.configuration import Config, System
from metier.terminal import console
from metier_infra.bus import Consumption
from metier_infra.database import Database, Statement
from metier_infra.errors import DeadlineMissed, MissingService
from metier_infra.events import Event, RunSucceeded
from metier_infra.messages import Delivery, Envelope, Record

WORKFLOWS = "metier.examples.five"
READY_S = 60.0
RUN_S = 120.0
_AGENT = "name: echo\nmodel: scripted:{script}\npolicy: {{kind: autonomous}}\ndescription: says one word\n"
_SCRIPT = '- text: "ANSWER: ok\\nCONFIDENCE: 1.0"\n  cost_usd: 0.0\n'


@dataclass(frozen=True)
class Measured:
    """One way of running: latency of an idle run in milliseconds, and runs and calls a second when all are asked at once."""

    p50_ms: float
    p99_ms: float
    runs_per_s: float
    calls_per_s: float


def command(
    idle: Annotated[int, typer.Option(min=1, help="Runs one after another, for the latency.")] = 60,
    burst: Annotated[int, typer.Option(min=1, help="Runs all at once, for the throughput.")] = 200,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output, for machines.")
    ] = False,
) -> None:
    """Time a run of five calls: idle latency and runs a second, embedded and distributed, beside bare Kafka and Postgres."""
    configuration.use_local_stack()
    config = configuration.configure()
    configuration.configure_logs("error")
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(_measure(config, Path(folder), idle, burst))
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _show(found)


async def _measure(config: Config, folder: Path, idle: int, burst: int) -> dict[str, Any]:
    agents = folder / "agents"
    agents.mkdir()
    script = folder / "echo.script.yaml"
    script.write_text(_SCRIPT)
    (agents / "echo.yaml").write_text(_AGENT.format(script=script))
    role = config.role.model_copy(update={"agents": agents, "workflows": WORKFLOWS})
    own = replace(config, role=role)
    missing = _missing(own)
    async with _embedded(own, folder / "bench.db") as system:
        embedded = await _time(system, idle, burst)
    floors = {"sqlite_commit_ms": await _sqlite_floor(folder / "floor.db")}
    distributed: Measured | None = None
    if not missing:
        async with _distributed(own, folder) as system:
            distributed = await _time(system, idle, burst)
            floors |= {
                "postgres_commit_ms": await _commit_ms(system.journal.db),
                "kafka_round_trip_ms": await _kafka_floor(system),
            }
    return {
        "calls_per_run": 5,
        "idle_runs": idle,
        "burst_runs": burst,
        "embedded": vars(embedded),
        "distributed": vars(distributed) if distributed else None,
        "not_measured": missing,
        "floors": floors,
    }


def _missing(config: Config) -> str | None:
    """Why the distributed way cannot be measured here, if it cannot."""
    if not config.distributed or config.journal.postgres_url is None or config.lane.redis_url is None:
        return "METIER_KAFKA_BOOTSTRAP, METIER_POSTGRES_URL and METIER_REDIS_URL are not all set; `make up` starts them"
    return None


@asynccontextmanager
async def _embedded(config: Config, path: Path) -> AsyncGenerator[System]:
    from metier import roles

    async with roles.embedded(config, journal=path, lane=compose_tools.scripted_lane()) as system:
        yield system


@asynccontextmanager
async def _distributed(config: Config, folder: Path) -> AsyncGenerator[System]:
    """An orchestrator and an agent worker in processes of their own, and a client of theirs."""
    name = f"bench_{secrets.token_hex(4)}"
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(_own_database(config, name))
        own = replace(
            config,
            kafka=config.kafka.model_copy(update={"prefix": f"{name}."}),
            journal=config.journal.model_copy(update={"postgres_url": SecretStr(url)}),
        )
        await asyncio.to_thread(compose.topics, own)
        environment = {
            **os.environ,
            "METIER_KAFKA_PREFIX": f"{name}.",
            "METIER_POSTGRES_URL": url,
            "METIER_AGENTS": str(config.role.agents),
            "METIER_WORKFLOWS": WORKFLOWS,
            "METIER_GRANT_KEY": secrets.token_hex(16),
            "METIER_LOG_LEVEL": "warning",
        }
        environment.pop("METIER_INSTANCE", None)
        starting = [_role(words, environment, folder) for words in (["orchestrator"], ["agent", "echo"])]
        await asyncio.gather(*[stack.enter_async_context(role) for role in starting])
        yield await stack.enter_async_context(client.connect(own))


@asynccontextmanager
async def _own_database(config: Config, name: str) -> AsyncGenerator[str]:
    """A migrated database beside the one that is configured; dropped at the end."""
    from metier_infra.database import migrate
    from metier_infra.postgres_journal import PostgresDatabase

    given = config.journal.postgres_url.get_secret_value() if config.journal.postgres_url else ""
    server, _, _ = given.rpartition("/")
    admin = await PostgresDatabase(given, 1).open()
    await admin.write(Statement(f"CREATE DATABASE {name}"))
    try:
        db = await PostgresDatabase(f"{server}/{name}", 1).open()
        await migrate(db)
        await db.close()
        yield f"{server}/{name}"
    finally:
        await admin.write(Statement(f"DROP DATABASE {name} WITH (FORCE)"))
        await admin.close()


@asynccontextmanager
async def _role(words: Sequence[str], environment: Mapping[str, str], folder: Path) -> AsyncGenerator[None]:
    sign = folder / f"{words[0]}.ready"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "metier", *words, env={**environment, "METIER_READY_FILE": str(sign)}
    )
    try:
        await _ready(sign, process, words)
        yield
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()


async def _ready(sign: Path, process: asyncio.subprocess.Process, words: Sequence[str]) -> None:
    limit = time.monotonic() + READY_S
    while not sign.exists():
        if process.returncode is not None or time.monotonic() > limit:
            raise MissingService(f"`metier {' '.join(words)}` did not become ready; its log is above")
        await asyncio.sleep(0.05)


async def _time(system: System, idle: int, burst: int) -> Measured:
    """Latencies of runs one after another, then the rate of runs asked all at once."""
    ended: asyncio.Queue[str] = asyncio.Queue()

    def seen(event: Envelope[Event]) -> None:
        if isinstance(event.data, RunSucceeded):
            ended.put_nowait(event.data.run_id)

    async def ask() -> None:
        await client.publish(system.bus, "five", {"question": "ping", "answers": []})

    async with client.following(system.bus, seen):
        await _timed(lambda: _one(ask, ended), 3)
        latencies = await _timed(lambda: _one(ask, ended), idle)
        began = time.perf_counter()
        await asyncio.gather(*[ask() for _ in range(burst)])
        for _ in range(burst):
            await _next(ended)
        rate = burst / (time.perf_counter() - began)
    return Measured(_at(latencies, 50), _at(latencies, 99), rate, 5 * rate)


async def _one(ask: Callable[[], Awaitable[None]], ended: asyncio.Queue[str]) -> None:
    await ask()
    await _next(ended)


async def _next(ended: asyncio.Queue[str]) -> None:
    try:
        await asyncio.wait_for(ended.get(), RUN_S)
    except TimeoutError as error:
        raise DeadlineMissed(f"no run ended for {RUN_S:.0f} s; the roles' log is above") from error


async def _timed(work: Callable[[], Awaitable[object]], times: int) -> list[float]:
    """Milliseconds of each of `times` turns, one after another."""
    taken: list[float] = []
    for _ in range(times):
        began = time.perf_counter()
        await work()
        taken.append(1000 * (time.perf_counter() - began))
    return taken


def _at(values: Sequence[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


async def _commit_ms(db: Database) -> float:
    await db.write(Statement("CREATE TABLE IF NOT EXISTS bench_floor (n bigint)"))
    return _at(await _timed(lambda: db.write(Statement("INSERT INTO bench_floor (n) VALUES (1)")), 200), 50)


async def _sqlite_floor(path: Path) -> float:
    from metier_infra.sqlite_journal import SqliteDatabase

    db = SqliteDatabase(path)
    try:
        return await _commit_ms(db)
    finally:
        await db.close()


async def _kafka_floor(system: System) -> float:
    """Produce, consume, reply, consume: on `metier.outcomes`, which nothing else reads here."""
    back: asyncio.Queue[bytes] = asyncio.Queue()
    ready, stop = asyncio.Event(), asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        if delivery.value == b"ping":
            await system.bus.publish(Record("metier.outcomes", delivery.key, b"pong"))
        else:
            back.put_nowait(delivery.value)

    async def trip() -> None:
        await system.bus.publish(Record("metier.outcomes", b"floor", b"ping"))
        await back.get()

    what = Consumption(["metier.outcomes"], None, "latest", ready=ready.set)
    consuming = asyncio.create_task(system.bus.consume(what, handle, stop))
    await ready.wait()
    taken = await _timed(trip, 100)
    stop.set()
    await consuming
    return _at(taken, 50)


def _show(found: Mapping[str, Any]) -> None:
    table = Table("five calls, durable", "idle p50 ms", "idle p99 ms", "runs/s", "calls/s")
    for name in ("embedded", "distributed"):
        if found[name]:
            table.add_row(
                name, *(f"{found[name][key]:.1f}" for key in ("p50_ms", "p99_ms", "runs_per_s", "calls_per_s"))
            )
    out = console()
    out.print(table)
    for name, value in found["floors"].items():
        out.print(f"floor: {name.removesuffix('_ms').replace('_', ' ')} {value:.2f} ms")
    if found["not_measured"]:
        out.print(f"distributed was not measured: {found['not_measured']}")
