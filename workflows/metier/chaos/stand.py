"""What `metier chaos` sets up before it harms anything: agents with a scripted model, a database and topics of its own, proxies, settings for the roles.

`harness` enters it. It uses the services that the environment names, beside whatever else runs on them.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import yaml
from pydantic import SecretStr

from metier import compose
from metier.chaos.checks import USD_PER_MILLION
from metier.chaos.effects import LEDGER, effect
from metier.chaos.fleet import environment
from metier.chaos.ledger import Ledger, serving
from metier.chaos.proxy import HOST, Proxy, proxy
from metier.configuration import Config
from metier.own_database import own_database
from metier_infra.errors import MissingService

LEASE_S = 3.0
SESSION_S = 6.0
"""After so long the broker takes a silent consumer for dead."""
REQUEST_S = 20.0
"""The longest step: one request to a model."""
PARTITIONS = 4
MODEL = "openai:chaos"
AGENTS: Mapping[str, Mapping[str, object]] = {
    "doer": {"policy": {"kind": "collaborative"}, "tools": [{"name": "effect"}]},
    "coder": {"policy": {"kind": "collaborative"}, "tools": [{"name": "python"}]},
    "sayer": {"policy": {"kind": "autonomous"}},
}
"""What differs between the agents."""
LIMITS = {"timeout_s": 900.0, "turns": 40, "tool_calls": 40, "request_s": REQUEST_S}
"""Nothing may end by a limit; but a request to a model whose line is dead is made again."""


@dataclass(frozen=True)
class Stand:
    """What was set up: `config` reaches the services themselves, `environment` is the roles', and leads through the proxies."""

    config: Config
    environment: Mapping[str, str]
    ledger: Ledger
    proxies: Mapping[str, Proxy]
    folder: Path


@asynccontextmanager
async def stand(config: Config, folder: Path) -> AsyncGenerator[Stand]:
    """Everything but the roles; gone after the block. Raises `MissingService` where a service is not named."""
    urls = addresses(config)
    name = f"chaos_{secrets.token_hex(4)}"
    async with AsyncExitStack() as stack:
        ledger = Ledger(folder / "ledger.jsonl")
        address = stack.enter_context(serving(ledger))
        postgres = await stack.enter_async_context(own_database(config, name))
        own = _own(config, name, postgres, _agents(folder))
        await asyncio.to_thread(compose.topics, own)
        ports = {service: _port(url) for service, url in urls.items()}
        proxies = {
            service: await stack.enter_async_context(proxy(port, kafka=service == "kafka"))
            for service, port in ports.items()
            if port is not None
        }
        through = {
            service: _through(url, proxies.get(service)) for service, url in {**urls, "postgres": postgres}.items()
        }
        yield Stand(own, environment(_settings(own, through, address, folder)), ledger, proxies, folder)


def addresses(config: Config) -> dict[str, str]:
    """Where the three services are. Raises `MissingService`."""
    postgres, redis = config.journal.postgres_url, config.lane.redis_url
    found = {
        "kafka": config.kafka.bootstrap,
        "postgres": postgres.get_secret_value() if postgres else None,
        "redis": redis.get_secret_value() if redis else None,
    }
    if missing := [name for name, url in found.items() if not url]:
        raise MissingService(f"no address of {', '.join(missing)} is set: `make up` starts what `metier chaos` needs")
    return {name: url for name, url in found.items() if url}


def _port(url: str) -> int | None:
    """The port of a service that stands alone on this machine; None: it cannot be cut off from here."""
    place = urlsplit(url if "//" in url else f"//{url}")
    return place.port if "," not in url and place.hostname == HOST else None


def _through(url: str, cut: Proxy | None) -> str:
    """The address by way of the proxy."""
    if cut is None:
        return url
    if "//" not in url:
        return f"{HOST}:{cut.port}"
    parts = urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}{at}{HOST}:{cut.port}"))


def _own(config: Config, name: str, postgres: str, agents: Path) -> Config:
    return replace(
        config,
        kafka=config.kafka.model_copy(update={"prefix": f"{name}.", "partitions": PARTITIONS}),
        journal=config.journal.model_copy(update={"postgres_url": SecretStr(postgres), "lease_s": LEASE_S}),
        lane=config.lane.model_copy(update={"lane_namespace": name}),
        role=config.role.model_copy(update={"agents": agents}),
    )


def _agents(folder: Path) -> Path:
    agents = folder / "agents"
    agents.mkdir()
    for name, own in AGENTS.items():
        spec = {"name": name, "description": "of metier chaos", "model": MODEL, "limits": LIMITS, **own}
        (agents / f"{name}.yaml").write_text(yaml.safe_dump(spec))
    price = {"model": MODEL, "input": USD_PER_MILLION, "output": USD_PER_MILLION}
    prices = {"as_of": "2026-11-01", "source": "metier chaos", "usd_per_million": [price]}
    patient = {"failures": 1000, "cool_down_s": 1.0}
    (folder / "models.yaml").write_text(yaml.safe_dump({"prices": prices, "breaker": patient}))
    return agents


def _tools(folder: Path) -> Path:
    """A tools folder in which the tool that does effects is approved."""
    from metier_tools import pins

    tools = folder / "tools"
    tools.mkdir()
    pins.write_pins(tools, pins.approve({}, [effect.spec]))
    return tools


def _settings(own: Config, through: Mapping[str, str], ledger: str, folder: Path) -> Mapping[str, str]:
    return {
        "METIER_KAFKA_BOOTSTRAP": through["kafka"],
        "METIER_KAFKA_PREFIX": own.kafka.prefix,
        "METIER_KAFKA_PARTITIONS": str(PARTITIONS),
        "METIER_KAFKA_SESSION_TIMEOUT_MS": str(int(1000 * SESSION_S)),
        "METIER_POSTGRES_URL": through["postgres"],
        "METIER_REDIS_URL": through["redis"],
        "METIER_LANE_NAMESPACE": own.lane.lane_namespace,
        "METIER_GRANT_KEY": secrets.token_hex(16),
        "METIER_LEASE_S": str(LEASE_S),
        "METIER_DRAIN_S": "8",
        "METIER_SANDBOX_IMAGE": own.sandbox.image,
        "METIER_SANDBOX_POOL": "1",
        "METIER_SANDBOX_LIMIT": "4",
        "METIER_WORKFLOWS": "metier.chaos.workload",
        "METIER_TOOL_MODULES": "metier.chaos.effects",
        "METIER_TOOL_FILES": str(_tools(folder)),
        "METIER_TOOL_BLOBS": str(folder / "blobs"),
        "METIER_AGENTS": str(own.role.agents),
        "METIER_MODELS": str(folder / "models.yaml"),
        "METIER_LOG_LEVEL": "info",
        "OPENAI_BASE_URL": f"http://{ledger}/v1",
        "OPENAI_API_KEY": "none",
        LEDGER: ledger,
    }
