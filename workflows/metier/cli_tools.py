"""The commands under `metier tools`: what there is, whether it is approved, what the engine enforces, and calls by hand.

`cli` registers them; `exec_lines` runs what `execute` reads, `tool_text` is how tools are shown.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import IO, Annotated

import typer
from rich.table import Table
from rich.text import Text

from metier import compose_tools, configuration, exec_lines, tool_text
from metier.terminal import console, end_by_signals, on_terminal, own_streams
from metier_infra.errors import BadSpec, MissingService, RetryLater, ServerBroken
from metier_tools import pins
from metier_tools.sandbox import Sandbox
from metier_tools.tool import ToolSpec
from metier_tools.tool_files import Catalogue
from metier_tools.toolbox import Tool
from metier_tools.vault import Vault

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, for machines.")]
out = console()


def _configured() -> configuration.Config:
    configuration.use_local_stack()
    config = configuration.configure()
    configuration.configure_logs("error")
    return config


def list_tools(
    names: Annotated[
        list[str] | None, typer.Argument(help="Tools, or MCP servers (all of their tools), to show in full. None: all.")
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Ask the MCP servers what they say of their tools now; needs the engine.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="What a model is told too: description and parameters, as for tools named.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show every tool: its kind, limits, digest, and whether it may be called."""
    config = _configured()
    secrets = compose_tools.vault(config)
    rows = [_row(tool, secrets) for tool in compose_tools.served(config)]
    rows += _live_rows(config) if live else []
    rows = _named(rows, names or [])
    if as_json:
        typer.echo(json.dumps(rows))
    elif full or names:
        typer.echo("\n\n".join(map(tool_text.in_full, rows)))
    else:
        _print_table(rows)


def _named(rows: list[dict[str, object]], names: Iterable[str]) -> list[dict[str, object]]:
    """The rows of these tools and servers; all when none is named. Raises `BadSpec` for a name that is none."""
    wanted = set(names)
    of = [{str(row["name"]), str(row["name"]).split("__")[0]} for row in rows]
    for name in sorted(wanted.difference(*of)):
        there = ", ".join(sorted(str(row["name"]) for row in rows))
        raise BadSpec(f"there is no tool or server {name!r}; there are {there}; --live asks the MCP servers too")
    return [row for row, known in zip(rows, of, strict=True) if not wanted or known & wanted]


def _print_table(rows: Iterable[Mapping[str, object]]) -> None:
    table = Table("tool", "kind", "profile", "timeout s", "digest", "state")
    for row in rows:
        cells = (str(row[name]) for name in ("name", "kind", "profile", "timeout_s", "digest", "state"))
        table.add_row(*(Text(tool_text.harmless(cell)) for cell in cells))
    out.print(table)


def _row(tool: Tool, secrets: Vault) -> dict[str, object]:
    profile = "-" if tool.spec.kind == "function" else tool.profile.key
    return _described(tool.spec, profile, tool.disabled or _lacking(tool, secrets) or "ready")


def _lacking(tool: Tool, secrets: Vault) -> str:
    """The first secret that the tool names and that is not there, in a sentence; empty when it has all."""
    lacking = (name for name in tool.secrets if secrets.value(name) is None)
    return next((f"needs the secret {name}: put it into METIER_TOOL_SECRETS" for name in lacking), "")


def _described(spec: ToolSpec, profile: str, state: str) -> dict[str, object]:
    return {
        "name": spec.name,
        "kind": spec.kind,
        "profile": profile,
        "timeout_s": spec.timeout_s,
        "digest": spec.digest[:12],
        "state": state,
        "description": spec.description,
        "parameters": spec.parameters,
    }


@dataclass(frozen=True)
class _Told:
    """What MCP servers say of their tools: the spec and its server, by the tool's name. And why others could not be asked, by server."""

    tools: Mapping[str, tuple[ToolSpec, str]] = field(default_factory=dict[str, tuple[ToolSpec, str]])
    silent: Mapping[str, str] = field(default_factory=dict[str, str])


def _live_rows(config: configuration.Config) -> list[dict[str, object]]:
    """What the servers say now that differs from what was approved, or is new; and those that say nothing."""
    known = compose_tools.catalogue(config)
    approved = pins.load_pins(config.tools.files) if config.tools.files else {}
    told = _told(config, known, known.servers)
    judged = [(spec, server, pins.judge(spec, approved.get(name))) for name, (spec, server) in told.tools.items()]
    rows = [_described(spec, _profile(known, server), f"live: {state}") for spec, server, state in judged if state]
    return rows + [_silent_row(known, server, why) for server, why in told.silent.items()]


