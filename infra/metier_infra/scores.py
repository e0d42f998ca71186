"""How right agents were, in the order in which it was said: outcomes that somebody judged, joined to the decisions that they are about. `journal` puts it beside its other parts.

The orchestrator's `drifting` reads on from where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from metier_infra.database import Database
from metier_infra.words import Decision

_SINCE = (
    "SELECT outcomes.outcome_id, outcomes.agent, outcomes.score, outcomes.at, decisions.body FROM outcomes"
    " JOIN decisions ON decisions.run_id = outcomes.run_id"
    " WHERE outcomes.kind = 'explicit' AND (outcomes.decision_id = '' OR outcomes.decision_id = decisions.decision_id)"
    " AND (outcomes.at > :at OR (outcomes.at = :at AND outcomes.outcome_id > :outcome_id))"
    " AND (SELECT count(*) FROM decisions AS other WHERE other.run_id = outcomes.run_id AND outcomes.decision_id = '') <= 1"
    " ORDER BY outcomes.at, outcomes.outcome_id LIMIT :limit"
)
"""What is said of a whole run is of its one decision; where it made several, nobody knows which."""


@dataclass(frozen=True)
class Score:
    """That an agent's answer in a category was so right, 0 to 1. `at` is when it was told, seconds since the epoch; with the id it is where to read on."""

    agent: str
    category: str
    score: float
    at: float
    outcome_id: str


class Scores:
    """See the module."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def now_s(self) -> float:
        """What the journal's clock says."""
        return float((await self._db.read("SELECT :now AS now_s"))[0]["now_s"])

    async def since(self, at: float, outcome_id: str = "", *, limit: int = 1000) -> Sequence[Score]:
        """What was said after that; of whoever was asked alone, or whom it names."""
        rows = await self._db.read(_SINCE, {"at": at, "outcome_id": outcome_id, "limit": limit})
        found: list[Score] = []
        for row in rows:
            decision = Decision.model_validate_json(row["body"])
            agent = row["agent"] or (decision.chosen[0] if len(decision.chosen) == 1 else "")
            found.append(Score(agent, decision.category, float(row["score"]), float(row["at"]), row["outcome_id"]))
        return found
