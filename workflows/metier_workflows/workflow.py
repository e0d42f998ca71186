"""The author's word for a graph: a name, a function that builds an ordinary LangGraph graph, and the input it takes.

Authors decorate with `workflow`; `compose` loads their modules; the orchestrator compiles and runs what it finds.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from langgraph.graph import StateGraph
from langgraph.graph.state import CompiledStateGraph
from pydantic import BaseModel, JsonValue, ValidationError

from metier_infra.errors import BadInput, BadSpec, UnknownWorkflow
from metier_infra.words import stable_id

Graph = StateGraph[Any, Any, Any, Any]
Compiled = CompiledStateGraph[Any, Any, Any, Any]


@dataclass(frozen=True)
class Workflow:
    """A graph that runs by name. `version` names its shape: it changes when nodes, edges or channels do."""

    name: str
    build: Callable[[], Graph]
    input: type[BaseModel] | None
    version: str

    @cached_property
    def compiled(self) -> Compiled:
        """The graph, compiled once; the orchestrator gives a copy of it to each run, with a checkpointer of its own."""
        return self.build().compile(name=self.name)

    def accept(self, value: Mapping[str, JsonValue]) -> dict[str, Any]:
        """The graph's input, checked against the declared model. Raises `BadInput` naming the field."""
        if self.input is None:
            return dict(value)
        try:
            return self.input.model_validate(value).model_dump(mode="json")
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "input"
            raise BadInput(f"the input of workflow {self.name!r} does not fit: {place}: {first['msg']}") from error


def workflow(name: str, *, input: type[BaseModel] | None = None) -> Callable[[Callable[[], Graph]], Workflow]:
    """Declare a workflow: the decorated function builds its graph.

        @workflow("greet", input=Question)
        def greet() -> StateGraph: ...

    `input` is a pydantic model that every request must fit; None takes any JSON object.
    """

    def declare(build: Callable[[], Graph]) -> Workflow:
        return Workflow(name, build, input, shape(build()))

    return declare


def shape(graph: Graph) -> str:
    """12 hex characters over nodes, edges, branches and channels: what a parked run needs to find again."""
    branches = sorted(f"{node}?{name}" for node, found in graph.branches.items() for name in found)
    edges = sorted(f"{start}>{end}" for start, end in graph.edges)
    channels = sorted(cast("dict[str, object]", graph.channels))
    return stable_id("shape", *sorted(graph.nodes), "|", *edges, "|", *branches, "|", *channels)[:12]


class Workflows:
    """The workflows that one orchestrator serves, by name."""

    def __init__(self, served: Iterable[Workflow]) -> None:
        self._by_name = {found.name: found for found in served}

    @property
    def names(self) -> list[str]:
        """The names, sorted."""
        return sorted(self._by_name)

    def find(self, name: str, version: str | None) -> Workflow:
        """The workflow of that name. Raises `UnknownWorkflow` when it, or the version that a run is pinned to, is not served."""
        found = self._by_name.get(name)
        if found is None:
            raise UnknownWorkflow(
                f"no workflow is called {name!r}; this orchestrator serves: {', '.join(self.names) or 'none'}"
            )
        if version is not None and version != found.version:
            raise UnknownWorkflow(
                f"the run is pinned to version {version} of {name!r}; this orchestrator serves {found.version}"
            )
        return found


def load_workflows(modules: Iterable[str]) -> Workflows:
    """Import modules and gather the workflows that they declare. Raises `BadSpec` with the module's name."""
    found: list[Workflow] = []
    for module in modules:
        try:
            members = vars(importlib.import_module(module)).values()
        except ImportError as error:
            raise BadSpec(f"the workflow module {module!r} cannot be imported: {error}") from error
        declared = [member for member in members if isinstance(member, Workflow)]
        if not declared:
            raise BadSpec(f"the module {module!r} declares no workflow; decorate a function with @workflow(name)")
        found += declared
    return Workflows(found)