def _profile(known: Catalogue, server: str) -> str:
    return known.profile(known.servers[server].profile).key


def _silent_row(known: Catalogue, server: str, why: str) -> dict[str, object]:
    nothing = ToolSpec(
        name=server, description="", parameters={}, kind="mcp", timeout_s=known.servers[server].timeout_s
    )
    return _described(nothing, _profile(known, server), f"live: it could not be asked: {why}") | {"digest": "-"}


def _told(config: configuration.Config, known: Catalogue, servers: Iterable[str]) -> _Told:
    """What these servers say. One that cannot be asked is in the way of no other."""
    wanted, told, silent = list(servers), dict[str, tuple[ToolSpec, str]](), dict[str, str]()
    if not wanted:
        return _Told()
    compose_tools.vault(config)
    with closing(compose_tools.open_sandbox(config, pool=0)) as sandbox:
        for name in wanted:
            try:
                told |= {spec.name: (spec, name) for spec in _definitions(config, known, name, sandbox)}
            except (ServerBroken, MissingService, RetryLater) as error:
                silent[name] = str(error)
    return _Told(told, silent)


def _definitions(config: configuration.Config, known: Catalogue, server: str, sandbox: Sandbox) -> list[ToolSpec]:
    """Its tools as it describes them now, with what its file says of each: no server is asked how risky it is."""
    file = known.servers[server]
    specs = sandbox.definitions(compose_tools.server_recipe(config, known, server))
    return [spec.model_copy(update={"timeout_s": file.timeout_s, "risk": file.risk_of(spec.name)}) for spec in specs]


