"""What an orchestrator tells of a run's progress. Each event's id follows from what it tells: it is the same when it is told again, after a crash too.

`segment` tells of nodes, `run_desk` of calls, `execution` of segments, all through the run's `Outgoing`; `metier runs watch` makes the same events of the journal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from metier_infra.messages import Envelope
from metier_infra.progress_events import AgentAnswered, AgentAsked, NodeEnded, NodeStarted, RunParked, RunResumed
from metier_infra.rows import Call
from metier_infra.words import CallId, RunId

SOURCE = "/metier/orchestrator"


def node_started(run_id: RunId, task: Mapping[str, Any]) -> Envelope[NodeStarted]:
    """A task of the graph began, as LangGraph's stream has it."""
    told = NodeStarted(run_id=run_id, task=task["id"], node=task["name"])
    return Envelope(told, f"{run_id}/node/{told.task}/began", SOURCE, run_id)


def node_ended(run_id: RunId, task: Mapping[str, Any]) -> Envelope[NodeEnded]:
    """It ended. Of one that had ended before, LangGraph says only that it begins. One that failed and runs again after a crash may end well."""
    told = NodeEnded(run_id=run_id, task=task["id"], node=task["name"], ok=task.get("error") is None)
    return Envelope(told, f"{run_id}/node/{told.task}/{'done' if told.ok else 'failed'}", SOURCE, run_id)


def asked(call: Call) -> Envelope[AgentAsked]:
    """A node asked an agent."""
    told = AgentAsked(run_id=call.run_id, call_id=call.call_id, agent=call.agent, node=node_of(call))
    return Envelope(told, f"{call.call_id}/asked", SOURCE, call.run_id)


def answered(call: Call) -> Envelope[AgentAnswered]:
    """A call's result is there."""
    answer, failure = call.answer, call.failure
    told = AgentAnswered(
        run_id=call.run_id,
        call_id=call.call_id,
        agent=call.agent,
        ok=answer is not None,
        reason=failure.code if failure else None,
        model=answer.model if answer else "",
        cost_usd=answer.cost_usd if answer else call.cost_usd,
        stamp=call.stamp,
    )
    return Envelope(told, f"{call.call_id}/told", SOURCE, call.run_id)


def parked(run_id: RunId, segment: int, calls: Sequence[CallId] = ()) -> Envelope[RunParked]:
    """The run's segment of this number is about to leave memory."""
    told = RunParked(run_id=run_id, segment=segment, calls=tuple(calls))
    return Envelope(told, f"{run_id}/parked/{segment}", SOURCE, run_id)


def resumed(run_id: RunId, segment: int) -> Envelope[RunResumed]:
    """The run's segment of this number began."""
    told = RunResumed(run_id=run_id, segment=segment)
    return Envelope(told, f"{run_id}/resumed/{segment}", SOURCE, run_id)


def node_of(call: Call) -> str:
    """The node that asked, with those of the graphs round it: LangGraph's namespace is `NODE:TASK`, joined by `|`."""
    place = call.slot[0] if call.slot else ""
    return "/".join(part.partition(":")[0] for part in place.split("|"))
