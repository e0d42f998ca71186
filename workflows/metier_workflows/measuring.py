"""What runs are measured by: each when it begins and ends, and how many have not. The names are in `metier_infra.metrics`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from metier_infra import metrics
from metier_infra.open_runs import Open
from metier_infra.rows import ENDED, Run
from metier_infra.words import Decision

OPEN = ("accepted", "running", "parked")


def run_ended(run: Run) -> None:
    """A run ended here. Of a workflow that may not exist, the name is that of whoever asked, and is not counted by."""
    failed = run.failure.code if run.failure else ("cancelled" if run.status == "cancelled" else None)
    known = failed != "unknown_workflow" and (failed != "cancelled" or run.agents)
    workflow = run.workflow if known else metrics.OTHER
    name = {metrics.WORKFLOW_NAME: workflow}
    metrics.record(metrics.WORKFLOW_DURATION, run.spent.time_s, {**name, metrics.ERROR_TYPE: failed})
    metrics.add(metrics.RUNS_ENDED, 1, {**name, metrics.STATE: run.status, metrics.REASON: failed})
    metrics.record(metrics.RUN_COST, run.cost_usd, {**name, metrics.STATE: run.status})
    for state, time_s in _times(run).items():
        metrics.record(metrics.TIME_IN_STATE, time_s, {metrics.STATE: state})


def _times(run: Run) -> Mapping[str, float]:
    """Seconds in each state that it was in."""
    started = run.started_at or run.finished_at or run.accepted_at
    running = (run.finished_at or started) - started - run.parked_s
    found = {"accepted": started - run.accepted_at, "running": running, "parked": run.parked_s}
    return {state: max(0.0, time_s) for state, time_s in found.items() if state != "parked" or time_s > 0}


def open_runs(found: Mapping[str, Open]) -> None:
    """How many runs have not ended, and how long they wait."""
    for state in OPEN:
        of = found.get(state, Open())
        for metric, value in ((metrics.RUNS, of.runs), (metrics.OLDEST_RUN, of.age_s), (metrics.QUIET, of.quiet_s)):
            metrics.level(metric, value, {metrics.STATE: state})


def begin(workflows: Iterable[str]) -> None:
    """Count from 0 what alerts look at, so that the first one is seen to come."""
    for metric in (metrics.LEASES_EXPIRED, metrics.FENCED, metrics.ROUTERS_BROKEN, metrics.DRIFT_ALARMS):
        metrics.add(metric, 0)
    for workflow in workflows:
        for status in sorted(ENDED):
            metrics.add(metrics.RUNS_ENDED, 0, {metrics.WORKFLOW_NAME: workflow, metrics.STATE: status})


def run_began(run: Run) -> None:
    """A run's graph begins here; what was taken up again after a crash began before."""
    if run.epoch == 1 and run.started_at is not None:
        metrics.record(metrics.FIRST_STEP, run.started_at - run.accepted_at, {metrics.WORKFLOW_NAME: run.workflow})


def decided(decision: Decision) -> None:
    """A routing choice was kept."""
    for agent in decision.chosen:
        metrics.add(metrics.DECISIONS, 1, {metrics.AGENT_NAME: agent, metrics.TOPOLOGY: decision.topology})


def woken(run: Run) -> None:
    """A run was found that nobody alive holds: where it was running, its holder fell silent."""
    if run.status == "running":
        metrics.add(metrics.LEASES_EXPIRED)