def approve(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Tools, or MCP servers (all of their tools). None: everything that waits."),
    ] = None,
    digest: Annotated[
        str | None,
        typer.Option(metavar="PREFIX", help="Refuse a tool whose digest begins otherwise; at least 8 hex digits."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Approve tools as they are now, after showing what is new or changed in them. Writes `approved.json` in the tools folder.

    What is approved is exactly what is shown: name, description and schema, which a model will obey. On a terminal it asks first. Where
    there is none, a tool that changed since it was approved is approved only when it or its server is named, or with `--yes`. Exit code 1
    when one is left, or a server could not be asked.
    """
    config = _configured()
    if config.tools.files is None:
        raise BadSpec("METIER_TOOL_FILES is not set: it names the folder of your tool files, where approvals are kept")
    known = compose_tools.catalogue(config)
    approved = pins.load_pins(config.tools.files)
    found = _candidates(config, known, names or [])
    chosen = _chosen(found, names or [])
    _check_digest(chosen, digest)
    changes = {name: one for name, one in chosen.items() if pins.judge(one[0], approved.get(name))}
    _show(changes, approved, as_json=as_json)
    asking = on_terminal(sys.stdin) and not yes
    if changes and asking:
        typer.confirm("approve what is shown above?", abort=True, err=as_json)
    left = [] if asking or yes or names else sorted(changes.keys() & approved.keys())
    taken = {name: one for name, one in changes.items() if name not in left}
    if taken:
        pins.write_pins(config.tools.files, _with(approved, taken))
    _tell(taken, left, found.silent, as_json=as_json)
    if left or found.silent:
        raise typer.Exit(1)


def _with(approved: pins.Pins, taken: Mapping[str, tuple[ToolSpec, str]]) -> pins.Pins:
    for server in {server for _, server in taken.values()}:
        approved = pins.approve(approved, [spec for spec, by in taken.values() if by == server], server)
    return approved


def _candidates(config: configuration.Config, known: Catalogue, names: Iterable[str]) -> _Told:
    """Every tool as it is now, with the server that it is of, if any."""
    wanted = set(names)
    servers = [name for name in known.servers if not wanted or any(one.split("__")[0] == name for one in wanted)]
    told = _told(config, known, servers)
    return _Told({tool.spec.name: (tool.spec, "") for tool in known.tools} | dict(told.tools), told.silent)


def _chosen(found: _Told, names: Iterable[str]) -> dict[str, tuple[ToolSpec, str]]:
    """Those that are wanted. Raises `BadSpec` for a name that is none, or what a server must not say."""
    wanted = set(names)
    there = found.tools.keys() | {server for _, server in found.tools.values()}
    unknown = sorted(name for name in wanted - there if name.split("__")[0] not in found.silent)
    if unknown:
        raise BadSpec(f"there is no tool or server {unknown[0]!r}; there are {', '.join(sorted(found.tools))}")
    chosen = {name: one for name, one in found.tools.items() if not wanted or {name, one[1]} & wanted}
    for spec, server in chosen.values():
        problem = pins.accept(spec) if server else ""
        if problem:
            raise BadSpec(f"the tool {spec.name} cannot be approved: {problem}")
    return chosen


def _check_digest(chosen: Mapping[str, tuple[ToolSpec, str]], digest: str | None) -> None:
    if digest is None:
        return
    if not re.fullmatch(r"[0-9a-f]{8,64}", digest):
        raise BadSpec(
            f"--digest {digest}: the beginning of a digest is 8 to 64 hex digits, as `metier tools list` shows"
        )
    for name, (spec, _) in sorted(chosen.items()):
        if not spec.digest.startswith(digest):
            raise BadSpec(f"the digest of {name} is {spec.digest[:12]} now, not {digest}; nothing was approved")


def _show(changes: Mapping[str, tuple[ToolSpec, str]], approved: pins.Pins, *, as_json: bool) -> None:
    """For machines, on standard error."""
    for name, (spec, _) in sorted(changes.items()):
        typer.echo(tool_text.change(spec, approved.get(name)), err=as_json)


def _tell(
    taken: Mapping[str, tuple[ToolSpec, str]], left: list[str], silent: Mapping[str, str], *, as_json: bool
) -> None:
    if as_json:
        typer.echo(json.dumps({"approved": sorted(taken), "left": left, "not_asked": silent}))
    else:
        for name, (spec, _) in sorted(taken.items()):
            typer.echo(f"approved {name} {spec.digest[:12]}")
        if not (taken or left or silent):
            out.print("nothing to approve: every tool is as it was approved")
    for server, why in silent.items():
        typer.echo(f"the server {server} could not be asked: {tool_text.harmless(why)}", err=True)
    if left:
        typer.echo(
            f"left as they were, since they changed: `metier tools approve {' '.join(left)}`, or --yes", err=True
        )


def selftest(as_json: Json = False) -> None:
    """Prove that the container engine enforces what a sandbox asks of it. Exit code 2 when it does not."""
    config = _configured()
    with closing(compose_tools.open_sandbox(config, pool=0)) as sandbox:
        found, image = sandbox.findings(), sandbox.image
    well = all(one.holds for one in found)
    if as_json:
        checks = [{"name": one.name, "holds": one.holds, "seen": one.seen} for one in found]
        typer.echo(json.dumps({"ok": well, "image": image, "checks": checks}))
    else:
        table = Table("enforced", "", "seen in the container")
        for one in found:
            table.add_row(one.name, "yes" if one.holds else "NO", one.seen)
        out.print(table)
    if not well:
        missing = "; ".join(one.name for one in found if not one.holds)
        typer.echo(f"this container engine does not enforce: {missing}", err=True)
        raise typer.Exit(2)


def execute() -> None:
    """Run tool calls from standard input, one JSON object a line, and write one JSON object a line in the same order.

    In: `{"id", "tool", "arguments", "timeout_s"?, "lease"?, "files"?: {path: base64}, "take"?: [path]}`; blank lines are skipped. Calls of
    one lease share a container, one after another; others do not. Where all containers are in use, a call waits METIER_SANDBOX_WAIT_S for
    one, and 60 s beyond its own time at most. What a trusted function prints goes to standard error.

    It begins with the self-test of `metier tools selftest`: an engine that does not enforce the limits is refused with exit code 2. Exit
    code 1 when a call could not be carried out at all; `refused` is an answer like `error`, and changes nothing. SIGINT, SIGTERM and SIGHUP
    end what runs, with exit code 128 and the signal's number.
    """
    config = _configured()
    end_by_signals()
    lines, answers = own_streams()
    toolbox, threads = compose_tools.served(config), config.sandbox.limit
    with closing(compose_tools.open_checked_sandbox(config, limit=exec_lines.CONTAINERS, idle_s=3600.0)) as sandbox:
        execution = compose_tools.execution(config, toolbox, sandbox)
        well = _run(exec_lines.Lines(execution, toolbox, sandbox, threads=threads), lines, answers)
    if not well:
        raise typer.Exit(1)


def _run(calls: exec_lines.Lines, lines: IO[bytes], answers: IO[bytes]) -> bool:
    """Whether every call could be carried out and was answered. Nobody is told where nobody reads any more."""
    try:
        return calls.run(lines, answers)
    except BrokenPipeError:
        return False
    except OSError as error:
        typer.echo(f"metier: the answers cannot be written: {error.strerror}", err=True)
        return False
