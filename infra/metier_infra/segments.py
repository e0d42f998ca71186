"""The journal's record of how often a run was taken up again and parked. `journal` puts it beside its other parts.

It is kept for people and for tracing: nothing that a run does depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence

from metier_infra.database import Database, Statement
from metier_infra.words import RunId, Word


class Segment(Word):
    """A run in one replica, from its lease on. `traceparent` is the root of a trace that begins with it; None: it goes on in the one before.

    Of a run's first segment only `parked_at` is kept: it began when the run did. Times are seconds since the epoch.
    """

    epoch: int
    woken_by: str | None = None
    traceparent: str | None = None
    began_at: float | None = None
    parked_at: float | None = None


def parked(run_id: RunId, epoch: int) -> Statement:
    """Records that the segment left memory, where the run is parked by now: it goes beside the parking."""
    return Statement(
        "INSERT INTO segments (run_id, epoch, parked_at) SELECT run_id, epoch, parked_at FROM runs"
        " WHERE run_id = :run_id AND epoch = :epoch AND status = 'parked'"
        " ON CONFLICT (run_id, epoch) DO UPDATE SET parked_at = excluded.parked_at",
        {"run_id": run_id, "epoch": epoch},
    )


class Segments:
    """Segments, by run and epoch."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def began(self, run_id: RunId, epoch: int, *, woken_by: str, traceparent: str | None) -> None:
        """A run was taken up once more."""
        await self._db.write(
            Statement(
                "INSERT INTO segments (run_id, epoch, woken_by, traceparent, began_at)"
                " VALUES (:run_id, :epoch, :woken_by, :traceparent, :now) ON CONFLICT (run_id, epoch) DO NOTHING",
                {"run_id": run_id, "epoch": epoch, "woken_by": woken_by, "traceparent": traceparent},
            )
        )

    async def of_run(self, run_id: RunId) -> Sequence[Segment]:
        """The run's segments, in order."""
        rows = await self._db.read("SELECT * FROM segments WHERE run_id = :run_id ORDER BY epoch", {"run_id": run_id})
        return [Segment.model_validate(row) for row in rows]
