"""Docker as the sandbox's engine: the one module that names it. `compose` and `serve` open it; `pool` decides, `conversation` talks.

Containers are created strict (`limits`), run our PID 1, and are spoken to over their attach stream, never by `exec`. They end when this
process ends: their standard input closes. What slips through is found by its label.
"""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar, cast

import structlog
from docker.api.client import APIClient
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.utils.utils import kwargs_from_env
from pydantic import BaseModel, Field, JsonValue, ValidationError
from requests.exceptions import RequestException

from metier_infra.errors import EngineGone, LaneGone, MetierError, MissingService
from metier_infra.settings import SandboxSettings
from metier_tools import limits, owner, pid1, selftest
from metier_tools.conversation import Conversation
from metier_tools.pool import Pool, Sizes
from metier_tools.sandbox import Held, Outcome, Request

log = structlog.get_logger()
T = TypeVar("T")

BOOT_S = 20.0
"""How long a container may take until its PID 1 answers; seconds."""
ENGINE_S = 15
"""How long the engine may take for one request; seconds."""
ENDS_S = 0.5
"""How long an engine that ends may still answer after it killed its containers; seconds."""
REAP_S = 30.0
"""How often containers of dead owners are looked for; seconds."""
_ATTACH = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
_PROGRAM = ["/usr/bin/python3", "-I", "-S", "-c", Path(pid1.__file__).read_text()]


class _Stream(Protocol):
    def fileno(self) -> int: ...
    def close(self) -> None: ...


class _Client(Protocol):
    """What we use of docker-py. What it returns is the engine's word, and is checked where it enters."""

    def ping(self) -> object: ...
    def close(self) -> None: ...
    def inspect_image(self, image: str, /) -> object: ...
    def create_container_from_config(self, config: dict[str, JsonValue], /) -> object: ...
    def attach_socket(self, container: str, params: dict[str, int]) -> _Stream: ...
    def start(self, container: str, /) -> None: ...
    def wait(self, container: str, timeout: int, condition: Literal["removed"]) -> object: ...
    def remove_container(self, container: str, v: bool, *, force: bool) -> None: ...
    def containers(self, *, all: bool, filters: dict[str, str]) -> list[object]: ...


class _Created(BaseModel):
    id: str = Field(alias="Id", pattern=r"^[0-9a-f]{64}$")


class Listed(BaseModel):
    """One container as the engine lists it."""

    id: str = Field(alias="Id", pattern=r"^[0-9a-f]{64}$")
    labels: dict[str, str] = Field(alias="Labels")

    @property
    def owner(self) -> str:
        """The process that it belongs to."""
        return self.labels.get(owner.LABEL, "")

    @property
    def name(self) -> str:
        """What its owner calls it."""
        return self.labels.get(owner.BOX, "")


class _Image(BaseModel):
    id: str = Field(alias="Id", pattern=r"^sha256:[0-9a-f]{64}$")


@dataclass
class Box:
    """One container and the line to its PID 1."""

    id: str
    name: str
    line: Conversation

    def alive(self) -> bool:
        """See `pool.Poolable`."""
        return self.line.alive()


class Engine:
    """The engine's API, with a client for each thread, as docker-py wants it; its errors become ours."""

    def __init__(self, base_url: str | None) -> None:
        self._base_url = base_url
        self._local = threading.local()

    def ask(self, work: Callable[[_Client], T]) -> T:
        """Do one thing with the engine. Raises `EngineGone`, `MissingService`; a missing container stays docker's `NotFound`."""
        try:
            return work(self._client())
        except NotFound:
            raise
        except APIError as error:
            raise EngineGone(f"the container engine refused: {error.explanation or error}") from error
        except (DockerException, RequestException, OSError) as error:
            self._drop()
            raise EngineGone(f"the container engine does not answer: {error}") from error

    def _drop(self) -> None:
        """Forget this thread's client: its connections may be dead."""
        client: _Client | None = getattr(self._local, "client", None)
        self._local.client = None
        if client is not None:
            client.close()

    def _client(self) -> _Client:
        client: _Client | None = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = self._connect()
        return client

    def _connect(self) -> _Client:
        given = kwargs_from_env()
        base_url = self._base_url or given.get("base_url")
        tls = given.get("tls", False)
        return cast("_Client", APIClient(base_url, version="auto", timeout=ENGINE_S, tls=tls, max_pool_size=4))

    def answers(self) -> bool:
        """Whether the engine is there."""
        try:
            return bool(self.ask(lambda client: client.ping()))
        except EngineGone:
            return False

    def image_id(self, reference: str) -> str:
        """The content id of an image. Raises `MissingService` when it is not there."""
        try:
            found = self.ask(lambda client: client.inspect_image(reference))
        except NotFound as error:
            raise MissingService(
                f"the sandbox image {reference!r} is not in the container engine; build it with `make up`, or set METIER_SANDBOX_IMAGE"
            ) from error
        return _Image.model_validate(found).id

    def create(self, config: dict[str, JsonValue]) -> str:
        """Create a container; its id. Raises `MissingService` when its image has gone."""
        try:
            made = self.ask(lambda client: client.create_container_from_config(config))
        except ImageNotFound as error:
            raise MissingService(f"the sandbox image {config['Image']} has gone from the container engine") from error
        return _Created.model_validate(made).id

    def attach(self, container: str) -> socket.socket:
        """The container's standard streams, as a socket of our own. To be called before `start`, or its first words are lost."""
        stream = self.ask(lambda client: client.attach_socket(container, params=_ATTACH))
        with closing(stream):
            return socket.fromfd(stream.fileno(), socket.AF_UNIX, socket.SOCK_STREAM)

    def start(self, container: str) -> None:
        """Start it."""
        self.ask(lambda client: client.start(container))

    def await_gone(self, container: str, within_s: int) -> bool:
        """Whether the container was removed in time."""
        try:
            self.ask(lambda client: client.wait(container, timeout=within_s, condition="removed"))
        except NotFound:
            return True
        except EngineGone:
            return False
        return True

    def remove(self, container: str) -> None:
        """Kill and remove it; one that is gone, or going, is no error."""
        with suppress(NotFound, EngineGone):
            self.ask(lambda client: client.remove_container(container, True, force=True))

    def sandboxes(self) -> list[Listed]:
        """Every container that bears our label, whoever owns it."""
        found = self.ask(lambda client: client.containers(all=True, filters={"label": owner.LABEL}))
        return [Listed.model_validate(one) for one in found]


