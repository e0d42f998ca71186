"""`metier chaos`: the words of the command, and how its outcome is printed. Hands on to `harness`."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from metier import configuration
from metier.chaos.plan import COMPONENTS, draw
from metier_infra.errors import BadSettings, Cancelled

if TYPE_CHECKING:
    pass

SHOWN = 5
T = TypeVar("T")


def command(
    runs: Annotated[int, typer.Option(min=1, help="How many runs are asked for.")] = 500,
    kills: Annotated[int, typer.Option(min=0, help="How many faults there are, of all kinds together.")] = 60,
    seed: Annotated[int | None, typer.Option(help="Draws the faults; none: a new one, which is told.")] = None,
    components: Annotated[
        str, typer.Option(help="What is harmed, with commas between; by default all of it.")
    ] = ",".join(COMPONENTS),
    folder: Annotated[
        Path | None, typer.Option(help="A new folder for the roles' logs and the ledger; none: they are not kept.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output, for machines.")
    ] = False,
) -> None:
    """Kill, freeze, drain and cut off real roles while they work, then check from outside that every delivery promise held."""
    from metier.chaos import harness

    configuration.use_local_stack()
    config = configuration.configure()
    configuration.configure_logs("error")
    wanted = _components(components)
    kinds, left, skipped = harness.possible(config, wanted)
    for sentence in skipped:
        _say(sentence)
    chosen = secrets.randbelow(1_000_000) if seed is None else seed
    plan = draw(seed=chosen, runs=runs, kills=kills, components=left, kinds=kinds)
    report = asyncio.run(heeding_sigterm(harness.carry_out(config, plan, harness.Setting(folder=folder, say=_say))))
    for name, sentences in report.wrong.items():
        for sentence in sentences[:SHOWN]:
            _say(f"{name}: {sentence}")
    for name, lines in report.trail.items():
        _say(f"what was logged of {name}:")
        for line in lines:
            _say(f"  {line}")
    if as_json:
        typer.echo(json.dumps(report.figures))
    else:
        for name, figure in report.figures.items():
            typer.echo(f"{name.replace('_', ' ')}: {figure}")
    raise typer.Exit(0 if report.clean else 1)


async def heeding_sigterm(work: Coroutine[None, None, T]) -> T:
    """Do the work; SIGTERM cancels it, so that every process that it started ends. A second one does not cut that short. Raises `Cancelled`."""
    task = asyncio.create_task(work)

    def end() -> None:
        if not task.cancelling():
            task.cancel()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, end)
    try:
        return await task
    except asyncio.CancelledError as error:
        raise Cancelled("told to end; every process that was started has ended") from error
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


def _say(line: str) -> None:
    typer.echo(f"chaos: {line}", err=True)


def _components(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in COMPONENTS:
            raise BadSettings(f"--components: there is no {name!r}; there are {', '.join(COMPONENTS)}")
    return names
