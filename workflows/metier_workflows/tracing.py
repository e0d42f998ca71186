"""To which trace a segment of a run belongs: to that of its run, for as long as a trace may grow; then to a new one, linked with the one before both ways.

A tracing backend decides on a trace within minutes and then forgets it, and a run may be parked for weeks. `execution` asks when it takes a run up again; the
run's id stands on the spans of all its traces.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from metier_infra import telemetry
from metier_infra.journal import Journal
from metier_infra.rows import Run
from metier_infra.segments import Segment

WINDOW_S = 600.0


class Tracing:
    """`window_s` is how long after its beginning a trace takes new segments; seconds."""

    def __init__(self, journal: Journal, window_s: float = WINDOW_S) -> None:
        self._journal = journal
        self._window_s = window_s

    async def resumed(self, run: Run, woken_by: str) -> Run:
        """The run as this segment of it is traced; and that it was taken up again is written down."""
        if run.epoch == 1:
            return run
        root, begun_at = newest(run, await self._journal.segments.of_run(run.run_id))
        fresh = _renewed(run, root) if time.time() - begun_at > self._window_s else None
        await self._journal.segments.began(run.run_id, run.epoch, woken_by=woken_by, traceparent=fresh)
        return run.model_copy(update={"traceparent": fresh or root})


def newest(run: Run, segments: Sequence[Segment]) -> tuple[str, float]:
    """The root of the run's last trace, and when that began; seconds since the epoch."""
    for one in reversed(segments):
        if one.traceparent is not None and one.began_at is not None:
            return one.traceparent, one.began_at
    return run.traceparent, run.accepted_at


def _renewed(run: Run, before: str) -> str:
    """The root of a new trace, with a span in each of the two that leads to the other."""
    name = telemetry.invoke_workflow(run.workflow)
    attributes = {
        telemetry.RUN_ID: run.run_id,
        telemetry.WORKFLOW_NAME: run.workflow,
        telemetry.OPERATION: "invoke_workflow",
        telemetry.RUN_STATE: "resumed",
    }
    with (
        telemetry.span(name, parent=telemetry.ROOT, links=[before], attributes=attributes) as fresh,
        telemetry.span(name, parent=before, links=[fresh.traceparent], attributes=attributes),
    ):
        return fresh.traceparent
