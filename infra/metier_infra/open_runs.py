"""The journal's view of all runs that have not ended: how many there are, and which wait the longest. `journal` puts it beside its other parts.

The orchestrator shows it as metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from metier_infra.database import Database

_COUNT = (
    "SELECT status, count(*) AS n FROM runs WHERE announced = 0 AND status IN ('accepted', 'running', 'parked')"
    " GROUP BY status"
)
_BEGAN = (
    "coalesce((SELECT began_at FROM segments WHERE segments.run_id = runs.run_id AND segments.epoch = runs.epoch),"
    " started_at, accepted_at)"
)
_LAST_SIGN = (
    "(SELECT max(at) FROM (SELECT BEGAN AS at"
    " UNION ALL SELECT max(coalesce(answered_at, nullif(taken_at, 0), requested_at)) FROM calls WHERE calls.run_id = runs.run_id"
    " UNION ALL SELECT max(at) FROM steps WHERE call_id IN"
    " (SELECT call_id FROM calls WHERE calls.run_id = runs.run_id AND answered_at IS NULL)) AS signs)"
).replace("BEGAN", _BEGAN)
_FIRST_NEWS = (
    "(SELECT min(at) FROM (SELECT wake_at AS at"
    " UNION ALL SELECT min(answered_at) FROM calls WHERE calls.run_id = runs.run_id AND calls.awaited = runs.epoch"
    " UNION ALL SELECT min(ended_at) FROM waits WHERE waits.run_id = runs.run_id AND waits.awaited = runs.epoch"
    " UNION ALL SELECT min(child.finished_at) FROM runs AS child WHERE child.parent = runs.run_id"
    " AND child.awaited = runs.epoch) AS news)"
)
"""Since when a parked run should be up again: a time was over, or something ended that it waits for."""
_LONGEST = (
    (
        "SELECT status, max(:now - since) AS age_s, max(:now - sign) AS quiet_s FROM (SELECT status,"
        " CASE status WHEN 'accepted' THEN accepted_at WHEN 'running' THEN BEGAN ELSE parked_at END AS since,"
        " CASE status WHEN 'accepted' THEN accepted_at WHEN 'running' THEN LAST_SIGN ELSE FIRST_NEWS END AS sign"
        " FROM runs WHERE announced = 0 AND status IN ('accepted', 'running', 'parked') ORDER BY accepted_at LIMIT :limit"
        ") AS longest GROUP BY status"
    )
    .replace("BEGAN", _BEGAN)
    .replace("LAST_SIGN", _LAST_SIGN)
    .replace("FIRST_NEWS", _FIRST_NEWS)
)


@dataclass(frozen=True)
class Open:
    """The runs of one state.

    Attributes:
        runs: how many.
        age_s: how long the one that has been in the state longest is in it; seconds.
        quiet_s: how long nothing has happened to the one that waits longest; of parked runs, since one should be up again. Seconds.
    """

    runs: int = 0
    age_s: float = 0.0
    quiet_s: float = 0.0


class OpenRuns:
    """See the module."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def by_state(self, limit: int = 1000) -> Mapping[str, Open]:
        """What there is, by state. Of the times, only those of the `limit` runs that were accepted first are looked at."""
        counts = {row["status"]: int(row["n"]) for row in await self._db.read(_COUNT)}
        longest = {row["status"]: row for row in await self._db.read(_LONGEST, {"limit": limit})}
        return {
            state: Open(runs, *(_seconds(longest.get(state, {}).get(name)) for name in ("age_s", "quiet_s")))
            for state, runs in counts.items()
        }


def _seconds(found: float | None) -> float:
    return max(0.0, found or 0.0)
