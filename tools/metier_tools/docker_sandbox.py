"""The sandbox on a container engine. `compose` and `serve` open it; `pool` decides who gets which container, `docker_engine` asks Docker.

Containers are created strict (`limits`), run our PID 1, and are spoken to over their attach stream, never by `exec`. They end when this
process ends: their standard input closes. What slips through is found by its label.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress

import structlog

from metier_infra.errors import EngineGone, LaneGone, MetierError, MissingService
from metier_infra.settings import SandboxSettings
from metier_tools import measuring, owner, selftest
from metier_tools.boot import Boot, Box
from metier_tools.docker_engine import Engine
from metier_tools.pool import Pool, Sizes
from metier_tools.profile import STRICT, Profile
from metier_tools.sandbox import Held, Outcome, Recipe, Request
from metier_tools.tool import ToolSpec

log = structlog.get_logger()

ENDS_S = 0.5
"""How long an engine that ends may still answer after it killed its containers; seconds."""
REAP_S = 30.0
"""How often containers of dead owners are looked for; seconds."""


class DockerSandbox:
    """See `metier_tools.sandbox.Sandbox`. Opening it resolves the image and begins to fill the pool.

    `profile` is that of calls which name none; containers of it are kept warm.

    Raises `MissingService` when there is no engine or no image.
    """

    def __init__(self, settings: SandboxSettings, profile: Profile = STRICT, *, base_url: str | None = None) -> None:
        self._settings, self._plain = settings, Recipe(profile)
        self._engine, self.owner = Engine(base_url), owner.another()
        self._boot = Boot(self._engine, settings, self.owner)
        self._stop = threading.Event()
        self.image = self._resolve()
        sizes = Sizes(settings.pool, settings.limit, settings.idle_s)
        self._pool = Pool(self._boot.box, self._boot.bury, self._plain, sizes)
        self._reaper = threading.Thread(target=self._reap_for_ever, name="sandbox-reaper", daemon=True)
        self._reaper.start()
        self._pool.start()

    def _resolve(self) -> str:
        try:
            self.reap()
            return self._boot.image_of(self._plain.profile)
        except EngineGone as error:
            raise MissingService(f"{error}; start Docker, or set DOCKER_HOST to where it listens") from error

    @contextmanager
    def hold(self, lease: str, wait_s: float, recipe: Recipe | None = None) -> Generator[Held]:
        """See `Sandbox.hold`."""
        recipe = recipe or self._plain
        with self._pool.hold(lease, min(wait_s, self._settings.wait_s), recipe) as taken:
            box = taken.box

            def run(request: Request) -> Outcome:
                return self._run(box, request, recipe)

            yield Held(box.id[:12], box.image, taken.cold, taken.wait_ms, taken.boot_ms, run, box.line.hang_up)

    def _run(self, box: Box, request: Request, recipe: Recipe) -> Outcome:
        outcome = box.run(request)
        if recipe.profile.single_use:
            box.line.hang_up()
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
        missing = [one.name for one in self.findings() if not one.holds]
        measuring.tested(len(missing))
        if missing:
            raise MissingService(f"this container engine does not enforce: {'; '.join(missing)}")

    def findings(self) -> list[selftest.Finding]:
        """What a container of the plain profile is asked to prove, and whether it does. Raises `MissingService`."""
        lease = f"self-test-{uuid.uuid4().hex}"
        try:
            with self.hold(lease, self._settings.wait_s) as held:
                return selftest.findings(held.run, self._plain.profile)
        except EngineGone as error:
            raise MissingService(f"the sandbox cannot start a container: {error}") from error
        finally:
            self.release(lease)

    def definitions(self, recipe: Recipe) -> tuple[ToolSpec, ...]:
        """See `Sandbox.definitions`."""
        lease = f"definitions-{uuid.uuid4().hex}"
        try:
            with self._pool.hold(lease, self._settings.wait_s, recipe) as taken:
                return taken.box.line.definitions
        finally:
            self.release(lease)

    def reap(self) -> None:
        """Remove containers whose owner is dead, and our own that were lost when the engine went away. Raises `EngineGone`."""
        for one in self._engine.sandboxes():
            if owner.is_orphan(one.owner) or (one.owner == self.owner and one.name not in self._boot.names):
                log.warning("orphan removed", action="reap", container=one.id[:12], owner=one.owner)
                self._engine.remove(one.id)

    def _reap_for_ever(self) -> None:
        while not self._stop.wait(REAP_S):
            try:
                self.reap()
            except MetierError as error:
                log.warning("reaper cannot look", action="reap_later", error=str(error), after_s=REAP_S)

    def close(self) -> None:
        """See `Sandbox.close`."""
        self._stop.set()
        self._pool.close()
        self._reaper.join(5.0)
        with suppress(EngineGone):
            self.reap()
        self._boot.close()
