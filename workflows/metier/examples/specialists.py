"""The workflow `specialists`: understand the question, route it, ask one specialist or several at once, give one answer.

It is the job that `metier demo` runs and the example that authors copy: an ordinary LangGraph graph, with `agent(...).ask(...)` in
two of its nodes. Nothing in it knows of Kafka, containers or which model stands behind an agent.

    understand ─▶ route ─┬─▶ reason ─┬─▶ synthesise
                         └─▶ code  ──┘
"""

from __future__ import annotations

import operator
import re
from contextlib import suppress
from typing import Annotated, Literal, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from pydantic import BaseModel, ConfigDict, Field

from metier import Answer, Decision, agent, agents, choose, decide, plain, synthesise, workflow

Category = Literal["code_reasoning", "math_competition", "math_word"]

CODE = re.compile(r"\bdef \w+\(|\[PYTHON\]|^\s*assert ", re.MULTILINE)
FORMULA = re.compile(r"\\[a-zA-Z]+|\[asy\]|\$[\d.,!/]+\$|\$[^$]*[a-zA-Z=+^_{}\\<>][^$\s]*\$")
COUNTING = re.compile(r"\bhow many (different |distinct )?ways\b|\bin how many\b|distinguishable", re.IGNORECASE)
THEORY = re.compile(
    r"\b(integers?|divisors?|divisible|factors?|primes?|polynomial|arithmetic sequence|distinct|base[- ]\d"
    r"|radius|perimeter|hypotenuse|triangle|polygon|vertices|perfect squares?|digits?|non-congruent|lattice)\b",
    re.IGNORECASE,
)
LONG_CODE = 6
"""Lines of a function from which on a second opinion is worth its price."""


class Question(BaseModel):
    """The workflow's input: a question as a person or a program asks it."""

    model_config = ConfigDict(extra="forbid")
    question: str = Field(min_length=1, max_length=100_000)


class Result(TypedDict, total=False):
    """The workflow's output: one typed answer, with who stands behind it and who does not."""

    answer: str
    category: str
    agreed: list[str]
    support: float
    dissent: dict[str, str]


class State(TypedDict):
    """What the nodes share."""

    question: str
    category: Category
    asked: list[str]
    answers: Annotated[list[dict[str, object]], operator.add]


Update = dict[str, object]
"""What a node changes of the state."""


class Errand(TypedDict):
    """What one specialist is sent out with."""

    question: str
    category: str
    agent: str


def classify(text: str) -> Category:
    """What kind of task a text is, by its content alone."""
    if CODE.search(text):
        return "code_reasoning"
    if FORMULA.search(text) or COUNTING.search(text) or len(THEORY.findall(text)) >= 2:
        return "math_competition"
    return "math_word"


def plan(category: Category, text: str) -> tuple[int, tuple[str, ...], str]:
    """How many to ask, among whom, and why."""
    if category == "math_word":
        return 1, ("reasoner",), "word problems are within reach of the cheapest agent"
    if category == "math_competition":
        return (
            2,
            ("reasoner", "careful"),
            "competition problems are hard: two models answer, the more skilled one prevails",
        )
    if text.count("\n    ") > LONG_CODE:
        return 2, ("coder", "careful"), "long code: run it, and ask for a second opinion that may run it too"
    return 2, ("coder", "reasoner"), "code: run it, and check against a cheap second reading"


async def understand(state: State) -> Update:
    """Tell what kind of task it is."""
    return {"category": classify(state["question"])}


async def route(state: State) -> Update:
    """Choose the specialists; the decision is kept and published."""
    category = state["category"]
    size, among, why = plan(category, state["question"])
    decision: Decision = await decide(choose(category, agents(), size=size, among=among, reason=why))
    return {"asked": list(decision.chosen)}


def dispatch(state: State) -> list[Send]:
    """One branch for each specialist, all at once."""
    errands = [Errand(question=state["question"], category=state["category"], agent=name) for name in state["asked"]]
    return [Send("code" if errand["agent"] == "coder" else "reason", errand) for errand in errands]


async def ask(state: Errand) -> Update:
    """Ask one specialist."""
    answer = await agent(state["agent"]).ask(state["question"], category=state["category"])
    return {"answers": [answer.model_dump()]}


async def combine(state: State) -> Update:
    """One answer from all, weighed by declared skill; who disagrees is named."""
    answers = [Answer.model_validate(answer) for answer in state["answers"]]
    weights = {name: card.skills.get(state["category"], 0.0) for name, card in agents().items()}
    found = synthesise(answers, weights, key=comparable)
    return {"answer": found.text, "agreed": list(found.agreed), "support": found.support, "dissent": found.dissent}


def comparable(text: str) -> str:
    """Numbers agree by value, quoted and bare text alike, everything else by its text."""
    with suppress(ValueError):
        return format(float(text.replace(",", "")), ".9g")
    quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "'\""
    return plain(text[1:-1] if quoted else text)


@workflow("specialists", input=Question)
def specialists() -> StateGraph[State, None, State, Result]:
    """Build the graph."""
    graph = StateGraph(State, output_schema=Result)
    graph.add_node("understand", understand)
    graph.add_node("route", route)
    graph.add_node("reason", ask)
    graph.add_node("code", ask)
    graph.add_node("synthesise", combine)
    graph.add_edge(START, "understand")
    graph.add_edge("understand", "route")
    graph.add_conditional_edges("route", dispatch, ["reason", "code"])
    graph.add_edge("reason", "synthesise")
    graph.add_edge("code", "synthesise")
    graph.add_edge("synthesise", END)
    return graph
