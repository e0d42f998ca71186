"""Docker's API: the one module that names it. Its errors become ours, and what it answers is checked where it enters.

`docker_sandbox` makes containers with it.
"""

from __future__ import annotations

import math
import os
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Literal, Protocol, TypeVar, cast

from docker.api.client import APIClient
from docker.errors import APIError, DockerException, NotFound
from pydantic import BaseModel, Field, JsonValue, ValidationError
from requests.exceptions import RequestException

from metier_infra.errors import EngineGone, MissingService
from metier_tools import owner
from metier_tools.engine_tunnel import tunnel_to

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

ENGINE_S = 15.0
"""How long the engine may take for one request; seconds."""
SOON_S = 1.0
"""And for what a caller waits for; seconds."""
LONGEST_REASON = 300
"""Characters of what the engine says about a refusal."""
_BAD_REQUEST = 400
_ATTACH = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}


class Vanished(Exception):
    """The container is not there any more."""


class _Stream(Protocol):
    def fileno(self) -> int: ...
    def close(self) -> None: ...


class _Closable(Protocol):
    def close(self) -> None: ...


class _Pools(Protocol):
    def __init__(self, maxsize: int, dispose_func: Callable[[_Closable], None]) -> None: ...


class _Adapter(Protocol):
    pools: _Pools


class _Client(Protocol):
    """What we use of docker-py. What it returns is the engine's word, and is checked where it enters."""

    def ping(self) -> object: ...
    def close(self) -> None: ...
    def inspect_image(self, image: str, /) -> object: ...
    def inspect_container(self, container: str, /) -> object: ...
    def get_archive(self, container: str, path: str, /) -> tuple[Iterable[bytes], object]: ...
    def create_container_from_config(self, config: dict[str, JsonValue], /) -> object: ...
    def attach_socket(self, container: str, params: dict[str, int]) -> _Stream: ...
    def start(self, container: str, /) -> None: ...
    def wait(self, container: str, timeout: int, condition: Literal["removed"]) -> object: ...
    def remove_container(self, container: str, v: bool, *, force: bool) -> None: ...
    def version(self) -> object: ...
    def exec_create(self, container: str, cmd: list[str]) -> object: ...
    def exec_start(self, exec_id: str, /) -> bytes: ...
    def exec_inspect(self, exec_id: str, /) -> object: ...
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


class _Version(BaseModel):
    version: str = Field(alias="Version")


class Ended(BaseModel):
    """How a container ended."""

    running: bool = Field(alias="Running")
    exit_code: int = Field(alias="ExitCode")
    out_of_memory: bool = Field(alias="OOMKilled")


class _Inspected(BaseModel):
    state: Ended = Field(alias="State")


def _keep_one_connection(client: APIClient) -> None:
    """docker-py keeps a pool of connections for each URL, 25 of them whatever it is told: hundreds of sockets in a process of a few threads."""
    adapter = cast("_Adapter", client.get_adapter("http+docker://localhost"))
    if hasattr(adapter, "pools"):
        adapter.pools = type(adapter.pools)(1, dispose_func=lambda pool: pool.close())


def _certificates() -> Path | None:
    """Docker's own words for TLS: DOCKER_CERT_PATH, or its usual folder where only DOCKER_TLS_VERIFY is set. The other side is always verified."""
    folder = os.environ.get("DOCKER_CERT_PATH")
    if folder:
        return Path(folder)
    return Path.home() / ".docker" if os.environ.get("DOCKER_TLS_VERIFY") else None


