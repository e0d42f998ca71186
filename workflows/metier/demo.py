"""`metier demo`: the whole system on real queries, in this process or over the processes of `make up`.

Both ways publish the same requests and read the same journal; only what `roles` wires behind the bus differs.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated
from uuid import uuid4

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from metier import client, compose, configuration
from metier.configuration import Config, System
from metier.terminal import console
from metier_infra import telemetry
from metier_infra.errors import BadSettings, DeadlineMissed, MissingRun
from metier_infra.events import Event
from metier_infra.messages import Envelope
from metier_infra.words import RunId, stable_id

if TYPE_CHECKING:
    from metier.demo_report import Case, Learned
    from metier_agents.recordings import RecordedQuery

QUIET_S = 120.0
"""Without any run ending for this long, in seconds, the demo gives up."""


def command(
    queries: Annotated[
        int, typer.Option(min=1, help="How many queries; drawn by the seed from the evaluation half.")
    ] = 60,
    seed: Annotated[int, typer.Option(help="Draws the queries.")] = 1,
    live: Annotated[
        list[str] | None,
        typer.Option(metavar="AGENT=PROVIDER:MODEL", help="Ask a real model; its key comes from the environment."),
    ] = None,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="Use the processes that `make up` started.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output, for machines.")
    ] = False,
) -> None:
    """Run the shipped workload: real queries, recorded models, real sandboxes, by rules and then by a router that learned; show what came of it."""
    if distributed and not configuration.use_local_stack():
        raise MissingRun("nothing runs here: `make up` starts the services and roles that --distributed uses")
    config = configuration.configure()
    configuration.configure_logs("error")
    telemetry.start("demo", config.role.instance)
    models = _live(live or [])
    if distributed and models:
        raise BadSettings(
            "--live chooses models for this process; with --distributed set METIER_MODEL_<AGENT> for `make up`"
        )
    chosen = draw(queries, seed)
    began = time.monotonic()
    named = {name: spec.model for name, spec in compose.agent_specs(config, models).items()}
    cases, learned = asyncio.run(_run(config, chosen, models, named, distributed=distributed))
    telemetry.stop()
    took, mode = time.monotonic() - began, "distributed" if distributed else "embedded"
    from metier import demo_report

    if as_json:
        typer.echo(json.dumps(demo_report.document(cases, learned, seed=seed, elapsed_s=took, mode=mode, models=named)))
    else:
        console().print(demo_report.tables(cases, learned, named, took, mode))
    if any(case.rows.run.status != "succeeded" for case in (*cases, *(learned.cases if learned else ()))):
        raise typer.Exit(1)


def _live(options: Sequence[str]) -> dict[str, str]:
    pairs = [option.partition("=") for option in options]
    for option, (name, found, model) in zip(options, pairs, strict=True):
        if not (name and found and model):
            raise BadSettings(f"--live {option}: write AGENT=PROVIDER:MODEL, such as coder=openai:gpt-5")
    return {name: model for name, _, model in pairs}


def draw(count: int, seed: int) -> list[RecordedQuery]:
    """`count` queries of the evaluation half, drawn by `seed`; all of it when `count` is larger."""
    from metier_agents.recordings import read_recordings

    pool = read_recordings(compose.recordings_path()).evaluation()
    return sorted(pool, key=lambda query: stable_id("draw", seed, query.id))[:count]


async def _run(
    config: Config,
    queries: Sequence[RecordedQuery],
    models: Mapping[str, str],
    named: Mapping[str, str],
    *,
    distributed: bool,
) -> tuple[list[Case], Learned | None]:
    """Both parts: by the author's rules, then by a router that learned; None where no answers are recorded to learn from."""
    from metier import demo_learned
    from metier.demo_report import Learned

    async with _system(config, models, distributed=distributed) as system:
        cases = await _answered(system, queries, "specialists")
        if not all(model.startswith(demo_learned.RECORDED) for model in named.values()):
            return cases, None
        router = await demo_learned.learn(system, named)
        return cases, Learned(router, await _answered(system, queries, "routed", demo_learned.TENANT))


async def _answered(
    system: System, queries: Sequence[RecordedQuery], workflow: str, tenant: str = "default"
) -> list[Case]:
    """Every query and the run of the workflow that answered it."""
    from metier.demo_report import Case
    from metier.trace import gather

    found: list[Case] = []
    for query, run_id in zip(queries, await _ask(system, queries, workflow, tenant), strict=True):
        run = await system.journal.runs.get(run_id)
        if run is None:
            raise MissingRun(f"the run {run_id} is not in the journal")
        found.append(Case(query, await gather(system.journal, run)))
    return found


@asynccontextmanager
async def _system(config: Config, models: Mapping[str, str], *, distributed: bool) -> AsyncGenerator[System]:
    from metier import roles

    context = client.connect(config) if distributed else roles.embedded(config, models=models)
    async with context as system:
        yield system


async def _ask(system: System, queries: Sequence[RecordedQuery], workflow: str, tenant: str) -> list[RunId]:
    """Publish every query and wait until each run has ended, showing progress; the runs' ids."""
    batch = uuid4().hex[:8]
    requests = {f"demo-{batch}-{query.id}": query for query in queries}
    ids = [client.run_id_of(client.SOURCE, event_id) for event_id in requests]
    left, moved = set(ids), asyncio.Event()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(f"runs of {workflow}", total=len(ids))

        def seen(event: Envelope[Event]) -> None:
            if isinstance(event.data, client.Ended) and event.data.run_id in left:
                left.discard(event.data.run_id)
                progress.advance(bar)
                moved.set()

        async with client.following(system.bus, seen):
            for event_id, query in requests.items():
                value = {"question": query.text}
                await client.publish(system.bus, workflow, value, event_id=event_id, tenant=tenant)
            while left:
                moved.clear()
                await _moved(moved, len(left))
    return ids


async def _moved(moved: asyncio.Event, left: int) -> None:
    try:
        await asyncio.wait_for(moved.wait(), QUIET_S)
    except TimeoutError as error:
        raise DeadlineMissed(
            f"{left} runs did not end, and none did for {QUIET_S:.0f} s; `metier runs list` shows their state"
        ) from error
