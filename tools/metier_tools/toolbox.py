"""The tools that there are, by name, and whether a call's arguments fit.

Agents take specs from it to offer them; the runner asks it what to run. Schemas are made from the argument models' types.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from metier_infra.errors import BadSpec
from metier_tools.tool import Kind, Program, ToolSpec


class Arguments(BaseModel):
    """The base of a tool's arguments: unknown names are refused, nothing is converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


@dataclass(frozen=True)
class Refusal:
    """Why a call is not run, in a sentence that the model can act on."""

    sentence: str


@dataclass(frozen=True)
class Tool:
    """A spec with the model that its arguments must fit."""

    spec: ToolSpec
    arguments: type[Arguments]


def declare(
    name: str,
    description: str,
    arguments: type[Arguments],
    *,
    kind: Kind = "code",
    runs: Program | None = None,
    timeout_s: float = 10.0,
) -> Tool:
    """A tool whose JSON schema comes from its argument types. `timeout_s` is seconds."""
    schema = schema_of(arguments)
    spec = ToolSpec(name=name, description=description, parameters=schema, kind=kind, runs=runs, timeout_s=timeout_s)
    return Tool(spec, arguments)


def schema_of(arguments: type[Arguments]) -> dict[str, JsonValue]:
    """The JSON schema of an argument model, without the titles and docstrings that pydantic takes from our own code."""
    schema = arguments.model_json_schema()
    fields: dict[str, JsonValue] = {name: _without(field, "title") for name, field in schema["properties"].items()}
    return {**_without(schema, "title", "description"), "properties": fields}


def _without(schema: Mapping[str, JsonValue], *names: str) -> dict[str, JsonValue]:
    return {name: value for name, value in schema.items() if name not in names}


class Toolbox:
    """Tools by name. Raises `BadSpec` when two of them share one."""

    def __init__(self, tools: Iterable[Tool]) -> None:
        self._tools: dict[str, Tool] = {}
        for tool in tools:
            if tool.spec.name in self._tools:
                raise BadSpec(f"two tools are called {tool.spec.name!r}; a tool's name must be its own")
            self._tools[tool.spec.name] = tool

    def __contains__(self, name: str) -> bool:
        return name in self._tools

    @property
    def names(self) -> tuple[str, ...]:
        """The tools' names, sorted."""
        return tuple(sorted(self._tools))

    def spec(self, name: str) -> ToolSpec | None:
        """The spec of one tool, or None when there is none of this name."""
        tool = self._tools.get(name)
        return tool.spec if tool else None

    def specs(self, names: Iterable[str]) -> tuple[ToolSpec, ...]:
        """The specs of these tools, in this order. Raises `BadSpec` for a name that is not here."""
        return tuple(self._known(name).spec for name in names)

    def _known(self, name: str) -> Tool:
        if name not in self._tools:
            raise BadSpec(f"there is no tool {name!r}; there are {', '.join(self.names)}")
        return self._tools[name]

    def check(self, name: str, arguments: Mapping[str, JsonValue]) -> ToolSpec | Refusal:
        """The spec of the tool to run, or why these arguments cannot be run."""
        tool = self._tools.get(name)
        if tool is None:
            return Refusal(f"there is no tool {name!r}; there are {', '.join(self.names)}")
        try:
            tool.arguments.model_validate(arguments)
        except ValidationError as error:
            return Refusal(f"the arguments of {name} do not fit: {_reasons(error)}")
        return tool.spec


def _reasons(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'arguments'}: {one['msg']}" for one in found[:3])
