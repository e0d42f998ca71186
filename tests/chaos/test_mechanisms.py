"""That the checks of `metier chaos` can fail: each mechanism that a promise rests on is taken out of the orchestrator, and the checks go red.

Each situation is one that the whole product stands, which is shown first. Taken out by `broken.py`; the other roles are whole.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from metier.chaos.fleet import LAUNCH
from metier.chaos.plan import Request

from .conftest import Ground

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(900)]

BROKEN = Path(__file__).with_name("broken.py")
ORCHESTRATORS = ("orchestrator-1", "orchestrator-2")
HELD_S = 3.0
"""How long the whole product is given to do what it never does; seconds."""


@dataclass(frozen=True)
class Mechanism:
    """What is taken out; the check that goes red then; the situation in which it does; what else the product can do without in it."""

    name: str
    red: str
    happens: Callable[[Ground, bool], Awaitable[Sequence[Request]]]
    without: str | None = None


async def duplicates(ground: Ground, whole: bool) -> Sequence[Request]:
    """Requests come three times."""
    del whole
    await ground.started("orchestrator-1")
    return await ground.ask("chain", "chain", copies=3)


async def crash(ground: Ground, whole: bool, point: str) -> Sequence[Request]:
    """A run's orchestrator dies at this point, and is started again."""
    del whole
    await ground.started("orchestrator-1", point)
    requests = await ground.ask("chain")
    await ground.dead("orchestrator-1")
    await ground.member("orchestrator-1").again()
    return requests


async def half_done(ground: Ground, whole: bool) -> Sequence[Request]:
    """An orchestrator has read requests, has handled none, and dies: as soon as it committed one of them all the same."""
    orchestrator = ground.member("orchestrator-1")
    await ground.killed(orchestrator.name)
    requests, before = await ground.ask(*("chain",) * 4), await ground.committed()
    orchestrator.start(METIER_FAILPOINTS="request.consumed=sleep:300@1")

    async def commits() -> bool:
        return await ground.committed() != before

    await (asyncio.sleep(HELD_S) if whole else ground.until("what was not handled is committed", commits))
    await orchestrator.again()
    return requests


async def zombie(ground: Ground, whole: bool) -> Sequence[Request]:
    """An orchestrator stands still in the middle of a run until another one has ended it, and then goes on."""
    frozen, other = ground.member("orchestrator-1"), ground.member("orchestrator-2")
    await ground.started(frozen.name, "checkpoint.stored=freeze@1")
    requests = await ground.ask("chain")
    await ground.stands_still(frozen.name)
    await ground.started(other.name)
    await ground.ended(requests)
    frozen.send(signal.SIGCONT)
    if whole:
        await ground.says(frozen.name, '"action": "fenced"')
    return requests


MECHANISMS = [
    Mechanism("dedup", "doubled_terminal", duplicates),
    Mechanism("sync_durability", "doubled_results", partial(crash, point="call.sent=crash@2")),
    Mechanism("outbox", "lost", partial(crash, point="run.told=crash@1")),
    Mechanism("offset_tracking", "lost", half_done),
    Mechanism("fencing", "doubled_results", zombie, without="deaf"),
]


@pytest_asyncio.fixture(loop_scope="package", params=MECHANISMS, ids=[one.name for one in MECHANISMS])
async def mechanism(request: pytest.FixtureRequest, ground: Ground) -> AsyncGenerator[Mechanism]:
    """One of them; afterwards the orchestrators are whole again, there is one, and nothing is left to do."""
    yield request.param
    for name in ORCHESTRATORS:
        ground.member(name).launch = LAUNCH
        await ground.killed(name)
    await ground.member("orchestrator-1").again()
    await ground.quiet()


async def test_another_replica_goes_on_with_what_a_dead_one_held(ground: Ground) -> None:
    # Given an orchestrator that dies in the middle of a run and stays dead
    await ground.started("orchestrator-1", "call.sent=crash@1")
    requests = await ground.ask("chain")
    await ground.dead("orchestrator-1")
    # When there is another one
    await ground.started("orchestrator-2")
    # Then the run goes on there to its end
    await ground.ended(requests)
    assert not ground.member("orchestrator-1").running
    assert not await ground.wrong(requests)
    await ground.killed("orchestrator-2")
    await ground.started("orchestrator-1")


async def test_the_whole_product_stands_it(ground: Ground, mechanism: Mechanism) -> None:
    if mechanism.without is not None:
        ground.member("orchestrator-1").launch = (sys.executable, str(BROKEN), mechanism.without)

    requests = await mechanism.happens(ground, True)
    await ground.ended(requests)

    assert not await ground.wrong(requests)


async def test_without_the_mechanism_the_checks_go_red(ground: Ground, mechanism: Mechanism) -> None:
    ground.member("orchestrator-1").launch = (sys.executable, str(BROKEN), mechanism.name)

    requests = await mechanism.happens(ground, False)

    async def red() -> bool:
        return mechanism.red in await ground.wrong(requests)

    await ground.until(f"{mechanism.red} is counted", red)
