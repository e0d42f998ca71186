"""What people declare in files and modules: workflows, agents, tools, tenants, schedules, prices. Each is read as a role reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from metier import cli_specs, compose, compose_tools
from metier.doctor.case import ROLES, Case, Role
from metier.doctor.examination import Part
from metier.doctor.finding import Finding, error, ok, skipped
from metier_infra.errors import MetierError

Read = Callable[[Case], Sequence[str]]
"""Reads one kind; the names of what is there. Raises `MetierError`, or what a module raises."""


def examine(case: Case) -> list[Finding]:
    """See `Part`."""
    return [one for name, (read, roles) in READERS.items() for one in _read(name, read, roles, case)]


def _read(name: str, read: Read, roles: frozenset[Role], case: Case) -> list[Finding]:
    if not roles & case.asked.roles:
        return [skipped(name, f"not needed by {', '.join(sorted(case.asked.roles))}")]
    try:
        return [found(name, read(case))]
    except _Problems as wrong:
        return [error(name, one, "correct the file") for one in wrong.args]
    except MetierError as wrong:
        return [error(name, str(wrong), "correct what it names")]
    except (Exception, SystemExit) as wrong:  # of a module that is not ours
        return [error(name, f"it cannot be imported: {type(wrong).__name__}: {wrong}", "correct the module")]


def found(name: str, names: Sequence[str]) -> Finding:
    """What to say of what could be read."""
    return ok(name, ", ".join(names) if names else "none are declared")


class _Problems(Exception):
    """Sentences."""


def _workflows(case: Case) -> Sequence[str]:
    from metier_workflows.workflow import load_workflows

    modules = [name.strip() for name in case.config.role.workflows.split(",")]
    return load_workflows(modules).names


def _agents(case: Case) -> Sequence[str]:
    folder, box = compose.agents_folder(case.config), compose_tools.toolbox(case.config)
    if problems := cli_specs.problems(sorted(folder.glob("*.yaml")), box, compose.safety_folder(case.config)):
        raise _Problems(*problems)
    specs = compose.agent_specs(case.config)
    compose.cards(case.config, specs, compose.bundles(case.config, specs))
    if missing := sorted(case.asked.agents - specs.keys()):
        raise _Problems(*(f"no agent is called {name!r}; there are: {', '.join(sorted(specs))}" for name in missing))
    return _sorted(specs)


def _tools(case: Case) -> Sequence[str]:
    compose_tools.tool_kinds(case.config)
    compose_tools.vault(case.config)
    box = compose_tools.toolbox(case.config)
    return _sorted(f"{name} (disabled: {why})" if (why := box.disabled(name)) else name for name in box.names)


def _tenants(case: Case) -> Sequence[str]:
    compose.tenants(case.config)
    return [str(case.config.role.tenants)] if case.config.role.tenants else []


def _schedules(case: Case) -> Sequence[str]:
    return _sorted(one.name for one in compose.schedules(case.config))


def _prices(case: Case) -> Sequence[str]:
    from metier_agents.model_table import read_known

    read_known(case.config.models.models)
    return [str(case.config.models.models or "those that ship")]


def _sorted(names: Iterable[str]) -> list[str]:
    return sorted(names)


_WORKER: frozenset[Role] = frozenset({"agent"})
_GRAPHS: frozenset[Role] = frozenset({"orchestrator"})
READERS: dict[str, tuple[Read, frozenset[Role]]] = {
    "files.workflows": (_workflows, _GRAPHS),
    "files.agents": (_agents, _GRAPHS | _WORKER),
    "files.tools": (_tools, ROLES),
    "files.tenants": (_tenants, _GRAPHS),
    "files.schedules": (_schedules, _GRAPHS),
    "files.prices": (_prices, _GRAPHS | _WORKER),
}
"""How each is read, and by which roles."""
PART = Part("files", tuple(READERS), examine, ROLES, mend="see which module does not end its import")
