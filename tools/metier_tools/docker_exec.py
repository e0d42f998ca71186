"""The way that we do not go: `exec` into a container with our limits. `metier bench sandbox` compares with it.

Nothing else may use it: what `exec` starts cannot be killed from outside, and the next one finds what it left.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import BaseModel, Field

from metier_infra.settings import SandboxSettings
from metier_tools import inside, limits, owner
from metier_tools.docker_engine import Engine
from metier_tools.profile import STRICT

_ASLEEP = (inside.PYTHON, "-I", "-S", "-c", "import signal; signal.pause()")


class _Entered(BaseModel):
    id: str = Field(alias="Id", pattern=r"^[0-9a-f]{64}$")


class _Version(BaseModel):
    version: str = Field(alias="Version")


@dataclass(frozen=True)
class Sleeper:
    """A container that only sleeps.

    Attributes:
        engine: the engine's version.
        execute: runs a command in it; what the command printed. Raises `EngineGone`.
        await_gone: whether the engine has removed a container, of any sandbox, within so many seconds.
    """

    engine: str
    execute: Callable[[Sequence[str]], bytes]
    await_gone: Callable[[str, int], bool]


@contextmanager
def sleeper(settings: SandboxSettings) -> Generator[Sleeper]:
    """A container as strict as ours, for as long as the block lasts. Raises `MissingService`, `EngineGone`."""
    engine = Engine(None)
    place = limits.Place(runtime=settings.runtime, cgroup_parent=settings.cgroup_parent)
    image, labels = engine.image_id(settings.image), {owner.LABEL: owner.another()}
    container = engine.create(limits.container(STRICT, image, _ASLEEP, labels, place))
    try:
        engine.start(container)
        yield Sleeper(_version(engine), lambda command: _execute(engine, container, command), engine.await_gone)
    finally:
        engine.remove(container)


def _version(engine: Engine) -> str:
    return _Version.model_validate(engine.ask(lambda client: client.version())).version


def _execute(engine: Engine, container: str, command: Sequence[str]) -> bytes:
    """The three requests that docker-py's own `exec_run` makes."""
    made = engine.ask(lambda client: client.exec_create(container, [*command]))
    entered = _Entered.model_validate(made).id
    printed = engine.ask(lambda client: client.exec_start(entered))
    engine.ask(lambda client: client.exec_inspect(entered))
    return printed
