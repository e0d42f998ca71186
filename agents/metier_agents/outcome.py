"""The answer that a message list comes to. The loop ends with it."""

from __future__ import annotations

from collections.abc import Sequence

from metier_agents.citing import cite
from metier_agents.spec import AgentSpec
from metier_agents.turns import Assessed, Compared, History, ModelTurn, ToolTurn, of_kind, spent
from metier_infra.errors import LimitReached, ModelMalformed
from metier_infra.words import Answer


def conclude(history: History, spec: AgentSpec, *, stopped: str = "answered") -> Answer:
    """The last answer in `history`, with its counts and cost.

    Raises `ModelMalformed` when a model that cannot be read was the end, and `LimitReached` when a guard stopped the loop before any answer.
    """
    turns = of_kind(history, ModelTurn)
    if stopped == "malformed":
        raise ModelMalformed(
            f"what {spec.model} wrote could not be read, for the third time; the last time: {_unread(turns)}"
        )
    answers = [turn for turn in turns if turn.purpose == "answer" and not turn.uses]
    if not answers:
        raise LimitReached(f"the agent {spec.name} was stopped before it had an answer: {stopped}")
    cost, known = spent(history)
    text, sure = _standing(history, answers[-1])
    answer = Answer(
        text=text,
        agent=spec.name,
        model=spec.model,
        policy=spec.policy.kind,
        confidence=sure,
        stopped=stopped,
        model_turns=len(turns),
        tool_calls=sum(turn.tool_call_id is not None for turn in of_kind(history, ToolTurn)),
        cost_usd=cost,
        cost_known=known,
    )
    return cite(answer, history, spec)


def _standing(history: History, last: ModelTurn) -> tuple[str, float | None]:
    """The last answer; or the model's own from before tools, where `appraisal` found that one the likelier and it was not thought over since."""
    since = [one for one in history if isinstance(one, Compared) or one is last]
    if isinstance(since[-1], Compared) and since[-1].keeps_own:
        assessed = of_kind(history, Assessed)[-1]
        return assessed.own_answer or "", assessed.own_confidence
    return last.answer, last.confidence


def _unread(turns: Sequence[ModelTurn]) -> str:
    problems = [f"the arguments of {use.tool}: {use.problem}" for turn in turns for use in turn.uses if use.problem]
    return problems[-1] if problems else "its assessment of the tools is no JSON object"
