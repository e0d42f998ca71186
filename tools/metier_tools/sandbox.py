"""The sandbox port, its words, and the scripted adapter.

The runner holds a container for each call; `docker_sandbox` is the real adapter. One contract test holds both.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from metier_infra.errors import LaneGone
from metier_tools.tool import Language

Verdict = Literal["ok", "error", "timeout", "oom", "output_cut", "died"]


@dataclass(frozen=True)
class Request:
    """One program to run. `timeout_s` is wall-clock seconds; at its end everything that the program started is killed."""

    language: Language
    source: str
    timeout_s: float


@dataclass(frozen=True)
class Outcome:
    """What the program did. `exit_code` is negative for a signal and None when there is none; `wall_ms` is milliseconds."""

    status: Verdict
    exit_code: int | None = None
    stdout: str = ""
    stderr: str = ""
    truncated: bool = False
    wall_ms: float = 0.0


@dataclass(frozen=True)
class Held:
    """A container that is ours for one call. Times are milliseconds; `cold` says that it was booted for this call.

    `run` raises `EngineGone`; every other end of the program is an outcome.
    """

    container: str
    image: str
    cold: bool
    wait_ms: float
    boot_ms: float
    run: Callable[[Request], Outcome]


class Sandbox(Protocol):
    """Containers for untrusted programs, one to a lease and never one for two.

    Contract: calls of one lease run one after another, and nothing passes from one to the next. A container that is not as it was
    is not used again. All methods block and may be called from any thread.
    """

    def hold(self, lease: str, wait_s: float) -> AbstractContextManager[Held]:
        """A container of this lease, for one call. Raises `LaneGone` when none was free in `wait_s`, `EngineGone`, `MissingService`."""
        ...

    def release(self, lease: str) -> None:
        """End the lease and its container; nothing happens if there is none. A call in hand is finished first."""
        ...

    def check(self) -> None:
        """Prove that this engine enforces what we ask of it. Raises `MissingService` with the name of what it does not."""
        ...

    def close(self) -> None:
        """End every container, those in use too."""
        ...


Script = Callable[[Request], Outcome]


class ScriptedSandbox:
    """Does what `script` says, in no container at all: for tests of all that stands above a sandbox."""

    IMAGE = "sha256:scripted"

    def __init__(self, script: Script) -> None:
        self._script = script
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._known: set[str] = set()
        self._closed = False

    @contextmanager
    def hold(self, lease: str, wait_s: float) -> Generator[Held]:
        """See `Sandbox.hold`."""
        began = time.monotonic()
        if self._closed or not self._locks[lease].acquire(timeout=max(0.0, wait_s)):
            raise LaneGone(f"no container became free within {wait_s:.1f} s")
        try:
            cold = lease not in self._known
            self._known.add(lease)
            yield Held(f"scripted-{lease}", self.IMAGE, cold, 1000 * (time.monotonic() - began), 0.0, self._script)
        finally:
            self._locks[lease].release()

    def release(self, lease: str) -> None:
        """See `Sandbox.release`."""
        self._known.discard(lease)

    def check(self) -> None:
        """There is no engine to doubt."""

    def close(self) -> None:
        """See `Sandbox.close`."""
        self._closed = True
