"""What was told of a run before somebody listened, made of the journal: the same events under the same ids.

`client.watch` shows it before what is told from now on. The journal keeps no nodes and no text: those are told only to whoever listens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from metier_agents.parking import wanted
from metier_agents.telling import tool_answered, tool_called
from metier_infra.events import DecisionMade, Event, RunStarted
from metier_infra.journal import Journal
from metier_infra.messages import Envelope
from metier_infra.rows import Approval, Call, Run, ToolCallRow
from metier_infra.words import RunId
from metier_workflows import progress
from metier_workflows.approving import settled

SOURCE = progress.SOURCE


async def past(journal: Journal, run: Run) -> list[Envelope[Event]]:
    """All that is known to have happened to a run, in the order of time."""
    run_id = RunId(run.run_id)
    found = [*_of_run(run)]
    for kept in await journal.decisions.kept(run_id):
        told = DecisionMade(run_id=run_id, decision=kept.decision)
        found.append(_at(Envelope(told, kept.decision_id, SOURCE, run_id), kept.at))
    for call in await journal.calls.of_run(run_id):
        found += _of_call(call)
    for row in await journal.tools.of_run(run_id):
        found += _of_tool(row)
    for approval in await journal.approvals.of_run(run_id):
        found += _of_approval(approval)
    return [*sorted(found, key=lambda event: event.time), *_end(run)]


def _at(event: Envelope[Any], at: float) -> Envelope[Any]:
    return replace(event, time=datetime.fromtimestamp(at, UTC))


def _of_run(run: Run) -> Iterator[Envelope[Any]]:
    if run.started_at is not None and run.version is not None:
        told = RunStarted(run_id=run.run_id, workflow=run.workflow, version=run.version)
        yield _at(Envelope(told, f"{run.run_id}/started", SOURCE, run.run_id), run.started_at)
    if run.parked_at is not None:
        yield _at(progress.parked(run.run_id, run.epoch), run.parked_at)


def _end(run: Run) -> Iterator[Envelope[Any]]:
    if run.ended:
        end = Envelope(run.end, f"{run.run_id}/ended", SOURCE, run.run_id, subject=run.event_id)
        yield _at(end, run.finished_at or 0.0)


def _of_call(call: Call) -> Iterator[Envelope[Any]]:
    yield _at(progress.asked(call), call.requested_at)
    if call.answered_at is not None:
        yield _at(progress.answered(call), call.answered_at)


def _of_tool(row: ToolCallRow) -> Iterator[Envelope[Any]]:
    yield _at(tool_called(row), row.requested_at)
    if row.finished_at is not None:
        yield _at(tool_answered(row), row.finished_at)


def _of_approval(one: Approval) -> Iterator[Envelope[Any]]:
    yield _at(wanted(one), one.wanted_at)
    if one.decided_at is not None:
        yield _at(settled(one), one.decided_at)
