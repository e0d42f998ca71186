"""The workflow `specialists`: understand the question, ask one specialist or several at once, give one answer.

It is what `metier demo` runs and the example that authors copy: an ordinary LangGraph graph, one of whose nodes is a `route`. Its rules say whom to ask;
where none fits, the router that was promoted decides. `routed` is the same without rules. Nothing in it knows of Kafka, containers or which model stands behind an agent.

    understand ─▶ solve
"""

from __future__ import annotations

import re
from typing import Literal, TypedDict

from langgraph.graph import END, START, StateGraph
from pydantic import BaseModel, ConfigDict, Field

from metier import Chooser, Verdict, numeric, route, rule, workflow

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


Update = dict[str, object]
"""What a node changes of the state."""


def classify(text: str) -> Category:
    """What kind of task a text is, by its content alone."""
    if CODE.search(text):
        return "code_reasoning"
    if FORMULA.search(text) or COUNTING.search(text) or len(THEORY.findall(text)) >= 2:
        return "math_competition"
    return "math_word"


def is_long(text: str) -> bool:
    """Whether a second opinion on code is worth its price."""
    return text.count("\n    ") > LONG_CODE


async def understand(state: State) -> Update:
    """Tell what kind of task it is."""
    return {"category": classify(state["question"])}


def comparable(text: str) -> str:
    """Numbers agree by value, quoted and bare text alike, everything else by its text."""
    quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "'\""
    return numeric(text[1:-1] if quoted else text)


def told(verdict: Verdict) -> Update:
    """The answer, who stands behind it and who does not."""
    said = {"agreed": list(verdict.agreed), "support": verdict.support, "dissent": verdict.dissent}
    return {"answer": verdict.text, **said}


RULES = (
    rule("reasoner", category="math_word", why="word problems are within reach of the cheapest agent"),
    rule(
        "careful",
        "reasoner",
        category="math_competition",
        why="competition problems are hard: two models answer, the more skilled one prevails",
    ),
    rule(
        "coder",
        "careful",
        category="code_reasoning",
        when=is_long,
        why="long code: run it, and ask for a second opinion that may run it too",
    ),
    rule(
        "coder",
        "reasoner",
        category="code_reasoning",
        why="code: run it, and check against a cheap second reading",
    ),
)
"""Who is asked for what: the first that fits."""


def _graph(solve: Chooser) -> StateGraph[State, None, State, Result]:
    graph = StateGraph(State, output_schema=Result)
    graph.add_node("understand", understand)
    graph.add_node("solve", solve)
    graph.add_edge(START, "understand")
    graph.add_edge("understand", "solve")
    graph.add_edge("solve", END)
    return graph


@workflow("specialists", input=Question)
def specialists() -> StateGraph[State, None, State, Result]:
    """Build the graph."""
    return _graph(route("careful", "coder", "reasoner", rules=RULES, key=comparable, into=told))


@workflow("routed", input=Question)
def routed() -> StateGraph[State, None, State, Result]:
    """Build the same graph without rules: the router that was promoted decides; where no quorum agrees, `careful` has the last word."""
    who = ("careful", "coder", "reasoner")
    return _graph(route(*who, default="careful", otherwise="default", key=comparable, into=told))
