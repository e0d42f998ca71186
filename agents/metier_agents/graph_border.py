"""A user's LangGraph graph at our border: found and built, given tools that are ours behind a mask, and overheard when it asks a model.

`models` opens it at the start, so that a graph that cannot be had is told before any call; `graph_agent` runs it. Only these two modules and
those named for LangChain import `langgraph` or `langchain_core`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from typing import Any, TypeAlias, TypeGuard, Unpack
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import LLMResult
from langchain_core.tools import BaseTool
from langgraph.graph import StateGraph
from langgraph.pregel import Pregel

from metier_agents.langchain_errors import short
from metier_agents.model import Asking
from metier_agents.turns import History, ModelTurn
from metier_agents.wording import observation
from metier_infra.errors import BadSpec, ModelFailed
from metier_tools.tool import ToolResult, ToolSpec

PREFIX = "langgraph:"
Graph: TypeAlias = Pregel[Any, Any, Any, Any]
Act: TypeAlias = Callable[[str, Mapping[str, Any], str | None], Awaitable[ToolResult]]
"""Carries out one use of a tool: its name, the arguments, and the model's id of it (None: the graph called it by itself)."""
acting: ContextVar[Act | None] = ContextVar("acting", default=None)
"""Who acts for the call in whose context a graph runs: graphs are built once and run for many calls at a time."""


class GivenTool(BaseTool):
    """A tool of ours as a graph sees it. What it does is done by the call that the graph runs for: written down, granted, in the sandbox."""

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        del args, kwargs
        raise BadSpec(
            f"the graph calls {self.name} without waiting for it: in a node of its own it is `await tool.ainvoke(...)`"
        )

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: a tool call takes its time, and the worker has other calls in hand."""
        return self._run(*args, **kwargs)

    async def arun(
        self, tool_input: str | dict[str, Any], *args: Any, tool_call_id: str | None = None, **kwargs: Any
    ) -> Any:
        """What came of the call, as models read it; a message where a model wished for it, else its text."""
        del args, kwargs
        act = acting.get()
        if act is None:
            raise BadSpec(f"the graph calls {self.name} from a thread or task of its own, outside any call")
        arguments = tool_input if isinstance(tool_input, dict) else {"input": tool_input}
        result = await act(self.name, arguments, tool_call_id)
        text = observation(result)
        if tool_call_id is None:
            return text
        status = "success" if result.ok else "error"
        return ToolMessage(text, tool_call_id=tool_call_id, name=self.name, status=status)


def mask(spec: ToolSpec) -> BaseTool:
    """The tool for a graph."""
    return GivenTool(name=spec.name, description=spec.description, args_schema=dict(spec.parameters))


class Ear(BaseCallbackHandler):
    """Hears each request that a graph makes to a LangChain model, wherever in it. What `asked` raises, the request is not made."""

    run_inline = True
    raise_error = True

    def __init__(
        self,
        asked: Callable[[UUID], None],
        replied: Callable[[UUID, AIMessage], None],
        failed: Callable[[UUID], None],
    ) -> None:
        self._asked, self._replied, self._failed = asked, replied, failed

    def on_chat_model_start(
        self, serialized: dict[str, Any], messages: list[list[BaseMessage]], *, run_id: UUID, **kwargs: Any
    ) -> None:
        """Before a request is made."""
        del serialized, messages, kwargs
        self._asked(run_id)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """When a reply is there."""
        del kwargs
        message = getattr(response.generations[0][0], "message", None)
        self._replied(run_id, message if isinstance(message, AIMessage) else AIMessage(""))

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """When there is none."""
        del error, kwargs
        self._failed(run_id)


@dataclass(frozen=True)
class Built:
    """A graph, and the names of tools that it brought itself."""

    graph: Graph
    own: tuple[str, ...]


@dataclass(frozen=True)
class Graphs:
    """The graphs that a user's function makes: one for each set of tools, built once in a process.

    It stands where other agents have their model, and is never asked as one.
    """

    name: str
    make: Callable[[list[BaseTool]], object] = field(repr=False)
    _built: dict[tuple[str, ...], Built] = field(default_factory=dict[tuple[str, ...], Built], repr=False)

    def of(self, tools: Sequence[ToolSpec]) -> Built:
        """The graph that has these tools. Raises `BadSpec`."""
        key = tuple(f"{tool.name} {tool.digest}" for tool in tools)
        if key not in self._built:
            graph = _graph(self.name, self.make, tools)
            held = {name for node in graph.nodes.values() for name in getattr(node.bound, "tools_by_name", {})}
            self._built[key] = Built(graph, tuple(sorted(held - {tool.name for tool in tools})))
        return self._built[key]

    async def ask(self, messages: History, **asked: Unpack[Asking]) -> ModelTurn:
        """See `Model.ask`. Raises `ModelFailed`: a graph asks its models itself."""
        del messages, asked
        raise ModelFailed(f"{self.name} is a graph, and asks its models itself")


@lru_cache(maxsize=32)
def open_graph(model: str) -> Graphs:
    """The graphs of `langgraph:module:function`; the one without tools is built at once. Raises `BadSpec`."""
    module, _, function = model.removeprefix(PREFIX).partition(":")
    try:
        make = getattr(import_module(module), function)
    except Exception as error:  # the user's own code
        raise BadSpec(f"the graph {model} cannot be had: {_said(error)}") from error
    graphs = Graphs(model, make)
    graphs.of(())
    return graphs


def _graph(name: str, make: Callable[[list[BaseTool]], object], tools: Sequence[ToolSpec]) -> Graph:
    """The graph, without a checkpointer of its own: what it did is in our journal."""
    try:
        made = make([mask(tool) for tool in tools])
        found: object = made.compile() if _is_builder(made) else made
    except Exception as error:  # the user's own code
        raise BadSpec(f"the graph {name} cannot be made: {_said(error)}") from error
    if not _is_graph(found):
        raise BadSpec(f"the graph {name} cannot be made: the function gives {type(found).__name__}, and no graph")
    if "messages" not in found.channels:
        raise BadSpec(f"the graph {name} cannot be used: its state has no `messages`")
    return found.copy({"checkpointer": False})


def _is_builder(made: object) -> TypeGuard[StateGraph[Any, Any, Any, Any]]:
    return isinstance(made, StateGraph)


def _is_graph(found: object) -> TypeGuard[Graph]:
    return isinstance(found, Pregel)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {short(error)}"
