"""The peers of `metier bench orchestrator`, side by side in the same run: Celery on a Redis of its own that keeps every write, and DBOS on the same Postgres.

Each has one client and workers in processes of their own. What a peer measured comes as JSON from its client.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from metier.bench_orchestrator_cpu import PROC, cpu_s, listener
from metier_infra.errors import MissingService

READY_S = 60.0
CLIENT_S = 600.0
CELERY_WORKERS = 2


@dataclass(frozen=True)
class Size:
    """How much is measured: runs one after another and at once, fans, and calls of a fan."""

    idle: int
    burst: int
    fans: int
    width: int

    @property
    def words(self) -> list[str]:
        """For a command line."""
        return [str(number) for number in (self.idle, self.burst, self.fans, self.width)]


async def celery(size: Size, folder: Path, redis_url: str) -> Mapping[str, Any]:
    """Chains and chords."""
    async with AsyncExitStack() as stack:
        redis, url = await stack.enter_async_context(_redis(folder, redis_url))
        environment = {**os.environ, "METIER_BENCH_REDIS": url}
        pids = [redis]
        for number in range(CELERY_WORKERS):
            words = ["-m", "celery", "--app", "metier.bench_peers_celery", "worker", "--concurrency", "1"]
            words += ["--hostname", f"bench{number}@localhost", "--loglevel", "ERROR", "--without-mingle"]
            pids.append(await stack.enter_async_context(process([sys.executable, *words], environment)))
        return await _client(
            ["-c", "from metier.bench_peers_celery import main; main()", *size.words], environment, pids
        )


async def dbos(size: Size, folder: Path, postgres_url: str) -> Mapping[str, Any]:
    """Workflows that enqueue steps. `postgres_url` is a database that nothing else uses."""
    ready = folder / "dbos.ready"
    environment = {**os.environ, "METIER_BENCH_POSTGRES": postgres_url, "METIER_READY_FILE": str(ready)}
    words = ["-m", "metier.bench_peers_dbos"]
    server = listener(urlsplit(postgres_url).port or 5432)
    async with process([sys.executable, *words, "worker"], environment) as worker:
        await until(ready.exists, "the worker of DBOS")
        pids = [worker, *([server] if server else [])]
        return await _client([*words, "client", *size.words], environment, pids)


def missing() -> Mapping[str, str]:
    """The peers that are not installed, and why that is."""
    return {} if find_spec("dbos") else {"dbos": "dbos is not installed: it is one of the development dependencies"}


async def _client(words: Sequence[str], environment: Mapping[str, str], pids: Sequence[int]) -> Mapping[str, Any]:
    """What the client printed, with the CPU seconds of all processes for 1,000 steps."""
    before = cpu_s([os.getpid(), *pids])
    client = await asyncio.create_subprocess_exec(
        sys.executable, *words, env=environment, stdout=asyncio.subprocess.PIPE
    )
    try:
        out, _ = await asyncio.wait_for(client.communicate(), CLIENT_S)
    finally:
        if client.returncode is None:
            client.kill()
            await client.wait()
    if client.returncode:
        raise MissingService(f"the peer `{' '.join(words[:2])}` failed; its log is above")
    found = json.loads(out.splitlines()[-1])
    used = cpu_s([os.getpid(), *pids]) - before
    return {**found, "cpu_s_per_1000_steps": 1000 * used / found["steps"]}


@asynccontextmanager
async def process(words: Sequence[str], environment: Mapping[str, str]) -> AsyncGenerator[int]:
    """A process that is ended at the end; its id."""
    started = await asyncio.create_subprocess_exec(*words, env=environment, stdout=asyncio.subprocess.DEVNULL)
    try:
        yield started.pid
    finally:
        if started.returncode is None:
            started.terminate()
        try:
            await asyncio.wait_for(started.wait(), 20)
        except TimeoutError:
            started.kill()
            await started.wait()


@asynccontextmanager
async def _redis(folder: Path, beside: str) -> AsyncGenerator[tuple[int, str]]:
    """A Redis that answers once a write is on the disk: its process and URL. The program is that of the Redis at `beside`, or on the PATH."""
    server = listener(urlsplit(beside).port or 6379)
    program = str((PROC / str(server) / "exe").readlink()) if server else shutil.which("redis-server")
    if program is None:
        raise MissingService("there is no redis-server here: Celery cannot be measured")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    words = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    words += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    async with process(words, os.environ) as pid:
        await until(lambda: _answers(port), "the Redis of the bench")
        yield pid, f"redis://127.0.0.1:{port}/0"


def _answers(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


async def until(there: Any, what: str) -> None:
    """Wait until `there()` is true. Raises `MissingService` after a minute."""
    limit = time.monotonic() + READY_S
    while not there():
        if time.monotonic() > limit:
            raise MissingService(f"{what} did not become ready; its log is above")
        await asyncio.sleep(0.05)
