"""The graphs that `metier bench orchestrator` runs beside `metier.examples.five`: a fan with a join, and three calls that take their time."""

from __future__ import annotations

import operator
from typing import Annotated, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from metier import agent, workflow


class Wide(TypedDict):
    """How many calls, and what they answered."""

    width: int
    answers: Annotated[list[str], operator.add]


class One(TypedDict):
    """One call of many."""

    number: int


async def ask(state: One) -> dict[str, list[str]]:
    """One call of many."""
    return {"answers": [(await agent("echo").ask(f"fan {state['number']}")).text]}


def spread(state: Wide) -> list[Send]:
    """So many calls at once."""
    return [Send("ask", {"number": number}) for number in range(state["width"])]


def join(state: Wide) -> dict[str, int]:
    """How many answers there are."""
    return {"width": len(state["answers"])}


@workflow("fan")
def fan() -> StateGraph[Wide, None, Wide, Wide]:
    """Build W2."""
    graph = StateGraph(Wide)
    graph.add_node("ask", ask, input_schema=One)
    graph.add_node("join", join)
    graph.add_conditional_edges(START, spread, ["ask"])
    graph.add_edge("ask", "join")
    graph.add_edge("join", END)
    return graph


class Slow(TypedDict):
    """What the calls answered."""

    answers: Annotated[list[str], operator.add]


async def wait(state: Slow) -> dict[str, list[str]]:
    """One call that takes 200 ms."""
    return {"answers": [(await agent("slow").ask(f"slow {len(state['answers'])}")).text]}


@workflow("three")
def three() -> StateGraph[Slow, None, Slow, Slow]:
    """Build W3."""
    graph = StateGraph(Slow)
    names = ["first", "second", "third"]
    for before, name in zip([START, *names], names, strict=False):
        graph.add_node(name, wait)
        graph.add_edge(before, name)
    graph.add_edge(names[-1], END)
    return graph
