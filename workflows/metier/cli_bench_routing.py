"""`metier bench routing`: whether routers do harm, on made matrices of many kinds. `cli` registers it, `choosing.harm` does the work."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from metier.processes import spread
from metier.terminal import console, on_terminal, one_interrupt
from metier_infra.errors import BadSettings

if TYPE_CHECKING:
    from metier_workflows.choosing.harm import Case, Harm, Told

HARM = -0.5
"""Points below the best single model that are too many."""
out = console()


def command(
    models: Annotated[str, typer.Option(metavar="N,N,…", help="How many models; each with each of --rows.")] = "2,5,12",
    rows: Annotated[str, typer.Option(metavar="N,N,…", help="How many queries to learn from.")] = "150,600,2000",
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Matrices of each kind and size.")] = 3,
    kinds: Annotated[str, typer.Option(metavar="A,B,…", help="Only these kinds; all, if not given.")] = "",
    parallel: Annotated[int, typer.Option(min=1, max=64, help="Matrices under way at one time.")] = 2,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output, for machines.")
    ] = False,
) -> None:
    """Make matrices on which routers could do harm, fit, and compare with the best single model: by kind, the mean and the worst.

    Exits with 1 where a kind's mean is more than half a point below it, surely (two standard errors).
    """
    from metier_workflows.choosing.harm import cases, told

    wanted = list(cases(_numbers("--models", models), _numbers("--rows", rows), seeds, _kinds(kinds)))
    with one_interrupt():
        found = list(_shown(_judged(wanted, parallel), len(wanted)))
    kept = told(found)
    if as_json:
        each = {kind: {way: asdict(one) for way, one in ways.items()} for kind, ways in kept.items()}
        typer.echo(json.dumps({"kinds": each, "cases": [asdict(one) for one in found]}))
    else:
        out.print(_table(kept))
    if any(surely_harmful(ways[way]) for ways in kept.values() for way in ("single", "combined")):
        raise typer.Exit(1)


def surely_harmful(told: Told) -> bool:
    """Whether the mean is below `HARM` by more than two standard errors."""
    return told.mean + 2 * told.error < HARM


def _numbers(option: str, words: str) -> list[int]:
    try:
        found = [int(word) for word in words.split(",")]
    except ValueError as wrong:
        raise BadSettings(f"{option} {words!r} is not a list of numbers, such as 2,5,12") from wrong
    if min(found) < 1:
        raise BadSettings(f"{option} {words!r} has a number below 1")
    return found


def _kinds(words: str) -> list[str]:
    from metier_workflows.choosing.made import KINDS

    wanted = [word.strip() for word in words.split(",") if word.strip()]
    for one in wanted:
        if one not in KINDS:
            raise BadSettings(f"--kinds names {one!r}; there are: {', '.join(KINDS)}")
    return wanted


def _judged(wanted: Sequence[Case], parallel: int) -> Iterator[Harm]:
    from metier_workflows.choosing.harm import judged

    yield from spread(judged, wanted, parallel)


def _shown(found: Iterator[Harm], count: int) -> Iterator[Harm]:
    hidden = not on_terminal(sys.stderr)
    yield from track(found, "matrices", total=count, console=Console(stderr=True), transient=True, disable=hidden)


def _table(kept: Mapping[str, Mapping[str, Told]]) -> Table:
    table = Table("points more than the best single model", "matrices", "one agent", "worst", "combined", "worst")
    for kind, ways in kept.items():
        single, combined = ways["single"], ways["combined"]
        table.add_row(kind, str(single.cases), *_cells(single), *_cells(combined))
    return table


def _cells(told: Told) -> tuple[str, str]:
    return f"{told.mean:+.2f} ± {told.error:.2f}", f"{told.worst:+.2f}"
