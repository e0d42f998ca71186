"""The commands under `metier eval`: run a user's own eval set, and make one of what happened. `cli` registers them.

`eval_run` asks and scores, `eval_system` opens where that happens, `metier_workflows.evaluating` holds the words and the figures.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from metier import client, configuration
from metier.cli_runs import find_run, run_command
from metier.configuration import Config
from metier.terminal import console, on_terminal, one_interrupt
from metier_infra import failpoints, telemetry
from metier_infra.errors import BadSettings, BadSpec
from metier_infra.journal import Journal
from metier_infra.words import AgentCard
from metier_workflows.evaluating import capture as capturing
from metier_workflows.evaluating.budget import Purse
from metier_workflows.evaluating.results import (
    HEAD,
    RESULTS,
    SET,
    Head,
    Result,
    begin,
    newest,
    read_evaluated,
    read_head,
    read_results,
    write_set,
)
from metier_workflows.evaluating.samples import LONGEST_LINE, Sample, line_of, placed_set, read_set
from metier_workflows.evaluating.scorers import Code

if TYPE_CHECKING:
    from metier.eval_run import Todo
    from metier.eval_system import Wanted

EVALS = Path(".metier/evals")
LONGEST_CALL_S = 7 * 86_400.0
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, for machines.")]
SetFile = Annotated[Path, typer.Argument(metavar="SET", help="A file of samples, one JSON object a line.")]
Judges = Annotated[str, typer.Option(metavar="A,B,…", help="Who grades samples that are judged and name no judges.")]
BudgetUsd = Annotated[float | None, typer.Option(min=0, help="Stop once so much is spent, judges included; USD.")]
BudgetTokens = Annotated[int | None, typer.Option(min=0, help="Stop once so many tokens are used.")]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Where results go; none: a new folder in .metier/evals.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on in --out: what has a result is not asked again.")]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="With --resume: ask again where there was no answer, or no score.")
]
MinAccuracy = Annotated[
    float | None, typer.Option(min=0, max=1, help="Exit code 1 when an agent's mean score is lower.")
]
Baseline = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Earlier results; exit code 1 when an agent is significantly worse now."),
]
Distributed = Annotated[
    bool, typer.Option("--distributed", help="Ask the system that runs already, as `metier publish` finds it.")
]
out = console()


def run(
    path: SetFile,
    *,
    agents: Annotated[str, typer.Option(metavar="A,B,…", help="The agents that are asked.")],
    judges: Judges = "",
    parallel: Annotated[int, typer.Option(min=1, max=1000, help="Samples and agents under way at one time.")] = 8,
    budget_usd: BudgetUsd = None,
    budget_tokens: BudgetTokens = None,
    folder: Out = None,
    resume: Resume = False,
    retry_failed: RetryFailed = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=1, max=LONGEST_CALL_S, help="Of each call; seconds.")
    ] = 300.0,
    min_accuracy: MinAccuracy = None,
    baseline: Baseline = None,
    distributed: Distributed = False,
    as_json: Json = False,
) -> None:
    """Ask agents every sample of a set, score what they answer, and show how good they are.

    Everything runs in this process unless --distributed is given. Each sample and agent is a durable run: after a kill, --resume asks nothing
    twice. With a budget, what is under way is still ended, and what was not asked is told. Exit code 0: well; 1: below the bar, significantly worse
    than the baseline, or not finished where there is one of these; 2: something is wrong with the set or the settings.
    """
    from metier.eval_run import asked_agents, check_judges, todos, with_judges
    from metier.eval_scoring import check_schemas
    from metier.eval_system import Wanted

    names = _names("--agents", agents)
    placed = with_judges(placed_set(path), _names("--judges", judges) if judges else (), names)
    check_schemas(placed)
    samples = tuple(placed.values())
    asked, then = asked_agents(samples, names), _baseline(baseline, samples, names)
    config, cards = _configured(asked, distributed=distributed)
    check_judges(placed, names, cards)
    folder = _folder(folder, path.stem, samples, resume=resume)
    done = read_results(folder / RESULTS)
    code = any(isinstance(one.scorer, Code) for one in samples)
    wanted = Wanted(folder, read_head(folder).id, asked, code, parallel, distributed)
    pairs = todos(samples, names, done, failed_again=retry_failed)
    telemetry.start("eval", config.role.instance)
    try:
        left = asyncio.run(_ask(config, wanted, samples, pairs, _purse(done, budget_usd, budget_tokens), timeout_s))
    except KeyboardInterrupt:
        typer.echo(f"metier: stopped; the same with --out {folder} --resume goes on, and asks nothing twice", err=True)
        raise
    finally:
        telemetry.stop()
    _tell(_Ended(folder, names, left, min_accuracy, then), as_json=as_json)


def _names(option: str, text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise BadSettings(f"{option}: name at least one agent; `metier agents list` shows them")
    return names


def _baseline(path: Path | None, samples: Sequence[Sample], agents: Collection[str]) -> list[Result] | None:
    """Earlier results: a file of them, or the folder in which it lies. Raises `BadSpec`, also where they are of other samples or agents."""
    if path is None:
        return None
    found = read_results(path / RESULTS if path.is_dir() else path)
    if not found:
        raise BadSpec(f"{path}: there are no results of `metier eval run`")
    if not any(one.agent in agents for one in newest(found, samples)):
        raise BadSpec(f"{path}: no result there is of one of these agents and of a sample as it is in this set")
    return found


def _configured(asked: Collection[str], *, distributed: bool) -> tuple[Config, Mapping[str, AgentCard]]:
    """The settings, and what is known of the agents: nothing, where they are those of a system that runs elsewhere."""
    from metier.eval_system import check_agents

    if distributed:
        configuration.use_local_stack()
    config = configuration.configure()
    configuration.configure_logs("error")
    failpoints.arm(config.role.failpoints)
    return config, {} if distributed else check_agents(config, asked)


def _folder(given: Path | None, name: str, samples: Sequence[Sample], *, resume: bool) -> Path:
    """The folder of this evaluation, begun now or before. Raises `BadSettings` where it is not what it should be."""
    if given is None and resume:
        raise BadSettings("--resume goes on in a folder: name it with --out")
    folder = given or EVALS / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    there = (folder / HEAD).exists()
    if there and not resume:
        raise BadSettings(
            f"{folder} holds an evaluation already: --resume goes on with it, another --out begins a new one"
        )
    if resume and not there:
        raise BadSettings(f"{folder} holds no evaluation to go on with; without --resume one is begun there")
    try:
        if not there:
            begin(folder, Head(id=token_hex(8), name=name), samples)
    except OSError as error:
        raise BadSettings(f"{folder}: nothing can be written there: {error.strerror}") from error
    return folder


def _purse(done: Iterable[Result], usd: float | None, tokens: int | None) -> Purse:
    """What may be spent, less what was."""
    purse = Purse(usd, tokens)
    for one in done:
        purse.spend(one.agent, one.cost_usd + one.judging_usd, one.tokens + one.judging_tokens)
    return purse


async def _ask(
    config: Config, wanted: Wanted, samples: Sequence[Sample], pairs: Sequence[Todo], purse: Purse, timeout_s: float
) -> list[Todo]:
    """Ask these pairs, showing progress; those that are left. The set in the folder becomes this one only once no other process is at work there."""
    from metier.eval_run import Evaluation
    from metier.eval_system import opened

    if not pairs or purse.empty:
        _keep_set(wanted.folder, samples)
        return list(pairs)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    shown = Progress(*columns, console=Console(stderr=True), transient=True, disable=not on_terminal(sys.stderr))
    with one_interrupt(), shown as progress:
        bar = progress.add_task("asked", total=len(pairs))
        async with opened(config, wanted) as (system, scoring):
            _keep_set(wanted.folder, samples)
            evaluation = Evaluation(
                system,
                wanted.folder,
                wanted.evaluation,
                scoring,
                purse,
                parallel=wanted.parallel,
                timeout_s=timeout_s,
                told=lambda _: progress.advance(bar),
            )
            return await evaluation.run(pairs)


def _keep_set(folder: Path, samples: Sequence[Sample]) -> None:
    """Raises `BadSettings`."""
    try:
        write_set(folder / SET, samples)
    except OSError as error:
        raise BadSettings(f"{folder}: nothing can be written there: {error.strerror}") from error


@dataclass(frozen=True)
class _Ended:
    """An evaluation as far as it came, and what it is held against."""

    folder: Path
    agents: tuple[str, ...]
    left: Sequence[Todo]
    least: float | None
    then: Sequence[Result] | None


def _tell(ended: _Ended, *, as_json: bool) -> None:
    """Show the figures, and end by them. Only the agents that were asked for this time count, though the folder may hold more."""
    from metier import eval_tables
    from metier_workflows.evaluating import report

    found = read_evaluated(ended.folder)
    found = replace(found, results=tuple(one for one in found.results if one.agent in ended.agents))
    against = report.compared(found.results, ended.then) if ended.then is not None else None
    wrong = report.faults(found.results, left=len(ended.left), least=ended.least, against=against)
    document = report.document(found, left=len(ended.left), against=against or [], wrong=wrong) | {
        "folder": str(ended.folder)
    }
    if as_json:
        typer.echo(json.dumps(document))
    else:
        out.print(*eval_tables.tables(report.rows(found), against or []), sep="\n")
        typer.echo(f"results are in {ended.folder}")
    if ended.left:
        typer.echo(
            f"stopped at the budget: {len(ended.left)} of {len(found.results) + len(ended.left)} were not asked; --resume with a larger one goes on",
            err=True,
        )
    for name in report.mixed(found.results):
        typer.echo(f"{name} was changed in between: its answers are of several versions of it", err=True)
    for name in report.uncompared(against or []):
        typer.echo(f"{name} is not compared: the baseline has no score of it for a sample of this set", err=True)
    for sentence in wrong:
        typer.echo(f"metier: {sentence}", err=True)
    if wrong:
        raise typer.Exit(1)


def capture(
    run_ids: Annotated[list[str], typer.Argument(metavar="RUN…", help="Runs, by their ids or unique beginnings.")],
    *,
    path: Annotated[Path, typer.Option("--out", metavar="SET", help="The set: made, or added to.")],
    as_json: Json = False,
) -> None:
    """Make samples of the tasks of runs.

    What is right comes from an explicit outcome; where there is none, the sample is marked `todo` for a person to complete. What the set asks
    already is not added again.
    """
    known = read_set(path, todo=True) if path.exists() else ()

    async def work(journal: Journal) -> list[Sample]:
        return [sample for run_id in run_ids for sample in capturing.samples_of(await _traced(journal, run_id))]

    added = capturing.new(run_command(client.reading, work), known)
    _add(path, added)
    left = sum(bool(one.todo) for one in added)
    told = {"added": len(added), "todo": left, "set": str(path), "samples": len(known) + len(added)}
    typer.echo(
        json.dumps(told)
        if as_json
        else f"{len(added)} samples added to {path}; {left} wait for a person to complete them"
    )


async def _traced(journal: Journal, run_id: str) -> capturing.Traced:
    run = await find_run(journal, run_id)
    return capturing.Traced(run, await journal.calls.of_run(run.run_id), await journal.outcomes.listed(run.run_id))


def _add(path: Path, samples: Sequence[Sample]) -> None:
    lines = "".join(map(line_of, samples))
    if long := next((one for one in samples if len(line_of(one).encode()) > LONGEST_LINE), None):
        raise BadSpec(
            f"the task of run {long.provenance.run_id if long.provenance else ''} is longer than a line of a set may be: {LONGEST_LINE} bytes"
        )
    torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write("\n" + lines if torn else lines)
    except OSError as error:
        raise BadSettings(f"{path}: nothing can be written there: {error.strerror}") from error
