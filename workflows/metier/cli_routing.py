"""`metier eval routing`: what choosing and combining models is worth on a matrix, on rows that nothing was fitted on. `cli` registers it, `choosing.trial` does the work."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from metier.processes import spread
from metier.terminal import console, on_terminal, one_interrupt
from metier_infra.errors import BadSettings

if TYPE_CHECKING:
    from metier_workflows.choosing.matrix import Matrix
    from metier_workflows.choosing.trial import Seed
    from metier_workflows.choosing.trial_summary import Spread, Summary

SPLITS = 5
WAYS = {
    "best_single": "best single model",
    "random": "random model",
    "single": "one agent, chosen by task",
    "combined": "panel or cascade",
    "oracle": "oracle",
}
STREAMS = {"steady": "without drift", "drift": "with drift"}
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, for machines.")]
Data = Annotated[Path, typer.Option("--data", metavar="DIR", help="Where NAME_q.parquet and NAME_o.parquet are.")]
out = console()


def routing(
    data: Data,
    name: Annotated[str, typer.Option("--name", help="The matrix.")],
    models: Annotated[str, typer.Option(metavar="A,B,…", help="Only these models of it.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Of the first split; the others follow it.")] = 0,
    splits: Annotated[int, typer.Option(min=1, max=100, help="How often the rows are split anew.")] = SPLITS,
    parallel: Annotated[int, typer.Option(min=1, max=64, help="Splits under way at one time, each in a process.")] = 2,
    features: Annotated[
        Literal["hashed", "tfidf"], typer.Option(help="What is seen of texts; tfidf needs the extra routing.")
    ] = "hashed",
    as_json: Json = False,
) -> None:
    """Fit on three fifths of a matrix, judge on the rest, over several splits: one agent by task, panel or cascade, and learning from feedback.

    Each figure is the mean over the splits, with the standard deviation between them. Nothing is tuned on rows that judge.
    """
    from metier_workflows.choosing.matrix_files import read_matrix
    from metier_workflows.choosing.trial_summary import nested, summary

    wanted = [model for model in models.split(",") if model]
    if models and not wanted:
        raise BadSettings(f"--models {models!r} names no model")
    matrix = read_matrix(data, name, wanted or None)
    with one_interrupt():
        seeds = list(_shown(_judged(matrix, range(seed, seed + splits), parallel, features), splits))
    found = summary(seeds)
    if as_json:
        told = {"name": name, "models": matrix.models, "queries": len(matrix), "summary": nested(found)}
        typer.echo(json.dumps(told | {"splits": [asdict(one) for one in seeds]}))
    else:
        _print(seeds, found)


def _judged(matrix: Matrix, seeds: Sequence[int], parallel: int, features: str) -> Iterator[Seed]:
    """The splits in their order; in this process where they come one at a time."""
    from metier_workflows.choosing import sklearn_features
    from metier_workflows.choosing.trial import judged

    made = sklearn_features.fitted if features == "tfidf" else None
    workers = min(parallel, len(seeds), os.cpu_count() or 1)
    yield from spread(partial(judged, matrix, features=made), seeds, workers)


def _shown(seeds: Iterator[Seed], splits: int) -> Iterator[Seed]:
    console = Console(stderr=True)
    hidden = not on_terminal(sys.stderr)
    yield from track(seeds, "splits", total=splits, console=console, transient=True, disable=hidden)


def _print(seeds: Sequence[Seed], found: Summary) -> None:
    one = seeds[0]
    out.print(
        f"{len(seeds)} splits of {one.train} queries to learn from and {one.test} to judge by; mean ± sd between splits"
    )
    out.print(_ways(found))
    out.print(_streams(found))
    for line in _lines(seeds, found):
        out.print(line)


def _ways(found: Summary) -> Table:
    table = Table("", "accuracy %", "$ per 1,000", "calls", "depth", "oracle gap %", "regret per 1,000")
    for way, title in WAYS.items():

        def cell(figure: str, times: float = 1.0, form: str = ".2f", way: str = way) -> str:
            return _cell(found.get(("ways", way, figure)), times, form)

        table.add_row(title, cell("accuracy", 100), cell("usd_per_1000"), cell("calls"), cell("depth"), cell("oracle_gap", 100, ".0f"), cell("regret", 1, ".1f"))  # fmt: skip
    return table


def _streams(found: Summary) -> Table:
    table = Table(
        "learning from feedback", "accuracy %", "last fifth %", "frozen %", "last fifth, frozen %", "regret, queries"
    )
    for stream, title in STREAMS.items():
        figures = ("mean", "last_fifth", "frozen", "frozen_last_fifth")
        cells = (_cell(found.get(("streams", stream, figure)), 100, ".1f") for figure in figures)
        table.add_row(title, *cells, _cell(found.get(("streams", stream, "regret")), 1, ".0f"))
    return table


def _lines(seeds: Sequence[Seed], found: Summary) -> Iterator[str]:
    for way in ("single", "combined"):
        share, accuracy = found.get(("saved", way, "share")), found.get(("saved", way, "accuracy"))
        if share:
            yield f"{WAYS[way]}: {_cell(share, 100, '.0f')} % saved where the best single model's accuracy on training rows is enough; it came to {_cell(accuracy, 100, '.2f')} %"
    for way in ("single", "combined"):
        p50, p99 = (found.get(("decided_ms", way, cut)) for cut in ("p50", "p99"))
        yield f"{WAYS[way]}: a decision takes {_cell(p50, 1, '.3f')} ms (p50), {_cell(p99, 1, '.3f')} ms (p99) of CPU"
    yield f"fit: {_cell(found[('fit_s',)], 1, '.1f')} s; best single model: {', '.join(sorted({one.best_single for one in seeds}))}"
    routes, combines = sum(one.routes for one in seeds), sum(one.combines for one in seeds)
    yield f"better than the best single model on training rows, and surely not half a point worse: choosing by task in {routes} of {len(seeds)} splits, combining in {combines}"


def _cell(spread: Spread | None, times: float, form: str) -> str:
    return "-" if spread is None else f"{spread.mean * times:{form}} ± {spread.sd * times:{form}}"
