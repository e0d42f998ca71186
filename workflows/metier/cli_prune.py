"""`metier prune`: let the journal forget what ended long ago. `cli` registers it, `metier_infra.retention` does the work."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated

import typer

from metier import compose
from metier.cli_runs import Json, out, run_command
from metier.configuration import Config
from metier_infra.journal import Journal
from metier_infra.retention import Prunable, prunable
from metier_infra.retention import prune as forget


@asynccontextmanager
async def _writing(config: Config) -> AsyncGenerator[Journal]:
    journal = await compose.open_journal(config, size=2, patience=compose.BRIEF)
    try:
        yield journal
    finally:
        await journal.db.close()


def prune(
    checkpoints_days: Annotated[
        float, typer.Option("--checkpoints", min=0, help="Forget the checkpoints of runs that ended so many days ago.")
    ] = 7.0,
    runs_days: Annotated[
        float, typer.Option("--runs", min=0, help="Forget whole runs that ended so many days ago.")
    ] = 90.0,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without this, it is only counted.")] = False,
    as_json: Json = False,
) -> None:
    """Count, or forget, the checkpoints of old runs and old runs. Runs that are open stay. A request of a run that was forgotten starts a new one."""

    async def work(journal: Journal) -> Prunable:
        do = forget if yes else prunable
        return await do(journal.db, checkpoints_days=checkpoints_days, runs_days=runs_days)

    found = run_command(_writing, work)
    if as_json:
        typer.echo(json.dumps({**asdict(found), "done": yes}))
        return
    done = "forgotten" if yes else "to be forgotten (`--yes` does it)"
    out.print(f"{done}: the checkpoints of {found.checkpoints} runs, and {found.runs} runs")
