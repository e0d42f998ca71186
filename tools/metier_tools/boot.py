"""How a container comes to be and ends: created strict, attached, started, greeted; asked to go, then removed.

`docker_sandbox` gives both to its pool. What runs in the container depends on the image and the recipe: our PID 1 wherever there is
Python, with a server under it if the recipe has one; else the server itself, or a parked shell for one command.
"""

from __future__ import annotations

import secrets
import shutil
import socket
import tempfile
import threading
import uuid
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from pydantic import JsonValue

from metier_infra.errors import EngineGone, MetierError, MissingPackage, MissingService
from metier_infra.failpoints import failpoint
from metier_infra.settings import SandboxSettings
from metier_tools import inside, limits, owner
from metier_tools.bare import PARKED, BareLine
from metier_tools.conversation import Conversation
from metier_tools.docker_engine import Engine, Vanished
from metier_tools.egress import EgressProxy
from metier_tools.line import Line
from metier_tools.profile import STRICT, Profile
from metier_tools.protocol import ask
from metier_tools.sandbox import Outcome, Recipe, Request, Server
from metier_tools.warden import Warden

if TYPE_CHECKING:
    from metier_tools.server_line import ServerLine

log = structlog.get_logger()

DOORS = "metier-door-"
"""How the folders begin in which the sockets to egress proxies lie."""
BOOT_S = 20.0
"""How long a container may take until its PID 1 answers, and a server until it has listed its tools; seconds."""


@dataclass
class Box:
    """One container, the line to what runs in it, and its way to the network, if it has one."""

    id: str
    name: str
    image: str
    line: Line
    proxy: EgressProxy | None
    goes_by_itself: bool
    user: int

    def alive(self) -> bool:
        """See `pool.Poolable`."""
        return self.line.alive()

    def run(self, request: Request) -> Outcome:
        """Run one call, with a network budget of its own."""
        if self.proxy is None:
            return self.line.run(request)
        self.proxy.start_call()
        try:
            outcome = self.line.run(request)
        finally:
            attempts = self.proxy.report()
        return replace(outcome, attempts=attempts)


@dataclass(frozen=True)
class _Plan:
    """What one container is made of. `ours`: whether PID 1 is our program."""

    recipe: Recipe
    image: str
    ours: bool
    command: tuple[str, ...]


