"""The command `metier models compare`: commoditised or specialised, on your own queries?

`cli` registers it. It reads a matrix, or what `metier eval run` left, has `comparison` compare, and shows that: `compare_tables` on a terminal,
`compare_page` as a page.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from metier.terminal import console, one_interrupt, shown
from metier_infra.errors import BadSettings, BadSpec

if TYPE_CHECKING:
    from metier_workflows.choosing.comparison import Category, Comparison
    from metier_workflows.choosing.matrix import Matrix


def compare(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SET|MATRIX",
            help="The folder of a `metier eval run`; or DIR/NAME of a matrix in Parquet, for the files NAME_q and NAME_o.",
            show_default=False,
        ),
    ],
    models: Annotated[
        str | None, typer.Option(metavar="A,B", help="Only these, comma-separated. None: all.", show_default=False)
    ] = None,
    category: Annotated[
        str | None, typer.Option(help="Show how every model stands on this kind of query.", show_default=False)
    ] = None,
    margin: Annotated[
        float, typer.Option(min=0.1, max=99, help="A difference that does not matter to you, in points.")
    ] = 5.0,
    seed: Annotated[int, typer.Option(min=0, help="Decides the splits.")] = 0,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with plots, on its own.", show_default=False)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output, for machines.")
    ] = False,
) -> None:
    """Are these models interchangeable on your queries, or is each good at something else? With intervals, and a verdict for each category."""
    from metier import compare_page, compare_tables
    from metier_workflows.choosing import comparison

    matrix = _only(_read(source), models)
    with (
        one_interrupt(),
        Console(stderr=True).status(f"comparing {len(matrix.models)} models on {len(matrix):,} queries"),
    ):
        found = comparison.compare(matrix, margin=margin / 100, seed=seed)
    if html is not None:
        _write(html, compare_page.page(found, source.name))
    if as_json:
        typer.echo(json.dumps(asdict(found)))
    elif category is not None:
        console().print(compare_tables.one_category(_named(found, category)))
    elif html is not None:
        typer.echo(f"{html}: {shown(found.verdict.sentence)}")
    else:
        console().print(compare_tables.tables(found))


def _read(source: Path) -> Matrix:
    from metier_workflows.evaluating import results

    if (source / results.HEAD).is_file():
        return results.matrix_of(results.read_evaluated(source))
    if not source.with_name(f"{source.name}_q.parquet").is_file():
        raise BadSpec(
            f"{source}: neither the folder of a `metier eval run` ({results.HEAD}) nor a matrix ({source.name}_q.parquet)"
        )
    from metier_workflows.choosing.matrix_files import read_matrix

    return read_matrix(source.parent, source.name)


def _only(matrix: Matrix, models: str | None) -> Matrix:
    if models is None:
        return matrix
    named = tuple(dict.fromkeys(name.strip() for name in models.split(",") if name.strip()))
    _known(named or ("",), matrix.models, "--models")
    return matrix.of(named)


def _known(names: Sequence[str], there: Sequence[str], option: str) -> None:
    for name in names:
        if name not in there:
            raise BadSettings(f"{option}: there is no {name!r}; there are: {', '.join(map(repr, there))}")


def _named(found: Comparison, category: str) -> Category:
    names = [one.segment.name for one in found.categories]
    _known([category], names, "--category")
    return found.categories[names.index(category)]


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadSettings(f"--html {path}: cannot be written: {error.strerror}") from error