def _reason(error: BaseException) -> str:
    """The innermost reason in a chain of errors, which is the one that says something."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _brief(said: str) -> str:
    """Podman repeats the whole profile of system calls that it does not take."""
    return said if len(said) <= LONGEST_REASON else f"{said[: LONGEST_REASON // 2]} … {said[-LONGEST_REASON // 2 :]}"


def _checked(kind: type[M], answer: object) -> M:
    try:
        return kind.model_validate(answer)
    except ValidationError as error:
        raise EngineGone(f"the container engine answers what cannot be read: {error.errors()[0]['msg']}") from error


class Engine:
    """The engine's API, with a client for each thread, as docker-py wants it; its errors become ours."""

    def __init__(self, base_url: str | None) -> None:
        self.base_url = base_url
        self._address = base_url or os.environ.get("DOCKER_HOST") or None
        self._tunnel = tunnel_to(self._address, _certificates())
        self._local = threading.local()

    def ask(self, work: Callable[[_Client], T], within_s: float = ENGINE_S) -> T:
        """Do one thing with the engine. Raises `EngineGone`, and `Vanished` for what is not there."""
        try:
            return work(self._client(within_s))
        except NotFound as error:
            raise Vanished(str(error.explanation or error)) from error
        except APIError as error:
            kind = MissingService if error.status_code == _BAD_REQUEST else EngineGone
            raise kind(f"the container engine refused: {_brief(str(error.explanation or error))}") from error
        except (DockerException, RequestException, OSError) as error:
            self._drop(within_s)
            raise EngineGone(f"no container engine answers at {self._where()}: {_reason(error)}") from error

    def _where(self) -> str:
        return (self._address or "its usual place").replace("http+unix:", "unix:")

    def _clients(self) -> dict[float, _Client]:
        """This thread's clients, by how long they wait."""
        clients: dict[float, _Client] = self._local.__dict__.setdefault("clients", {})
        return clients

    def _drop(self, within_s: float) -> None:
        """Forget a client: its connections may be dead."""
        client = self._clients().pop(within_s, None)
        if client is not None:
            client.close()

    def _client(self, within_s: float) -> _Client:
        clients = self._clients()
        if within_s not in clients:
            clients[within_s] = self._connect(within_s)
        return clients[within_s]

    def _connect(self, within_s: float) -> _Client:
        base_url = self._tunnel.url() if self._tunnel else self._address
        client = APIClient(base_url, version="auto", timeout=math.ceil(within_s), max_pool_size=1)
        _keep_one_connection(client)
        return cast("_Client", client)

    @property
    def local(self) -> bool:
        """Whether the engine runs on this machine, so that it can mount what lies here."""
        return (self._address or "unix:").startswith(("unix:", "http+unix:"))

    def answers(self) -> bool:
        """Whether the engine is there."""
        try:
            return bool(self.ask(lambda client: client.ping(), SOON_S))
        except EngineGone:
            return False

    def version(self) -> str:
        """What it says of itself. Raises `EngineGone`."""
        return _checked(_Version, self.ask(lambda client: client.version())).version

    def image_id(self, reference: str) -> str:
        """The content id of an image. Raises `MissingService` when it is not there."""
        try:
            found = self.ask(lambda client: client.inspect_image(reference))
        except Vanished as error:
            raise MissingService(
                f"the sandbox image {reference!r} is not in the container engine: pull or build it; the one that ships is built by `make up` and "
                "named by METIER_SANDBOX_IMAGE, others by the profile's `image`"
            ) from error
        return _checked(_Image, found).id

    def create(self, config: dict[str, JsonValue]) -> str:
        """Create a container; its id. Raises `MissingService` when its image has gone."""
        try:
            made = self.ask(lambda client: client.create_container_from_config(config))
        except Vanished as error:
            raise MissingService(f"the sandbox image {config['Image']} has gone from the container engine") from error
        return _checked(_Created, made).id

    def holds(self, container: str, path: str) -> bool:
        """Whether there is a file at this path in a container that need not run."""
        try:
            for _ in self.ask(lambda client: client.get_archive(container, path))[0]:
                pass
        except Vanished:
            return False
        return True

    def attach(self, container: str) -> socket.socket:
        """The container's standard streams, as a socket of our own. To be called before `start`, or its first words are lost."""
        stream = self.ask(lambda client: client.attach_socket(container, params=_ATTACH))
        with closing(stream), closing(cast("_Closable", vars(stream)["_response"])):  # the two hold each other
            return socket.fromfd(stream.fileno(), socket.AF_UNIX, socket.SOCK_STREAM)

    def start(self, container: str) -> None:
        """Start it."""
        self.ask(lambda client: client.start(container))

    def await_gone(self, container: str, within_s: int) -> bool:
        """Whether the container was removed in time."""
        try:
            self.ask(lambda client: client.wait(container, timeout=within_s, condition="removed"))
        except Vanished:
            return True
        except EngineGone:
            return False
        return True

    def ended(self, container: str) -> Ended | None:
        """How a container ended that was kept; None when it has not, or is gone. Raises `EngineGone`, soon."""
        try:
            state = _checked(_Inspected, self.ask(lambda client: client.inspect_container(container), SOON_S)).state
        except Vanished:
            return None
        return None if state.running else state

    def remove(self, container: str) -> None:
        """Kill and remove it; one that is gone, or going, is no error."""
        with suppress(Vanished, EngineGone):
            self.ask(lambda client: client.remove_container(container, True, force=True))

    def sandboxes(self) -> list[Listed]:
        """Every container that bears our label, whoever owns it."""
        found = self.ask(lambda client: client.containers(all=True, filters={"label": owner.LABEL}))
        return [_checked(Listed, one) for one in found]
