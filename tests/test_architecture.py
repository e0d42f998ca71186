"""What a role loads: each vendor only where it is used, so that the orchestrator needs no Docker and the worker no LangGraph.

Not here: who may import whom; import-linter holds that.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import pytest

HEAVY = ("kafka", "docker", "celery", "psycopg", "redis", "langchain", "langchain_openai", "langchain_anthropic")
LANGGRAPH = ("langgraph", "langchain_core")


@cache
def loaded(module: str) -> frozenset[str]:
    """The top-level packages that a fresh interpreter holds after importing `module`."""
    program = f"import {module}, sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    return frozenset(done.stdout.split())


INFRA = (
    "metier_infra.bus",
    "metier_infra.journal",
    "metier_infra.events",
    "metier_infra.messages",
    "metier_infra.service",
    "metier_infra.settings",
    "metier_infra.socket_bus",
    "metier_infra.sqlite_journal",
)
WORKFLOWS = ("metier_workflows.orchestrator", "metier_workflows.workflow", "metier.examples.specialists")
AGENTS = ("metier_agents.worker", "metier_agents.loop", "metier_agents.models", "metier_agents.spec")
FACE = ("metier", "metier.cli")


@pytest.mark.parametrize("module", [*INFRA, *WORKFLOWS, *AGENTS, *FACE])
def test_no_vendor_is_loaded_before_its_adapter_is_opened(module: str) -> None:
    assert loaded(module).isdisjoint(HEAVY), loaded(module) & set(HEAVY)


@pytest.mark.parametrize("module", [*INFRA, *AGENTS, *FACE])
def test_langgraph_is_loaded_only_where_graphs_run(module: str) -> None:
    assert loaded(module).isdisjoint(LANGGRAPH), loaded(module) & set(LANGGRAPH)


def test_the_check_sees_what_is_loaded() -> None:
    assert "kafka" in loaded("metier_infra.kafka_bus")
    assert "langgraph" in loaded("metier_workflows.orchestrator")


@pytest.mark.parametrize("module", ["metier_infra", "metier_workflows", "metier_agents", "metier_tools", "metier"])
def test_importing_a_package_prints_nothing(module: str) -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", f"import {module}"], capture_output=True, check=True, timeout=120)  # fmt: skip
    assert (done.stdout, done.stderr) == (b"", b"")
