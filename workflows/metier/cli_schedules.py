"""The commands by which operators see what starts by the clock, and which versions of workflows are served. `cli` registers them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table
from rich.text import Text

from metier import client, compose, configuration
from metier.cli_runs import Json, out, run_command
from metier_infra.errors import BadSettings
from metier_infra.journal import Journal
from metier_infra.serving import Served

if TYPE_CHECKING:
    from metier_workflows.schedules import Schedule

NEXT = 3
"""How many times to come are shown."""


def list_schedules(as_json: Json = False) -> None:
    """List the schedules: the next times of each, and the last run that it started."""
    configuration.use_local_stack()
    declared = compose.schedules(configuration.configure())
    if not declared:
        raise BadSettings("METIER_SCHEDULES names no file with schedules: nothing starts by the clock")
    found = run_command(client.reading, lambda journal: _shown(journal, declared))
    if as_json:
        typer.echo(json.dumps(found))
        return
    table = Table("schedule", "cron", "time zone", "workflow", "next", "last run", "status")
    for one in found:
        last: dict[str, str] = one["last_run"] or {}
        words = one["name"], one["cron"], one["timezone"], one["workflow"], one["next"][0]
        table.add_row(*map(Text, (*words, last.get("run_id", "")[:12], last.get("status", ""))))
    out.print(table)


async def _shown(journal: Journal, declared: Sequence[Schedule]) -> list[dict[str, Any]]:
    from metier_workflows.schedules import times

    now = datetime.fromtimestamp(await journal.schedules.now_s(), UTC)
    found: list[dict[str, Any]] = []
    for one in declared:
        last = await journal.schedules.last_run(one.source)
        found.append(
            {
                **one.model_dump(mode="json"),
                "next": [at.isoformat() for at in islice(times(one, now), NEXT)],
                "last_run": last and last.model_dump(mode="json", include={"run_id", "event_id", "status"}),
            }
        )
    return found


def list_workflows(as_json: Json = False) -> None:
    """List the versions of workflows: how many orchestrators serve each, which is the newest, and how many open runs are pinned to it."""
    found = run_command(client.reading, _versions)
    if as_json:
        typer.echo(json.dumps(found))
        return
    table = Table("workflow", "version", "served by", "newest", "open runs")
    for one in found:
        newest = "yes" if one["newest_at"] else ""
        table.add_row(*map(Text, (one["workflow"], one["version"] or "not chosen yet", str(one["served_by"]), newest, str(one["open_runs"]))))  # fmt: skip
    out.print(table)


async def _versions(journal: Journal) -> list[dict[str, Any]]:
    live = [one for one in await journal.serving.all() if one.ago_s <= journal.lease_s]
    runs = {(workflow, version): count for workflow, version, count in await journal.serving.open_runs()}
    return table_of(live, runs)


def table_of(live: Sequence[Served], runs: Mapping[tuple[str, str | None], int]) -> list[dict[str, Any]]:
    """A line for each version that is served, or that open runs are pinned to; `version` None: runs that have none yet."""
    named = {(one.version.workflow, one.version.version) for one in live} | runs.keys()
    return [
        {
            "workflow": workflow,
            "version": version,
            "served_by": sum((one.version.workflow, one.version.version) == (workflow, version) for one in live),
            "newest_at": sum((one.version.workflow, one.version.version) == (workflow, version) and one.version.newest for one in live),
            "open_runs": runs.get((workflow, version), 0),
        }
        for workflow, version in sorted(named, key=lambda one: (one[0], one[1] or ""))
    ]  # fmt: skip
