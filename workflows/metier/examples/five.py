"""The workflow `five`: five calls, one after another. `metier bench orchestrator` times it; it shows the least that a graph needs."""

from __future__ import annotations

import operator
from typing import Annotated, TypedDict

from langgraph.graph import END, START, StateGraph

from metier import agent, workflow

CALLS = 5


class State(TypedDict):
    """The question, and what each call answered."""

    question: str
    answers: Annotated[list[str], operator.add]


async def ask(state: State) -> dict[str, list[str]]:
    """One call."""
    answer = await agent("echo").ask(f"{state['question']} {len(state['answers'])}")
    return {"answers": [answer.text]}


@workflow("five")
def five() -> StateGraph[State, None, State, State]:
    """Build the graph."""
    graph = StateGraph(State)
    names = [f"call{number}" for number in range(CALLS)]
    for before, name in zip([START, *names], names, strict=False):
        graph.add_node(name, ask)
        graph.add_edge(before, name)
    graph.add_edge(names[-1], END)
    return graph
