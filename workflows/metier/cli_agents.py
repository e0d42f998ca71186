"""The commands under `metier agents` that read the journal: what was measured of the agents' tools. `cli` registers them."""

from __future__ import annotations

import asyncio
import csv
import json
import math
import sys
from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Annotated

import typer
from rich.table import Table

from metier import client, configuration
from metier.terminal import console
from metier_agents.record import RecordRow, export
from metier_infra.errors import BadSettings
from metier_infra.rows import HALF_LIFE

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, for machines.")]
out = console()


def records(
    agent: Annotated[str | None, typer.Argument(help="Only this agent's records.")] = None,
    half_life: Annotated[
        float, typer.Option("--half-life", min=1, help="Calls after which what was measured counts half.")
    ] = HALF_LIFE,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV with a head line on standard output.")] = False,
) -> None:
    """Show what was measured of each tool, by agent and category: success, latency and cost, newer calls weighing more."""
    if as_json and as_csv:
        raise BadSettings("--json and --csv are two forms of one output; choose one")
    if not math.isfinite(half_life):
        raise BadSettings(f"--half-life {half_life} is no number of calls")
    rows = _read(agent, half_life)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows]))
    elif as_csv:
        _write_csv(rows)
    else:
        _print_table(rows)


def _read(agent: str | None, half_life: float) -> list[RecordRow]:
    async def main() -> list[RecordRow]:
        async with client.reading(config) as journal:
            return await export(journal, agent, half_life)

    configuration.use_local_stack()
    config = configuration.configure()
    configuration.configure_logs("error")
    return asyncio.run(main())


def _write_csv(rows: Iterable[RecordRow]) -> None:
    """What was not measured is an empty cell."""
    writer = csv.DictWriter(sys.stdout, [field.name for field in fields(RecordRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)


def _print_table(rows: Iterable[RecordRow]) -> None:
    table = Table("agent", "category", "tool", "calls", "success", "p50 s", "p90 s", "cost USD")
    for row in rows:
        measured = (
            _cell(row.success, "{:.1%}"),
            _cell(row.latency_p50_s, "{:.3f}"),
            _cell(row.latency_p90_s, "{:.3f}"),
            _cell(row.cost_usd, "{:.6f}"),
        )
        table.add_row(row.agent, row.category, row.tool, str(row.n), *measured)
    out.print(table)


def _cell(value: float | None, form: str) -> str:
    return "unknown" if value is None else form.format(value)
