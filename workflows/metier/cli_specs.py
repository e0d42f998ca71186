"""The commands under `metier agents` that look at agent files: which agents there are, whether their files fit, what one of them is.

`cli` registers them. Nothing is asked of a model, and no key is needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml
from rich.table import Table

from metier import compose, compose_tools, configuration
from metier.terminal import console
from metier_infra.errors import BadSpec, MetierError, UnknownAgent

if TYPE_CHECKING:
    from metier_agents.spec import AgentSpec
    from metier_infra.words import Stamp
    from metier_tools.toolbox import Toolbox

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, for machines.")]
out = console()


def list_agents(as_json: Json = False) -> None:
    """Show every agent: its model, policy, tools, skills, and the digest that changes with its behaviour."""
    config = configuration.configure()
    found = compose.agent_specs(config)
    cards = compose.cards(config, found, compose.bundles(config, found))
    specs = sorted(found.values(), key=lambda spec: spec.name)
    if as_json:
        typer.echo(json.dumps([_told(spec, cards[spec.name].stamp) for spec in specs]))
        return
    table = Table("agent", "model", "policy", "safety", "tools", "skills", "digest")
    for spec in specs:
        tools, skills = (", ".join(words) for words in (_tools(spec), _skills(spec)))
        stamp = cards[spec.name].stamp
        safety, digest = (stamp.safety, stamp.digest) if stamp else ("", spec.digest)
        table.add_row(spec.name, spec.model, spec.policy.kind, safety or "-", tools or "-", skills or "-", digest)
    out.print(table)


def _tools(spec: AgentSpec) -> list[str]:
    return [tool.name for tool in spec.tools]


def _skills(spec: AgentSpec) -> list[str]:
    return [f"{name} {share:.2f}" for name, share in sorted(spec.skills.items(), key=lambda one: -one[1])]


def _told(spec: AgentSpec, stamp: Stamp | None) -> dict[str, object]:
    under = stamp.model_dump(include={"digest", "safety_digest"}) if stamp else {"digest": spec.digest}
    return {**spec.model_dump(mode="json"), **under}


def show(
    name: Annotated[str, typer.Argument(help="Which agent.")],
    as_json: Json = False,
) -> None:
    """Show one agent as it is used: every field, defaults and replaced models included."""
    config = configuration.configure()
    specs = compose.agent_specs(config)
    if name not in specs:
        raise UnknownAgent(f"no agent is called {name!r}; there are: {', '.join(sorted(specs))}")
    only = {name: specs[name]}
    told = _told(specs[name], compose.cards(config, only, compose.bundles(config, only))[name].stamp)
    typer.echo(json.dumps(told) if as_json else yaml.safe_dump(told, sort_keys=False, allow_unicode=True).rstrip())


def check(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Agent files, or folders of them. None: those of METIER_AGENTS.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check agent files, all of them: fields, names, tools. Exit code 2 when one does not fit."""
    config = configuration.configure()
    files = list(_files(paths or [compose.agents_folder(config)]))
    found = problems(files, compose_tools.toolbox(config), compose.safety_folder(config))
    if as_json:
        typer.echo(json.dumps({"checked": [str(path) for path in files], "problems": found}))
    else:
        for problem in found:
            typer.echo(problem, err=True)
        typer.echo(f"{len(files)} agent files checked, {len(found)} problems")
    if found:
        raise typer.Exit(2)


def _files(paths: Iterable[Path]) -> Iterable[Path]:
    for path in paths:
        inside = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
        if not inside:
            raise BadSpec(f"{path}: no agent files (*.yaml) there")
        yield from inside


def problems(files: Sequence[Path], toolbox: Toolbox, safety: Path) -> list[str]:
    """What does not fit, a sentence each, with the file: a file that cannot be read, a name that is taken, a tool that is not there."""
    from metier_agents.spec import load_agent

    found: list[str] = []
    names: dict[str, Path] = {}
    for path in files:
        try:
            spec = load_agent(path)
        except MetierError as error:
            found.append(str(error))
            continue
        if spec.name in names:
            found.append(f"{path}: an agent named {spec.name} is declared in {names[spec.name]} already")
        names.setdefault(spec.name, path)
        found += [f"{path}: tools: {problem}" for problem in _of_tools(spec, toolbox)]
        found += [f"{path}: safety: {problem}" for problem in _of_safety(spec, toolbox, safety)]
    return found


def _of_safety(spec: AgentSpec, toolbox: Toolbox, folder: Path) -> list[str]:
    from metier_agents.safety import find_bundle, load_bundles
    from metier_agents.safety_check import problems

    if spec.safety is None:
        return []
    try:
        return problems(spec, find_bundle(load_bundles(folder), spec.safety), toolbox)
    except MetierError as error:
        return [str(error)]


def _of_tools(spec: AgentSpec, toolbox: Toolbox) -> Iterable[str]:
    for name in _tools(spec):
        if name not in toolbox:
            yield f"there is no tool {name!r}; there are {', '.join(toolbox.names)}"
        elif reason := toolbox.disabled(name):
            yield f"the tool {name} is disabled: {reason}"
