"""The tool runner's process: `metier tools`. It alone holds the container engine, the grant key, and the calls that are known.

The CLI awaits `serve_tools`. Beside it runs one Celery worker process, whose forked children only carry calls to the runner here, by
`relay`. So a run has one container whatever child takes its calls, and no child ever holds a container, a key or a tracer. When this
process dies, however it dies, the worker is killed by the kernel and the containers end with their standard input.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from typing import get_args

import structlog

from metier_infra import metrics, standing
from metier_infra.errors import BadSettings
from metier_infra.retry import Backoff, persist
from metier_infra.service import PATIENT, Ready
from metier_infra.settings import LaneSettings, RoleSettings, SandboxSettings
from metier_tools.celery_app import Config
from metier_tools.celery_worker import WorkerConfig
from metier_tools.docker_sandbox import DockerSandbox
from metier_tools.execution import Execution
from metier_tools.redis_line import Ears, RedisLine, check_broker
from metier_tools.relay import Desk, RelayServer
from metier_tools.runner import Execute, Runner
from metier_tools.sandbox import Sandbox
from metier_tools.tool import Kind

log = structlog.get_logger()

KINDS: tuple[Kind, ...] = get_args(Kind)
"""Every class of tools; each has a queue."""
_WORK = "from metier_tools.celery_worker import work; work()"


async def serve_tools(
    lane: LaneSettings,
    sandbox: SandboxSettings,
    role: RoleSettings,
    stop: asyncio.Event,
    *,
    execution: Callable[[Sandbox], Execution],
    kinds: Sequence[Kind] = KINDS,
) -> None:
    """Run tool calls of these kinds, by `execution`, until `stop`, then end those in hand; a Redis that is away is waited for.

    Raises `BadSettings` or `MissingService` before it is ready.
    To be awaited in the process's main thread: the worker lives as long as the thread that started it.
    """
    redis_url, key = _needed(lane)
    standing.here.starting("it waits for Redis")
    if not await _answers(redis_url, stop):
        return
    standing.here.starting("the container engine has not proved yet that it keeps every limit")
    box = await asyncio.to_thread(DockerSandbox, sandbox)
    try:
        await asyncio.to_thread(box.check)
        config = Config(redis_url=redis_url, namespace=lane.lane_namespace)
        await serve_with(
            execution(box).run, config, key, role, stop, children=min(role.concurrency, sandbox.limit), kinds=kinds
        )
    finally:
        await asyncio.to_thread(box.close)


async def _answers(redis_url: str, stop: asyncio.Event) -> bool:
    """Wait until Redis answers; False when `stop` came first. Raises `BadSettings`."""

    async def ask() -> None:
        await asyncio.to_thread(check_broker, redis_url)

    asking, stopping = asyncio.create_task(persist("connect to Redis", ask, PATIENT)), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({asking, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            asking.result()
        return asking.done()
    finally:
        asking.cancel()
        stopping.cancel()


def _needed(lane: LaneSettings) -> tuple[str, bytes]:
    if lane.redis_url is None:
        raise BadSettings("METIER_REDIS_URL is not set; a tool runner takes its calls from Redis")
    if lane.grant_key is None:
        raise BadSettings("METIER_GRANT_KEY is not set; a tool runner checks each call's grant with it")
    return lane.redis_url.get_secret_value(), lane.grant_key.get_secret_value().encode()


async def serve_with(
    execute: Execute,
    lane: Config,
    key: bytes,
    role: RoleSettings,
    stop: asyncio.Event,
    *,
    children: int = 4,
    kinds: Sequence[Kind] = KINDS,
) -> None:
    """Serve with what runs calls already: its containers are left open."""

    def ready() -> None:
        if not stop.is_set():
            Ready(role.ready_file).one()

    standing.here.starting("its Celery worker does not take calls yet")
    with_it = ExitStack()
    try:
        line = with_it.enter_context(closing(RedisLine(lane)))
        runner = Runner(execute, key, gave_up=line.gave_up)
        desk = Desk(runner, key, line.push)
        with_it.enter_context(closing(Ears(line, runner, desk.say_in_hand)))
        relay = with_it.enter_context(closing(RelayServer(desk.take, ready)))
        config = WorkerConfig(
            lane=lane, relay=relay.address, concurrency=children, kinds=tuple(kinds), parent=os.getpid()
        )
        await _keep_working(config, role, stop)
    finally:
        Ready(role.ready_file).gone()
        await asyncio.to_thread(with_it.close)


async def _keep_working(config: WorkerConfig, role: RoleSettings, stop: asyncio.Event) -> None:
    """Have a worker until `stop`; one that ends by itself is replaced."""
    failures = 0
    while not stop.is_set():
        worker = await _start(config)
        code = await _until(worker, stop)
        if code is None:
            Ready(role.ready_file).gone()
            await _drain(worker, role.drain_s)
            return
        Ready(role.ready_file).gone("its Celery worker ended, and another one starts")
        metrics.add(metrics.RETRIES, 1, {metrics.REASON: "worker_ended"})
        failures += 1
        pause = Backoff(first_s=0.5, ceiling_s=10.0).delay(failures) or 0.0
        log.error("the Celery worker ended", action="start_again", exit_code=code, after_s=pause)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause)


async def _start(config: WorkerConfig) -> asyncio.subprocess.Process:
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WORK, stdin=asyncio.subprocess.PIPE, start_new_session=True, env=_without_secrets()
    )
    if worker.stdin is not None:
        worker.stdin.write(config.model_dump_json().encode())
        worker.stdin.close()
    return worker


def _without_secrets() -> dict[str, str]:
    """The worker's environment: what it needs it is told over its standard input, and no child reads a key from `/proc`."""
    return {name: value for name, value in os.environ.items() if not name.startswith("METIER_")}


async def _until(worker: asyncio.subprocess.Process, stop: asyncio.Event) -> int | None:
    """The worker's exit code, or None when `stop` came first."""
    ended, stopping = asyncio.create_task(worker.wait()), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return None if stop.is_set() else worker.returncode
    finally:
        ended.cancel()
        stopping.cancel()
        if not stop.is_set() and worker.returncode is None:
            worker.kill()


async def _drain(worker: asyncio.subprocess.Process, drain_s: float) -> None:
    """Celery's warm shutdown: no new calls, those in hand are finished; killed when that takes too long."""
    log.info("draining", action="drain", drain_s=drain_s)
    with suppress(ProcessLookupError):
        worker.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(worker.wait(), drain_s)
        except TimeoutError:
            log.warning("calls were still running", action="kill", drain_s=drain_s)
            worker.kill()
            await worker.wait()
