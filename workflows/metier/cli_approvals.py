"""The commands by which people decide about tool calls that wait for them. `cli` registers them.

What they show was written by a model: control characters are escaped, and the list cuts what is long.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated
from uuid import uuid4

import typer
from pydantic import JsonValue
from rich.table import Column, Table
from rich.text import Text

from metier import client
from metier.cli_runs import Json, RunArgument, find_run, json_object, run_command
from metier.configuration import System
from metier.terminal import console, shown
from metier_infra.errors import BadSettings, MissingApproval
from metier_infra.events import REQUESTS, ApprovalDecided
from metier_infra.journal import Journal
from metier_infra.messages import Envelope
from metier_infra.rows import Approval
from metier_infra.service import send

TAKEN_S = 10.0
"""How long a command waits to see that an orchestrator took its decision."""
ApprovalArgument = Annotated[
    str, typer.Argument(metavar="ID", help="An approval's id, or a beginning of it that no other shares.")
]
Note = Annotated[str, typer.Option(help="Why; who is refused reads it.")]
By = Annotated[str | None, typer.Option(help="Who decides. Default: the user of this computer.")]
Changed = Annotated[
    str | None,
    typer.Option(metavar="JSON", help="Grant it with these arguments in place of those shown, a JSON object."),
]
out = console()


def list_approvals(
    every: Annotated[bool, typer.Option("--all", help="Also those that were decided.")] = False,
    as_json: Json = False,
) -> None:
    """List the tool calls that wait for a person, the most urgent first."""
    found = run_command(
        client.reading, lambda journal: journal.approvals.recent() if every else journal.approvals.waiting()
    )
    if as_json:
        typer.echo(json.dumps([one.model_dump(mode="json") for one in found]))
        return
    heads = ("approval", "state", "since", "until", "agent", "tool", "arguments")
    table = Table(*[Column(head, no_wrap=True) for head in heads])
    for one in found:
        table.add_row(*map(Text, _row(one)))
    out.print(table)


def _row(one: Approval) -> tuple[str, ...]:
    room = max(20, out.width - 100)
    told = shown(json.dumps(one.arguments, ensure_ascii=False))
    cut = told if len(told) <= room else told[: room - 1] + "…"
    return one.approval_id[:12], state_of(one), _at(one.wanted_at), _at(one.expires_at), one.agent, one.tool, cut


def state_of(one: Approval) -> str:
    """What became of it, and by whom, in words for a terminal."""
    if one.granted is None:
        return "waits" if one.expires_at > time.time() else "expired"
    return f"{'granted' if one.granted else 'refused'} by {shown(one.decided_by or '')}"


def _at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%m-%d %H:%M:%S")


def show(approval_id: ApprovalArgument, as_json: Json = False) -> None:
    """Show one tool call that waits for a person, with its whole arguments: what is shown is what runs if it is granted."""
    one = run_command(client.reading, lambda journal: _find(journal, approval_id))
    if as_json:
        typer.echo(one.model_dump_json())
        return
    for name, value in _told(one).items():
        typer.echo(f"{name:<10} {shown(value)}")
    for title, arguments in (("arguments", one.arguments), ("changed to", one.changed)):
        if arguments is not None:
            typer.echo(f"{title}:")
            typer.echo("\n".join(map(shown, json.dumps(arguments, ensure_ascii=False, indent=2).split("\n"))))


def _told(one: Approval) -> Mapping[str, str]:
    under = f"{one.stamp.digest} {one.stamp.safety}".strip() if one.stamp else ""
    facts = {"approval": one.approval_id, "run": one.run_id, "agent": f"{one.agent} {under}".strip(), "tool": one.tool}
    times = {"since": f"{_at(one.wanted_at)} UTC", "until": f"{_at(one.expires_at)} UTC"}
    return {**facts, "why": one.why, **times, "state": state_of(one), "note": one.note or ""}


def grant(
    approval_id: ApprovalArgument,
    note: Note = "",
    arguments: Changed = None,
    by: By = None,
    as_json: Json = False,
) -> None:
    """Let a tool call that waits be made."""
    changed = None if arguments is None else json_object(arguments, "what --arguments says")
    _tell(run_command(client.connect, lambda system: _decide(system, approval_id, True, note, by, changed)), as_json)


def refuse(approval_id: ApprovalArgument, note: Note = "", by: By = None, as_json: Json = False) -> None:
    """Refuse a tool call that waits; the agent goes on without it."""
    _tell(run_command(client.connect, lambda system: _decide(system, approval_id, False, note, by, None)), as_json)


def approve_run(run_id: RunArgument, note: Note = "", by: By = None, as_json: Json = False) -> None:
    """Grant the one tool call of a run that waits."""

    async def work(system: System) -> Approval:
        run = await find_run(system.journal, run_id)
        waiting = [one for one in await system.journal.approvals.of_run(run.run_id) if one.granted is None]
        return await _decide(system, _only(run.run_id, waiting).approval_id, True, note, by, None)

    _tell(run_command(client.connect, work), as_json)


def _only(run_id: str, waiting: Sequence[Approval]) -> Approval:
    if len(waiting) == 1:
        return waiting[0]
    listed = "; ".join(f"{one.approval_id[:12]} ({one.agent} calls {one.tool})" for one in waiting)
    raise MissingApproval(
        f"{len(waiting)} tool calls of run {run_id[:12]} wait{f': {listed}; grant each with `metier approvals grant`' if waiting else ''}"
    )


async def _find(journal: Journal, approval_id: str) -> Approval:
    found = await journal.approvals.find(approval_id)
    if found is None:
        raise MissingApproval(
            f"no approval, or more than one, begins with {approval_id!r}; `metier approvals list` shows them"
        )
    return found


async def _decide(
    system: System, wanted: str, granted: bool, note: str, by: str | None, changed: dict[str, JsonValue] | None
) -> Approval:
    """Publish a decision, as any backend may, and see what became of it. Raises `MissingApproval` when another was there before."""
    asked = await _find(system.journal, wanted)
    if asked.granted is not None:
        raise MissingApproval(f"approval {asked.approval_id[:12]} waits no more: it was {state_of(asked)}")
    me = by or getpass.getuser()
    try:
        said = ApprovalDecided(
            run_id=asked.run_id, approval_id=asked.approval_id, granted=granted, by=me, note=note, arguments=changed
        )
    except ValueError as error:
        raise BadSettings("--by and --note are short, and without control characters") from error
    event = Envelope(said, f"{asked.approval_id}/decided/{uuid4()}", client.SOURCE, asked.run_id)
    await send(system.bus, REQUESTS, event)
    settled = await _taken(system.journal, asked)
    if settled.granted is not None and (settled.granted, settled.decided_by) != (granted, me):
        raise MissingApproval(f"approval {asked.approval_id[:12]} was decided before: it was {state_of(settled)}")
    return settled


async def _taken(journal: Journal, asked: Approval) -> Approval:
    """The approval once it is decided, or as it is after a while."""
    ends, found = time.monotonic() + TAKEN_S, asked
    while found.granted is None and time.monotonic() < ends:
        await asyncio.sleep(0.1)
        found = await journal.approvals.get(asked.approval_id) or asked
    return found


def _tell(one: Approval, as_json: bool) -> None:
    if as_json:
        typer.echo(one.model_dump_json())
    elif one.granted is None:
        typer.echo(f"approval {one.approval_id[:12]}: the decision was sent; no orchestrator has taken it yet")
    else:
        typer.echo(f"approval {one.approval_id[:12]} {state_of(one)}")
