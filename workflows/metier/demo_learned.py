"""The second part of `metier demo`: a router learns on the half of the recordings that no demo draws from, is judged, promoted, and decides for the same queries.

`demo` calls it between its two rounds. All of it goes the way that a user's own router goes: fitted, kept, judged on rows that it was not fitted on, moved by an event.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from uuid import uuid4

import numpy as np
from pydantic import JsonValue

from metier import client, compose, router_moves
from metier.configuration import System
from metier.demo_report import is_right
from metier.examples.specialists import comparable
from metier_agents.recordings import RecordedQuery, read_recordings
from metier_infra.errors import MoveRefused
from metier_infra.events import RouterMoveRequested
from metier_infra.messages import Envelope
from metier_infra.routers import RouterVersion
from metier_workflows import router_data, router_judging
from metier_workflows.choosing import stored
from metier_workflows.choosing.matrix import Matrix

TENANT = "demo"
"""The router decides for this tenant alone: whatever else runs in the system keeps its own."""
RECORDED = "recorded:"


def matrix(queries: Sequence[RecordedQuery], models: Mapping[str, str]) -> Matrix:
    """What each agent's model (`recorded:NAME`, by agent) answered to these queries, thinking alone."""
    names = [model.removeprefix(RECORDED) for model in models.values()]
    found = [[query.answers[name] for name in names] for query in queries]
    categories = tuple(query.category for query in queries)
    return Matrix(
        ids=tuple(query.id for query in queries),
        tasks=tuple(query.task for query in queries),
        categories=categories,
        texts=tuple(query.text for query in queries),
        models=tuple(models),
        scores=np.array(
            [
                [float(is_right(query, one.answer or "")) for one in row]
                for query, row in zip(queries, found, strict=True)
            ]
        ),
        costs=np.array([[one.cost_usd for one in row] for row in found]),
        answers=np.array([[comparable(one.answer or "") for one in row] for row in found]),
    )


def parts(queries: Sequence[RecordedQuery]) -> tuple[list[RecordedQuery], list[RecordedQuery]]:
    """Three quarters to fit on, and a quarter to judge by."""
    judging = [query for query in queries if hashlib.sha256(query.id.encode()).digest()[1] % 4 == 0]
    kept = {query.id for query in judging}
    return [query for query in queries if query.id not in kept], judging


async def learn(system: System, models: Mapping[str, str]) -> RouterVersion:
    """Fit a router, judge it and have it promoted; the version. Raises `MoveRefused` where it is not."""
    fitting, judging = parts(read_recordings(compose.recordings_path()).calibration())
    rows = matrix(fitting, models)
    facts: dict[str, JsonValue] = {
        "source": "recordings",
        "name": "calibration",
        "rows": len(rows),
        "agents": list(models),
        "digest": router_data.digest(rows),
    }
    fitted = stored.fit(rows, facts, by="metier demo")
    version = await system.journal.routers.keep(fitted.known, fitted.body)
    verdict = router_judging.verdict(None, router_judging.on_set(stored.load(fitted), matrix(judging, models)))
    await system.journal.routers.judge(version.version, verdict)
    stages = (await system.journal.routers.stages()).get(TENANT)
    if stages is None or stages.promoted != version.version:
        await _promote(system, version.version)
    return version.model_copy(update={"report": verdict})


async def _promote(system: System, version: str) -> None:
    asked = RouterMoveRequested(router=version, to="promoted", tenant=TENANT, by="metier demo", note="its second part")
    found = await router_moves.ask(system, Envelope(asked, str(uuid4()), client.SOURCE, version))
    if found.state != "moved":
        why = found.failure.message if found.failure else "no orchestrator took the request"
        raise MoveRefused(f"the router of the demo was not promoted: {why}")
