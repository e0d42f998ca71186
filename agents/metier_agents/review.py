"""Why an answer is not taken yet: pure functions over the message list, asked by the loop before it takes one."""

from __future__ import annotations

from metier_agents.citing import complaint
from metier_agents.reasoning import reflect
from metier_agents.spec import AgentSpec
from metier_agents.turns import History


def wanted(history: History, spec: AgentSpec) -> str | None:
    """What to tell the model before it answers again; None when its answer is to be taken."""
    return complaint(history, spec) or reflect(history, spec)
