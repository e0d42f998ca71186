"""`metier migrate`: bring the journal's schema up to date, or tell, or wait, until it is. `cli` registers it, `metier_infra.database` does the work."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated

import typer

from metier import awaiting, compose, configuration
from metier.configuration import Config
from metier.terminal import shown
from metier_infra import database
from metier_infra.errors import BadSettings, SchemaBehind
from metier_infra.retry import Backoff

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, for machines.")]
Wait = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        min=0,
        help="With --check: wait so long for it, whether the service is there yet or not, and say what is missing meanwhile.",
        show_default=False,
    ),
]
ONCE = Backoff(attempts=1)


def migrate(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; fail when the schema is not up to date.")
    ] = False,
    wait: Wait = None,
    as_json: Json = False,
) -> None:
    """Bring the journal's schema up to date, forward only."""
    refuse_waiting_alone(check=check, wait=wait)
    configuration.use_local_stack()
    config = configuration.configure()
    if wait is None:
        applied = asyncio.run(_migrate(config, check=check))
    else:
        configuration.configure_logs("error")
        awaiting.until("the journal's schema", lambda: asyncio.run(_look(config)), wait, say)
        applied = []
    if as_json:
        typer.echo(json.dumps({"applied": applied}))
    else:
        typer.echo("the schema is up to date" if not applied else f"applied: {', '.join(map(str, applied))}")


def refuse_waiting_alone(*, check: bool, wait: float | None) -> None:
    """Raise `BadSettings` where there is nothing to wait for."""
    if wait is not None and not check:
        raise BadSettings("--wait goes with --check: without it, nothing is waited for")


def say(line: str) -> None:
    """A line of progress, for people and for the log of an init container."""
    typer.echo(shown(line), err=True)


async def _migrate(config: Config, *, check: bool) -> list[int]:
    db = await compose.open_database(config, compose.BRIEF, size=1)
    try:
        applied = [] if check else await database.migrate(db)
        await database.check_schema(db)
        return applied
    finally:
        await db.close()


async def _look(config: Config) -> None:
    """Raises `Missing` for a schema that may still become what this code needs, and `SchemaBehind` for one that left it behind."""
    db = await compose.open_database(config, ONCE, size=1)
    try:
        await database.check_schema(db)
    except SchemaBehind as error:
        if await database.schema_version(db) > max(database.migrations()):
            raise
        raise awaiting.Missing(str(error)) from error
    finally:
        await db.close()
