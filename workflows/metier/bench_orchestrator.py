"""`metier bench orchestrator`: what a durable call costs, embedded and over real services, beside the floors and the peers of the same run.

Three loads: W1, a run of five calls, one after another; W2, a fan of calls with a join; W3, many runs at once of three calls of 200 ms. Distributed, it
starts an orchestrator and an agent worker of its own, under a Kafka prefix and in a database of its own, so it may run beside `make up`. The agents'
models are scripted, and progress is not told, as no peer tells any: what is measured is the path and nothing else. `bench_peers` measures Celery and DBOS.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from pydantic import SecretStr
from rich.table import Table

from metier import bench_peers, client, compose, compose_tools, configuration
from metier.bench_orchestrator_cpu import listener
from metier.bench_orchestrator_fill import fill
from metier.bench_orchestrator_load import Load, floors, idle_ms, measure
from metier.bench_peers import Size
from metier.configuration import Config, System
from metier.own_database import own_database
from metier.terminal import console

WORKFLOWS = "metier.examples.five,metier.bench_orchestrator_graphs"
WIDTH = 100
_AGENT = "name: {name}\nmodel: scripted:{script}\npolicy: {{kind: autonomous}}\ndescription: says one word\n"
_SCRIPT = '- text: "ANSWER: ok\\nCONFIDENCE: 1.0"\n  cost_usd: 0.0\n  takes_s: {takes_s}\n'
_AGENTS = {"echo": 0.0, "slow": 0.2}


def command(
    idle: Annotated[int, typer.Option(min=1, help="Runs one after another, for the latency.")] = 60,
    burst: Annotated[int, typer.Option(min=1, help="Runs all at once, for the throughput.")] = 400,
    many: Annotated[int, typer.Option(min=1, help="Runs of three calls of 200 ms at once.")] = 1000,
    fans: Annotated[int, typer.Option(min=1, help="Fans of 100 calls, one after another.")] = 10,
    filled: Annotated[
        int, typer.Option(min=0, help="Fill the journal with so many ended runs, and time runs again.")
    ] = 0,
    peers: Annotated[bool, typer.Option(help="Measure Celery and DBOS too.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of everything, to see that it works.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output, for machines.")
    ] = False,
) -> None:
    """Time runs of five calls, fans, and many runs at once: embedded and distributed, beside bare Kafka and Postgres, Celery and DBOS."""
    configuration.use_local_stack()
    config = configuration.configure()
    configuration.configure_logs("error")
    part = 10 if quick else 1
    load = Load(*(max(1, n // part) for n in (idle, burst, fans, WIDTH, many)))
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(_measure(config, Path(folder), load, filled, peers=peers))
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _show(found)


async def _measure(config: Config, folder: Path, load: Load, filled: int, *, peers: bool) -> dict[str, Any]:
    own = with_agents(config, folder)
    found: dict[str, Any] = {"load": vars(load), "not_measured": {}, "floors": {}}
    async with _embedded(own, folder / "bench.db") as system:
        found["embedded"] = await measure(system, replace(load, many=0), [os.getpid()])
        found["floors"]["sqlite"] = await floors(system, kafka=False)
    if missing := missing_services(own):
        return {**found, "not_measured": {"distributed": missing, "peers": missing}}
    found |= await _distributed_figures(own, folder, load, filled, found["floors"])
    if peers:
        found["not_measured"] |= bench_peers.missing()
        found |= await _peers(own, folder, Size(load.idle, load.burst, load.fans, load.width), found["not_measured"])
    return {**found, "ratios": ratios(found)}


def with_agents(config: Config, folder: Path) -> Config:
    """With the agents and the workflows that are measured."""
    agents = folder / "agents"
    agents.mkdir()
    for name, takes_s in _AGENTS.items():
        script = folder / f"{name}.script.yaml"
        script.write_text(_SCRIPT.format(takes_s=takes_s))
        (agents / f"{name}.yaml").write_text(_AGENT.format(name=name, script=script))
    told = {"agents": agents, "workflows": WORKFLOWS, "concurrency": 1000, "progress": "none"}
    return replace(config, role=config.role.model_copy(update=told))


async def _distributed_figures(
    config: Config, folder: Path, load: Load, filled: int, known: dict[str, Any]
) -> dict[str, Any]:
    async with distributed(config, folder) as up:
        system = up.system
        servers = [port(config.kafka.bootstrap), port(_postgres(config))]
        pids = [os.getpid(), *(pid for port in servers if (pid := listener(port)) is not None)]
        found: dict[str, Any] = {"distributed": await measure(system, load, pids)}
        known["distributed"] = await floors(system, kafka=True)
        if filled:
            empty = await idle_ms(system, load.idle)
            await fill(system.journal.db, filled)
            full = await idle_ms(system, load.idle)
            found["filled"] = {"runs": filled, "empty_p50_ms": empty, "p50_ms": full, "ratio": full / empty}
        return found


async def _peers(config: Config, folder: Path, size: Size, missing: Mapping[str, str]) -> dict[str, Any]:
    redis = config.lane.redis_url.get_secret_value() if config.lane.redis_url else ""
    found: dict[str, Any] = {"celery": figures(await bench_peers.celery(size, folder, redis))}
    if "dbos" not in missing:
        async with own_database(config, f"bench_{secrets.token_hex(4)}") as url:
            found["dbos"] = figures(await bench_peers.dbos(size, folder, url))
    return found


def figures(told: Mapping[str, Any]) -> dict[str, Any]:
    """A peer's figures under the names of ours."""
    w1, w2 = sorted(told["w1_ms"]), sorted(told["w2_ms"])
    same = ("w1_steps_per_s", "lost", "repeated", "cpu_s_per_1000_steps")
    return {
        "w1_p50_ms": w1[len(w1) // 2],
        "w1_p99_ms": w1[len(w1) * 99 // 100],
        "w2_p50_ms": w2[len(w2) // 2],
        **{name: told[name] for name in same},
    }


_BETTER = {"w1_p50_ms": "less", "w1_steps_per_s": "more", "w2_p50_ms": "less", "cpu_s_per_1000_steps": "less"}


def ratios(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """How many times better than each peer: above 1, this is."""
    ours = found["distributed"]
    return {
        peer: {
            name: (found[peer][name] / ours[name] if sense == "less" else ours[name] / found[peer][name])
            for name, sense in _BETTER.items()
        }
        for peer in ("celery", "dbos")
        if peer in found
    }


def port(url: str | None) -> int:
    """The port of a URL, or of the first of HOST:PORT,HOST:PORT."""
    first, _, _ = (url or "").partition(",")
    return urlsplit(first if "//" in first else f"//{first}").port or 0


def _postgres(config: Config) -> str:
    return config.journal.postgres_url.get_secret_value() if config.journal.postgres_url else ""


def missing_services(config: Config) -> str | None:
    """Why the distributed way cannot be measured here, if it cannot."""
    if not config.distributed or config.journal.postgres_url is None or config.lane.redis_url is None:
        return "METIER_KAFKA_BOOTSTRAP, METIER_POSTGRES_URL and METIER_REDIS_URL are not all set; `make up` starts them"
    return None


@asynccontextmanager
async def _embedded(config: Config, path: Path) -> AsyncGenerator[System]:
    from metier import roles

    async with roles.embedded(config, journal=path, lane=compose_tools.scripted_lane()) as system:
        yield system


@dataclass(frozen=True)
class Up:
    """A system that runs in processes of its own, and which these are."""

    system: System
    pids: Sequence[int]


@asynccontextmanager
async def distributed(config: Config, folder: Path, more: Mapping[str, str] | None = None) -> AsyncGenerator[Up]:
    """An orchestrator and an agent worker in processes of their own, with `more` environment, and a client of theirs."""
    name = f"bench_{secrets.token_hex(4)}"
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(own_database(config, name))
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
            "METIER_CONCURRENCY": str(config.role.concurrency),
            "METIER_PROGRESS": config.role.progress,
            **(more or {}),
        }
        environment.pop("METIER_INSTANCE", None)
        starting = [_role(words, environment, folder) for words in (["orchestrator"], ["agent", *_AGENTS])]
        pids = await asyncio.gather(*[stack.enter_async_context(role) for role in starting])
        yield Up(await stack.enter_async_context(client.connect(own)), pids)


@asynccontextmanager
async def _role(words: Sequence[str], environment: Mapping[str, str], folder: Path) -> AsyncGenerator[int]:
    sign = folder / f"{words[0]}.ready"
    started = [sys.executable, "-m", "metier", *words]
    async with bench_peers.process(started, {**environment, "METIER_READY_FILE": str(sign)}) as pid:
        await bench_peers.until(sign.exists, f"`metier {' '.join(words)}`")
        yield pid


def _show(found: Mapping[str, Any]) -> None:
    table = Table("", "W1 idle p50", "p99 ms", "W1 steps/s", "W2 p50 ms", "W3 s", "CPU s/1000", "lost", "repeated")
    names = (
        "w1_p50_ms",
        "w1_p99_ms",
        "w1_steps_per_s",
        "w2_p50_ms",
        "w3_s",
        "cpu_s_per_1000_steps",
        "lost",
        "repeated",
    )
    for way in ("embedded", "distributed", "celery", "dbos"):
        if way in found:
            table.add_row(way, *(_number(found[way].get(name)) for name in names))
    out = console()
    out.print(table)
    for kind in ("ratios", "floors", "filled", "not_measured"):
        for name, value in found.get(kind, {}).items():
            out.print(f"{kind}: {name} {value}")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)
