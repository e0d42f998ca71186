"""`metier runs watch`: a run on the terminal while it goes on, a line for each event, and what models write as they write it."""

from __future__ import annotations

import json
import sys
from typing import IO, Any

import typer

from metier import client
from metier.cli_runs import Json, RunArgument, find_run, run_command
from metier.configuration import System
from metier.terminal import shown
from metier_infra.events import (
    ApprovalSettled,
    ApprovalWanted,
    DecisionMade,
    Event,
    RunCancelled,
    RunFailed,
    RunStarted,
    RunSucceeded,
)
from metier_infra.messages import Envelope
from metier_infra.progress_events import (
    AgentAnswered,
    AgentAsked,
    NodeEnded,
    NodeStarted,
    RunParked,
    RunResumed,
    TextWritten,
    ToolAnswered,
    ToolCalled,
)
from metier_infra.rows import Run

LONGEST = 300
"""Characters of a line."""


def watch(run_id: RunArgument, as_json: Json = False) -> None:
    """Follow a run until it ends: what happened so far, then what happens, with what models write; exit code 1 when it does not succeed."""
    screen = Screen(sys.stdout)

    async def work(system: System) -> Run:
        run = await find_run(system.journal, run_id)
        await client.watch(system, run.run_id, _tell_json if as_json else screen.show)
        return await find_run(system.journal, run.run_id)

    run = run_command(client.connect, work)
    if not as_json:
        screen.line(f"run {run.run_id} {run.status}, ${run.cost_usd:.6f}")
    if run.status != "succeeded":
        raise typer.Exit(1)


def _tell_json(event: Envelope[Event]) -> None:
    data = event.data.model_dump(mode="json")
    typer.echo(json.dumps({"id": event.id, "type": event.data.TYPE, "time": event.time.isoformat(), "data": data}))
    sys.stdout.flush()


class Screen:
    """Lines, and text that grows in place: the line of the one who wrote last goes on, another one's begins anew."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._writing: tuple[Any, ...] | None = None

    def show(self, event: Envelope[Event]) -> None:
        """Show one event; nothing that it says does more to a terminal than be shown."""
        data = event.data
        if isinstance(data, TextWritten):
            self._write(data)
        elif told := line_of(data):
            self.line(f"{event.time.astimezone():%H:%M:%S}  {shown(told)[:LONGEST]}")

    def line(self, text: str) -> None:
        """A line of its own."""
        self._end_text()
        self._out.write(f"{text}\n")
        self._out.flush()

    def _write(self, data: TextWritten) -> None:
        who = (data.call_id, data.step, data.attempt)
        if data.text and self._writing != who:
            self._end_text()
            self._out.write(f"          {shown(data.agent)}: ")
            self._writing = who
        self._out.write("\n".join(shown(part) for part in data.text.split("\n")))
        if data.piece == -1 and self._writing == who:
            self._end_text()
        self._out.flush()

    def _end_text(self) -> None:
        if self._writing is not None:
            self._out.write("\n")
            self._writing = None


def line_of(data: Event) -> str:
    """An event in a few words; empty for one that is not shown."""
    return _of_run(data) or _of_node(data) or _of_call(data) or _of_approval(data) or _of_end(data)


def _of_run(data: Event) -> str:
    match data:
        case RunStarted():
            return f"run started      {data.workflow} {data.version}"
        case RunParked():
            return f"run parked       segment {data.segment}"
        case RunResumed():
            return f"run resumed      segment {data.segment}"
        case _:
            return ""


def _of_node(data: Event) -> str:
    match data:
        case NodeStarted():
            return f"node started     {data.node}"
        case NodeEnded():
            return f"node ended       {data.node}{'' if data.ok else ', with an error'}"
        case DecisionMade():
            chosen = ", ".join(data.decision.chosen)
            return f"decision         {data.decision.topology}: {chosen}; {data.decision.reason}"
        case _:
            return ""


def _of_call(data: Event) -> str:
    match data:
        case AgentAsked():
            return f"agent asked      {data.agent}{f' by {data.node}' if data.node else ''}"
        case AgentAnswered():
            return f"agent answered   {data.agent}{'' if data.ok else f': {data.reason}'}, ${data.cost_usd:.6f}"
        case ToolCalled():
            return f"tool called      {data.tool} by {data.agent}"
        case ToolAnswered():
            took = f", {data.wall_ms:.0f} ms" if data.wall_ms is not None else ""
            return f"tool answered    {data.tool}: {data.status}{took}"
        case _:
            return ""


def _of_approval(data: Event) -> str:
    match data:
        case ApprovalWanted():
            return f"approval wanted  {data.approval_id[:12]} of {data.tool} for {data.agent}: {data.why}"
        case ApprovalSettled():
            return f"approval settled {data.approval_id[:12]} {'granted' if data.granted else 'refused'} by {data.by}"
        case _:
            return ""


def _of_end(data: Event) -> str:
    match data:
        case RunSucceeded():
            return "run succeeded"
        case RunFailed():
            return f"run failed       {data.failure.code}: {data.failure.message}"
        case RunCancelled():
            return f"run cancelled    by {data.by}{f': {data.note}' if data.note else ''}"
        case _:
            return ""
