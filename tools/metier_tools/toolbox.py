"""The tools that there are, by name, and whether a call may run.

Agents take specs from it to offer them; the runner asks it what to run. `declare` and `tool_files` make the tools, `pins` says which
of them are approved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from metier_infra.errors import BadSpec
from metier_tools.profile import STRICT, Profile, find_profile
from metier_tools.tool import Language, ToolSpec


@dataclass(frozen=True)
class Refusal:
    """Why a call is not run, in a sentence that the model can act on. `gone`: there is no such tool here, or not this one, whatever the model does."""

    sentence: str
    gone: bool = False


@dataclass(frozen=True)
class Written:
    """The model writes the program: it is the value of this argument."""

    language: Language
    argument: str


@dataclass(frozen=True)
class Fixed:
    """The author wrote the program; it reads the arguments as one JSON object from standard input."""

    language: Language
    source: str = field(repr=False)


@dataclass(frozen=True)
class Command:
    """A program of the image. `{name}` in `argv` and `stdin` stands for an argument."""

    argv: tuple[str, ...]
    stdin: str = ""


@dataclass(frozen=True)
class ServerTool:
    """A tool of an MCP server: its own name, and the command that starts the server."""

    server: str
    command: tuple[str, ...]
    name: str


@dataclass(frozen=True)
class Function:
    """A trusted Python function, called in the runner's process with the checked arguments as keywords."""

    call: Callable[..., object] = field(repr=False)


Action = Written | Fixed | Command | ServerTool | Function


@dataclass(frozen=True)
class Tool:
    """A spec, and what a call of it does.

    Attributes:
        spec: what a model is told.
        action: what runs.
        problem: why arguments do not fit; None when they do.
        profile: the limits of the container.
        secrets: names of the secrets that the call gets, as environment variables of its own.
        take: files that are read from the scratch folder after each call.
        disabled: why the tool may not be called now; empty when it may.
    """

    spec: ToolSpec
    action: Action
    problem: Callable[[Mapping[str, JsonValue]], str | None] = field(repr=False)
    profile: Profile = STRICT
    secrets: tuple[str, ...] = ()
    take: tuple[str, ...] = ()
    disabled: str = ""


class Toolbox:
    """Tools by name, and the profiles that a safety bundle may name (none given: `strict@1`). Raises `BadSpec` when two tools share a name."""

    def __init__(self, tools: Iterable[Tool], profiles: Mapping[str, Profile] | None = None) -> None:
        self.profiles = {STRICT.key: STRICT} if profiles is None else dict(profiles)
        self._tools: dict[str, Tool] = {}
        for tool in tools:
            if tool.spec.name in self._tools:
                raise BadSpec(f"two tools are called {tool.spec.name!r}; a tool's name must be its own")
            self._tools[tool.spec.name] = tool

    def __contains__(self, name: str) -> bool:
        return name in self._tools

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._tools.values())

    @property
    def names(self) -> tuple[str, ...]:
        """The tools' names, sorted."""
        return tuple(sorted(self._tools))

    def profile(self, wanted: str) -> Profile:
        """The profile of this name, in its newest version unless it names one. Raises `BadSpec`."""
        return find_profile(self.profiles, wanted)

    def tool(self, name: str) -> Tool | None:
        """One tool, disabled or not, or None when there is none of this name."""
        return self._tools.get(name)

    def spec(self, name: str) -> ToolSpec | None:
        """The spec of one tool, or None when there is none of this name."""
        tool = self._tools.get(name)
        return tool.spec if tool else None

    def disabled(self, name: str) -> str:
        """Why this tool may not be called now; empty when it may. Raises `BadSpec` for a name that is not here."""
        return self._known(name).disabled

    def specs(self, names: Iterable[str]) -> tuple[ToolSpec, ...]:
        """The specs of these tools, in this order, without those that are disabled. Raises `BadSpec` for a name that is not here."""
        return tuple(tool.spec for tool in map(self._known, names) if not tool.disabled)

    def _known(self, name: str) -> Tool:
        if name not in self._tools:
            raise BadSpec(f"there is no tool {name!r}; there are {', '.join(self.names)}")
        return self._tools[name]

    def check(self, name: str, arguments: Mapping[str, JsonValue]) -> Tool | Refusal:
        """The tool to run, or why this call cannot be run."""
        tool = self._tools.get(name)
        if tool is None:
            return Refusal(f"there is no tool {name!r}; there are {', '.join(self.names)}", gone=True)
        if tool.disabled:
            return Refusal(f"the tool {name} is disabled: {tool.disabled}", gone=True)
        problem = tool.problem(arguments)
        return Refusal(f"the arguments of {name} do not fit: {problem}") if problem else tool
