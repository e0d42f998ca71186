"""`metier topics`: make the broker's topics what is declared, or tell where they are not, or wait until they are. `cli` registers it, `metier_infra.kafka_topics` does the work."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from metier import awaiting, compose, configuration
from metier.cli_migrate import Wait, refuse_waiting_alone, say
from metier.cli_runs import Json, out
from metier.configuration import Config

if TYPE_CHECKING:
    from metier_infra.kafka_topics import Drift

AS_DECLARED = "the topics are as declared"
SHOWN = 3
"""Of so many topics a line of progress tells; of the others, how many."""


def topics(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; fail when a topic is not as declared, and say what to do.")
    ] = False,
    wait: Wait = None,
    as_json: Json = False,
) -> None:
    """Make the topics what is declared, with one for each agent: create, add partitions, set what drifted. Nothing is taken away.

    What only a person can mend is not waited for: it is told, and no failure then.
    """
    refuse_waiting_alone(check=check, wait=wait)
    configuration.use_local_stack()
    config = configuration.configure()
    if wait is not None:
        configuration.configure_logs("error")
        found = awaiting.until("the topics", lambda: _left(config), wait, say)
    else:
        found = compose.topic_drift(config) if check else compose.topics(config)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found]))
    else:
        _show(found)
    if check and found and wait is None:
        raise typer.Exit(1)


def _left(config: Config) -> list[Drift]:
    """What is left to a person. Raises `Missing` where `metier topics` has something to do, and `BusGone`."""
    drift = compose.topic_drift(config)
    mendable = [
        f"{one.topic} ({one.what}: {one.found or 'none'}, not {one.declared})"
        for one in drift
        if one.state == "mendable"
    ]
    if mendable:
        more = f", and {len(mendable) - SHOWN} more" if len(mendable) > SHOWN else ""
        raise awaiting.Missing(f"`metier topics` has still to do: {', '.join(mendable[:SHOWN])}{more}")
    return drift


def _show(found: Sequence[Drift]) -> None:
    if not found:
        out.print(AS_DECLARED)
        return
    table = Table("topic", "what", "on the broker", "declared", "what was done, or is to do")
    for one in found:
        table.add_row(*map(Text, (one.topic, one.what, one.found or "-", one.declared or "-", one.action)))
    out.print(table)
