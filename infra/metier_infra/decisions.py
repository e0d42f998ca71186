"""The journal's decisions: routing choices, kept with the run and with all that is needed to make them again. `journal` puts them beside its other parts.

The run's desk records them; the trace, `metier decisions` and whoever learns from outcomes read them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from metier_infra.database import Database, Row, Statement
from metier_infra.words import Decision, RunId, Slot, Wanted


@dataclass(frozen=True)
class Kept:
    """A decision as it is kept. `wanted` is None where a node decided itself; `at` is seconds since the epoch."""

    decision_id: str
    run_id: RunId
    decision: Decision
    wanted: Wanted | None
    at: float


class Decisions:
    """Routing choices, kept with the run."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def record(
        self,
        decision_id: str,
        run_id: RunId,
        decision: Decision,
        slot: Slot | None = None,
        wanted: Wanted | None = None,
    ) -> Decision:
        """Keep the decision unless one is kept under this id; the one that is kept. `slot` is where in the run it was made."""
        kept = await self._db.write(
            Statement(
                "INSERT INTO decisions (decision_id, run_id, slot, body, wanted, at) VALUES (:decision_id, :run_id, :slot, :body, :wanted, :now)"
                " ON CONFLICT (decision_id) DO NOTHING RETURNING body",
                {
                    "decision_id": decision_id,
                    "run_id": run_id,
                    "slot": json.dumps(slot) if slot else None,
                    "body": decision.model_dump_json(),
                    "wanted": wanted.model_dump_json() if wanted else None,
                },
            )
        )
        if kept[0]:
            return Decision.model_validate_json(kept[0][0]["body"])
        return await self.get(decision_id) or decision

    async def get(self, decision_id: str) -> Decision | None:
        """The decision, or None when none is kept under this id."""
        rows = await self._db.read("SELECT body FROM decisions WHERE decision_id = :id", {"id": decision_id})
        return Decision.model_validate_json(rows[0]["body"]) if rows else None

    async def kept(self, run_id: RunId) -> Sequence[Kept]:
        """The run's decisions, in order."""
        rows = await self._db.read(
            "SELECT * FROM decisions WHERE run_id = :run_id ORDER BY at, decision_id", {"run_id": run_id}
        )
        return [kept_of(row) for row in rows]

    async def of_run(self, run_id: RunId) -> Sequence[Decision]:
        """The same, the decisions alone."""
        return [one.decision for one in await self.kept(run_id)]


def kept_of(row: Row) -> Kept:
    """The decision in a row of the table."""
    wanted = Wanted.model_validate_json(row["wanted"]) if row["wanted"] else None
    decision = Decision.model_validate_json(row["body"])
    return Kept(row["decision_id"], RunId(row["run_id"]), decision, wanted, float(row["at"]))
