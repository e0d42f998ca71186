"""What an author declares: input checked by field, a version that names the graph's shape, and modules that are found or refused."""

from __future__ import annotations

import operator
import sys
import types
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.graph import END, START, StateGraph
from pydantic import BaseModel, Field

from metier_infra.errors import BadInput, BadSpec, UnknownWorkflow, WorkflowBroken
from metier_infra.words import Candidate, Decision
from metier_workflows.choosers import Verdict, route
from metier_workflows.node import agent, agents, decide
from metier_workflows.workflow import Graph, Workflow, Workflows, load_workflows, shape, workflow


class State(TypedDict):
    """One value."""

    x: int


class Wider(State):
    """And one more."""

    log: Annotated[list[str], operator.add]


class Question(BaseModel):
    """An input."""

    question: str = Field(min_length=1)
    depth: int = 1


async def same(state: State) -> dict[str, Any]:
    return {"x": state["x"]}


async def other(state: State) -> dict[str, Any]:
    return {"x": state["x"] + 1}


def pick(state: State) -> str:
    return "b" if state["x"] else "c"


def text_alone(verdict: Verdict) -> dict[str, Any]:
    return {"log": [verdict.text]}


def graph(*, third: bool = False, edge: str = "b", schema: type[State] = State, branch: bool = False) -> Graph:
    made = StateGraph(schema)
    made.add_node("a", same)
    made.add_node("b", same)
    if third or branch:
        made.add_node("c", same)
    made.add_edge(START, "a")
    made.add_edge("a", edge)
    if branch:
        made.add_conditional_edges("b", pick, ["b", "c"])
    made.add_edge("b", END)
    return made


def test_a_version_is_the_shape_of_the_graph_and_nothing_else() -> None:
    renamed = StateGraph(State)
    renamed.add_node("b", other)
    renamed.add_node("a", other)
    renamed.add_edge("b", END)
    renamed.add_edge("a", "b")
    renamed.add_edge(START, "a")
    assert shape(graph()) == shape(renamed) == shape(graph())
    assert len(shape(graph())) == 12


def test_every_change_of_shape_is_another_version() -> None:
    shapes = [
        shape(one) for one in (graph(), graph(third=True), graph(edge=END), graph(schema=Wider), graph(branch=True))
    ]
    assert len(set(shapes)) == len(shapes)


def test_a_version_stays_through_an_upgrade_of_metier() -> None:
    """A parked run is pinned to it."""
    assert shape(graph()) == "c85fdfb5ea4b"


def test_a_node_whose_answer_no_field_would_take_is_refused_when_the_workflow_is_declared() -> None:
    def asking(**options: Any) -> Graph:
        return StateGraph(Wider).add_node("solve", route("a", **options)).add_edge(START, "solve")

    with pytest.raises(
        BadSpec,
        match=r"the workflow 'w': the node 'solve' writes its answer to 'answer', which is no field of the state; there are: log, x",
    ):
        workflow("w")(asking)
    assert workflow("w")(lambda: asking(into="x")).name == "w"
    assert workflow("w")(lambda: asking(into=text_alone)).name == "w"


def test_input_is_checked_against_the_declared_model_and_completed() -> None:
    declared = workflow("w", input=Question)(graph)
    assert declared.accept({"question": "why?"}) == {"question": "why?", "depth": 1}


@pytest.mark.parametrize(
    ("given", "place"), [({}, "question"), ({"question": ""}, "question"), ({"question": "q", "depth": "x"}, "depth")]
)
def test_input_that_does_not_fit_names_workflow_and_field(given: dict[str, Any], place: str) -> None:
    with pytest.raises(BadInput, match=f"the input of workflow 'w' does not fit: {place}: "):
        workflow("w", input=Question)(graph).accept(given)


def test_without_a_model_any_object_is_taken() -> None:
    assert workflow("w")(graph).accept({"anything": [1]}) == {"anything": [1]}


def test_a_workflow_is_found_by_name_and_pinned_version() -> None:
    declared = workflow("w")(graph)
    served = Workflows([declared])
    assert served.find("w", None) is declared
    assert served.find("w", declared.version) is declared


def test_what_is_not_served_is_unknown_and_the_sentence_says_what_is() -> None:
    served = Workflows([workflow("one")(graph), workflow("two")(graph)])
    with pytest.raises(UnknownWorkflow, match="no workflow is called 'three'; this orchestrator serves: one, two"):
        served.find("three", None)
    with pytest.raises(
        UnknownWorkflow, match=r"pinned to version 0123 of 'one'; this orchestrator serves [0-9a-f]{12}"
    ):
        served.find("one", "0123")


def module(monkeypatch: pytest.MonkeyPatch, name: str, **members: object) -> str:
    made = types.ModuleType(name)
    vars(made).update(members)
    monkeypatch.setitem(sys.modules, name, made)
    return name


def test_modules_give_the_workflows_that_they_declare(monkeypatch: pytest.MonkeyPatch) -> None:
    first = module(monkeypatch, "authors_one", greet=workflow("greet")(graph), other=7)
    second = module(monkeypatch, "authors_two", part=workflow("part")(graph))
    assert load_workflows([first, second]).names == ["greet", "part"]


def test_a_module_that_is_not_there_or_declares_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadSpec, match="'no_such_module' cannot be imported"):
        load_workflows(["no_such_module"])
    with pytest.raises(BadSpec, match="'authors_none' declares no workflow; decorate"):
        load_workflows([module(monkeypatch, "authors_none", x=1)])


def test_the_same_graph_is_compiled_once() -> None:
    built: list[int] = []

    def build() -> Graph:
        built.append(1)
        return graph()

    declared = Workflow("w", build, None, "v")
    assert declared.compiled is declared.compiled
    assert built == [1]


async def test_outside_a_run_an_agent_cannot_be_asked_and_the_sentence_says_where() -> None:
    decision = Decision(
        category="c", chosen=("a",), topology="specialist", reason="r", router="r",
        candidates=(Candidate(agent="a", score=1, propensity=1),),
    )  # fmt: skip
    for asking in (agent("a").ask("q"), decide(decision)):
        with pytest.raises(WorkflowBroken, match="only inside a node of a run"):
            await asking
    with pytest.raises(WorkflowBroken):
        agents()
