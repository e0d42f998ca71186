"""The commands under `metier routers`: fit a version, judge it, move it, look at versions. `cli` registers them; `router_work` fits and judges, the orchestrator moves.

Moves are requests, as any backend may publish them; the command waits a while to say what became of its own.
"""

from __future__ import annotations

import getpass
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import uuid4

import typer
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from metier import client, compose
from metier.cli_runs import Json, out, run_command
from metier.configuration import Config, System
from metier.router_moves import Moved, ask
from metier.router_versions import Source, find
from metier.terminal import shown, shown_json
from metier_infra.errors import BadSettings
from metier_infra.events import RouterMoveRequested
from metier_infra.journal import Journal
from metier_infra.messages import Envelope
from metier_infra.routers import EVERYONE, Move, RouterVersion, Stages, Verdict

Version = Annotated[str, typer.Argument(metavar="VERSION", help="A version, or a beginning that no other one shares.")]
Tenant = Annotated[str | None, typer.Option(help="Of this tenant alone. Default: of all that have none of their own.")]
Whose = Annotated[str | None, typer.Option("--tenant", help="Outcomes of this tenant alone. Default: of all.")]
By = Annotated[str | None, typer.Option(help="Who wants it. Default: the user of this computer.")]
Note = Annotated[str, typer.Option(help="Why; it is kept with the move.")]
EvalSet = Annotated[Path | None, typer.Option("--eval-set", metavar="DIR", help="A folder of `metier eval run`.")]
MatrixPath = Annotated[
    Path | None, typer.Option("--matrix", metavar="DIR/NAME", help="A matrix: DIR/NAME_q.parquet and _o.parquet.")
]
Columns = Annotated[
    str, typer.Option("--agents", metavar="AGENT=COLUMN,…", help="These columns of it, and whose answers they are.")
]
To = Literal["shadow", "canary", "promoted", "rolled_back"]


@asynccontextmanager
async def _writing(config: Config) -> AsyncGenerator[Journal]:
    journal = await compose.open_journal(config, size=2, patience=compose.BRIEF)
    try:
        yield journal
    finally:
        await journal.db.close()


def fit(
    *,
    from_outcomes: Annotated[bool, typer.Option("--from-outcomes", help="On what outcomes say of decisions.")] = False,
    eval_set: EvalSet = None,
    matrix: MatrixPath = None,
    columns: Columns = "",
    tenant: Whose = None,
    seed: Annotated[int, typer.Option(help="Of the fit; the same seed and rows give the same version.")] = 0,
    explore: Annotated[
        bool,
        typer.Option("--explore", help="It draws among agents that may be the best, so that its log can judge others."),
    ] = False,
    by: By = None,
    as_json: Json = False,
) -> None:
    """Fit a router version and store it. It stands nowhere until it is moved."""
    from metier import router_work
    from metier_workflows.choosing.fitting import LEAST_LABELS

    source = Source(from_outcomes, eval_set, matrix, tenant, _names(columns))
    who = by or getpass.getuser()
    found = run_command(_writing, lambda journal: router_work.fit(journal, source, by=who, seed=seed, explores=explore))
    told, rows = found.fitted_on, int(str(found.fitted_on["rows"]))
    few = f" (fewer than {LEAST_LABELS}, so that it asks the best single agent)" if rows < LEAST_LABELS else ""
    typer.echo(
        found.model_dump_json()
        if as_json
        else f"{found.version}: fitted on {rows} {'row' if rows == 1 else 'rows'} of {shown(str(told['name']))}{few}; `metier routers judge {found.version}` is next"
    )


def judge(
    version: Version,
    eval_set: EvalSet = None,
    matrix: MatrixPath = None,
    columns: Columns = "",
    tenant: Whose = None,
    as_json: Json = False,
) -> None:
    """Judge a version by the decisions that were logged, and by an eval set; keep what was found with it. Exit code 1 where it is significantly worse.

    Of what this tells nothing (no eval set is named, say) the finding of an earlier judgement stands.
    """
    from metier import router_work

    source = Source(False, eval_set, matrix, tenant, _names(columns))

    async def work(journal: Journal) -> tuple[RouterVersion, Verdict]:
        found = await find(journal, version)
        return found, await router_work.judge(journal, found, source)

    found, verdict = run_command(_writing, work)
    told = found.model_dump(mode="json") | {"report": verdict.model_dump(mode="json")}
    before = found.report.verdict if found.report else verdict.verdict
    other = f" (it was {before})" if before != verdict.verdict else ""
    typer.echo(
        json.dumps(told | {"before": found.report and found.report.model_dump(mode="json")})
        if as_json
        else f"{found.version} is {verdict.verdict}{other}: {shown(verdict.why)}"
    )
    if verdict.verdict == "worse":
        raise typer.Exit(1)


def _names(columns: str) -> Mapping[str, str]:
    """Agent to column. Raises `BadSettings`."""
    pairs = [one.partition("=") for one in columns.split(",") if one.strip()]
    if any(not agent.strip() or not column.strip() for agent, _, column in pairs):
        raise BadSettings("--agents names columns so: reasoner=gpt-4o,careful=claude-3-opus")
    return {agent.strip(): column.strip() for agent, _, column in pairs}


