"""The command `metier`: roles for operators, and what users type.

Each command turns its words into a call of `roles`, `client`, `demo` or `bench`. Errors of ours are one sentence on standard error:
exit code 2 when a person must act first, 1 when something failed.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version as installed
from typing import Annotated, NoReturn

import typer

from metier import (
    bench_agents,
    bench_orchestrator,
    bench_policies,
    bench_sandbox,
    bench_telemetry,
    cli_acls,
    cli_agents,
    cli_approvals,
    cli_bench_routing,
    cli_contracts,
    cli_control,
    cli_dead_letters,
    cli_decisions,
    cli_doctor,
    cli_eval,
    cli_migrate,
    cli_models,
    cli_off_policy,
    cli_outcomes,
    cli_prune,
    cli_replay,
    cli_routers,
    cli_routing,
    cli_runs,
    cli_schedules,
    cli_specs,
    cli_tools,
    cli_topics,
    cli_watch,
    configuration,
    demo,
)
from metier.chaos.command import command as chaos
from metier.terminal import shown
from metier_infra.errors import AskOperator, MetierError

app = typer.Typer(
    help="Teams of specialised LLM agents as durable, event-driven workflows.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
runs = typer.Typer(
    help="Look at runs: list, show, watch. Do something to them: cancel, retry, redrive, signal, approve.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
tools = typer.Typer(
    help="Run a tool runner; or look at tools, approve them, call them by hand.",
    invoke_without_command=True,
    rich_markup_mode=None,
)
agent_files = typer.Typer(
    help="Look at agents: list, check, show, and what was measured of their tools.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
approvals = typer.Typer(
    help="Tool calls that wait for a person: list, show, grant, refuse.", no_args_is_help=True, rich_markup_mode=None
)
dead_letters = typer.Typer(
    help="Records that could not be handled: list, show, send again.", no_args_is_help=True, rich_markup_mode=None
)
contracts = typer.Typer(
    help="What others may rely on: write it, and see whether it still holds.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
blobs = typer.Typer(
    help="Data of events that is too large for a record: put, get, prune.", no_args_is_help=True, rich_markup_mode=None
)
schedules = typer.Typer(help="Runs that start by the clock: list them.", no_args_is_help=True, rich_markup_mode=None)
workflow_versions = typer.Typer(
    help="Workflows: list the versions that are served.", no_args_is_help=True, rich_markup_mode=None
)
evals = typer.Typer(
    help="Eval sets of your own: run one, or make one of what happened.", no_args_is_help=True, rich_markup_mode=None
)
models = typer.Typer(
    help="Models on your own queries: are they interchangeable, or is each good at something else?",
    no_args_is_help=True,
    rich_markup_mode=None,
)
routers = typer.Typer(
    help="Router versions: fit, judge, shadow, canary, promote, roll back; list and show.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
outcomes = typer.Typer(
    help="What really came of runs: report it, and list what was said.", no_args_is_help=True, rich_markup_mode=None
)
decisions = typer.Typer(
    help="Whom runs asked, and why: list decisions, and make them again.", no_args_is_help=True, rich_markup_mode=None
)
bench = typer.Typer(help="Measure Métier on this machine.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(runs, name="runs")
app.add_typer(agent_files, name="agents")
app.add_typer(approvals, name="approvals")
app.add_typer(dead_letters, name="dead-letters")
app.add_typer(tools, name="tools")
app.add_typer(contracts, name="contracts")
app.add_typer(blobs, name="blobs")
app.add_typer(schedules, name="schedules")
app.add_typer(workflow_versions, name="workflows")
app.add_typer(evals, name="eval")
app.add_typer(models, name="models")
app.add_typer(routers, name="routers")
app.add_typer(outcomes, name="outcomes")
app.add_typer(decisions, name="decisions")
app.add_typer(bench, name="bench")

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, for machines.")]


def main() -> None:
    """Run the command; turn our errors into sentences and exit codes."""
    os.environ.setdefault("LANGGRAPH_STRICT_MSGPACK", "true")
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        ours = _first(error)
        if ours is None:
            raise
        _fail(ours)


def _first(error: BaseException) -> MetierError | None:
    """The first error of ours in a group of errors."""
    if isinstance(error, MetierError):
        return error
    inner: Sequence[BaseException] = getattr(error, "exceptions", ())
    return next((found for one in inner if (found := _first(one))), None)


def _fail(error: MetierError) -> NoReturn:
    typer.echo(f"metier: {_lines(str(error))}", err=True)
    sys.exit(2 if isinstance(error, AskOperator) else 1)


def _lines(text: str) -> str:
    """A sentence in which others may have had a say, for a terminal."""
    return "\n".join(map(shown, text.split("\n")))


def _example(text: str) -> str:
    return f"Example: {text}"


def _role(name: str, work: Callable[[configuration.Config, asyncio.Event], Awaitable[None]]) -> None:
    from metier.roles import run_role

    config = configuration.configure()
    run_role(config, name, lambda stop: work(config, stop))


@app.command(epilog=_example("METIER_KAFKA_BOOTSTRAP=kafka:9092 METIER_POSTGRES_URL=… metier orchestrator"))
def orchestrator() -> None:
    """Run an orchestrator: takes requests, runs graphs, wakes runs, tells their end."""
    from metier.roles import orchestrator as work

    _role("orchestrator", work)


@app.command(epilog=_example("metier agent reasoner coder"))
def agent(names: Annotated[list[str], typer.Argument(help="Which agents this worker serves.")]) -> None:
    """Run an agent worker: takes calls, runs the agents' loops, answers."""
    from metier.roles import agents

    _role("agent", lambda config, stop: agents(config, names, stop))


