"""Fixtures of the lane's tests: one `metier tools` process for a module, and each lane over real containers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator

import pytest

from metier_infra.settings import SandboxSettings
from metier_tools.celery_lane import CeleryLane
from metier_tools.docker_sandbox import DockerSandbox
from metier_tools.inline_lane import InlineLane
from metier_tools.lane import ToolLane
from metier_tools.runner import Runner

from .kit import IMAGE, KEY, REDIS, Looker, Receiver, Tools, corner, execution


@pytest.fixture(scope="module")
def receiver() -> Generator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Generator[Tools]:
    made = Tools(tmp_path_factory.mktemp("tools"), corner(), otlp=receiver.url)
    try:
        made.await_ready()
        yield made
        assert made.end() == 0
        assert made.containers() == []
    finally:
        made.kill()


async def celery(tools: Tools) -> CeleryLane:
    return CeleryLane(REDIS, KEY, namespace=tools.namespace)


async def inline(tools: Tools) -> InlineLane:
    del tools
    settings = SandboxSettings.model_validate({"image": IMAGE, "pool": 1, "limit": 3})
    sandbox = await asyncio.to_thread(DockerSandbox, settings)
    return InlineLane(Runner(execution(sandbox).run, KEY), sandbox)


@pytest.fixture(params=[inline, celery], ids=["inline", "celery"])
async def lane(request: pytest.FixtureRequest, tools: Tools) -> AsyncGenerator[ToolLane]:
    make: Callable[[Tools], Awaitable[ToolLane]] = request.param
    made = await make(tools)
    yield made
    await made.close()


@pytest.fixture
def namespace() -> Generator[str]:
    """A corner of the real Redis, empty again afterwards."""
    made = corner()
    yield made
    Looker(made).flush()
