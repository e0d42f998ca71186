"""The tools folder: tools and profiles as files, tools of Python modules, and what was approved of them.

`compose` calls `toolbox`, the commands under `metier tools` call `load` too. `tool_kinds` says what a file may say, `pins` what is
approved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, create_model

from metier_infra import declared
from metier_infra.declared import Declared
from metier_infra.errors import BadSpec, MetierError
from metier_tools import pins
from metier_tools.builtin import BUILTIN
from metier_tools.declare import Boxed, Unresolved, from_model, unfit, with_risk
from metier_tools.profile import STRICT, Egress, Profile, find_profile
from metier_tools.tool_kinds import Argument, CodeFile, CommandFile, FunctionFile, ServerFile
from metier_tools.toolbox import Tool, Toolbox

AnyFile = CodeFile | CommandFile | FunctionFile | ServerFile
B = TypeVar("B", bound=Boxed)


@dataclass(frozen=True)
class Catalogue:
    """What is declared: tools (those of MCP servers are not among them), profiles by `NAME@VERSION`, servers by name."""

    tools: tuple[Tool, ...]
    profiles: Mapping[str, Profile]
    servers: Mapping[str, ServerFile]

    def profile(self, wanted: str) -> Profile:
        """The profile of this name, in its newest version unless it names one. Raises `BadSpec`."""
        return find_profile(self.profiles, wanted)


def load(folder: Path | None, modules: Iterable[str] = ()) -> Catalogue:
    """What `folder/*.yaml`, `folder/profiles/*.yaml` and the module-level tools of Python modules declare.

    Raises:
        BadSpec: with file, line and field.
    """
    profiles = {STRICT.key: STRICT}
    for path in _files(folder, "profiles"):
        _add_profile(profiles, path)
    read = [(path, _read(path, profiles)) for path in _files(folder)]
    _check_names(read)
    made = [_tool(file, profiles) for _, file in read if not isinstance(file, ServerFile)]
    made += [_resolved(tool, profiles) for module in modules for tool in _of_module(module)]
    servers = {file.name: file for _, file in read if isinstance(file, ServerFile)}
    return Catalogue(tuple(made), profiles, servers)


def _files(folder: Path | None, *inside: str) -> list[Path]:
    if folder is None:
        return []
    if not folder.is_dir():
        raise BadSpec(f"{folder}: there is no such folder of tools")
    return sorted(folder.joinpath(*inside).glob("*.yaml"))


def _add_profile(profiles: dict[str, Profile], path: Path) -> None:
    profile = declared.load(path, Profile, parts={"egress": Egress}, sentences=_SENTENCES)
    if profile.key in profiles:
        raise BadSpec(f"{path}: there is a profile {profile.key} already; give it another version")
    profiles[profile.key] = profile


class _Head(Declared, extra="allow"):
    """What says how the rest of a file is to be read."""

    kind: Literal["code", "command", "function", "mcp"]


def _read(path: Path, profiles: Mapping[str, Profile]) -> AnyFile:
    head = declared.load(path, _Head, sentences=_SENTENCES)
    kinds: dict[str, type[AnyFile]] = {
        "code": _with(profiles, CodeFile),
        "command": _with(profiles, CommandFile),
        "function": FunctionFile,
        "mcp": _with(profiles, ServerFile),
    }
    return declared.load(path, kinds[head.kind], parts={"arguments": Argument}, sentences=_SENTENCES)


def _with(profiles: Mapping[str, Profile], model: type[B]) -> type[B]:
    """The same kind of file; a profile that is not there is an error of its own field."""

    def known(wanted: str) -> str:
        try:
            find_profile(profiles, wanted)
        except BadSpec as error:
            raise unfit(str(error)) from error
        return wanted

    return create_model(model.__name__, __base__=model, profile=(Annotated[str, AfterValidator(known)], "strict"))


def _check_names(read: Iterable[tuple[Path, AnyFile]]) -> None:
    declared_in = {name: Path("Métier") for name in BUILTIN.names}
    for path, file in read:
        if file.name in declared_in:
            raise BadSpec(f"{path}: a tool or server named {file.name} is already declared in {declared_in[file.name]}")
        declared_in[file.name] = path


def _tool(file: CodeFile | CommandFile | FunctionFile, profiles: Mapping[str, Profile]) -> Tool:
    made = from_model(file.name, file.description, file.model, file.action, timeout_s=file.timeout_s)
    if isinstance(file, FunctionFile):
        return with_risk(made, file.risk)
    boxed = replace(made, profile=find_profile(profiles, file.profile), secrets=file.secrets, take=file.take)
    return with_risk(boxed, file.risk)


def _of_module(module: str) -> list[Tool]:
    """The tools that stand in a module under a name of their own; one that it imports from us ships anyway."""
    try:
        found = vars(import_module(module)).values()
    except MetierError:
        raise
    except Exception as error:
        raise BadSpec(f"the module {module} cannot be imported: {type(error).__name__}: {error}") from error
    tools = {id(one): one for one in found if isinstance(one, Tool)}
    return [tool for tool in tools.values() if not any(tool is ours for ours in BUILTIN)]


def _resolved(tool: Tool, profiles: Mapping[str, Profile]) -> Tool:
    """The tool with its profile looked up, if it has named one."""
    if not isinstance(tool, Unresolved):
        return tool
    try:
        profile = find_profile(profiles, tool.wanted)
    except BadSpec as error:
        raise BadSpec(f"the tool {tool.spec.name}: profile: {error}") from error
    return with_risk(Tool(tool.spec, tool.action, tool.problem, profile, tool.secrets, tool.take), tool.risk)


def toolbox(folder: Path | None = None, modules: Iterable[str] = ()) -> Toolbox:
    """The tools that ship and those that are declared; what was not approved, or has changed since, is in it but disabled.

    Raises:
        BadSpec: a file, a module or `approved.json` that does not fit, two tools of one name, or modules without a folder.
    """
    modules = tuple(modules)
    if folder is None and modules:
        raise BadSpec("tools of Python modules need a tools folder too: what you approve of them is kept there")
    catalogue, approved = load(folder, modules), pins.load_pins(folder) if folder else {}
    served = (
        pins.server_tools(server, approved, catalogue.profile(server.profile)) for server in catalogue.servers.values()
    )
    return Toolbox(
        (*BUILTIN, *pins.enable(catalogue.tools, approved), *chain.from_iterable(served)), catalogue.profiles
    )


_SENTENCES: Mapping[str, str] = {
    "model_type": "expected the fields of a tool or profile, such as name and kind",
}
