"""What workflow authors import: an ordinary LangGraph graph whose nodes ask agents.

    from metier import agent, workflow

    @workflow("greet")
    def greet() -> StateGraph: ...

Names are loaded when they are first used, so that a role that runs no graphs does not load LangGraph.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metier_infra.errors import CallFailed, DeadlineMissed, LimitReached, SubRunFailed
    from metier_infra.words import AgentCard, Answer, Candidate, Decision, Limits, Task
    from metier_tools.declare import tool
    from metier_tools.profile import Egress, Profile
    from metier_tools.toolbox import Tool
    from metier_workflows.choosers import Chooser, Rule, Verdict, cascade, panel, route, rule
    from metier_workflows.node import Agent, Retry, agent, agents, decide, signal, sleep, sleep_until, subrun
    from metier_workflows.panel import Near, Synthesis, exact, numeric, plain, synthesise
    from metier_workflows.routing import choose, rank
    from metier_workflows.workflow import Workflow, workflow

_HOMES = {
    "metier_infra.errors": ("CallFailed", "DeadlineMissed", "LimitReached", "SubRunFailed"),
    "metier_infra.words": ("AgentCard", "Answer", "Candidate", "Decision", "Limits", "Task"),
    "metier_tools.declare": ("tool",),
    "metier_tools.profile": ("Egress", "Profile"),
    "metier_tools.toolbox": ("Tool",),
    "metier_workflows.choosers": ("Chooser", "Rule", "Verdict", "cascade", "panel", "route", "rule"),
    "metier_workflows.node": (
        *("Agent", "Retry", "agent", "agents", "decide"),
        *("signal", "sleep", "sleep_until", "subrun"),
    ),
    "metier_workflows.panel": ("Near", "Synthesis", "exact", "numeric", "plain", "synthesise"),
    "metier_workflows.routing": ("choose", "rank"),
    "metier_workflows.workflow": ("Workflow", "workflow"),
}

__all__ = [
    "Agent",
    "AgentCard",
    "Answer",
    "CallFailed",
    "Candidate",
    "Chooser",
    "DeadlineMissed",
    "Decision",
    "Egress",
    "LimitReached",
    "Limits",
    "Near",
    "Profile",
    "Retry",
    "Rule",
    "SubRunFailed",
    "Synthesis",
    "Task",
    "Tool",
    "Verdict",
    "Workflow",
    "agent",
    "agents",
    "cascade",
    "choose",
    "decide",
    "exact",
    "numeric",
    "panel",
    "plain",
    "rank",
    "route",
    "rule",
    "signal",
    "sleep",
    "sleep_until",
    "subrun",
    "synthesise",
    "tool",
    "workflow",
]


def __getattr__(name: str) -> object:
    """Load a public name from where it lives."""
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'metier' has no attribute {name!r}")
    return getattr(import_module(home), name)
