"""`metier doctor`: everything that this installation needs, looked at together. `cli` registers it, `metier.doctor` looks and judges."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from metier import configuration
from metier.doctor.examination import UNASKED
from metier.terminal import console, shown
from metier_infra.errors import BadSettings

if TYPE_CHECKING:
    from metier.doctor.examination import Part
    from metier.doctor.finding import Finding, Level

STYLES: dict[Level, str] = {"ok": "green", "warning": "yellow", "error": "bold red", "skipped": "dim"}


def doctor(
    role: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROLE",
            help="What is to run here: orchestrator, agent, agent:NAME, tools or all. May be said again. None: all.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="A,B", help="Only these parts, comma-separated.", show_default=False)
    ] = None,
    skip: Annotated[str, typer.Option(metavar="A,B", help="Not these parts.", show_default=False)] = "",
    models: Annotated[
        bool, typer.Option("--models", help="Ask each model for a word; what that cost is told.")
    ] = False,
    before_install: Annotated[
        bool,
        typer.Option("--before-install", help="Do not miss what `metier migrate` and `metier topics` will make."),
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 for warnings too.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output, for machines.")
    ] = False,
) -> None:
    """Examine this installation, all of it at once: settings, Kafka, Postgres, Redis, the engine, files, keys, models, clocks.

    Each finding says what was seen, and what to do. Nothing is changed: what is written to try it is undone, or gone a moment later.
    Exit code 1 when there is an error. No secret is shown.
    """
    from metier.doctor import examination, settings
    from metier.doctor.case import asked
    from metier.doctor.parts import PARTS

    configuration.use_local_stack()
    configuration.configure_logs("error")
    case = settings.case(asked(role or ()), before_install=before_install, models=models)
    chosen = _chosen(PARTS, only, skip)
    with Console(stderr=True).status("looking at everything at once"):
        found = examination.examine(case, PARTS, chosen)
    if as_json:
        typer.echo(json.dumps(report(found)))
    else:
        _show(found)
    if _count(found, "error") or (strict and _count(found, "warning")):
        raise typer.Exit(1)


def _chosen(parts: Iterable[Part], only: str | None, skip: str) -> set[str]:
    """The names of the parts to look at. Raises `BadSettings` for a name that is none."""
    known = [part.name for part in parts]
    wanted, unwanted = _names("--only", only, known), _names("--skip", skip, known)
    return (set(known) if only is None else wanted) - unwanted


def _names(option: str, words: str | None, known: Sequence[str]) -> set[str]:
    names = {name.strip() for name in (words or "").split(",") if name.strip()}
    for name in sorted(names - set(known)):
        raise BadSettings(f"{option}: there is no part {name!r}; there are {', '.join(known)}")
    return names


def report(found: Sequence[Finding]) -> dict[str, object]:
    """What a machine reads: the counts, and each finding under an id that stays the same from version to version."""
    return {
        "ok": not _count(found, "error"),
        "errors": _count(found, "error"),
        "warnings": _count(found, "warning"),
        "findings": [asdict(one) for one in found],
    }


def _count(found: Iterable[Finding], level: Level) -> int:
    return sum(one.level == level for one in found)


def _show(found: Sequence[Finding]) -> None:
    table = Table("", "", Column("seen", overflow="fold"), Column("what to do", overflow="fold"))
    for part, group in groupby(found, lambda one: one.id.partition(".")[0]):
        for at, one in enumerate(_worth_a_row(list(group))):
            name = Text("" if at else part.replace("_", " "), "bold")
            what = Text(one.id.partition(".")[2].replace("_", " "))
            table.add_row(name, what, Text(shown(_seen(one)), STYLES[one.level]), Text(shown(one.do)))
        table.add_section()
    out = console()
    out.print(table)
    errors, warnings = _count(found, "error"), _count(found, "warning")
    out.print(f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}")


def _worth_a_row(group: Sequence[Finding]) -> Iterator[Finding]:
    """All but what nobody asked for, and what was not looked at because of another finding, which tells it."""
    return (one for one in group if one.level != "skipped" or one.seen not in (UNASKED, f"see {group[0].id}"))


def _seen(one: Finding) -> str:
    of = f"{one.of}: " if one.of else ""
    return f"{one.level}: {of}{one.seen}" if one.level != "ok" else f"{of}{one.seen}"
