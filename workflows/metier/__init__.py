"""What workflow authors import: an ordinary LangGraph graph whose nodes ask agents.

from metier import agent, workflow

@workflow("greet")
def greet() -> StateGraph: ...
"""

from metier_infra.messages import AgentCard, Answer, Candidate, Decision, Task
from metier_workflows.node import Agent, agent, agents, decide
from metier_workflows.panel import Synthesis, plain, synthesise
from metier_workflows.routing import choose, rank
from metier_workflows.workflow import Workflow, workflow

__all__ = [
    "Agent",
    "AgentCard",
    "Answer",
    "Candidate",
    "Decision",
    "Synthesis",
    "Task",
    "Workflow",
    "agent",
    "agents",
    "choose",
    "decide",
    "plain",
    "rank",
    "synthesise",
    "workflow",
]
