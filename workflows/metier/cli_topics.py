"""`metier topics`: make the broker's topics what is declared, or tell where they are not. `cli` registers it, `metier_infra.kafka_topics` does the work."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from metier import compose, configuration
from metier.cli_runs import Json, out

if TYPE_CHECKING:
    from metier_infra.kafka_topics import Drift

AS_DECLARED = "the topics are as declared"


def topics(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; fail when a topic is not as declared, and say what to do.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make the topics what is declared, with one for each agent: create, add partitions, set what drifted. Nothing is taken away."""
    configuration.use_local_stack()
    config = configuration.configure()
    found = compose.topic_drift(config) if check else compose.topics(config)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found]))
    else:
        _show(found)
    if check and found:
        raise typer.Exit(1)


def _show(found: Sequence[Drift]) -> None:
    if not found:
        out.print(AS_DECLARED)
        return
    table = Table("topic", "what", "on the broker", "declared", "what was done, or is to do")
    for one in found:
        table.add_row(*map(Text, (one.topic, one.what, one.found or "-", one.declared or "-", one.action)))
    out.print(table)
