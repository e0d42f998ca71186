"""Where an evaluation runs: every role in this process, or a system that runs already. `cli_eval` opens it.

In one process, the journal lies in the folder of the results, and the roles bear a fixed name: an evaluation that was killed takes its own runs up
at once. A container engine is asked for only where something needs it: an agent with tools, or code to score.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from metier import client, compose, compose_tools, configuration, roles
from metier.configuration import Config, System
from metier.eval_scoring import TOOL, Sandboxed, Scoring
from metier_infra.errors import MissingService, UnknownAgent
from metier_infra.words import AgentCard
from metier_tools.lane import ToolLane
from metier_workflows.evaluating import asking
from metier_workflows.evaluating.results import JOURNAL

INSTANCE = "eval"


@dataclass(frozen=True)
class Wanted:
    """What an evaluation needs of its system.

    Attributes:
        folder: where its results lie.
        evaluation: its id.
        agents: whom it asks, judges among them.
        code: whether it has code to score.
        parallel: pairs under way at one time.
        distributed: whether a system that runs already is used.
    """

    folder: Path
    evaluation: str
    agents: Collection[str]
    code: bool
    parallel: int
    distributed: bool


@asynccontextmanager
async def opened(config: Config, wanted: Wanted) -> AsyncGenerator[tuple[System, Scoring]]:
    """The system, and what scores answers there. Raises `MissingService` and whatever opening a part of it raises."""
    context = _running(config, wanted) if wanted.distributed else _embedded(config, wanted)
    async with context as found:
        yield found


def check_agents(config: Config, agents: Collection[str]) -> dict[str, AgentCard]:
    """What is known of the agents. Raises `UnknownAgent` for a name that no agent file has."""
    specs = compose.agent_specs(config)
    for name in sorted(set(agents) - specs.keys()):
        raise UnknownAgent(f"no agent is called {name!r}; there are: {', '.join(sorted(specs))}")
    return compose.cards(config, specs, compose.bundles(config, specs))


@asynccontextmanager
async def _embedded(config: Config, wanted: Wanted) -> AsyncGenerator[tuple[System, Scoring]]:
    check_agents(config, wanted.agents)
    sandboxed: list[Sandboxed] = []
    specs = compose.agent_specs(config)
    contained = wanted.code or any(specs[name].tools for name in wanted.agents)

    async def lane(alone: Config) -> ToolLane:
        opener = compose_tools.open_inline_lane if contained else compose_tools.scripted_lane()
        made = await opener(alone)
        sandboxed.append(_sandboxed(alone, made, wanted))
        return made

    role = config.role.model_copy(
        update={
            "instance": INSTANCE,
            "workflows": asking.MODULE,
            "progress": "none",
            "schedules": None,
            "concurrency": max(config.role.concurrency, wanted.parallel),
        }
    )
    async with roles.embedded(replace(config, role=role), journal=wanted.folder / JOURNAL, lane=lane) as system:
        yield system, Scoring(sandboxed[0] if wanted.code else None)


@asynccontextmanager
async def _running(config: Config, wanted: Wanted) -> AsyncGenerator[tuple[System, Scoring]]:
    async with client.connect(config) as system:
        if not wanted.code:
            yield system, Scoring()
            return
        alone = config if config.distributed else configuration.standalone(config)
        lane = compose_tools.open_lane(alone) if alone.distributed else await compose_tools.open_inline_lane(alone)
        try:
            yield system, Scoring(_sandboxed(alone, lane, wanted))
        finally:
            await lane.close()


def _sandboxed(config: Config, lane: ToolLane, wanted: Wanted) -> Sandboxed:
    spec = compose_tools.toolbox(config).spec(TOOL)
    if spec is None:
        raise MissingService(f"there is no tool {TOOL}, in which code is scored")
    return Sandboxed(
        lane, compose_tools.grant_key(config), spec, wanted.evaluation, slots=max(1, config.sandbox.limit // 2)
    )
