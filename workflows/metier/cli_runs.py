"""The commands by which users ask for runs and look at them. `cli` registers them; `client` and `trace` do the work."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Annotated, TypeVar, cast, get_args

import typer
from pydantic import JsonValue, ValidationError
from rich.table import Column, Table
from rich.text import Text

from metier import client, configuration
from metier.configuration import Config
from metier.terminal import console, shown, shown_json
from metier_infra.errors import BadSettings, DeadlineMissed, MissingRun
from metier_infra.events import RunCancelled, RunFailed, RunSucceeded
from metier_infra.journal import Journal
from metier_infra.rows import Call, Run, RunStatus
from metier_infra.words import Limits, Spent

C = TypeVar("C")
T = TypeVar("T")
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, for machines.")]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's id, or a beginning of it that no other run shares.")
]
out = console()
COLUMNS = ("run", "workflow", "status", "accepted", "took", "cost USD", "why")


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
    run = await journal.runs.get(run_id) if run_id.isprintable() else None
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
    limits: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="What the run may take: usd, tokens, tool_calls, time_s, at_limit."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask for a run: publish a task event."""
    body, bounds = json_object(sys.stdin.read() if value == "-" else value, "the input"), _limits(limits)
    client.readable(client.request(workflow, body, event_id=event_id, limits=bounds))
    if not wait:
        sent = run_command(
            client.connect,
            lambda system: client.publish(system.bus, workflow, body, event_id=event_id, limits=bounds),
        )
        run_id = client.run_id_of(sent.source, sent.id)
        typer.echo(json.dumps({"run_id": run_id, "request_id": sent.id}) if as_json else f"run {run_id}")
        return
    try:
        end = run_command(
            client.connect,
            lambda system: client.publish_and_wait(
                system.bus,
                workflow,
                body,
                event_id=event_id,
                timeout_s=timeout_s,
                journal=system.journal,
                limits=bounds,
            ),
        )
    except TimeoutError as error:
        raise DeadlineMissed(
            f"the run did not end within {timeout_s:g} s; it goes on: `metier runs list` shows it"
        ) from error
    _tell_end(end, as_json=as_json)


def _limits(text: str | None) -> Limits | None:
    """The limits in a command's words. Raises `BadSettings`."""
    if text is None:
        return None
    told = json_object(text, "what --limits says")
    if unknown := told.keys() - Limits.model_fields.keys():
        raise BadSettings(f"limits are {', '.join(Limits.model_fields)}; {', '.join(sorted(unknown))} is none of them")
    try:
        return Limits.model_validate(told)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise BadSettings(f"the limit {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}") from error


def _tell_end(end: client.Ended, *, as_json: bool) -> None:
    if as_json:
        typer.echo(end.model_dump_json())
    elif isinstance(end, RunFailed):
        typer.echo(f"run {end.run_id} failed: {end.failure.code}: {shown(end.failure.message)}", err=True)
        if end.partial:
            out.print(shown_json(end.partial), soft_wrap=True)
    elif isinstance(end, RunCancelled):
        typer.echo(f"run {end.run_id} was cancelled by {shown(end.by)}: {shown(end.note)}", err=True)
    else:
        typer.echo(f"run {end.run_id} succeeded, ${end.cost_usd:.6f}")
        out.print(shown_json(end.result), soft_wrap=True)
    if not isinstance(end, RunSucceeded):
        raise typer.Exit(1)


def json_object(text: str, what: str) -> dict[str, JsonValue]:
    """The JSON object in a command's words, which are `what`. Raises `BadSettings`."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadSettings(f"{what} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise BadSettings(f"{what} lies too deep in brackets") from error
    if not isinstance(value, dict):
        raise BadSettings(f"{what} must be a JSON object, not {type(value).__name__}")
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
    table = Table(*[Column(head, no_wrap=head != "workflow", overflow="ellipsis") for head in COLUMNS])
    for run, why in found:
        table.add_row(*map(Text, _row(run, why)))
    out.print(table)


async def _why(journal: Journal, run: Run) -> str:
    """Why a run failed, or what it waits for."""
    if run.failure:
        return f"{run.failure.code}: {run.failure.message}"
    if run.status != "parked":
        return ""
    return "waits for " + "; ".join(await _awaited(journal, run))


async def _awaited(journal: Journal, run: Run) -> list[str]:
    """What nodes of the run wait for: persons first."""
    approvals = await journal.approvals.of_run(run.run_id)
    waits = await journal.waits.of_run(run.run_id)
    calls = await journal.calls.of_run(run.run_id)
    children = await journal.runs.children(run.run_id)
    return [
        *(f"approval {one.approval_id[:12]} of {one.tool}" for one in approvals if one.granted is None),
        *(f"signal {one.name}" for one in waits if one.ended_at is None and one.name is not None),
        *(f"{one.left_s or 0:.0f} s" for one in waits if one.ended_at is None and one.name is None),
        *(f"agent {one.agent}" for one in calls if one.answered_at is None and one.parked_at is None),
        *(f"run {one.run_id[:12]} of {one.workflow}" for one in children if not one.ended),
    ]


def _row(run: Run, why: str) -> tuple[str, ...]:
    accepted = datetime.fromtimestamp(run.accepted_at, UTC).strftime("%Y-%m-%d %H:%M:%S")
    took = f"{run.finished_at - run.accepted_at:.2f} s" if run.finished_at else ""
    told = shown(" ".join(why.split()))[: max(20, out.width - 100)]
    return run.run_id[:12], shown(run.workflow), run.status, accepted, took, f"{run.cost_usd:.6f}", told


def show(run_id: RunArgument, as_json: Json = False) -> None:
    """Show one run: input, limits, state, result, and what it took, or has taken so far: itself, and in all with the runs below it."""

    async def work(journal: Journal) -> tuple[Run, Spent, Spent]:
        run = await find_run(journal, run_id)
        spent = run.spent if run.ended else so_far(run, await journal.calls.of_run(run.run_id))
        return run, spent, await journal.runs.spent_in_all(run.run_id)

    run, spent, in_all = run_command(client.reading, work)
    told = run.model_dump(mode="json") | {
        "spent": spent.model_dump(mode="json"),
        "spent_in_all": in_all.model_dump(mode="json", exclude={"time_s"}),
    }
    if as_json:
        typer.echo(json.dumps(told))
    else:
        out.print(shown_json(told), soft_wrap=True)


def so_far(run: Run, calls: Sequence[Call]) -> Spent:
    """What a run has taken that has not ended, as far as the workers of its calls have told."""
    spent = [call.spent for call in calls]
    time_s = time.time() - run.accepted_at - run.parked_s if run.parked_at is None else run.parked_at - run.accepted_at
    return Spent(
        usd=sum(one.usd for one in spent),
        tokens=sum(one.tokens for one in spent),
        tool_calls=sum(one.tool_calls for one in spent),
        time_s=max(0.0, time_s),
    )


def trace(run_id: RunArgument, as_json: Json = False) -> None:
    """Show one run as a tree, with times and costs, from the journal."""
    from metier.trace import gather, tree
    from metier.trace_tree import TraceNode, render

    async def work(journal: Journal) -> TraceNode:
        return tree(await gather(journal, await find_run(journal, run_id)))

    node = run_command(client.reading, work)
    if as_json:
        typer.echo(node.model_dump_json())
    else:
        out.print(render(node))
