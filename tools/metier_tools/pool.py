"""Which container serves which lease: a warm pool, a limit, and the end of what is idle.

`docker_sandbox` gives it the means to boot and to bury; it knows no engine. A container belongs to one lease for its whole life; a lease has
one of each kind that it needs. The housekeeping thread boots ahead, ends what is idle, and buries what is dead.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

import structlog

from metier_infra.errors import LaneGone, MetierError
from metier_infra.retry import Backoff

log = structlog.get_logger()

CLOSE_S = 30.0
"""How long closing waits for containers that still boot, or end; seconds."""
Move = Literal["warm", "boot", "evict", "wait"]


class Poolable(Protocol):
    """What the pool must know of a container."""

    def alive(self) -> bool:
        """Whether it can serve a call now."""
        ...


B = TypeVar("B", bound=Poolable)
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Sizes:
    """How many containers: kept warm, and at one time in all. `idle_s`: a lease unused for so long is ended, in seconds."""

    warm: int
    limit: int
    idle_s: float


@dataclass(frozen=True)
class Taken(Generic[B]):
    """A container for one call; times in milliseconds."""

    box: B
    cold: bool
    wait_ms: float
    boot_ms: float


class Lease(Generic[B]):
    """One lease: its container if it has one, whether a call is in it, and who waits."""

    def __init__(self) -> None:
        self.box: B | None = None
        self.busy = False
        self.waiting = 0
        self.used = time.monotonic()

    @property
    def idle(self) -> bool:
        """Whether it has a container that nobody needs just now."""
        return self.box is not None and not self.busy and not self.waiting


def next_move(*, warm: int, alive: int, limit: int, idle: int, coming: int, seekers: int) -> Move:
    """How a lease without a container gets one.

    `alive` counts all containers, those that boot or end included. `idle` may be ended for it: leases that nobody uses now, and warm
    containers of another kind. `coming` will be free without our doing: they boot ahead, or end.
    No more are evicted than there are leases that seek one.
    """
    if warm:
        return "warm"
    if alive < limit:
        return "boot"
    return "evict" if idle and coming < seekers else "wait"


def to_boot(*, warm: int, booting: int, alive: int, seekers: int, sizes: Sizes) -> int:
    """How many containers to boot ahead: leases that seek one now come first."""
    return max(0, min(sizes.warm - warm - booting, sizes.limit - alive - seekers))


class Pool(Generic[K, B]):
    """Leases and their containers. `boot` and `bury` block, on the pool's own threads, apart from each other; `bury` must not raise.

    Those that are kept warm are of the kind `plain`.
    """

    def __init__(self, boot: Callable[[K], B], bury: Callable[[B], None], plain: K, sizes: Sizes) -> None:
        self._boot, self._bury, self._plain, self._sizes = boot, bury, plain, sizes
        lock = threading.RLock()
        self._changed, self._chores = threading.Condition(lock), threading.Condition(lock)
        self._leases: dict[tuple[str, K], Lease[B]] = {}
        self._warm: deque[B] = deque()
        self._alive = self._booting = self._dying = self._seekers = self._failures = 0
        self._not_before = 0.0
        self._closed = False
        self._boots = ThreadPoolExecutor(sizes.limit, thread_name_prefix="sandbox-boot")
        self._burials = ThreadPoolExecutor(4, thread_name_prefix="sandbox-end")
        self._keeper = threading.Thread(target=self._keep, name="sandbox-keeper", daemon=True)

    def start(self) -> None:
        """Begin to boot ahead and to bury behind."""
        self._keeper.start()

    @contextmanager
    def hold(self, name: str, wait_s: float, kind: K | None = None) -> Generator[Taken[B]]:
        """A container of this lease and kind (None: the plain one) for one call. Raises `LaneGone`, or what `boot` raises."""
        kind = self._plain if kind is None else kind
        began, key = time.monotonic(), (name, kind)
        lease = self._enter(key, began + wait_s)
        try:
            yield self._take(lease, kind, began, wait_s)
        finally:
            self._leave(key, lease)

    def _enter(self, key: tuple[str, K], until: float) -> Lease[B]:
        """Wait until no other call is in the lease."""
        with self._changed:
            lease = self._leases.setdefault(key, Lease())
            lease.waiting += 1
            try:
                self._await(lambda: not lease.busy, until)
                lease.busy = True
            finally:
                lease.waiting -= 1
                self._forget(key, lease)
            return lease

    def _await(self, ready: Callable[[], bool], until: float) -> None:
        if not self._changed.wait_for(lambda: self._closed or ready(), max(0.0, until - time.monotonic())):
            raise LaneGone("no container became free in time; all are in use")
        if self._closed:
            raise LaneGone("the sandbox is closed")

    def _leave(self, key: tuple[str, K], lease: Lease[B]) -> None:
        with self._changed:
            lease.busy, lease.used = False, time.monotonic()
            if lease.box is not None and (self._closed or not lease.box.alive()):
                self._end(lease)
            self._forget(key, lease)
            self._changed.notify_all()

    def _forget(self, key: tuple[str, K], lease: Lease[B]) -> None:
        if lease.box is None and not lease.busy and not lease.waiting and self._leases.get(key) is lease:
            del self._leases[key]

    def _take(self, lease: Lease[B], kind: K, began: float, wait_s: float) -> Taken[B]:
        with self._changed:
            if lease.box is not None and not lease.box.alive():
                self._end(lease)
            if lease.box is None:
                lease.box = self._find(kind, began + wait_s)
            waited = 1000 * (time.monotonic() - began)
            if lease.box is not None:
                return Taken(lease.box, cold=False, wait_ms=waited, boot_ms=0.0)
        box = self._booted(kind, began + wait_s)
        with self._changed:
            lease.box = box
            if self._closed:
                raise LaneGone("the sandbox is closed")
        return Taken(box, cold=True, wait_ms=waited, boot_ms=1000 * (time.monotonic() - began) - waited)

    def _find(self, kind: K, until: float) -> B | None:
        """A warm container, or None when there is leave to boot one; then it is counted already. The lock is held."""
        self._seekers += 1
        try:
            while (move := self._move(kind)) != "boot":
                if move == "warm":
                    box = self._warm.popleft()
                    self._chores.notify_all()
                    if box.alive():
                        return box
                    self._buried(box)
                elif move == "evict":
                    self._evict()
                else:
                    self._await(lambda: self._move(kind) != "wait", until)
            self._alive += 1
            return None
        finally:
            self._seekers -= 1

    def _move(self, kind: K) -> Move:
        fits = kind == self._plain
        return next_move(
            warm=len(self._warm) if fits else 0,
            alive=self._alive,
            limit=self._sizes.limit,
            idle=len(self._idle()) + (0 if fits else len(self._warm)),
            coming=self._dying + self._booting,
            seekers=self._seekers,
        )

    def _idle(self) -> list[tuple[tuple[str, K], Lease[B]]]:
        return [(key, lease) for key, lease in self._leases.items() if lease.idle]

    def _evict(self) -> None:
        """End the lease that was idle the longest, or a warm container where all leases are in use. The lock is held."""
        if not self._idle():
            self._buried(self._warm.popleft())
            return
        key, lease = min(self._idle(), key=lambda found: found[1].used)
        self._end(lease)
        self._forget(key, lease)

    def _booted(self, kind: K, until: float) -> B:
        """A new container, already counted. One that comes too late is buried."""
        try:
            booting = self._boots.submit(self._boot, kind)
        except RuntimeError as error:
            self._uncount()
            raise LaneGone("the sandbox is closed") from error
        try:
            return booting.result(max(0.0, until - time.monotonic()))
        except TimeoutError as error:
            booting.add_done_callback(self._late)
            raise LaneGone("no container could be started in time") from error
        except BaseException:
            self._uncount()
            raise

    def _late(self, booting: Future[B]) -> None:
        if booting.exception() is None:
            with self._changed:
                self._buried(booting.result())
        else:
            self._uncount()

    def _uncount(self) -> None:
        with self._changed:
            self._alive -= 1
            self._changed.notify_all()

    def _end(self, lease: Lease[B]) -> None:
        """Take a lease's container from it and bury it. The lock is held."""
        box, lease.box = lease.box, None
        if box is not None:
            self._buried(box)

    def _buried(self, box: B) -> None:
        self._dying += 1
        try:
            self._burials.submit(self._burial, box)
        except RuntimeError:  # closed already: this one came late
            threading.Thread(target=self._burial, args=(box,), name="sandbox-end").start()

    def _burial(self, box: B) -> None:
        try:
            self._bury(box)
        finally:
            with self._changed:
                self._alive -= 1
                self._dying -= 1
                self._changed.notify_all()
                self._chores.notify_all()

    def release(self, name: str) -> None:
        """End a lease, each of its containers once no call is in it."""
        with self._changed:
            for key, lease in [found for found in self._leases.items() if found[0][0] == name]:
                self._await_idle(lease)
                self._end(lease)
                self._forget(key, lease)

    def _await_idle(self, lease: Lease[B]) -> None:
        self._changed.wait_for(lambda: self._closed or not lease.busy)

    def _keep(self) -> None:
        """The housekeeping thread: sleeps until something changes or the next lease has been idle for too long."""
        with self._changed:
            while not self._closed:
                self._end_idle()
                self._boot_ahead()
                self._chores.wait(min(0.5, self._sizes.idle_s / 4))

    def _end_idle(self) -> None:
        oldest = time.monotonic() - self._sizes.idle_s
        for key, lease in list(self._leases.items()):
            if lease.idle and lease.used < oldest:
                self._end(lease)
                self._forget(key, lease)

    def _boot_ahead(self) -> None:
        """Boot what the pool lacks; after a failure not before a pause that grows. Dead warm containers make room first."""
        for box in [box for box in self._warm if not box.alive()]:
            self._warm.remove(box)
            self._buried(box)
        if time.monotonic() < self._not_before:
            return
        count = to_boot(
            warm=len(self._warm), booting=self._booting, alive=self._alive, seekers=self._seekers, sizes=self._sizes
        )
        for _ in range(count):
            self._alive += 1
            self._booting += 1
            self._boots.submit(self._warm_up)

    def _warm_up(self) -> None:
        box: B | None = None
        try:
            box = self._boot(self._plain)
            self._failures = 0
        except MetierError as error:
            self._failed(error)
        finally:
            with self._changed:
                self._booting -= 1
                self._settle(box)
                self._changed.notify_all()

    def _settle(self, box: B | None) -> None:
        if box is None:
            self._alive -= 1
        elif self._closed:
            self._buried(box)
        else:
            self._warm.append(box)

    def _failed(self, error: MetierError) -> None:
        self._failures += 1
        pause = Backoff(first_s=0.5, ceiling_s=5.0).delay(self._failures) or 0.0
        self._not_before = time.monotonic() + pause
        log.warning("no container", action="boot_again", reason=error.code, error=str(error), after_s=pause)

    def close(self) -> None:
        """End every container, also those in use: their calls end as `died`."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            held = [lease.box for lease in self._leases.values() if lease.box is not None]
            for lease in self._leases.values():
                lease.box = None
            for box in (*self._warm, *held):
                self._buried(box)
            self._warm.clear()
            self._changed.notify_all()
            self._chores.notify_all()
            self._changed.wait_for(lambda: self._alive == 0, CLOSE_S)
        self._boots.shutdown(wait=False, cancel_futures=True)
        self._burials.shutdown(wait=False)
        if self._keeper.is_alive():
            self._keeper.join(5.0)
