"""The commands by which users ask for runs and look at them. `cli` registers them; `client` and `trace` do the work."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Annotated, TypeVar, cast, get_args

import typer
from pydantic import JsonValue
from rich.table import Column, Table
from rich.text import Text

from metier import client, configuration
from metier.configuration import Config, System
from metier.terminal import console, shown
from metier_infra.errors import BadSettings, DeadlineMissed, MissingRun
from metier_infra.events import Event, RunCancelled, RunFailed, RunSucceeded
from metier_infra.journal import Journal
from metier_infra.messages import Envelope
from metier_infra.rows import Run, RunStatus

C = TypeVar("C")
T = TypeVar("T")
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, for machines.")]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's id, or a beginning of it that no other run shares.")
]
out = console()


def run_command(connect: Callable[[Config], AbstractAsyncContextManager[C]], work: Callable[[C], Awaitable[T]]) -> T:
    """Open what a command needs, do its work, close."""

    async def main() -> T:
        async with connect(config) as found:
            return await work(found)

    configuration.use_local_stack()
    config = configuration.configure()
    configuration.configure_logs("error")
    return asyncio.run(main())


async def find_run(journal: Journal, run_id: str) -> Run:
    """The run. Raises `MissingRun`."""
    run = await journal.runs.get(run_id)
    if run is None:
        raise MissingRun(f"no run, or more than one, begins with {run_id!r}; `metier runs list` shows them")
    return run


def publish(
    workflow: Annotated[str, typer.Argument(help="The workflow's name.")],
    value: Annotated[str, typer.Argument(metavar="JSON", help="Its input, a JSON object; `-` reads standard input.")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end; exit code 1 when the run failed.")] = False,
    event_id: Annotated[
        str | None, typer.Option("--id", help="The request's id: the same id again starts nothing.")
    ] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait for the end.")] = 300.0,
    as_json: Json = False,
) -> None:
    """Ask for a run: publish a task event."""
    body = json_object(sys.stdin.read() if value == "-" else value)
    if not wait:
        sent = run_command(client.connect, lambda system: client.publish(system.bus, workflow, body, event_id=event_id))
        run_id = client.run_id_of(sent.source, sent.id)
        typer.echo(json.dumps({"run_id": run_id, "request_id": sent.id}) if as_json else f"run {run_id}")
        return
    try:
        end = run_command(
            client.connect,
            lambda system: client.publish_and_wait(
                system.bus, workflow, body, event_id=event_id, timeout_s=timeout_s, journal=system.journal
            ),
        )
    except TimeoutError as error:
        raise DeadlineMissed(
            f"the run did not end within {timeout_s:g} s; it goes on: `metier runs list` shows it"
        ) from error
    _tell_end(end, as_json=as_json)


def _tell_end(end: client.Ended, *, as_json: bool) -> None:
    if as_json:
        typer.echo(end.model_dump_json())
    elif isinstance(end, RunFailed):
        typer.echo(f"run {end.run_id} failed: {end.failure.code}: {end.failure.message}", err=True)
    elif isinstance(end, RunCancelled):
        typer.echo(f"run {end.run_id} was cancelled by {shown(end.by)}: {shown(end.note)}", err=True)
    else:
        typer.echo(f"run {end.run_id} succeeded, ${end.cost_usd:.6f}")
        out.print_json(data=end.result)
    if not isinstance(end, RunSucceeded):
        raise typer.Exit(1)


def json_object(text: str) -> dict[str, JsonValue]:
    """The JSON object in a command's words. Raises `BadSettings`."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadSettings(f"the input is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    if not isinstance(value, dict):
        raise BadSettings(f"the input must be a JSON object, not {type(value).__name__}")
    return cast("dict[str, JsonValue]", value)


def list_runs(
    status: Annotated[
        str | None, typer.Option(help="accepted, running, parked, succeeded, failed or cancelled.")
    ] = None,
    workflow: Annotated[str | None, typer.Option(help="Only runs of this workflow.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    as_json: Json = False,
) -> None:
    """List the newest runs."""
    if status not in {None, *get_args(RunStatus)}:
        raise BadSettings(f"no run is ever {status!r}; the states are {', '.join(get_args(RunStatus))}")

    async def work(journal: Journal) -> list[tuple[Run, str]]:
        found = await journal.runs.recent(status=status, workflow=workflow, limit=limit)
        return [(run, await _why(journal, run)) for run in found]

    found = run_command(client.reading, work)
    if as_json:
        typer.echo(json.dumps([run.model_dump(mode="json") for run, _ in found]))
        return
    table = Table(
        *[Column(head, no_wrap=True) for head in ("run", "workflow", "status", "accepted", "took", "cost USD", "why")]
    )
    for run, why in found:
        table.add_row(*map(Text, _row(run, why)))
    out.print(table)


async def _why(journal: Journal, run: Run) -> str:
    """Why a run failed, or what it waits for."""
    if run.failure:
        return f"{run.failure.code}: {run.failure.message}"
    if run.status != "parked":
        return ""
    waiting = [one for one in await journal.approvals.of_run(run.run_id) if one.granted is None]
    return "waits for " + "; ".join(f"approval {one.approval_id[:12]} of {one.tool}" for one in waiting)


def _row(run: Run, why: str) -> tuple[str, ...]:
    accepted = datetime.fromtimestamp(run.accepted_at, UTC).strftime("%Y-%m-%d %H:%M:%S")
    took = f"{run.finished_at - run.accepted_at:.2f} s" if run.finished_at else ""
    told = shown(" ".join(why.split()))[: max(20, out.width - 100)]
    return run.run_id[:12], run.workflow, run.status, accepted, took, f"{run.cost_usd:.6f}", told


def show(run_id: RunArgument, as_json: Json = False) -> None:
    """Show one run: input, state, result."""
    run = run_command(client.reading, lambda journal: find_run(journal, run_id))
    if as_json:
        typer.echo(run.model_dump_json())
    else:
        out.print_json(run.model_dump_json())


def watch(run_id: RunArgument, as_json: Json = False) -> None:
    """Follow a run's events until it ends."""

    def tell(event: Envelope[Event]) -> None:
        data = event.data.model_dump(mode="json")
        if as_json:
            typer.echo(json.dumps({"id": event.id, "type": event.data.TYPE, "data": data}))
        else:
            out.print(event.time.strftime("%H:%M:%S"), event.data.TYPE.removeprefix("io.metier."), data)

    async def work(system: System) -> Run:
        run = await find_run(system.journal, run_id)
        await client.watch(system, run.run_id, tell)
        return await find_run(system.journal, run.run_id)

    run = run_command(client.connect, work)
    if not as_json:
        typer.echo(f"run {run.run_id} {run.status}")


def trace(run_id: RunArgument, as_json: Json = False) -> None:
    """Show one run as a tree, with times and costs, from the journal."""
    from metier.trace import TraceNode, gather, render, tree

    async def work(journal: Journal) -> TraceNode:
        return tree(await gather(journal, await find_run(journal, run_id)))

    node = run_command(client.reading, work)
    if as_json:
        typer.echo(node.model_dump_json())
    else:
        out.print(render(node))
