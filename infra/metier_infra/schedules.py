"""Up to when each schedule was looked at, by the journal's clock, and the last run that it started. `journal` puts it beside its other parts.

`metier_workflows.schedules` decides by it; `metier schedules list` shows it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from metier_infra.database import Database, Statement
from metier_infra.rows import Run, run_of


class Schedules:
    """Seconds since the epoch, all by one clock, so that replicas whose own differ agree on what is due."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def now_s(self) -> float:
        """What the journal's clock says."""
        return float((await self._db.read("SELECT :now AS now_s"))[0]["now_s"])

    async def looked_at(self, names: Collection[str]) -> Mapping[str, float]:
        """Up to when each of these was looked at; one that is new was, up to now: what was due before is none of its business."""
        sql = "INSERT INTO schedules (name, looked_at) VALUES (:name, :now) ON CONFLICT (name) DO NOTHING"
        known = await self._known()
        if missing := sorted(set(names) - known.keys()):
            await self._db.write(*(Statement(sql, {"name": name}) for name in missing))
            known = await self._known()
        return {name: known[name] for name in names}

    async def _known(self) -> dict[str, float]:
        rows = await self._db.read("SELECT name, looked_at FROM schedules")
        return {row["name"]: float(row["looked_at"]) for row in rows}

    async def look(self, name: str, until_s: float) -> None:
        """All that was due until then is started; a clock that was set back takes nothing back."""
        sql = "UPDATE schedules SET looked_at = :until_s WHERE name = :name AND looked_at < :until_s"
        await self._db.write(Statement(sql, {"name": name, "until_s": until_s}))

    async def last_run(self, source: str) -> Run | None:
        """The run of the latest time that this source started: its event's id is the time."""
        rows = await self._db.read(
            "SELECT * FROM runs WHERE source = :source ORDER BY event_id DESC LIMIT 1", {"source": source}
        )
        return run_of(rows[0]) if rows else None
