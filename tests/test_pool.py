"""The pool: which container serves which lease, how many there are, and what ends. No engine: `Yard` counts what is booted and buried."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from metier_infra.errors import EngineGone, LaneGone
from metier_tools.pool import Pool, Sizes, next_move, to_boot


def until(ready: Callable[[], bool], within_s: float) -> bool:
    end = time.monotonic() + within_s
    while not ready() and time.monotonic() < end:
        time.sleep(0.01)
    return ready()


@pytest.mark.parametrize(
    ("state", "move"),
    [
        ({"warm": 1, "alive": 4, "idle": 3}, "warm"),
        ({"warm": 0, "alive": 3, "idle": 3}, "boot"),
        ({"warm": 0, "alive": 4, "idle": 1}, "evict"),
        ({"warm": 0, "alive": 4, "idle": 1, "coming": 1}, "wait"),
        ({"warm": 0, "alive": 4, "idle": 1, "coming": 1, "seekers": 2}, "evict"),
        ({"warm": 0, "alive": 4, "idle": 0}, "wait"),
    ],
)
def test_how_a_lease_gets_a_container(state: dict[str, int], move: str) -> None:
    assert next_move(**({"limit": 4, "coming": 0, "seekers": 1} | state)) == move


@pytest.mark.parametrize(
    ("warm", "booting", "alive", "count"), [(0, 0, 0, 2), (1, 1, 2, 0), (0, 0, 3, 1), (0, 0, 9, 0)]
)
def test_how_many_are_booted_ahead(warm: int, booting: int, alive: int, count: int) -> None:
    assert to_boot(warm=warm, booting=booting, alive=alive, seekers=0, sizes=Sizes(warm=2, limit=4, idle_s=1)) == count


def test_none_is_booted_ahead_while_a_lease_seeks_one() -> None:
    assert to_boot(warm=0, booting=0, alive=3, seekers=1, sizes=Sizes(warm=2, limit=4, idle_s=1)) == 0


@dataclass
class Fake:
    n: int
    kind: str = "plain"
    well: bool = True

    def alive(self) -> bool:
        return self.well


@dataclass
class Yard:
    """Counts what a pool boots and buries."""

    booted: list[Fake] = field(default_factory=list[Fake])
    buried: list[int] = field(default_factory=list[int])
    most: int = 0

    def boot(self, kind: str) -> Fake:
        box = Fake(len(self.booted), kind)
        self.booted.append(box)
        self.most = max(self.most, len(self.booted) - len(self.buried))
        time.sleep(0.01)
        return box

    def bury(self, box: Fake) -> None:
        time.sleep(0.01)
        self.buried.append(box.n)

    @contextlib.contextmanager
    def pool(self, **sizes: float) -> Generator[Pool[str, Fake]]:
        made = {"warm": 0, "limit": 2, "idle_s": 60} | sizes
        pool = Pool(self.boot, self.bury, "plain", Sizes(int(made["warm"]), int(made["limit"]), made["idle_s"]))
        pool.start()
        try:
            yield pool
        finally:
            pool.close()
        assert sorted(self.buried) == [box.n for box in self.booted]


def use(pool: Pool[str, Fake], lease: str, wait_s: float = 5.0, kind: str | None = None) -> int:
    with pool.hold(lease, wait_s, kind) as taken:
        return taken.box.n


def test_at_the_limit_the_lease_unused_for_longest_gives_way() -> None:
    yard = Yard()
    with yard.pool() as pool:
        assert [use(pool, lease) for lease in ("a", "b", "a")] == [0, 1, 0]
        assert use(pool, "c") == 2
        assert yard.buried == [1]
        assert use(pool, "a") == 0
    assert yard.most == 2


def test_at_the_limit_with_none_idle_a_call_waits_and_then_gives_up() -> None:
    with Yard().pool() as pool, pool.hold("a", 1), pool.hold("b", 1):
        began = time.monotonic()
        with pytest.raises(LaneGone, match="all are in use"):
            use(pool, "c", 0.2)
        assert 0.15 < time.monotonic() - began < 10


def test_a_call_that_waits_gets_the_first_container_that_becomes_free() -> None:
    with Yard().pool() as pool, ThreadPoolExecutor() as threads:
        with pool.hold("a", 1), pool.hold("b", 1):
            waiting = threads.submit(use, pool, "c")
            time.sleep(0.05)
            assert not waiting.done()
        assert waiting.result(2) == 2


def test_a_container_that_is_not_well_is_not_used_again() -> None:
    yard = Yard()
    with yard.pool() as pool:
        with pool.hold("a", 1) as taken:
            taken.box.well = False
        assert use(pool, "a") == 1
        yard.booted[1].well = False
        assert use(pool, "a") == 2
        assert until(lambda: yard.buried == [0, 1], 2)


def test_an_idle_lease_is_ended_and_the_pool_is_kept_warm() -> None:
    yard = Yard()
    with yard.pool(warm=1, limit=3, idle_s=0.2) as pool:
        assert until(lambda: len(yard.booted) == 1, 2)
        time.sleep(0.2)
        with pool.hold("a", 1) as taken:
            assert not taken.cold
        assert until(lambda: yard.buried == [0], 2)
        assert len(yard.booted) == 2


def test_many_callers_never_exceed_the_limit() -> None:
    yard = Yard()
    with yard.pool(limit=3, warm=1) as pool, ThreadPoolExecutor(12) as threads:
        list(threads.map(use, [pool] * 150, [f"lease-{n % 7}" for n in range(150)]))
    assert yard.most <= 3


def test_a_boot_that_fails_is_told_and_leaves_room() -> None:
    yard = Yard()

    def boot(kind: str) -> Fake:
        if not yard.booted:
            yard.booted.append(Fake(0))
            yard.buried.append(0)
            raise EngineGone("not yet")
        return yard.boot(kind)

    pool = Pool(boot, yard.bury, "plain", Sizes(warm=0, limit=1, idle_s=60))
    pool.start()
    with pytest.raises(EngineGone):
        use(pool, "a")
    assert use(pool, "a") == 1
    pool.close()


def test_a_boot_that_takes_too_long_is_not_waited_for_and_its_container_is_buried() -> None:
    yard, go_on = Yard(), threading.Event()

    def boot(kind: str) -> Fake:
        go_on.wait(30)
        return yard.boot(kind)

    pool = Pool(boot, yard.bury, "plain", Sizes(warm=0, limit=1, idle_s=60))
    pool.start()
    with pytest.raises(LaneGone, match="could be started in time"):
        use(pool, "a", 0.1)
    with pytest.raises(LaneGone, match="all are in use"):
        use(pool, "b", 0.1)
    go_on.set()
    assert until(lambda: yard.buried == [0], 5)
    assert use(pool, "b") == 1
    pool.close()


def test_boots_that_hang_hold_up_no_other_lease() -> None:
    yard, go_on = Yard(), threading.Event()

    def boot(kind: str) -> Fake:
        if kind == "hangs":
            go_on.wait(30)
        return yard.boot(kind)

    pool = Pool(boot, yard.bury, "plain", Sizes(warm=0, limit=8, idle_s=60))
    pool.start()
    with ThreadPoolExecutor(6) as threads:
        hanging = [threads.submit(use, pool, f"h{n}", 20.0, "hangs") for n in range(6)]
        assert use(pool, "well", 5.0) == 0
        go_on.set()
        assert sorted(one.result(10) for one in hanging) == [1, 2, 3, 4, 5, 6]
    pool.close()


def test_a_container_that_boots_while_the_pool_is_closed_is_buried_all_the_same() -> None:
    yard, booting, go_on = Yard(), threading.Event(), threading.Event()

    def boot(kind: str) -> Fake:
        booting.set()
        go_on.wait(30)
        return yard.boot(kind)

    pool = Pool(boot, yard.bury, "plain", Sizes(warm=0, limit=1, idle_s=60))
    pool.start()
    with ThreadPoolExecutor(2) as threads:
        asking = threads.submit(use, pool, "a", 20.0)
        assert booting.wait(5)
        closing = threads.submit(pool.close)
        go_on.set()
        closing.result(10)
        with pytest.raises(LaneGone, match="closed"):
            asking.result(5)
    assert until(lambda: yard.buried == [0], 5)


def test_a_lease_has_a_container_of_each_kind_and_loses_all_of_them_at_once() -> None:
    yard = Yard()
    with yard.pool(limit=4) as pool:
        assert [use(pool, "a", kind=kind) for kind in ("plain", "server", "plain", "server")] == [0, 1, 0, 1]
        pool.release("a")
        assert [use(pool, "a", kind=kind) for kind in ("plain", "server")] == [2, 3]
    assert [box.kind for box in yard.booted] == ["plain", "server", "plain", "server"]


def test_at_the_limit_a_warm_container_gives_way_to_one_of_another_kind() -> None:
    yard = Yard()
    with yard.pool(limit=1, warm=1) as pool:
        while not yard.booted:
            time.sleep(0.005)
        assert use(pool, "a", kind="server") == 1
    assert yard.most == 1
