"""The commands that show a run's decisions, and make them again. `cli` registers them; `metier_workflows.routing` decides."""

from __future__ import annotations

import json
from typing import Literal

import typer
from rich.table import Column, Table
from rich.text import Text

from metier import client
from metier.cli_runs import Json, RunArgument, find_run, run_command
from metier.terminal import console, shown
from metier_infra.decisions import Kept
from metier_infra.errors import RouterBroken
from metier_infra.journal import Journal
from metier_infra.words import Decision, Word
from metier_workflows import promotion
from metier_workflows.choosing.router import Router
from metier_workflows.routing import replayed

out = console()


class Replayed(Word):
    """What came of making a decision again: the `same` to the bit, `another`, or `unknown` where the node decided itself or the router's version is gone."""

    decision_id: str
    router: str
    result: Literal["same", "another", "unknown"]
    kept: Decision
    made: Decision | None = None


def list_decisions(run_id: RunArgument, as_json: Json = False) -> None:
    """List a run's decisions: who was chosen, by whom and why."""

    async def work(journal: Journal) -> list[Kept]:
        return [*await journal.decisions.kept((await find_run(journal, run_id)).run_id)]

    found = run_command(client.reading, work)
    if as_json:
        typer.echo(
            json.dumps([{"decision_id": one.decision_id, **one.decision.model_dump(mode="json")} for one in found])
        )
        return
    table = Table(
        *[Column(head, no_wrap=True) for head in ("decision", "category", "how", "chosen", "by", "router")], "why"
    )
    for one in found:
        made = one.decision
        cells = (
            one.decision_id[:12],
            made.category,
            made.topology,
            ", ".join(made.chosen),
            made.by,
            made.router,
            made.reason,
        )
        table.add_row(*[Text(shown(cell)) for cell in cells])
    out.print(table)


def replay(run_id: RunArgument, as_json: Json = False) -> None:
    """Make a run's decisions again, from what was asked, the seed and the router's version; exit code 1 where one comes out otherwise."""

    async def work(journal: Journal) -> list[Replayed]:
        run = await find_run(journal, run_id)
        return [await again(journal, one) for one in await journal.decisions.kept(run.run_id)]

    found = run_command(client.reading, work)
    if as_json:
        typer.echo(json.dumps([one.model_dump(mode="json") for one in found]))
    for one in found if not as_json else ():
        typer.echo(shown(f"decision {one.decision_id[:12]} by {one.router}: {one.result}{_apart(one)}"))
    if any(one.result == "another" for one in found):
        raise typer.Exit(1)


def _apart(one: Replayed) -> str:
    """What is another."""
    if one.made is None or one.result != "another":
        return ""
    if one.made.chosen != one.kept.chosen:
        return f": {', '.join(one.made.chosen)} in place of {', '.join(one.kept.chosen)}"
    now, then = one.made.model_dump(), one.kept.model_dump()
    return f": the same agents, with another {', '.join(name for name in now if now[name] != then[name])}"


async def again(journal: Journal, kept: Kept) -> Replayed:
    """A decision, made again by the version that made it."""
    told = Replayed(decision_id=kept.decision_id, router=kept.decision.router, result="unknown", kept=kept.decision)
    if kept.wanted is None:
        return told
    made = replayed(kept.decision, kept.wanted, await _version(journal, kept.decision.router))
    if made is None:
        return told
    return told.model_copy(update={"result": "same" if made == kept.decision else "another", "made": made})


async def _version(journal: Journal, version: str) -> list[Router]:
    """The stored version, if it is there and whole."""
    fitted = await journal.routers.get(version)
    if fitted is None or not fitted.whole:
        return []
    try:
        return [promotion.load(fitted)]
    except RouterBroken:
        return []
