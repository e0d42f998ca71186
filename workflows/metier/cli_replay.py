"""`metier replay`: what would have come of runs with another router, agent or policy. `cli` registers it, `replay` does the work."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from metier import client
from metier.cli_runs import Json, find_run, out, run_command
from metier.configuration import Config
from metier.router_versions import find as find_router
from metier.terminal import on_terminal, shown
from metier_infra.errors import BadSettings, MetierError, MissingRouter
from metier_infra.journal import Journal

if TYPE_CHECKING:
    from metier.replay import Models, With
    from metier.replay_report import Replayed
    from metier_workflows.choosing.router import Router

LONGEST = 60
"""Characters of a text that the table shows."""
LONGEST_S = 86_400.0


def command(
    run_ids: Annotated[list[str], typer.Argument(metavar="RUN…", help="Runs' ids, or unique beginnings of them.")],
    *,
    changed: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="WHAT=NAME",
            help="router=VERSION, agent=NAME or policy=KIND; one of them. None: a check of the record.",
            show_default=False,
        ),
    ] = None,
    ask_models: Annotated[
        bool, typer.Option("--ask-models", help="Ask real models too; without it only those answer that cost nothing.")
    ] = False,
    budget_usd: Annotated[
        float | None, typer.Option("--budget", min=0, help="With --ask-models: what each run may spend on them; USD.")
    ] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=1, max=LONGEST_S, help="Of each replay; seconds.")
    ] = 120.0,
    as_json: Json = False,
) -> None:
    """Run recorded runs again in this process, with something else in them, and show what would differ and what cannot be known.

    Tool results come from the record and no tool is run; nothing is published, and the journal stays as it is. Recorded and scripted
    models answer for free; a real model is asked only with --ask-models and a budget. Of several runs those that can be replayed are shown,
    and then what is wrong with the first of the others.
    """
    from metier.replay import Models

    if ask_models and budget_usd is None:
        raise BadSettings("--ask-models needs a --budget, in USD")
    if changed and len(changed) > 1:
        raise BadSettings(f"--with changes one thing at a time: {' or '.join(changed)}")
    wanted, models = changed[0] if changed else "", Models(ask_models, budget_usd)
    made, wrong = run_command(_reading, lambda found: _replayed(*found, run_ids, wanted, models, timeout_s))
    if made or not wrong:
        _show(made, as_json=as_json)
    if wrong:
        raise wrong[0]


async def _replayed(
    config: Config, journal: Journal, run_ids: Sequence[str], wanted: str, models: Models, timeout_s: float
) -> tuple[list[Replayed], list[MetierError]]:
    """What came of each run, as far as it can be replayed, and what is wrong with the others."""
    from metier.replay import check_ended, replay

    changed = await _with(journal, wanted)
    runs = [await find_run(journal, one) for one in run_ids]
    for one in runs:
        check_ended(one)
    shown_runs = track(
        runs, "replayed", console=Console(stderr=True), transient=True, disable=not on_terminal(sys.stderr)
    )
    made: list[Replayed] = []
    wrong: list[MetierError] = []
    for run in shown_runs:
        try:
            made.append(await replay(config, journal, run, changed, models, timeout_s=timeout_s))
        except* MetierError as errors:
            wrong.append(_first(errors))
    return made, wrong


def _first(errors: BaseExceptionGroup[MetierError]) -> MetierError:
    """Of what went wrong at once."""
    one = errors.exceptions[0]
    return _first(one) if isinstance(one, BaseExceptionGroup) else one


@asynccontextmanager
async def _reading(config: Config) -> AsyncGenerator[tuple[Config, Journal]]:
    async with client.reading(config) as journal:
        yield config, journal


async def _with(journal: Journal, text: str) -> With:
    """What --with says. Raises `BadSettings` or `MissingRouter`."""
    from metier.replay import With

    what, _, name = text.partition("=")
    match what:
        case "" if not name:
            return With()
        case "router" if name:
            return With("router", name, await _router(journal, name))
        case "agent" | "policy" if name:
            return With(what, name)
        case _:
            raise BadSettings("--with is router=VERSION, agent=NAME or policy=KIND")


async def _router(journal: Journal, name: str) -> Router:
    from metier_workflows.choosing import stored

    version = (await find_router(journal, name)).version
    fitted = await journal.routers.get(version)
    if fitted is None:
        raise MissingRouter(f"the router version {version!r} is gone from the journal")
    return stored.load(fitted)


def _show(found: Sequence[Replayed], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([one.model_dump(mode="json") for one in found]))
        return
    for one in found:
        out.print(Text(_head(one)))
        if one.differences:
            out.print(table(one))
        for sentence in one.unknown:
            out.print(Text(f"not known: {shown(sentence)}"))


def _head(one: Replayed) -> str:
    told = f"{len(one.differences)} differences" if one.differs else "nothing that is known would differ"
    return f"run {one.run_id[:12]}: {told}; ${one.cost_before_usd:.6f} then, ${one.cost_after_usd:.6f} now"


def table(one: Replayed) -> Table:
    """What would differ, thing by thing."""
    found = Table("", "of", "then", "now")
    for each in one.differences:
        then, now = (_line(each.before), _line(each.after))
        begin = _apart(then, now)
        found.add_row(each.kind, _short(_line(each.about)), _short(then, begin), _short(now, begin))
    return found


def _line(text: str | None) -> str:
    return "none" if text is None else " ".join(text.split())


def _apart(one: str, other: str) -> int:
    """Where to begin, so that what is not the same in both is seen: 0 where they are short, or begin otherwise."""
    alike = next(
        (at for at, pair in enumerate(zip(one, other, strict=False)) if len({*pair}) > 1), min(len(one), len(other))
    )
    return max(0, alike - LONGEST // 3) if max(len(one), len(other)) > LONGEST and alike > LONGEST // 2 else 0


def _short(said: str, begin: int = 0) -> Text:
    """So many characters of it, from there on."""
    part = said[begin : begin + LONGEST]
    cut = "…" if begin + LONGEST < len(said) else ""
    return Text(shown(f"{'…' if begin else ''}{part}{cut}"))
