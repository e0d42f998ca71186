"""The commands that do something to runs: cancel, retry, redrive, signal. `cli` registers them.

Each publishes a request, as any backend may, and waits a while to say what became of it.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, TypeVar
from uuid import uuid4

import typer
from pydantic import JsonValue

from metier import client
from metier.cli_runs import Json, RunArgument, find_run, run_command
from metier.configuration import System
from metier.moments import since_of
from metier.terminal import shown
from metier_infra.errors import BadSettings, MissingRun
from metier_infra.events import (
    REQUESTS,
    CancelRequested,
    Event,
    RedriveRequested,
    RequestRejected,
    RetryRequested,
    Signalled,
)
from metier_infra.journal import Journal
from metier_infra.messages import Envelope
from metier_infra.rows import Run
from metier_infra.service import send
from metier_infra.words import Failure, RunId, Word, stable_id

R = TypeVar("R", RetryRequested, RedriveRequested)
E = TypeVar("E", CancelRequested, RetryRequested, RedriveRequested, Signalled)
State = Literal["taken", "rejected", "sent"]
TAKEN_S = 10.0
"""How long a command waits to see that an orchestrator took its request."""
RunArguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RUN]...", help="Runs' ids, or beginnings of them that no other runs share."),
]
Note = Annotated[str, typer.Option(help="Why; it is kept with the run.")]
By = Annotated[str | None, typer.Option(help="Who wants it. Default: the user of this computer.")]
Status = Annotated[str | None, typer.Option(help="In place of ids: runs that ended so, failed or cancelled.")]
Of = Annotated[str | None, typer.Option("--workflow", help="In place of ids: runs of this workflow.")]
Since = Annotated[
    str | None,
    typer.Option(help="In place of ids: runs accepted since: 30m, 6h, 2d ago, or a time as 2026-11-28T10:00."),
]
AtMost = Annotated[int, typer.Option("--limit", min=1, help="In place of ids: at most so many, the newest first.")]


class Outcome(Word):
    """What became of one request. `became` is the run that shows it: a new one after a retry or redrive. `state` is `sent` where nobody took it yet."""

    run_id: RunId
    request_id: str
    state: State
    became: RunId
    status: str | None = None
    failure: Failure | None = None


@dataclass(frozen=True)
class _Asked:
    """A request on its way, and whether it shows in the journal that it was taken."""

    event: Envelope[Event]
    run_id: RunId
    became: RunId
    taken: Callable[[Journal], Awaitable[bool]]


def cancel(run_ids: RunArguments = None, note: Note = "", by: By = None, as_json: Json = False) -> None:
    """Give runs up: what works for them is ended, what has not started never starts."""

    async def work(system: System) -> list[Outcome]:
        runs = [await find_run(system.journal, one) for one in _some(run_ids)]
        return await _ask_all(system, [_asked(CancelRequested, run, by, note=note) for run in runs])

    _tell(run_command(client.connect, work), "cancelled", as_json)


def retry(
    run_ids: RunArguments = None,
    status: Status = None,
    workflow: Of = None,
    since: Since = None,
    limit: AtMost = 100,
    note: Note = "",
    by: By = None,
    as_json: Json = False,
) -> None:
    """Run ended runs once more, from their input on, as new runs of the newest version."""
    chosen = partial(_chosen, run_ids=run_ids, status=status, workflow=workflow, since=since, limit=limit)
    _tell(_repeated(RetryRequested, chosen, by, note), "retried", as_json)


def redrive(
    run_ids: RunArguments = None,
    status: Status = None,
    workflow: Of = None,
    since: Since = None,
    limit: AtMost = 100,
    note: Note = "",
    by: By = None,
    as_json: Json = False,
) -> None:
    """Go on with runs that failed or were cancelled, from their last checkpoint, as new runs: what was answered is not asked again."""
    chosen = partial(_chosen, run_ids=run_ids, status=status, workflow=workflow, since=since, limit=limit)
    _tell(_repeated(RedriveRequested, chosen, by, note), "redriven", as_json)


def _repeated(
    kind: type[R], chosen: Callable[[Journal], Awaitable[Sequence[Run]]], by: str | None, note: str
) -> list[Outcome]:
    async def work(system: System) -> list[Outcome]:
        return await _ask_all(system, [_asked(kind, run, by, note=note) for run in await chosen(system.journal)])

    return run_command(client.connect, work)


def signal(
    run_id: RunArgument,
    name: Annotated[str, typer.Argument(help="The signal's name.")],
    data: Annotated[str, typer.Argument(metavar="[JSON]", help="What the node that waits for it gets.")] = "null",
    by: By = None,
    as_json: Json = False,
) -> None:
    """Tell a run something that one of its nodes waits for, or will wait for."""
    try:
        value: JsonValue = json.loads(data)
    except (json.JSONDecodeError, RecursionError) as error:
        why = error.msg if isinstance(error, json.JSONDecodeError) else "it lies too deep in brackets"
        raise BadSettings(f"what is told is not JSON: {why}; a text stands in quotes, '\"so\"'") from error

    async def work(system: System) -> list[Outcome]:
        run = await find_run(system.journal, run_id)
        return await _ask_all(system, [_asked(Signalled, run, by, name=name, data=value)])

    _tell(run_command(client.connect, work), "signalled", as_json)


def _some(run_ids: Sequence[str] | None) -> Sequence[str]:
    if not run_ids:
        raise BadSettings("name at least one run; `metier runs list` shows them")
    return run_ids


async def _chosen(
    journal: Journal,
    *,
    run_ids: Sequence[str] | None,
    status: str | None,
    workflow: str | None,
    since: str | None,
    limit: int,
) -> Sequence[Run]:
    """The runs that are named; or those that fit, ended badly, stand under no other run and were not repeated yet. Raises `MissingRun`."""
    if run_ids:
        if status or workflow or since:
            raise BadSettings("name runs, or say which by --status, --workflow and --since; not both")
        return [await find_run(journal, one) for one in run_ids]
    if not (status or workflow or since):
        raise BadSettings("name at least one run, or say which by --status, --workflow or --since")
    if status not in {None, "failed", "cancelled"}:
        raise BadSettings("--status is failed or cancelled")
    found = await journal.runs.unrepeated(
        status=status, workflow=workflow, since=since_of(since, time.time()), limit=limit
    )
    if not found:
        raise MissingRun("no run that was not repeated yet fits; `metier runs list` shows them all")
    return found


def _asked(kind: type[E], run: Run, by: str | None, **more: JsonValue) -> _Asked:
    try:
        said = kind.model_validate({"run_id": run.run_id, "by": by or getpass.getuser(), **more})
    except ValueError as error:
        raise BadSettings(
            "--by, --note and names are short, and without control characters; --by and names are not empty"
        ) from error
    event: Envelope[Event] = Envelope(said, str(uuid4()), client.SOURCE, run.run_id)
    repeats = isinstance(said, RetryRequested | RedriveRequested)
    became = client.run_id_of(client.SOURCE, event.id) if repeats else run.run_id

    async def taken(journal: Journal) -> bool:
        if isinstance(said, Signalled):
            signal_id = stable_id("signal", client.SOURCE, event.id)
            return any(one.signal_id == signal_id for one in await journal.signals.of_run(run.run_id))
        found = await journal.runs.get(became)
        return found is not None and (repeats or found.cancelled_at is not None)

    return _Asked(event, run.run_id, became, taken)


async def _ask_all(system: System, asked: Sequence[_Asked]) -> list[Outcome]:
    """Publish requests, and see for a while what becomes of each."""
    rejected: dict[str, Failure] = {}

    def seen(event: Envelope[Event]) -> None:
        if isinstance(event.data, RequestRejected):
            rejected[event.data.request_id] = event.data.failure

    async with client.following(system.bus, seen):
        await send(system.bus, REQUESTS, *[client.readable(one.event) for one in asked])
        ends, left = time.monotonic() + TAKEN_S, list(asked)
        while left and time.monotonic() < ends:
            await asyncio.sleep(0.1)
            left = [one for one in left if one.event.id not in rejected and not await one.taken(system.journal)]
    return [await _outcome(system.journal, one, one in left, rejected.get(one.event.id)) for one in asked]


async def _outcome(journal: Journal, one: _Asked, waits: bool, failure: Failure | None) -> Outcome:
    run = await journal.runs.get(one.became)
    state: State = "rejected" if failure else "sent" if waits else "taken"
    return Outcome(
        run_id=one.run_id,
        request_id=one.event.id,
        state=state,
        became=one.became,
        status=run.status if run else None,
        failure=failure,
    )


def _tell(outcomes: Sequence[Outcome], what: str, as_json: bool) -> None:
    """Say what became of each; exit code 1 where one was rejected."""
    if as_json:
        typer.echo(json.dumps([one.model_dump(mode="json") for one in outcomes]))
    else:
        for one in outcomes:
            typer.echo(_sentence(one, what), err=one.state == "rejected")
    if any(one.state == "rejected" for one in outcomes):
        raise typer.Exit(1)


def _sentence(one: Outcome, what: str) -> str:
    name = f"run {one.run_id[:12]}"
    if one.failure is not None:
        return f"{name} is not {what}: {one.failure.code}: {shown(one.failure.message)}"
    if one.state == "sent":
        return f"{name}: the request was sent; no orchestrator has taken it yet"
    return f"{name} is {what}" + (f": run {one.became}" if one.became != one.run_id else "")
