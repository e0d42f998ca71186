"""The answer that a message list comes to. The loop ends with it."""

from __future__ import annotations

from metier_agents.citing import cite
from metier_agents.spec import AgentSpec
from metier_agents.turns import History, ModelTurn, ToolTurn, of_kind, spent
from metier_infra.errors import LimitReached
from metier_infra.messages import Answer


def conclude(history: History, spec: AgentSpec, *, stopped: str = "answered") -> Answer:
    """The last answer in `history`, with its counts and cost. Raises `LimitReached` when a guard stopped the loop before any answer."""
    turns = of_kind(history, ModelTurn)
    answers = [turn for turn in turns if turn.purpose == "answer" and not turn.uses]
    if not answers:
        raise LimitReached(f"the agent {spec.name} was stopped before it had an answer: {stopped}")
    cost, known = spent(history)
    answer = Answer(
        text=answers[-1].answer,
        agent=spec.name,
        model=spec.model,
        policy=spec.policy.kind,
        confidence=answers[-1].confidence,
        stopped=stopped,
        model_turns=len(turns),
        tool_calls=sum(turn.tool_call_id is not None for turn in of_kind(history, ToolTurn)),
        cost_usd=cost,
        cost_known=known,
    )
    return cite(answer, history, spec)
