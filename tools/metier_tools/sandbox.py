"""The sandbox port, its words, and the scripted adapter.

The runner holds a container for each call; `docker_sandbox` is the real adapter. One contract test holds both.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal, Protocol

from pydantic import JsonValue

from metier_infra.errors import LaneGone
from metier_tools.profile import STRICT, Attempt, Profile
from metier_tools.tool import ToolSpec

Verdict = Literal["ok", "error", "timeout", "oom", "output_cut", "died", "refused"]
Runs = Literal["python", "shell", "command", "mcp"]


@dataclass(frozen=True)
class Server:
    """An MCP server that a container holds: what starts it, and the secrets it starts with."""

    name: str
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Recipe:
    """What kind of container a call needs: its limits, and the server in it, if it is one."""

    profile: Profile = STRICT
    server: Server | None = None


PLAIN = Recipe()


@dataclass(frozen=True)
class Request:
    """One program to run. `timeout_s` is wall-clock seconds; at its end everything that the program started is killed.

    Attributes:
        runs: what `source` is: a program, a script, nothing (`command`: see `argv`), or the name of a server's tool (`mcp`).
        source: see `runs`.
        timeout_s: seconds.
        argv: a command and its arguments.
        stdin: what the program reads.
        environment: variables of this one call, secrets among them; never shown.
        files: relative path in the scratch folder to content, put there first.
        take: relative paths in the scratch folder, read when the program has ended.
        arguments: those of a server's tool.
        digest: what the server must say of that tool; anything else is refused.
    """

    runs: Runs
    source: str
    timeout_s: float
    argv: tuple[str, ...] = ()
    stdin: bytes = b""
    environment: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes], repr=False)
    take: tuple[str, ...] = ()
    arguments: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue], repr=False)
    digest: str = ""


@dataclass(frozen=True)
class Outcome:
    """What the program did. `exit_code` is negative for a signal and None when there is none; `wall_ms` is milliseconds.

    `files` are those that were taken; `left_out` says of each other one that was wanted why it was not. `attempts` are its uses of the network.
    """

    status: Verdict
    exit_code: int | None = None
    stdout: str = ""
    stderr: str = ""
    truncated: bool = False
    wall_ms: float = 0.0
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes], repr=False)
    left_out: Mapping[str, str] = field(default_factory=dict[str, str])
    attempts: tuple[Attempt, ...] = ()


@dataclass(frozen=True)
class Held:
    """A container that is ours for one call. Times are milliseconds; `cold` says that it was booted for this call.

    `run` raises `EngineGone`; every other end of the program is an outcome. `stop`, from any thread, ends the container: a `run` in hand
    returns `died` at once.
    """

    container: str
    image: str
    cold: bool
    wait_ms: float
    boot_ms: float
    run: Callable[[Request], Outcome]
    stop: Callable[[], None]


class Sandbox(Protocol):
    """Containers for untrusted programs, one to a lease and never one for two.

    Contract: calls of one lease run one after another, and nothing passes from one to the next. A lease has one container for each
    recipe that its calls need. A container that is not as it was is not used again. All methods block and may be called from any thread.
    """

    def hold(self, lease: str, wait_s: float, recipe: Recipe = PLAIN) -> AbstractContextManager[Held]:
        """A container of this lease, for one call.

        Raises:
            LaneGone: none was free in `wait_s`.
            EngineGone: the engine does not answer.
            MissingService: the image is not there.
            ServerBroken: the recipe's server does not start, or does not speak the protocol.
        """
        ...

    def release(self, lease: str) -> None:
        """End the lease and its containers; nothing happens if there is none. A call in hand is finished first."""
        ...

    def check(self) -> None:
        """Prove that this engine enforces what we ask of it. Raises `MissingService` with the name of what it does not."""
        ...

    def definitions(self, recipe: Recipe) -> tuple[ToolSpec, ...]:
        """What the server of this recipe says of its tools now, named `SERVER__TOOL`. Raises as `hold` does."""
        ...

    def close(self) -> None:
        """End every container, those in use too."""
        ...


Script = Callable[[Request], Outcome]


class ScriptedSandbox:
    """Does what `script` says, in no container at all: for tests of all that stands above a sandbox."""

    IMAGE = "sha256:scripted"

    def __init__(self, script: Script, definitions: Mapping[str, tuple[ToolSpec, ...]] | None = None) -> None:
        self._script, self._definitions = script, definitions or {}
        self._locks: defaultdict[tuple[str, Recipe], threading.Lock] = defaultdict(threading.Lock)
        self._known: set[tuple[str, Recipe]] = set()
        self._closed = False

    @contextmanager
    def hold(self, lease: str, wait_s: float, recipe: Recipe = PLAIN) -> Generator[Held]:
        """See `Sandbox.hold`."""
        began, key = time.monotonic(), (lease, recipe)
        if self._closed or not self._locks[key].acquire(timeout=max(0.0, wait_s)):
            raise LaneGone(f"no container became free within {wait_s:.1f} s")
        stopped: Future[Outcome] = Future()
        try:
            cold = key not in self._known
            self._known.add(key)
            waited = 1000 * (time.monotonic() - began)
            yield Held(
                f"scripted-{lease}",
                self.IMAGE,
                cold,
                waited,
                0.0,
                lambda request: self._run(request, stopped),
                lambda: _stop(stopped),
            )
        finally:
            self._locks[key].release()

    def _run(self, request: Request, stopped: Future[Outcome]) -> Outcome:
        """What the script says, unless the container is stopped first."""

        def work() -> None:
            with suppress(InvalidStateError):  # it was stopped meanwhile
                try:
                    stopped.set_result(self._script(request))
                except Exception as error:
                    stopped.set_exception(error)

        threading.Thread(target=work, daemon=True).start()
        return stopped.result()

    def release(self, lease: str) -> None:
        """See `Sandbox.release`."""
        self._known = {key for key in self._known if key[0] != lease}

    def check(self) -> None:
        """There is no engine to doubt."""

    def definitions(self, recipe: Recipe) -> tuple[ToolSpec, ...]:
        """See `Sandbox.definitions`."""
        return self._definitions.get(recipe.server.name, ()) if recipe.server else ()

    def close(self) -> None:
        """See `Sandbox.close`."""
        self._closed = True


def _stop(stopped: Future[Outcome]) -> None:
    with suppress(InvalidStateError):  # it has ended
        stopped.set_result(Outcome("died"))
