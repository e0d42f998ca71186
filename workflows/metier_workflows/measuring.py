"""What runs are measured by: each when it ends, and how many have not. The names are in `metier_infra.metrics`."""

from __future__ import annotations

from collections.abc import Mapping

from metier_infra import metrics
from metier_infra.rows import Run
from metier_infra.words import Decision

OPEN = ("accepted", "running", "parked")


def run_ended(run: Run) -> None:
    """A run ended here. Of a workflow that may not exist, the name is that of whoever asked, and is not counted by."""
    failed = run.failure.code if run.failure else ("cancelled" if run.status == "cancelled" else None)
    known = failed != "unknown_workflow" and (failed != "cancelled" or run.agents)
    workflow = run.workflow if known else metrics.OTHER
    name = {metrics.WORKFLOW_NAME: workflow}
    metrics.record(metrics.WORKFLOW_DURATION, run.spent.time_s, {**name, metrics.ERROR_TYPE: failed})
    metrics.record(metrics.RUN_COST, run.cost_usd, {**name, metrics.STATE: run.status})
    for state, time_s in _times(run).items():
        metrics.record(metrics.TIME_IN_STATE, time_s, {metrics.STATE: state})


def _times(run: Run) -> Mapping[str, float]:
    """Seconds in each state that it was in."""
    started = run.started_at or run.finished_at or run.accepted_at
    running = (run.finished_at or started) - started - run.parked_s
    found = {"accepted": started - run.accepted_at, "running": running, "parked": run.parked_s}
    return {state: max(0.0, time_s) for state, time_s in found.items() if state != "parked" or time_s > 0}


def runs_by_state(counts: Mapping[str, int]) -> None:
    """How many runs have not ended."""
    for state in OPEN:
        metrics.level(metrics.RUNS, counts.get(state, 0), {metrics.STATE: state})


def decided(decision: Decision) -> None:
    """A routing choice was kept."""
    for agent in decision.chosen:
        metrics.add(metrics.DECISIONS, 1, {metrics.AGENT_NAME: agent, metrics.TOPOLOGY: decision.topology})


def woken(run: Run) -> None:
    """A run was found that nobody alive holds: where it was running, its holder fell silent."""
    if run.status == "running":
        metrics.add(metrics.LEASES_EXPIRED)