@tools.callback(epilog=_example("DOCKER_HOST=unix:///run/docker.sock METIER_REDIS_URL=… metier tools"))
def tool_runner(context: typer.Context) -> None:
    """Run a tool runner: takes tool calls from Celery and runs them in sandboxes. With a command: look at tools, or call them by hand."""
    if context.invoked_subcommand is None:
        from metier.roles import tools as work

        _role("tools", work)


@app.command(epilog=_example('metier dev   # then, elsewhere: metier publish specialists \'{"question": "…"}\' --wait'))
def dev() -> None:
    """Run everything in one process: in-memory bus, SQLite, sandboxes called from here."""
    from metier.roles import dev as work

    _role("dev", work)


@app.command(epilog=_example("metier version --json"))
def version(as_json: Json = False) -> None:
    """Tell which Métier this is, and the versions that matter to it."""
    names = ("metier", "langgraph", "kafka-python", "celery", "docker", "pydantic", "psycopg")
    found = {name: installed(name) for name in names} | {"python": platform.python_version()}
    if as_json:
        typer.echo(json.dumps(found))
        return
    for name, number in found.items():
        typer.echo(f"{name} {number}")


app.command(
    epilog=_example(
        'metier publish specialists \'{"question": "Geb is 10 less than half the age of Haley. If Haley is 26 years old, how old is Geb?"}\' --wait'
    )
)(cli_runs.publish)
app.command("doctor", epilog=_example("metier doctor --role orchestrator --role agent:coder --json"))(cli_doctor.doctor)
app.command("migrate", epilog=_example("metier migrate --check --wait 300"))(cli_migrate.migrate)
app.command("topics", epilog=_example("metier topics --check --json"))(cli_topics.topics)
app.command("acls", epilog=_example("metier acls --role agent-coder --principal 'User:CN={role}'"))(cli_acls.acls)
app.command("prune", epilog=_example("metier prune --checkpoints 7 --runs 90 --yes"))(cli_prune.prune)
app.command("replay", epilog=_example("metier replay 3f2a --with agent=careful --json"))(cli_replay.command)
app.command("trace", epilog=_example("metier trace 3f2a --json"))(cli_runs.trace)
runs.command("list", epilog=_example("metier runs list --status failed --json"))(cli_runs.list_runs)
runs.command("show", epilog=_example("metier runs show 3f2a"))(cli_runs.show)
runs.command("watch", epilog=_example("metier runs watch 3f2a"))(cli_watch.watch)
runs.command("cancel", epilog=_example('metier runs cancel 3f2a 77c0 --note "the customer left"'))(cli_control.cancel)
runs.command("retry", epilog=_example("metier runs retry --status failed --workflow specialists --since 6h"))(
    cli_control.retry
)
runs.command("redrive", epilog=_example("metier runs redrive 3f2a --json"))(cli_control.redrive)
runs.command("signal", epilog=_example("""metier runs signal 3f2a paid '{"euros": 12}'"""))(cli_control.signal)
runs.command("approve", epilog=_example("metier runs approve 3f2a"))(cli_approvals.approve_run)
dead_letters.command("list", epilog=_example("metier dead-letters list --reason undecodable --since 6h"))(
    cli_dead_letters.list_letters
)
dead_letters.command("show", epilog=_example("metier dead-letters show metier.requests@1:10"))(cli_dead_letters.show)
dead_letters.command("redrive", epilog=_example("metier dead-letters redrive --topic metier.requests --since 6h"))(
    cli_dead_letters.redrive_letters
)
approvals.command("list", epilog=_example("metier approvals list --all --json"))(cli_approvals.list_approvals)
approvals.command("show", epilog=_example("metier approvals show 9c41"))(cli_approvals.show)
approvals.command("grant", epilog=_example("""metier approvals grant 9c41 --arguments '{"to": "a@example.org"}'"""))(
    cli_approvals.grant
)
approvals.command("refuse", epilog=_example('metier approvals refuse 9c41 --note "not on a Friday"'))(
    cli_approvals.refuse
)
schedules.command("list", epilog=_example("METIER_SCHEDULES=schedules.yaml metier schedules list --json"))(
    cli_schedules.list_schedules
)
workflow_versions.command("list", epilog=_example("metier workflows list --json"))(cli_schedules.list_workflows)
app.command(
    "demo", epilog=_example("metier demo --queries 60 --seed 7   # --live coder=openai:gpt-5 asks a real model")
)(demo.command)
agent_files.command("list", epilog=_example("metier agents list --json"))(cli_specs.list_agents)
agent_files.command("check", epilog=_example("metier agents check agents"))(cli_specs.check)
agent_files.command("show", epilog=_example("metier agents show coder"))(cli_specs.show)
agent_files.command("records", epilog=_example("metier agents records coder --csv"))(cli_agents.records)
tools.command("list", epilog=_example("METIER_TOOL_FILES=tools metier tools list --live"))(cli_tools.list_tools)
tools.command("approve", epilog=_example("METIER_TOOL_FILES=tools metier tools approve word_count"))(cli_tools.approve)
tools.command(
    "exec",
    epilog=_example(
        """echo '{"id": "1", "tool": "python", "arguments": {"code": "print(6*7)"}}' | metier tools exec"""
    ),
)(cli_tools.execute)
tools.command("selftest", epilog=_example("metier tools selftest --json"))(cli_tools.selftest)
app.command("chaos", epilog=_example("metier chaos --runs 500 --kills 60 --seed 7 --json"))(chaos)
contracts.command("asyncapi", epilog=_example("metier contracts asyncapi --public --out asyncapi.json"))(
    cli_contracts.asyncapi
)
contracts.command("check", epilog=_example("metier contracts check asyncapi.json --json"))(cli_contracts.check)
blobs.command("put", epilog=_example("metier blobs put request.json --json"))(cli_contracts.put_blob)
blobs.command("get", epilog=_example("metier blobs get sha256:9f86d0… --out result.json"))(cli_contracts.get_blob)
blobs.command("prune", epilog=_example("metier blobs prune --days 90 --json"))(cli_contracts.prune_blobs)
evals.command(
    "run",
    epilog=_example("metier eval run my-set.jsonl --agents reasoner,careful --out evals/monday --min-accuracy 0.8"),
)(cli_eval.run)
models.command("compare", epilog=_example("metier models compare evals/support --html support.html"))(
    cli_models.compare
)
evals.command("off-policy", epilog=_example("metier eval off-policy --data matrices --name ours --json"))(
    cli_off_policy.off_policy
)
evals.command("routing", epilog=_example("metier eval routing --data matrices --name ours --json"))(cli_routing.routing)
evals.command("capture", epilog=_example("metier eval capture 3f2a 77c0 --out my-set.jsonl"))(cli_eval.capture)
routers.command("fit", epilog=_example("metier routers fit --eval-set evals/support --explore"))(cli_routers.fit)
routers.command("judge", epilog=_example("metier routers judge learned-3f2a --eval-set evals/monday"))(
    cli_routers.judge
)
routers.command("shadow", epilog=_example("metier routers shadow learned-3f2a"))(cli_routers.shadow)
routers.command("canary", epilog=_example("metier routers canary learned-3f2a --share 0.1 --tenant acme"))(
    cli_routers.canary
)
routers.command("promote", epilog=_example('metier routers promote learned-3f2a --note "better on maths"'))(
    cli_routers.promote
)
routers.command("roll-back", epilog=_example('metier routers roll-back learned-3f2a --note "too slow"'))(
    cli_routers.roll_back
)
routers.command("list", epilog=_example("metier routers list --json"))(cli_routers.list_routers)
routers.command("show", epilog=_example("metier routers show learned-3f2a --json"))(cli_routers.show)
outcomes.command("report", epilog=_example("metier outcomes report 3f2a --score 0 --agent coder --note 'off by one'"))(
    cli_outcomes.report
)
outcomes.command("list", epilog=_example("metier outcomes list --run 3f2a --json"))(cli_outcomes.list_outcomes)
decisions.command("list", epilog=_example("metier decisions list 3f2a --json"))(cli_decisions.list_decisions)
decisions.command("replay", epilog=_example("metier decisions replay 3f2a"))(cli_decisions.replay)
bench.command("sandbox", epilog=_example("metier bench sandbox --json"))(bench_sandbox.command)
bench.command("policies", epilog=_example("metier bench policies --json   # some seven minutes"))(
    bench_policies.command
)
bench.command("agents", epilog=_example("metier bench agents --calls 2000 --json"))(bench_agents.command)
bench.command("routing", epilog=_example("metier bench routing --rows 600 --json"))(cli_bench_routing.command)
bench.command("orchestrator", epilog=_example("metier bench orchestrator --json"))(bench_orchestrator.command)
bench.command("telemetry", epilog=_example("metier bench telemetry --json"))(bench_telemetry.command)