def shadow(version: Version, tenant: Tenant = None, by: By = None, note: Note = "", as_json: Json = False) -> None:
    """Watch a version: it is asked for each decision, what it says is kept beside that, and never followed."""
    _move(version, "shadow", {"tenant": tenant, "by": by, "note": note}, as_json=as_json)


def canary(
    version: Version,
    share: Annotated[float, typer.Option(min=0, max=1, help="Of the tasks, above 0.")],
    tenant: Tenant = None,
    by: By = None,
    note: Note = "",
    as_json: Json = False,
) -> None:
    """Try a version: it decides for a share of the tasks."""
    _move(version, "canary", {"share": share, "tenant": tenant, "by": by, "note": note}, as_json=as_json)


def promote(
    version: Version,
    force: Annotated[
        bool, typer.Option("--force", help="Though it was not judged, or is worse; --note says why.")
    ] = False,
    tenant: Tenant = None,
    by: By = None,
    note: Note = "",
    as_json: Json = False,
) -> None:
    """Let a version decide. One that was not judged, or is significantly worse, is refused."""
    _move(version, "promoted", {"force": force, "tenant": tenant, "by": by, "note": note}, as_json=as_json)


def roll_back(version: Version, tenant: Tenant = None, by: By = None, note: Note = "", as_json: Json = False) -> None:
    """Take a version out. If it decided, the one before decides again; if it decided earlier, it is not gone back to."""
    _move(version, "rolled_back", {"tenant": tenant, "by": by, "note": note}, as_json=as_json)


def _move(version: str, to: To, said: Mapping[str, Any], *, as_json: bool) -> None:
    async def work(system: System) -> Moved:
        router = (await find(system.journal, version)).version
        facts = {**said, "router": router, "to": to, "by": said["by"] or getpass.getuser()}
        try:
            event = RouterMoveRequested.model_validate(facts)
        except ValidationError as error:
            raise BadSettings("--by, --tenant and --note are short, and without control characters") from error
        return await ask(system, Envelope(event, str(uuid4()), client.SOURCE, router))

    found = run_command(client.connect, work)
    typer.echo(found.model_dump_json() if as_json else _sentence(found), err=found.failure is not None and not as_json)
    if found.state == "rejected":
        raise typer.Exit(1)


def _sentence(one: Moved) -> str:
    if one.failure is not None:
        return f"{one.router} is not moved: {one.failure.code}: {shown(one.failure.message)}"
    if one.move is None:
        return f"{one.router}: the request was sent; no orchestrator has taken it yet"
    return f"{one.router}: {one.move.stage_before} to {one.move.stage}{_instead(one.move)}"


def _instead(move: Move) -> str:
    """Who decides once a version is rolled back."""
    if move.stage != "rolled_back" or move.stage_before == "shadow":
        return ""
    if move.stage_before == "fitted":
        return "; it is not gone back to"
    if move.other:
        return f"; {move.other} decides again"
    return f"; {'what stands for all tenants' if move.tenant else 'no version'} decides now"


def list_routers(as_json: Json = False) -> None:
    """List versions, the newest first: on what each was fitted, how it was judged, where it stands."""

    async def work(journal: Journal) -> tuple[Sequence[RouterVersion], Mapping[str, Stages]]:
        return await journal.routers.all(), await journal.routers.stages()

    found, stages = run_command(client.reading, work)
    if as_json:
        typer.echo(json.dumps([one.model_dump(mode="json") | {"stands": _stands(one, stages)} for one in found]))
        return
    table = Table("version", "fitted", "on", "rows", "verdict", "stands")
    for one in found:
        at = datetime.fromtimestamp(one.fitted_at, UTC).strftime("%Y-%m-%d %H:%M")
        on = f"{one.fitted_on.get('source')} {one.fitted_on.get('name')}"
        verdict = one.report.verdict if one.report else "unjudged"
        stands = ", ".join(f"{stage} ({tenant or 'all'})" for tenant, stage in _stands(one, stages).items())
        table.add_row(*map(Text, (one.version, at, shown(on), str(one.fitted_on.get("rows")), verdict, shown(stands))))
    out.print(table)


def _stands(one: RouterVersion, stages: Mapping[str, Stages]) -> Mapping[str, str]:
    """Where a version stands, by tenant; `EVERYONE` is the empty one."""
    found = {tenant: at.of(one.version) for tenant, at in sorted(stages.items())}
    return {tenant or EVERYONE: stage for tenant, stage in found.items() if stage != "fitted"}


def show(version: Version, as_json: Json = False) -> None:
    """Show one version: on what it was fitted, all figures of its judgement, where it stands, and every move."""

    async def work(journal: Journal) -> Mapping[str, Any]:
        found = await find(journal, version)
        moves = await journal.routers.moves(found.version)
        return found.model_dump(mode="json") | {
            "stands": _stands(found, await journal.routers.stages()),
            "moves": [one.model_dump(mode="json") for one in moves],
        }

    told = run_command(client.reading, work)
    if as_json:
        typer.echo(json.dumps(told))
    else:
        out.print(shown_json(told))
