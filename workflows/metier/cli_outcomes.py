"""The commands that say what really came of a run, and show what was said. `cli` registers them.

`report` publishes an outcome, as any backend may; an orchestrator writes it down.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import time
from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import uuid4

import typer
from rich.table import Column, Table
from rich.text import Text

from metier import client
from metier.cli_runs import Json, RunArgument, find_run, run_command
from metier.configuration import System
from metier.terminal import console, shown
from metier_infra.errors import BadSettings, MissingRun
from metier_infra.events import OUTCOMES, OutcomeReported
from metier_infra.journal import Journal
from metier_infra.messages import Envelope
from metier_infra.outcomes import Outcome
from metier_infra.rows import Run
from metier_infra.service import send
from metier_workflows.outcomes import reported

TAKEN_S = 10.0
"""How long a command waits to see that an orchestrator wrote the outcome down."""
out = console()


def report(
    run_id: RunArgument,
    *,
    score: Annotated[float, typer.Option(min=0.0, max=1.0, help="How right it was: 0, wrong, to 1, right.")],
    agent: Annotated[str | None, typer.Option(help="Of what this agent answered. Default: of the answer.")] = None,
    decision: Annotated[
        str | None, typer.Option(help="Of one decision: its id, or a beginning of it. Default: of the whole run.")
    ] = None,
    kind: Annotated[
        Literal["explicit", "edit", "retry"],
        typer.Option(help="explicit: somebody judged. edit, retry: read off what the user did; counts less."),
    ] = "explicit",
    weight: Annotated[float, typer.Option(max=1.0, help="How much it counts, above 0 and up to 1.")] = 1.0,
    by: Annotated[str | None, typer.Option(help="Who says so. Default: the user of this computer.")] = None,
    note: Annotated[str, typer.Option(help="Why; it is kept with the outcome.")] = "",
    as_json: Json = False,
) -> None:
    """Say what really came of a run. A later word of the same speaker about the same takes the place of an earlier one."""

    async def work(system: System) -> tuple[Outcome | None, str]:
        run = await find_run(system.journal, run_id)
        decision_id = await _decision(system.journal, run, decision) if decision else None
        said = await _said(system.journal, run, agent, {"score": score, "kind": kind, "weight": weight, "note": note,
                           "decision_id": decision_id, "by": by or getpass.getuser()})  # fmt: skip
        event = Envelope(said, str(uuid4()), client.SOURCE, run.run_id)
        await send(system.bus, OUTCOMES, event)
        return await _taken(system.journal, event), event.id

    stands, event_id = run_command(client.connect, work)
    if as_json:
        ours = stands is not None and stands.event_id == event_id
        typer.echo(json.dumps({"event_id": event_id, "taken": ours, "stands": stands.event_id if stands else None}))
    else:
        typer.echo(_sentence(stands, event_id))


def _sentence(stands: Outcome | None, event_id: str) -> str:
    """What became of a report, when this word stands."""
    if stands is None:
        return f"outcome {event_id[:8]} was sent; no orchestrator has taken it yet"
    if stands.event_id != event_id:
        at = datetime.fromtimestamp(stands.said_at, UTC).strftime("%Y-%m-%d %H:%M:%S")
        return f"outcome {event_id[:8]} was sent and does not count: a word of {shown(stands.by)} about the same says {stands.score:g}, and bears a later time, {at} UTC"
    return f"outcome of run {stands.run_id[:12]} is taken: {stands.score:g}"


async def _said(journal: Journal, run: Run, agent: str | None, told: dict[str, object]) -> OutcomeReported:
    """What is to be told. Raises `BadSettings`."""
    asked = {call.agent for call in await journal.calls.of_run(run.run_id)}
    if agent is not None and agent not in asked:
        raise BadSettings(
            f"run {run.run_id[:12]} asked no agent {agent!r}; it asked {', '.join(sorted(asked)) or 'none'}"
        )
    try:
        return OutcomeReported.model_validate({**told, "run_id": run.run_id, "agent": agent})
    except ValueError as error:
        raise BadSettings(
            "--weight is above 0 and up to 1; --by and --note are short, without control characters"
        ) from error


async def _decision(journal: Journal, run: Run, beginning: str) -> str:
    """The id of the run's decision that begins so. Raises `MissingRun`."""
    found = [
        one.decision_id for one in await journal.decisions.kept(run.run_id) if one.decision_id.startswith(beginning)
    ]
    if len(found) != 1:
        raise MissingRun(
            f"no decision of run {run.run_id[:12]}, or more than one, begins with {beginning!r}; `metier decisions list {run.run_id[:12]}` shows them"
        )
    return found[0]


async def _taken(journal: Journal, event: Envelope[OutcomeReported]) -> Outcome | None:
    """The outcome in the journal, or one in its place that bears a later time, once it is there; None where that takes too long."""
    ends, ours = time.monotonic() + TAKEN_S, reported(event)
    while time.monotonic() < ends:
        said = await journal.outcomes.listed(event.data.run_id, limit=1000)
        of_it = (one for one in said if one.outcome_id == ours.outcome_id)
        if stands := next((one for one in of_it if (one.said_at, one.event_id) >= (ours.said_at, ours.event_id)), None):
            return stands
        await asyncio.sleep(0.05)
    return None


def list_outcomes(
    run: Annotated[str | None, typer.Option(help="Only of this run: its id, or a beginning of it.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: Json = False,
) -> None:
    """List what was said about runs, the newest first. An orphan is about something that the journal does not have, and counts for nothing."""

    async def work(journal: Journal) -> list[Outcome]:
        run_id = (await find_run(journal, run)).run_id if run else ""
        return [*await journal.outcomes.listed(run_id, limit=limit)]

    found = run_command(client.reading, work)
    if as_json:
        typer.echo(json.dumps([one.model_dump(mode="json") | {"counts": one.counts} for one in found]))
        return
    heads = ("run", "about", "score", "counts", "kind", "by", "said", "note")
    table = Table(*[Column(head, no_wrap=True) for head in heads])
    for one in found:
        table.add_row(*map(Text, _row(one)))
    out.print(table)


def _row(one: Outcome) -> tuple[str, ...]:
    about = one.agent or (f"decision {one.decision_id[:8]}" if one.decision_id else "run")
    said = datetime.fromtimestamp(one.said_at, UTC).strftime("%Y-%m-%d %H:%M") if one.said_at else ""
    counts = "orphan" if one.orphan else f"{one.counts:.2g}"
    return (
        shown(one.run_id)[:12],
        shown(about),
        f"{one.score:.2f}",
        counts,
        one.kind,
        shown(one.by),
        said,
        shown(one.note)[:40],
    )
