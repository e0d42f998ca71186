"""`metier bench telemetry`: what tracing and metrics cost a durable call, as the CPU of the roles with them against without.

Systems of `bench_orchestrator` that differ in nothing else are up at the same time and get the same bursts of runs in turn, so that what else the machine
does meets all alike. What they export goes to a collector in this process that drops it, whose own CPU does not count.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import threading
from collections.abc import Generator, Mapping
from contextlib import AsyncExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from metier import configuration
from metier.bench_orchestrator import Up, distributed, missing_services, with_agents
from metier.bench_orchestrator_cpu import cpu_s
from metier.bench_orchestrator_load import FIVE, ask_of
from metier.configuration import Config
from metier.terminal import console
from metier_infra.errors import MissingService

STEPS = 5
"""Calls of a run."""
EXPORTS = tuple(f"OTEL_EXPORTER_OTLP_{what}ENDPOINT" for what in ("", "TRACES_", "METRICS_"))


def command(
    burst: Annotated[int, typer.Option(min=1, help="Runs at once, in each round.")] = 200,
    rounds: Annotated[int, typer.Option(min=1, help="Bursts for each way, in turn.")] = 5,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output, for machines.")
    ] = False,
) -> None:
    """Measure the CPU of a durable call with tracing, and with tracing and metrics, against without."""
    configuration.use_local_stack()
    config = configuration.configure()
    configuration.configure_logs("error")
    if missing := missing_services(config):
        raise MissingService(missing)
    with tempfile.TemporaryDirectory() as folder, sink() as collector:
        used = asyncio.run(_measure(with_agents(config, Path(folder)), Path(folder), ways(collector), burst, rounds))
    found = report(used, STEPS * burst * rounds)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _show(found)


def ways(collector: str) -> Mapping[str, Mapping[str, str]]:
    """What the roles' environment has beside the rest, in each way. `collector` takes what is exported, by OTLP over HTTP."""
    silent = dict.fromkeys((*EXPORTS, "OTEL_TRACES_SAMPLER"), "")
    traces = {**silent, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector}/v1/traces"}
    metrics = {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{collector}/v1/metrics", "METIER_HTTP_PORT": "0"}
    return {
        "off": silent,
        "one_trace_in_ten": {**traces, "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"},
        "tracing": traces,
        "tracing_and_metrics": {**traces, **metrics},
    }


def report(used: Mapping[str, float], steps: int) -> Mapping[str, Mapping[str, float]]:
    """CPU seconds of the roles for 1,000 calls in each way, and how many times that of the first, which is without."""
    first = next(iter(used.values()))
    return {
        "cpu_s_per_1000_steps": {way: 1000 * seconds / steps for way, seconds in used.items()},
        "ratio": {way: seconds / first for way, seconds in used.items()},
    }


async def _measure(
    config: Config, folder: Path, wanted: Mapping[str, Mapping[str, str]], burst: int, rounds: int
) -> Mapping[str, float]:
    """The CPU seconds of the roles in each way. A burst that does not count goes first."""
    async with AsyncExitStack() as stack:
        systems: dict[str, Up] = {}
        for way, more in wanted.items():
            (folder / way).mkdir()
            systems[way] = await stack.enter_async_context(distributed(config, folder / way, more))
        used = dict.fromkeys(wanted, 0.0)
        for counts in (False, *[True] * rounds):
            for way, up in systems.items():
                used[way] += await _burst_s(up, burst) * counts
        return used


async def _burst_s(up: Up, burst: int) -> float:
    before = cpu_s(up.pids)
    async with ask_of(up.system) as asking:
        await asking.runs("five", FIVE, burst)
    return cpu_s(up.pids) - before


class _Dropping(BaseHTTPRequestHandler):
    """Takes whatever comes."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def sink() -> Generator[str]:
    """A collector that drops what it is sent; its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Dropping)
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        serving.join()


def _show(found: Mapping[str, Mapping[str, float]]) -> None:
    table = Table("", "CPU s/1000 calls", "times without")
    for way, seconds in found["cpu_s_per_1000_steps"].items():
        table.add_row(way.replace("_", " "), f"{seconds:.2f}", f"{found['ratio'][way]:.3f}")
    console().print(table)
