"""Watches what outcomes say of agents, and tells operators where one has changed: a log line and a metric. The orchestrator's keeper calls it; `choosing.drift` judges.

Every orchestrator reads all outcomes of the last weeks when it starts and then what is new, so that each knows the same. Alarms are told for what is new.
"""

from __future__ import annotations

import structlog

from metier_infra import metrics
from metier_infra.journal import Journal
from metier_infra.scores import Score
from metier_workflows.choosing.drift import Drift

log = structlog.get_logger()

BACK_S = 30 * 86_400.0
"""What was said longer ago is not read at the start; seconds."""
PAGE = 1000
"""So many outcomes are read at once."""
MOST = 500
"""So many agents and categories are told apart; those that come later count as one, so that nobody can make more series."""


class Drifting:
    """One to an orchestrator."""

    def __init__(self, journal: Journal, page: int = PAGE) -> None:
        self._journal = journal
        self._page = page
        self._drift = Drift()
        self._known: set[tuple[str, str]] = set()
        self._at: tuple[float, str] | None = None
        self._began_at = 0.0

    async def look(self) -> None:
        """Take in what was said since the last time. Raises `JournalGone`."""
        if self._at is None:
            self._began_at = await self._journal.scores.now_s()
            self._at = (self._began_at - BACK_S, "")
        while True:
            new = await self._journal.scores.since(*self._at, limit=self._page)
            for one in new:
                self._see(one)
                self._at = (one.at, one.outcome_id)
            if len(new) < self._page:
                break
        for (agent, category), evidence in self._drift.evidence().items():
            metrics.level(metrics.DRIFT, evidence, {metrics.AGENT_NAME: agent, metrics.CATEGORY: category})

    def _see(self, one: Score) -> None:
        if not one.agent:
            return
        agent, category = self._place(one.agent, one.category)
        way = self._drift.see(agent, category, one.score)
        if way is None or one.at <= self._began_at:
            return
        log.warning("agent changed", action="look at it", agent=agent, category=category, way=way)
        labels = {metrics.AGENT_NAME: agent, metrics.CATEGORY: category, metrics.WAY: way}
        metrics.add(metrics.DRIFT_ALARMS, 1, labels)

    def _place(self, agent: str, category: str) -> tuple[str, str]:
        if (agent, category) not in self._known and len(self._known) >= MOST:
            return agent, metrics.OTHER
        self._known.add((agent, category))
        return agent, category
