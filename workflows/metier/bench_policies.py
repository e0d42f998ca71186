"""`metier bench policies`: when is a tool worth it? Three policies, models of different strength, and a tool that gets worse.

On the code queries of the recordings: real models' recorded answers, and programs that really run in the sandbox. `bench_policies_stand`
measures, `bench_policies_lane` breaks the tool, `bench_policies_report` judges, `bench_policies_plot` draws.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from metier import compose, compose_tools, configuration
from metier.terminal import console
from metier_infra.errors import BadSettings

if TYPE_CHECKING:
    from metier.bench_policies_report import Report
    from metier.bench_policies_stand import Found, Plan
    from metier_agents.recordings import Recordings

MODELS = ("gpt-4o-2024-08-06", "gpt-4o-mini-2024-07-18", "gemini-1.5-flash", "Meta-Llama-3-8B-Instruct")
"""Of the twelve that are recorded, the first, fourth, eighth and last by the share of code queries that they answer rightly alone."""
LEVELS = (1.0, 0.9, 0.7, 0.5, 0.3, 0.0)
WARMUP = 200
MENDED = 600


def command(
    seed: Annotated[int, typer.Option(help="Decides the order of queries, and every fault.")] = 7,
    queries: Annotated[
        int, typer.Option(min=1, help="Queries of the evaluation half that count; there are 392 of code.")
    ] = 392,
    warmup: Annotated[
        int, typer.Option(min=0, max=408, help="Calls before figures count, where a policy learns; on the other half.")
    ] = WARMUP,
    models: Annotated[str, typer.Option(help="Recorded models, comma-separated.")] = ",".join(MODELS),
    check: Annotated[bool, typer.Option("--check", help="Exit 1 unless every claim holds.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output, for machines.")
    ] = False,
    svg: Annotated[Path | None, typer.Option(help="Draw the accuracies into this file.")] = None,
) -> None:
    """Compare the three policies while their tool gets less reliable: accuracy, cost, time, and whether predictions came true."""
    from metier import bench_policies_plot, bench_policies_report
    from metier_agents.recordings import read_recordings

    configuration.use_local_stack()
    config = configuration.standalone(configuration.configure())
    configuration.configure_logs("error")
    recordings, began = read_recordings(compose.recordings_path()), time.monotonic()
    plan = make_plan(recordings, seed, _known(models, recordings), queries, warmup)
    report = make_report(plan, asyncio.run(_measure(config, plan, recordings)), time.monotonic() - began)
    if svg is not None:
        svg.write_text(bench_policies_plot.draw(report.cells), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(asdict(report)))
    else:
        console().print(bench_policies_report.tables(report))
    if check and not report.met:
        raise typer.Exit(1)


def _known(models: str, recordings: Recordings) -> tuple[str, ...]:
    named = tuple(dict.fromkeys(name.strip() for name in models.split(",") if name.strip()))
    for name in named or ("",):
        if name not in recordings.models:
            raise BadSettings(f"--models: nothing is recorded of {name!r}; there are: {', '.join(recordings.models)}")
    return named


def make_plan(recordings: Recordings, seed: int, models: tuple[str, ...], queries: int, warmup: int) -> Plan:
    """Queries in an order that depends on `seed` alone: warm-up from the calibration half, what counts from the evaluation half."""
    from metier.bench_policies_stand import Plan, draw

    before, counted = draw(recordings.calibration(), seed, warmup), draw(recordings.evaluation(), seed, queries)
    return Plan(seed, models, LEVELS, before, counted, broken=warmup, mended=min(MENDED, 2 * queries))


async def _measure(config: configuration.Config, plan: Plan, recordings: Recordings) -> Found:
    from metier.bench_policies_stand import Bench

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    lane = await compose_tools.open_inline_lane(config)
    try:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            bar = progress.add_task("calls", total=plan.calls)
            return await Bench(
                plan, recordings, lane, compose_tools.grant_key(config), lambda: progress.advance(bar)
            ).run()
    finally:
        await lane.close()


def make_report(plan: Plan, found: Found, elapsed_s: float) -> Report:
    """The figures, and what they say of the claims."""
    from metier.bench_figures import quantile
    from metier.bench_policies_report import Report, claims
    from metier.bench_policies_stand import POLICIES

    times = {f"p{share}": round(quantile(found.real_ms, share), 2) for share in (50, 95)} if found.real_ms else {}
    return Report(
        seed=plan.seed,
        queries=len(plan.counted),
        warmup=len(plan.warmup),
        policies=POLICIES,
        cells=found.cells,
        claims=claims(found.cells),
        recovery=found.recovery,
        broken=plan.broken,
        faults={name: found.fates[name] for name in ("error", "timeout", "wrong")},
        programs_run=len(found.real_ms),
        sandbox_ms=times,
        elapsed_s=round(elapsed_s, 1),
    )
