"""The delivery promises when a role dies: a crash at every named point of every role, on real services.

Not here: many runs under many faults at once (`test_quick_tier`), and the proof that the checks can fail (`test_mechanisms`).
"""

from __future__ import annotations

import pytest

from metier.chaos.plan import Ask
from metier_infra import failpoints

from .conftest import Ground

pytestmark = pytest.mark.timeout(900)

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


@pytest.mark.asyncio(loop_scope="package")
@pytest.mark.parametrize(
    ("name", "point", "workflow", "nth"), CRASHES, ids=[f"{n} {p} {w} {i}" for n, p, w, i in CRASHES]
)
async def test_a_crash_at_each_point_of_each_role_breaks_no_promise(
    ground: Ground, name: str, point: str, workflow: Ask, nth: int
) -> None:
    member = ground.member(name)
    # Given a role that will die at this point
    await member.again(METIER_FAILPOINTS=f"{point}=crash@{nth}")
    await member.ready()  # or it is dead already: some points lie before that
    # When a run leads it there
    requests = await ground.ask(workflow)
    await ground.dead(name)
    await member.again()
    # Then the run ends well, and nothing was lost or doubled
    await ground.ended(requests)
    wrong = await ground.wrong(requests)
    assert not wrong, (wrong, member.log[-3000:])


def test_every_named_point_has_a_crash() -> None:
    assert {point for _, point, _, _ in CRASHES} == set(failpoints.POINTS)
