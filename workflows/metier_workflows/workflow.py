"""The author's word for a graph: a name, a function that builds an ordinary LangGraph graph, and the input it takes.

Authors decorate with `workflow`; `compose` loads their modules; the orchestrator compiles and runs what it finds.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from langgraph.channels import LastValue
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.types import TASKS
from langgraph.graph import StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Send
from pydantic import BaseModel, JsonValue, ValidationError

from metier_infra.errors import BadInput, BadSpec, UnknownWorkflow, WorkflowBroken
from metier_infra.serving import Version
from metier_infra.words import stable_id

BRANCH_TO = "branch:to:"
"""LangGraph's channels that say which node is next."""
ROOT = "__root__"
"""LangGraph's one channel of a state that has no fields."""
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

    Raises `BadSpec` where a node that chooses would write its answer to no field of the state, for LangGraph drops what it has no field for.
    """

    def declare(build: Callable[[], Graph]) -> Workflow:
        graph = build()
        if lost := _lost(graph):
            raise BadSpec(f"the workflow {name!r}: {lost}")
        return Workflow(name, build, input, shape(graph))

    return declare


def _lost(graph: Graph) -> str:
    """Which node's answer would be dropped, in a sentence; empty where none would."""
    fields = cast("dict[str, object]", graph.channels).keys()
    if ROOT in fields:
        return ""
    for node, spec in graph.nodes.items():
        into: object = getattr(getattr(spec.runnable, "afunc", None), "into", None)
        if isinstance(into, str) and into not in fields:
            return f"the node {node!r} writes its answer to {into!r}, which is no field of the state; there are: {', '.join(sorted(fields))} (into=… names one)"
    return ""


def shape(graph: Graph) -> str:
    """12 hex characters over nodes, edges, branches and channels: what a parked run needs to find again."""
    branches = sorted(f"{node}?{name}" for node, found in graph.branches.items() for name in found)
    edges = sorted(f"{start}>{end}" for start, end in graph.edges)
    channels = sorted(cast("dict[str, object]", graph.channels))
    parts = [*sorted(graph.nodes), "|", *edges, "|", *branches, "|", *channels]
    return stable_id("shape", *parts, *_joins(graph), *_kinds(graph), *_inner(graph))[:12]


def _joins(graph: Graph) -> list[str]:
    """Edges that wait for several nodes: each has a channel of its own."""
    return sorted(f"{'+'.join(sorted(starts))}>{end}" for starts, end in graph.waiting_edges)


def _kinds(graph: Graph) -> list[str]:
    """Channels that keep more than the last value, by how they keep it."""
    channels = cast("dict[str, object]", graph.channels).items()
    return sorted(f"{name}:{type(one).__name__}" for name, one in channels if type(one) is not LastValue)


def _inner(graph: Graph) -> list[str]:
    """The shapes of the graphs inside, each with the node that it stands in: a run stops inside them too."""
    try:
        found = cast("list[tuple[str, object]]", list(cast("Any", graph.compile()).get_subgraphs()))
    except ValueError:  # it cannot run: whoever starts it says why
        return []
    built = [(place, _builder(one)) for place, one in found]
    return sorted(f"{place}={shape(graph)}" for place, graph in built if graph)


def _builder(compiled: object) -> Graph | None:
    """The graph that was compiled; of a function in LangGraph's other style there is none."""
    builder: Graph | None = getattr(compiled, "builder", None)
    return builder


class Workflows:
    """The workflows that one orchestrator serves, by name. Of several versions the last declared is the newest: new runs take it."""

    def __init__(self, served: Iterable[Workflow]) -> None:
        self._by_name: dict[str, dict[str, Workflow]] = {}
        for found in served:
            versions = self._by_name.setdefault(found.name, {})
            versions.pop(found.version, None)
            versions[found.version] = found

    @property
    def names(self) -> list[str]:
        """The names, sorted."""
        return sorted(self._by_name)

    @property
    def versions(self) -> list[Version]:
        """Every version of each, the newest of a name last."""
        return [
            Version(name, version, newest=version == list(found)[-1])
            for name, found in sorted(self._by_name.items())
            for version in found
        ]

    def find(self, name: str, version: str | None) -> Workflow:
        """The workflow of that name. Raises `UnknownWorkflow` when it, or the version that a run is pinned to, is not served."""
        versions = self._by_name.get(name)
        if versions is None:
            raise UnknownWorkflow(
                f"no workflow is called {name!r}; this orchestrator serves: {', '.join(self.names) or 'none'}"
            )
        found = versions.get(version or list(versions)[-1])
        if found is None:
            raise UnknownWorkflow(
                f"the run is pinned to version {version} of {name!r}; this orchestrator serves {', '.join(versions)}"
            )
        return found


def refuse_gone(graph: Compiled, begun: CheckpointTuple) -> None:
    """Raise `WorkflowBroken` where a run stands before a node that its graph has no more: LangGraph would pass over it, and end."""
    checkpoint = begun.checkpoint
    sends = cast("list[object]", checkpoint["channel_values"].get(TASKS) or [])
    marked = {name.removeprefix(BRANCH_TO) for name in checkpoint["channel_values"] if name.startswith(BRANCH_TO)}
    wanted = marked | {one.node for one in sends if isinstance(one, Send)}
    if gone := sorted(wanted - graph.nodes.keys()):
        raise WorkflowBroken(f"the run stands before {', '.join(gone)}, which the graph of {graph.name!r} has no more")


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
