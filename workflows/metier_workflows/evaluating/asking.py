"""The workflow `metier.eval`: ask one agent one sample's question and, where the sample is judged, ask the judges about the answer.

Every orchestrator serves it, so that `metier eval run` works on any running system. Being a run, a pair of sample and agent is durable: what
was answered, by agent or judge, is not asked again after a crash. That an agent fails is a result here, and not the run's failure.

    ask ─▶ judge, once for each
"""

from __future__ import annotations

import operator
from typing import Annotated, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from pydantic import Field, JsonValue

from metier_infra.errors import CallFailed, DeadlineMissed
from metier_infra.words import Answer, Failure, Name, Word
from metier_workflows.evaluating import judging
from metier_workflows.evaluating.judging import Vote
from metier_workflows.evaluating.scorers import Expected, Judged
from metier_workflows.node import Retry, agent, agents
from metier_workflows.workflow import workflow

NAME = "metier.eval"
MODULE = __name__
"""What an orchestrator loads to serve it."""


class Pair(Word):
    """One sample and the agent that is asked: the run's input. `timeout_s` is each call's, in seconds; `judged` says by whom the answer is graded, and how."""

    agent: Name
    text: str = Field(min_length=1)
    category: str = "general"
    context: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    expected: Expected | None = None
    judged: Judged | None = None
    timeout_s: float = Field(300.0, gt=0)


class Asked(Word):
    """The run's result: an answer or why there is none, and the judges' votes."""

    answer: Answer | None = None
    failure: Failure | None = None
    votes: tuple[Vote, ...] = ()


class State(TypedDict):
    """What the nodes share."""

    pair: dict[str, JsonValue]
    answer: dict[str, JsonValue] | None
    failure: dict[str, JsonValue] | None
    judges: list[str]
    votes: Annotated[list[dict[str, JsonValue]], operator.add]


Update = dict[str, object]
"""What a node changes of the state."""


class Errand(TypedDict):
    """What one judge is sent out with."""

    judge: str
    task: str
    timeout_s: float


class Input(Word):
    """A request's data."""

    pair: Pair


class Output(TypedDict, total=False):
    """What an `Asked` is read from."""

    answer: dict[str, JsonValue] | None
    failure: dict[str, JsonValue] | None
    votes: list[dict[str, JsonValue]]


async def ask(state: State) -> Update:
    """Ask the agent, and say who is to judge its answer."""
    pair = Pair.model_validate(state["pair"])
    try:
        answer = await agent(pair.agent).ask(
            pair.text, category=pair.category, context=pair.context, timeout_s=pair.timeout_s, retry=Retry()
        )
    except (CallFailed, DeadlineMissed) as error:
        return {"failure": Failure(code=_code(error), message=str(error)).model_dump(mode="json"), "judges": []}
    judges = judging.panel(pair.judged, pair.agent, agents()) if pair.judged and answer.text.strip() else ()
    return {"answer": answer.model_dump(mode="json"), "judges": list(judges)}


def dispatch(state: State) -> list[Send]:
    """One branch for each judge, all at once."""
    pair, answer = Pair.model_validate(state["pair"]), state.get("answer")
    if pair.judged is None or answer is None:
        return []
    task = judging.words(pair.text, Answer.model_validate(answer).text, pair.expected, pair.judged.rubric)
    return [Send("judge", Errand(judge=name, task=task, timeout_s=pair.timeout_s)) for name in state["judges"]]


async def judge(state: Errand) -> Update:
    """Ask one judge."""
    name = state["judge"]
    try:
        said = await agent(name).ask(
            state["task"], category=judging.CATEGORY, timeout_s=state["timeout_s"], retry=Retry()
        )
    except (CallFailed, DeadlineMissed) as error:
        vote = Vote(judge=name, score=None, reason=f"{_code(error)}: {error}"[:300])
    else:
        vote = judging.read_vote(name, said.text)
    return {"votes": [vote.model_dump(mode="json")]}


def _code(error: CallFailed | DeadlineMissed) -> str:
    return error.reason if isinstance(error, CallFailed) else error.code


@workflow(NAME, input=Input)
def evaluation() -> StateGraph[State, None, State, Output]:
    """Build the graph."""
    graph = StateGraph(State, output_schema=Output)
    graph.add_node("ask", ask)
    graph.add_node("judge", judge)
    graph.add_edge(START, "ask")
    graph.add_conditional_edges("ask", dispatch, ["judge"])
    graph.add_edge("judge", END)
    return graph
