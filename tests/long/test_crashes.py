"""The delivery promises when a role dies: a crash at every named point of every role, on real services. `make long` runs it.

Not here: many runs under many faults at once, and the proof that the checks can fail (`test_chaos.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from metier import client, configuration
from metier.chaos import checks
from metier.chaos.fleet import LOOK_S, Member
from metier.chaos.harness import Scene, Setting, scene
from metier.chaos.plan import Ask, Request

ALONE = ("orchestrator-1", "doer-1", "coder-1", "sayer-1", "tools-1")
"""The fewest processes that can end every run."""
PATIENCE_S = 90.0


@dataclass
class Ground:
    """A small fleet that lasts for all crashes, and the runs that were asked of it so far."""

    scene: Scene
    asked: list[Request] = field(default_factory=list[Request])


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ground() -> AsyncGenerator[Ground]:
    async with scene(configuration.configure(), Setting(names=ALONE)) as there:
        yield Ground(there)


CRASHES: list[tuple[str, str, Ask, int]] = [
    ("orchestrator-1", "request.consumed", "chain", 1),
    ("orchestrator-1", "request.accepted", "chain", 1),
    ("orchestrator-1", "run.leased", "chain", 1),
    ("orchestrator-1", "checkpoint.stored", "chain", 1),
    ("orchestrator-1", "checkpoint.stored", "chain", 3),
    ("orchestrator-1", "checkpoint.stored", "fan", 3),
    ("orchestrator-1", "call.requested", "chain", 1),
    ("orchestrator-1", "call.requested", "fan", 3),
    ("orchestrator-1", "call.sent", "chain", 2),
    ("orchestrator-1", "call.sent", "fan", 4),
    ("orchestrator-1", "run.finished", "chain", 1),
    ("orchestrator-1", "run.told", "fan", 1),
    ("orchestrator-1", "record.handled", "chain", 1),
    ("orchestrator-1", "record.handled", "fan", 3),
    ("doer-1", "call.claimed", "chain", 1),
    ("doer-1", "model.answered", "chain", 1),
    ("doer-1", "model.answered", "fan", 2),
    ("doer-1", "step.recorded", "chain", 1),
    ("doer-1", "step.recorded", "chain", 2),
    ("doer-1", "tool.requested", "chain", 1),
    ("doer-1", "tool.returned", "chain", 1),
    ("doer-1", "call.answered", "chain", 1),
    ("doer-1", "record.handled", "fan", 1),
    ("sayer-1", "model.answered", "fan", 2),
    ("coder-1", "tool.returned", "code", 1),
    ("tools-1", "tool.taken", "chain", 1),
    ("tools-1", "tool.executed", "chain", 1),
    ("tools-1", "tool.executed", "code", 1),
    ("tools-1", "tool.replied", "code", 1),
    ("tools-1", "container.created", "code", 1),
]


async def ended(member: Member, what: str) -> None:
    """Wait until the process is gone: nothing tells us, so look again and again."""
    for _ in range(int(PATIENCE_S / LOOK_S)):
        if not member.running:
            return
        await asyncio.sleep(LOOK_S)
    pytest.fail(f"{what}: not within {PATIENCE_S:.0f} s; it said:\n{member.log[-3000:]}")


@pytest.mark.parametrize(
    ("name", "point", "workflow", "nth"), CRASHES, ids=[f"{n} {p} {w} {i}" for n, p, w, i in CRASHES]
)
async def test_a_crash_at_each_point_of_each_role_breaks_no_promise(
    ground: Ground, name: str, point: str, workflow: Ask, nth: int
) -> None:
    there, member = ground.scene, ground.scene.roles.members[name]
    # Given a role that will die at this point
    await member.again(METIER_FAILPOINTS=f"{point}=crash@{nth}")
    await member.ready()  # or it is dead already: some points lie before that
    # When a run leads it there
    request = Request(0.0, f"{name}/{point}/{workflow}/{nth}".replace("/", "-"), workflow, 1, None)
    ground.asked.append(request)
    await there.ask([request])
    await ended(member, f"{name} dies at {point}")
    await member.again()
    # Then the run ends well, and nothing was lost or doubled
    await there.settle(len(ground.asked))
    wrong = checks.judge(await there.look(ground.asked), client.SOURCE)
    assert not any(wrong.values()), (wrong, member.log[-3000:])