class DockerSandbox:
    """See `metier_tools.sandbox.Sandbox`. Opening it resolves the image and begins to fill the pool.

    Raises `MissingService` when there is no engine or no image.
    """

    def __init__(
        self, settings: SandboxSettings, profile: limits.Profile | None = None, *, base_url: str | None = None
    ) -> None:
        self._settings, self._profile = settings, profile or limits.Profile()
        self._engine, self.owner = Engine(base_url), owner.another()
        self._stop = threading.Event()
        self._names: set[str] = set()
        self.image = self._resolve()
        self._pool = Pool(self._boot, self._bury, Sizes(settings.pool, settings.limit, settings.idle_s))
        self._reaper = threading.Thread(target=self._reap_for_ever, name="sandbox-reaper", daemon=True)
        self._reaper.start()
        self._pool.start()

    def _resolve(self) -> str:
        try:
            self.reap()
            return self._engine.image_id(self._settings.image)
        except EngineGone as error:
            raise MissingService(f"{error}; start Docker, or set DOCKER_HOST to where it listens") from error

    def _boot(self) -> Box:
        name = uuid.uuid4().hex
        self._names.add(name)
        try:
            return self._booted(name)
        except BaseException:
            self._names.discard(name)
            raise

    def _booted(self, name: str) -> Box:
        labels = {owner.LABEL: self.owner, owner.BOX: name}
        config = limits.container(self._profile, self.image, _PROGRAM, labels, self._settings.runtime)
        container = self._engine.create(config)
        try:
            line = Conversation(self._engine.attach(container), self._profile)
            self._engine.start(container)
            if not line.greet(BOOT_S):
                raise EngineGone(
                    f"the sandbox container {container[:12]} started, but its first process does not answer"
                )
        except NotFound as error:
            raise EngineGone(f"the sandbox container {container[:12]} vanished while it started") from error
        except BaseException:
            self._engine.remove(container)
            raise
        return Box(container, name, line)

    def _bury(self, box: Box) -> None:
        """Polite and cheap first: stdin ends, PID 1 ends, the engine removes the container. Then by force."""
        box.line.hang_up()
        try:
            if not self._engine.await_gone(box.id, 2):
                self._engine.remove(box.id)
        except MetierError as error:
            log.warning("container not removed", action="reap_later", container=box.id[:12], error=str(error))
        finally:
            self._names.discard(box.name)

    @contextmanager
    def hold(self, lease: str, wait_s: float) -> Generator[Held]:
        """See `Sandbox.hold`."""
        with self._pool.hold(lease, min(wait_s, self._settings.wait_s)) as taken:

            def run(request: Request) -> Outcome:
                return self._run(taken.box, request)

            yield Held(taken.box.id[:12], self.image, taken.cold, taken.wait_ms, taken.boot_ms, run)

    def _run(self, box: Box, request: Request) -> Outcome:
        outcome = box.line.run(request)
        if outcome.status != "died":
            return outcome
        if self._engine_ends():
            raise EngineGone("the container engine went away under the call")
        if self._stop.is_set():
            raise LaneGone("the sandbox was closed under the call")
        return outcome

    def _engine_ends(self) -> bool:
        """Whether a container died because the engine does: an engine that is told to end kills containers first, so look twice."""
        return not self._engine.answers() or (not self._stop.wait(ENDS_S) and not self._engine.answers())

    def release(self, lease: str) -> None:
        """See `Sandbox.release`."""
        self._pool.release(lease)

    def check(self) -> None:
        """See `Sandbox.check`."""
        probe = Request("python", selftest.PROBE, 10.0)
        try:
            with self.hold("self-test", self._settings.wait_s) as held:
                outcome = held.run(probe)
        except EngineGone as error:
            raise MissingService(f"the sandbox cannot start a container: {error}") from error
        self.release("self-test")
        missing = selftest.weaknesses(outcome, self._profile)
        if missing:
            raise MissingService(f"this container engine does not enforce: {'; '.join(missing)}")

    def reap(self) -> None:
        """Remove containers whose owner is dead, and our own that were lost when the engine went away. Raises `EngineGone`."""
        for one in self._engine.sandboxes():
            if owner.is_orphan(one.owner) or (one.owner == self.owner and one.name not in self._names):
                log.warning("orphan removed", action="reap", container=one.id[:12], owner=one.owner)
                self._engine.remove(one.id)

    def _reap_for_ever(self) -> None:
        while not self._stop.wait(REAP_S):
            try:
                self.reap()
            except (MetierError, ValidationError) as error:
                log.warning("reaper cannot look", action="reap_later", error=str(error), after_s=REAP_S)

    def close(self) -> None:
        """See `Sandbox.close`."""
        self._stop.set()
        self._pool.close()
        self._reaper.join(5.0)
        with suppress(EngineGone):
            self.reap()
