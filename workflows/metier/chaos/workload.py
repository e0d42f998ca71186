"""The runs that `metier chaos` asks for: three workflows whose every value can be traced. The roles load them by `METIER_WORKFLOWS`.

Each run first draws a token, which no two passes of that node would draw alike: whatever is done twice from two histories shows two tokens.
"""

from __future__ import annotations

import operator
import secrets
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Protocol, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from metier import agent, workflow

TIMEOUT_S = 900.0
"""No call may end by its deadline: what waits so long is stuck, and shall be found so."""
CHECKERS = 3
"""Checks of one run that go on at once."""


class State(TypedDict):
    """The run's name, the token that it drew, and what its agents told."""

    key: str
    token: str
    told: Annotated[list[str], operator.add]


def draw(state: State) -> dict[str, str]:
    """Draw the run's token: durable before anything is asked under it."""
    del state
    return {"token": secrets.token_hex(8)}


async def _ask(name: str, verb: str, state: State, part: str) -> dict[str, list[str]]:
    answer = await agent(name).ask(f"{verb} {state['key']}/{part} {state['token']}", timeout_s=TIMEOUT_S)
    return {"told": [f"{part} {answer.text}"]}


async def act(state: State) -> dict[str, list[str]]:
    """Have an effect done."""
    return await _ask("doer", "effect", state, "act")


async def say(state: State) -> dict[str, list[str]]:
    """Have something said."""
    return await _ask("sayer", "say", state, "say")


async def code(state: State) -> dict[str, list[str]]:
    """Have a program run in a sandbox."""
    return await _ask("coder", "code", state, "code")


class Part(TypedDict):
    """What one of several checks is given."""

    key: str
    token: str
    part: str


async def check(state: Part) -> dict[str, list[str]]:
    """One of several at once."""
    answer = await agent("sayer").ask(f"say {state['key']}/{state['part']} {state['token']}", timeout_s=TIMEOUT_S)
    return {"told": [f"{state['part']} {answer.text}"]}


def spread(state: State) -> list[Send]:
    """Several checks and an effect at once."""
    given = [Part(key=state["key"], token=state["token"], part=f"check{number}") for number in range(CHECKERS)]
    return [*(Send("check", part) for part in given), Send("act", state)]


PARTS: Mapping[str, Sequence[str]] = {
    "chain": ("act", "say"),
    "code": ("code",),
    "fan": ("check0", "check1", "check2", "act"),
}
"""What a run of each workflow tells in the end, in this order."""


class Node(Protocol):
    """A node of a line."""

    async def __call__(self, state: State) -> dict[str, list[str]]:
        """What it tells."""
        ...


def _line(*nodes: tuple[str, Node]) -> StateGraph[State, None, State, State]:
    """Draw, then these nodes one after another."""
    graph = StateGraph(State)
    graph.add_node("draw", draw)
    for name, node in nodes:
        graph.add_node(name, node)
    names = [START, "draw", *(name for name, _ in nodes), END]
    for before, after in pairwise(names):
        graph.add_edge(before, after)
    return graph


@workflow("chain")
def chain() -> StateGraph[State, None, State, State]:
    """An effect, then a word."""
    return _line(("act", act), ("say", say))


@workflow("code")
def programs() -> StateGraph[State, None, State, State]:
    """A program in a sandbox."""
    return _line(("code", code))


@workflow("fan")
def fan() -> StateGraph[State, None, State, State]:
    """An effect and several words at once."""
    graph = StateGraph(State)
    graph.add_node("draw", draw)
    graph.add_node("check", check)
    graph.add_node("act", act)
    graph.add_edge(START, "draw")
    graph.add_conditional_edges("draw", spread, ["check", "act"])
    graph.add_edge("check", END)
    graph.add_edge("act", END)
    return graph
