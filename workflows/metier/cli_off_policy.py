"""`metier eval off-policy`: how often the intervals of off-policy estimates hold the truth, on a matrix where it is known. `cli` registers it, `choosing.off_policy_trial` does the work."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from metier.terminal import console, on_terminal, one_interrupt

if TYPE_CHECKING:
    from metier_workflows.choosing.off_policy_trial import Cell

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, for machines.")]
Data = Annotated[Path, typer.Option("--data", metavar="DIR", help="Where NAME_q.parquet and NAME_o.parquet are.")]
out = console()


def off_policy(
    data: Data,
    name: Annotated[str, typer.Option("--name", help="The matrix.")],
    models: Annotated[str, typer.Option(metavar="A,B,…", help="Only these models of it.")] = "",
    trials: Annotated[
        int, typer.Option(min=1, max=10_000, help="Logs that are drawn for each pair of policies.")
    ] = 200,
    decisions: Annotated[int, typer.Option(min=20, max=1_000_000, help="Decisions in each log.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn.")] = 7,
    as_json: Json = False,
) -> None:
    """Simulate logs on a matrix, and count how often the true value of another policy lies in the 95 % interval that is estimated from them.

    Three policies log, five are judged by each log. A trial that is not judged, because the log carries too little of what would be chosen, counts as
    refused and not as held.
    """
    from metier_workflows.choosing import off_policy_trial as trial
    from metier_workflows.choosing.matrix_files import read_matrix

    people = trial.population(read_matrix(data, name, models.split(",") if models else None))
    pairs = len(trial.LOGGING) * len(trial.TARGETS)
    shown = track(
        trial.cells(people, trials=trials, decisions=decisions, seed=seed),
        "pairs of policies",
        total=pairs,
        console=Console(stderr=True),
        transient=True,
        disable=not on_terminal(sys.stderr),
    )
    with one_interrupt():
        cells = list(shown)
    if as_json:
        told = {"name": name, "trials": trials, "decisions": decisions, "seed": seed, "coverage": _coverage(cells)}
        typer.echo(json.dumps(told | {"cells": [asdict(cell) for cell in cells]}))
    else:
        out.print(_table(cells))


def _coverage(cells: Sequence[Cell]) -> Mapping[str, float | None]:
    """Of all trials that were judged, the share whose interval held the truth, by estimator."""
    judged = sum(cell.judged for cell in cells)
    names = {name for cell in cells for name in cell.held}
    return {name: sum(cell.held[name] for cell in cells) / judged if judged else None for name in sorted(names)}


def _table(cells: Sequence[Cell]) -> Table:
    names = list(cells[0].held) if cells else []
    table = Table(
        "log",
        "judged policy",
        "true",
        "effective",
        "refused",
        *names,
        title="true value in the 95 % interval, % (mean width)",
    )
    for cell in cells:
        shares = [
            f"{100 * cell.held[name] / cell.judged:.1f} ({cell.widths[name]:.3f})" if cell.judged else ""
            for name in names
        ]
        table.add_row(
            cell.logging, cell.target, f"{cell.truth:.3f}", f"{cell.effective:.0f}", f"{cell.refused}", *shares
        )
    totals = [f"{100 * share:.1f}" if share is not None else "" for share in (_coverage(cells)[name] for name in names)]
    table.add_section()
    table.add_row("all", "", "", "", f"{sum(cell.refused for cell in cells)}", *totals)
    return table