class Boot:
    """Boots and buries the containers of one owner. `names` are those that it has; others of this owner are lost ones."""

    def __init__(self, engine: Engine, settings: SandboxSettings, bearer: str) -> None:
        self._engine, self._settings, self._owner = engine, settings, bearer
        self._warden = Warden(bearer, engine.base_url)
        self._lock = threading.Lock()
        self._images: dict[str, str] = {}
        self._pythonic: dict[str, bool] = {}
        self._users: set[int] = set()
        self.names = {"probe"}
        sweep()

    def image_of(self, profile: Profile) -> str:
        """The content id of a profile's image, looked up once. Raises `MissingService`, `EngineGone`."""
        reference = profile.image or self._settings.image
        if reference not in self._images:
            self._images[reference] = self._engine.image_id(reference)
        return self._images[reference]

    def box(self, recipe: Recipe) -> Box:
        """A container that is ready for calls. Raises `EngineGone`, `MissingService`, `ServerBroken`, `MissingPackage`."""
        name = uuid.uuid4().hex
        self.names.add(name)
        try:
            return self._boxed(name, self._plan(recipe))
        except BaseException:
            self.names.discard(name)
            raise

    def _plan(self, recipe: Recipe) -> _Plan:
        image = self.image_of(recipe.profile)
        if self._has_python(image):
            return _Plan(recipe, image, True, tuple(inside.program(with_loopback=recipe.profile.egress is not None)))
        if recipe.profile.egress or (recipe.server and recipe.server.environment):
            raise MissingService(
                f"the image {recipe.profile.image} has no {inside.PYTHON}; without it a tool can have neither network nor secrets"
            )
        return _Plan(recipe, image, False, recipe.server.command if recipe.server else PARKED)

    def _has_python(self, image: str) -> bool:
        """Whether our PID 1 can run there: looked up once, in a container that is never started."""
        with self._lock:
            if image not in self._pythonic:
                labels = {owner.LABEL: self._owner, owner.BOX: "probe"}
                probe = self._engine.create(limits.container(STRICT, image, ["none"], labels))
                try:
                    self._pythonic[image] = self._engine.holds(probe, inside.PYTHON)
                finally:
                    self._engine.remove(probe)
            return self._pythonic[image]

    def _boxed(self, name: str, plan: _Plan) -> Box:
        with ExitStack() as undo:
            proxy, user = self._proxy(plan.recipe.profile, undo), self._user()
            undo.callback(self._users.discard, user)
            container = self._engine.create(self._config(name, plan, proxy, user))
            failpoint("container.created")
            undo.callback(self._engine.remove, container)
            try:
                stream = undo.enter_context(self._engine.attach(container))
                self._engine.start(container)
            except Vanished as error:
                raise EngineGone(f"the sandbox container {container[:12]} vanished while it started") from error
            line = self._line(container, stream, plan)
            undo.pop_all()
            return Box(container, name, plan.image, line, proxy, plan.ours, user)

    def _user(self) -> int:
        """A number that no other container of ours has now; where there are more containers than numbers, any."""
        with self._lock:
            free = [user for user in limits.USERS if user not in self._users] or limits.USERS
            user = secrets.choice(free)
            self._users.add(user)
            return user

    def _config(self, name: str, plan: _Plan, proxy: EgressProxy | None, user: int) -> dict[str, JsonValue]:
        if not plan.ours:
            self._warden.post()
        place = limits.Place(
            runtime=self._settings.runtime,
            cgroup_parent=self._settings.cgroup_parent,
            door=str(proxy.path) if proxy else None,
            user=user,
            stays=not plan.ours,
        )
        labels = {owner.LABEL: self._owner, owner.BOX: name}
        return limits.container(plan.recipe.profile, plan.image, plan.command, labels, place)

    def _proxy(self, profile: Profile, undo: ExitStack) -> EgressProxy | None:
        if profile.egress is None:
            return None
        if not self._engine.local:
            raise MissingService(
                f"the profile {profile.key} allows network use, and that needs a container engine on this machine"
            )
        folder = Path(tempfile.mkdtemp(prefix=DOORS))
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        (folder / "owner").write_text(self._owner)
        proxy = EgressProxy(folder / "door", profile.egress)
        undo.callback(proxy.close)
        return proxy

    def _line(self, container: str, stream: socket.socket, plan: _Plan) -> Line:
        """The line to what has just been started."""
        profile, server = plan.recipe.profile, plan.recipe.server
        if server is not None:
            return _server_line(stream, server, plan)
        if not plan.ours:
            return BareLine(stream, profile, lambda: self._engine.ended(container))
        line = Conversation(stream, profile)
        if not line.greet(BOOT_S):
            raise EngineGone(f"the sandbox container {container[:12]} started, but its first process does not answer")
        return line

    def bury(self, box: Box) -> None:
        """Polite and cheap first: stdin ends, PID 1 ends, the engine removes the container. Then by force."""
        box.line.hang_up()
        try:
            if not box.goes_by_itself or not self._engine.await_gone(box.id, 2):
                self._engine.remove(box.id)
        except MetierError as error:
            log.warning("container not removed", action="reap_later", container=box.id[:12], error=str(error))
        finally:
            if box.proxy is not None:
                box.proxy.close()
                shutil.rmtree(box.proxy.path.parent, ignore_errors=True)
            self._users.discard(box.user)
            self.names.discard(box.name)

    def close(self) -> None:
        """To be called when every container has been buried."""
        self._warden.call_off()


def sweep() -> None:
    """Remove the folders of doors whose owner was killed."""
    for note in Path(tempfile.gettempdir()).glob(f"{DOORS}*/owner"):
        with suppress(OSError):
            if owner.is_orphan(note.read_text()):
                shutil.rmtree(note.parent)


def _server_line(stream: socket.socket, server: Server, plan: _Plan) -> ServerLine:
    try:
        from metier_tools.server_line import ServerLine
    except ImportError as error:
        raise MissingPackage("tools of an MCP server need the extra: pip install 'metier[mcp]'") from error
    if plan.ours:
        start = Request("mcp", "", 0.0, argv=server.command, environment=dict(server.environment))
        stream.sendall(ask(start, 0.0, flood=0, most=0))
    return ServerLine(stream, server, plan.recipe.profile, BOOT_S)
